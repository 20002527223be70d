"""What a session offers, and how an address that leads to no cluster is refused."""

import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import ray
from helpers.network import listening, nodes_told

from cifar_ray.distributed.hardware import Hardware, Node, plan_workers
from cifar_ray.distributed.session import ANSWER_S, cluster_address
from cifar_ray.errors import InputError


def hardware_of(*nodes: Node) -> Hardware:
    return Hardware("cpu", "a processor", sum(n.num_cpus for n in nodes), sum(n.num_gpus for n in nodes), nodes)


@pytest.mark.parametrize(
    ("nodes", "cpus_per_trial", "gpus_per_trial", "slots"),
    [
        ([Node(4, 0)], 1, 0, 4),
        ([Node(4, 0)], 3, 0, 1),
        ([Node(3, 0), Node(3, 0)], 2, 0, 2),  # a third trial of 2 CPUs would span the nodes
        ([Node(1, 0), Node(1, 0)], 2, 0, 0),
        ([Node(8, 2)], 1, 1, 2),
        ([Node(2, 8)], 1, 1, 2),
        ([Node(8, 2)], 1, 0, 8),
        ([Node(16, 0), Node(4, 1)], 2, 1, 1),  # CPUs without a GPU run no trial that needs one
        ([Node(8, 1), Node(8, 3)], 4, 1, 3),
        ([Node(8, 1)], 1, 0.25, 4),
    ],
)
def test_a_trial_takes_its_slot_on_one_node(
    nodes: list[Node], cpus_per_trial: int, gpus_per_trial: float, slots: int
) -> None:
    hardware = hardware_of(*nodes)
    assert hardware.slots(cpus_per_trial, gpus_per_trial) == slots


def test_workers_are_planned_from_what_the_hardware_has() -> None:
    gpus = hardware_of(Node(8, 2), Node(4, 1))
    planned = plan_workers(gpus, 2, None, 1, "")
    assert (planned.num_workers, planned.num_groups, planned.device) == (3, 3, "cuda")
    assert planned.resources == {"CPU": 2, "GPU": 1}
    planned = plan_workers(gpus, 1, 0, 5, "--workers")
    assert (planned.num_workers, planned.num_groups, planned.device) == (12, 2, "cpu")
    cpus = hardware_of(Node(4, 0))
    assert plan_workers(cpus, 1, None, 1, "").resources == {"CPU": 1, "GPU": 0}
    with pytest.raises(InputError, match="--gpus-per-trial: 1 GPUs are more than the 0 there are"):
        plan_workers(cpus, 1, 1, 1, "")
    with pytest.raises(InputError, match="--gpus-per-trial: a trial uses at most 1 GPU, not 2"):
        plan_workers(gpus, 1, 2, 1, "")
    with pytest.raises(InputError, match="--cpus-per-trial: no node has 5 CPUs for a trial"):
        plan_workers(cpus, 5, 0, 1, "")
    with pytest.raises(InputError, match="--workers: 5 workers are more than the 4 that fit on 4 CPUs and 0 GPUs"):
        plan_workers(cpus, 1, 0, 5, "--workers")


def test_a_private_session_offers_this_machine(hardware: Any) -> None:
    assert hardware.nodes == (Node(2, 0),)
    assert (hardware.kind, hardware.num_cpus, hardware.num_gpus) == ("cpu", 2, 0)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "model name" in cpuinfo.read_text():
        assert hardware.name in cpuinfo.read_text()


def test_a_private_session_listens_on_loopback_alone(hardware: Any) -> None:
    ray.get(ray.remote(num_cpus=0)(lambda: None).remote())  # so that there is a worker
    found = listening()
    assert len(found) >= 6 and {ip for ip, _ in found} <= {"127.0.0.1", "::1"}
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family == socket.AF_INET and not one.address.startswith("127."):
                for _, port in found:
                    with pytest.raises(ConnectionRefusedError):
                        socket.create_connection((one.address, port), timeout=ANSWER_S)


def test_a_private_session_answers_only_those_who_have_its_token(hardware: Any) -> None:
    address = ray.get_runtime_context().gcs_address
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert nodes_told(address, token.read_text()) == 1
    assert nodes_told(address) is nodes_told(address, "wrong") is grpc.StatusCode.UNAUTHENTICATED


def test_the_token_of_a_private_session_is_in_its_file_alone(hardware: Any) -> None:
    path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    token = path.read_text()
    assert len(token) == 64 and path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            assert token not in " ".join(process.cmdline()) and token not in process.environ().values()
    files = [file for file in path.parent.rglob("*") if file.is_file() and file != path]
    assert files and not [file for file in files if token.encode() in file.read_bytes()]


@pytest.mark.slow
def test_sessions_of_one_process_have_tokens_of_their_own_and_leave_the_environment_as_it_was() -> None:
    code = """
import os, ray
from cifar_ray.distributed.session import ray_session
from cifar_ray.distributed.session import temporary_folder
from helpers.network import listening, nodes_told

# Not ours: Ray points it at its debugger in every session, and a process that had a session hands it on to this one.
os.environ.pop("PYTHONBREAKPOINT", None)
before, tokens = dict(os.environ), set()
for _ in range(2):
    with temporary_folder() as folder, ray_session(folder, num_cpus=1):
        token = (folder / "auth_token").read_text()
        print(nodes_told(ray.get_runtime_context().gcs_address, token), {ip for ip, _ in listening()})
        tokens.add(token)
    os.environ.pop("PYTHONBREAKPOINT", None)
    print(dict(os.environ) == before, ray._private.ray_constants.ENABLE_RAY_CLUSTER)
print(len(tokens))
"""
    # Somebody may be about to join a cluster that has a token.
    env = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a cluster's",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split("\n") == ["1 {'127.0.0.1'}", "True True"] * 2 + ["2", ""], done.stdout + done.stderr


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine that nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def web_port() -> Iterator[int]:
    """The port of a web server, such as Ray's dashboard is."""
    with http.server.HTTPServer(("", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize("address", ["", "local"])
def test_without_an_address_the_session_is_private(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster_address() is None


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "head", "head:", ":6379", "head:port"])
def test_only_the_address_of_a_gcs_is_taken(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=f"must be auto or HOST:PORT .*, not '{address}'; .*`ray job submit`"):
        cluster_address()


def test_a_port_that_is_closed_or_not_rays_is_refused(
    monkeypatch: pytest.MonkeyPatch, closed_port: int, web_port: int
) -> None:
    for address in (f"127.0.0.1:{closed_port}", f"127.0.0.1:{web_port}", "no-such-host.invalid:6379"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(InputError, match="nothing there answers as a Ray cluster does"):
            cluster_address()


def test_a_dead_address_is_one_line_and_leaves_no_run_folder(
    refused: Callable[..., str], tmp_path: Path, closed_port: int
) -> None:
    line = refused("tune", "--data", "digits", "--address", f"127.0.0.1:{closed_port}")
    assert line.startswith("--address: cannot join")
    assert str(closed_port) in line
    assert not (tmp_path / "runs").exists()

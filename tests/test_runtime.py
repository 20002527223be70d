"""What a session offers, and how an address that leads to no cluster is refused."""

import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cifar_ray.config import InputError
from cifar_ray.runtime import Hardware, Node, cluster_address


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
    assert hardware.resources(cpus_per_trial, gpus_per_trial) == {"CPU": cpus_per_trial, "GPU": gpus_per_trial}


def test_a_private_session_offers_this_machine(hardware: Any) -> None:
    assert hardware.nodes == (Node(2, 0),)
    assert (hardware.kind, hardware.num_cpus, hardware.num_gpus) == ("cpu", 2, 0)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "model name" in cpuinfo.read_text():
        assert hardware.name in cpuinfo.read_text()


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

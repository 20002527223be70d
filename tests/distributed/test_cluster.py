"""Runs on a real cluster: a head without CPUs, and a node that sees neither the checkout nor the driver's files."""

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import launcher

import cifar_ray
from cifar_ray.distributed.hardware import _processor_name

pytestmark = pytest.mark.xdist_group("cluster")
CHECKOUT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SMALL = ["--space", "cnn", "--data", "digits", "--train-size", "300", "--trials", "2", "--max-epochs", "1"]
SMALL += ["--finalists", "1", "--final-seeds", "1"]

HIDE = """
cd "$PREFIX" && mount -t tmpfs tmpfs /tmp && mkdir -p "$PREFIX" && mount --no-canonicalize --bind . "$PREFIX" &&
mkdir -p "$PACKAGE" && mount -t tmpfs tmpfs "$PACKAGE" && cd / && exec "$@"
"""
"""For a shell in a mount namespace of its own: an empty /tmp that has Python alone, an empty package folder."""


def namespaces(*options: str) -> list[str]:
    """A command's prefix that gives it Linux namespaces of its own; skips the test where that is not permitted."""
    prefix = ["unshare", "--map-root-user", *options]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip(f"{shlex.join(prefix)} is not permitted here")
    return prefix


def alone() -> list[str]:
    """A command's prefix that shows it no other process, and so no Ray that runs on this machine."""
    return namespaces("--pid", "--fork", "--mount-proc")


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass
class Cluster:
    address: str
    dashboard: str
    env: dict[str, str]
    """Of every process of the cluster, and of those who use it."""
    home: Path
    node_root: Path = Path()
    """The file system as the node sees it."""

    def num_nodes(self) -> int:
        request = urllib.request.Request(
            f"{self.dashboard}/api/v0/nodes", headers={"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                nodes = json.load(reply)["data"]["result"]["result"]
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return sum(node["state"] == "ALIVE" for node in nodes)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs and a node with one, with token authentication and ports and folders of their own."""
    hidden = namespaces("--mount")
    port, dashboard_port, *ports = free_ports(5)
    # Not below pytest's folder: the paths of sockets may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="cluster_", dir="/tmp"))
    home = folder / "home"
    home.mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_raylet_start_wait_time_s": "120",  # a busy machine may take longer than 30 s
        "HOME": str(home),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PREFIX": sys.prefix,
        "PACKAGE": str(Path(cifar_ray.__file__).parent),
    }
    started = Cluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard_port}", env, home)
    common = ["--block", "--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0"]
    head = [f"{BIN}/ray", "start", "--head", f"--port={port}", f"--dashboard-port={dashboard_port}", "--num-cpus=0"]
    head += [f"--dashboard-agent-listen-port={ports[0]}", f"--ray-client-server-port={ports[1]}"]
    node = [*hidden, "sh", "-c", HIDE, "sh", f"{BIN}/ray", "start", f"--address={started.address}", "--num-cpus=1"]
    node += [f"--dashboard-agent-listen-port={ports[2]}"]
    processes: list[subprocess.Popen[bytes]] = []
    with (folder / "log").open("wb") as log:

        def start(*command: str) -> None:
            processes.append(
                subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder, start_new_session=True)
            )

        try:
            start(*head, *common, f"--temp-dir={folder}/head")
            wait_until(lambda: started.num_nodes() == 1, processes, folder / "log")
            start(*node, *common, "--temp-dir=/tmp/node")
            wait_until(lambda: started.num_nodes() == 2, processes, folder / "log")
            started.node_root = Path(f"/proc/{processes[-1].pid}/root")
            assert not list((started.node_root / env["PACKAGE"][1:]).iterdir())  # what it imports has to be sent to it
            assert not list(started.node_root.glob(f"{folder}/head"[1:]))
            yield started
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=15)
            for process in processes:
                kill_session(process.pid)
            shutil.rmtree(folder, ignore_errors=True)


def wait_until(condition: Any, processes: list[Any], log: Path) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        ended = [process for process in processes if process.poll() is not None]
        assert not ended and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def kill_session(leader: int) -> None:
    """Kill what is left of a process that was started in a session of its own: Ray's workers leave its group."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(entry.name)) == leader:
                os.kill(int(entry.name), signal.SIGKILL)


@dataclass
class Ended:
    """A command that has ended."""

    returncode: int
    out: str
    err: str


@pytest.fixture(scope="module")
def runs(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Ended]]:
    """Three runs that share one CPU, two identical submissions and one that joins; and the folder they started in.

    All at once, since they mostly wait for one process after another to start.
    """
    folder = tmp_path_factory.mktemp("driver")
    submit = [f"{BIN}/ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", str(CHECKOUT), "--"]
    submit += ["python", "-m", "cifar_ray.tune", *SMALL]
    join = [*SMALL, "--address", cluster.address, "--name", "joined"]
    processes = [
        subprocess.Popen(submit, cwd=folder, env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    processes.append(launcher.start("tune", *join, folder=folder, env=cluster.env))
    try:
        # The output of each is small enough to wait in its pipe.
        return folder, [Ended(process.wait(timeout=900), *process.communicate()) for process in processes]
    finally:
        for process in processes:
            process.kill()  # what is left of them if one took too long


@pytest.mark.slow
def test_two_identical_submissions_end_in_reports_of_their_own(cluster: Cluster, runs: Any) -> None:
    reports = set()
    for job in runs[1][:2]:
        assert job.returncode == 0, job.out + job.err
        [report] = re.findall(r"^report +(/.*/report\.html)$", job.out, re.MULTILINE)
        reports.add(Path(report))
    assert len(reports) == 2
    for report in reports:
        assert report.parent.parent == cluster.home / "cifar_ray_runs"
        assert "default" in report.read_text()
        assert json.loads((report.parent / "run.json").read_text())["end"]


@pytest.mark.slow
def test_a_run_that_joins_leaves_its_records_here_and_the_cluster_running(cluster: Cluster, runs: Any) -> None:
    folder, [*_, joined] = runs
    assert joined.returncode == 0, joined.out + joined.err
    assert joined.err == ""
    assert (folder / "runs" / "joined" / "report.html").exists()
    device = json.loads((folder / "runs" / "joined" / "run.json").read_text())["device"]
    assert device["nodes"] == [{"num_cpus": 1, "num_gpus": 0}]  # the head has no CPUs, and counts nothing
    assert (device["num_cpus"], device["num_gpus"], device["slots"]) == (1, 0, 1)
    assert device["name"] == _processor_name()  # as the node says, which runs on this machine too
    assert not list(cluster.node_root.glob("tmp/cifar_ray_*"))  # the driver's folder for Ray's own files
    assert cluster.num_nodes() == 2


def refusal(cluster: Cluster, prefix: list[str], address: str, **env: str | None) -> str:
    """What `cluster_address` says in a process with `env` beside the cluster's own (None takes a variable away)."""
    code = """
from cifar_ray.errors import InputError
from cifar_ray.distributed.session import cluster_address
try:
    print("joined", cluster_address())
except InputError as error:
    print(error)
"""
    wanted = cluster.env | {"RAY_ADDRESS": address} | env
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code],
        cwd=CHECKOUT,
        env={name: value for name, value in wanted.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_missing_or_wrong_token_is_told(cluster: Cluster) -> None:
    at = f"--address: cannot join the Ray cluster at .*:{cluster.address.split(':')[1]}: "
    for env in ({"RAY_AUTH_TOKEN": "wrong"}, {"RAY_AUTH_MODE": None}, {"RAY_AUTH_MODE": "disabled"}):
        said = refusal(cluster, [], cluster.address, **env)
        assert re.fullmatch(f"{at}it asks for its token; set RAY_AUTH_MODE=token, .*", said)
    assert re.fullmatch(
        f"{at}.* token, but there is none; .*", refusal(cluster, [], cluster.address, RAY_AUTH_TOKEN=None)
    )


def test_a_machine_that_is_no_node_of_the_cluster_is_told(cluster: Cluster) -> None:
    assert "this machine is no node of it; use `ray job submit`" in refusal(cluster, alone(), cluster.address)


def test_auto_finds_the_cluster_that_was_started_here_last(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    last = tmp_path / "ray" / "ray_current_cluster"  # where `ray start` notes it below RAY_TMPDIR
    assert "auto finds no Ray cluster on this machine" in refusal(cluster, alone(), "auto", RAY_TMPDIR=str(tmp_path))
    last.write_text(f"127.0.0.1:{free_ports(1)[0]}")
    assert "nothing there answers" in refusal(cluster, alone(), "auto", RAY_TMPDIR=str(tmp_path))
    last.write_text(cluster.address)
    # With `auto`, Ray takes the token from the user's home.
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(cluster.env["RAY_AUTH_TOKEN"])
    of_the_user = {"HOME": str(tmp_path), "RAY_AUTH_MODE": None, "RAY_AUTH_TOKEN": None}
    said = refusal(cluster, [], "auto", RAY_TMPDIR=str(tmp_path), **of_the_user)
    assert re.fullmatch(f"joined .*:{cluster.address.split(':')[1]}", said)

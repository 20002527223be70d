"""What is used of Ray beyond its public interface: this version still has it, and nothing else reaches in there."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.exceptions import ActorDiedError

from cifar_ray.distributed import ray_internals
from cifar_ray.distributed.session import ANSWER_S

REPOSITORY = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def told(name: str) -> Iterator[None]:
    """Say what to do about it where Ray has no longer what a function of `ray_internals` takes from it."""
    try:
        yield
    except (ImportError, AttributeError, TypeError) as error:
        pytest.fail(f"Ray {ray.__version__} has changed what ray_internals.{name} uses; adapt that function: {error}")


def test_nothing_else_reaches_into_ray() -> None:
    internal = re.compile(r"^\s*(from|import) ray\.(_|core\b|\S+\._)|\bray\._|\.(_brackets|_rungs|_trial_info)\b", re.M)
    package = REPOSITORY / "cifar_ray"
    reaching = [str(path.relative_to(package)) for path in package.rglob("*.py") if internal.search(path.read_text())]
    assert reaching == ["distributed/ray_internals.py"], "put it into ray_internals, with its reason and a test"


@pytest.mark.parametrize(
    ("quota", "runs_on", "expected"), [(None, 64, 4), (2, 64, 2), (2.5, 64, 2), (0.5, 64, 1), (3, 1, 1)]
)
def test_the_cpus_are_those_of_the_containers_quota_and_of_what_the_process_may_run_on(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, runs_on: int, expected: int
) -> None:
    monkeypatch.setattr("multiprocessing.cpu_count", lambda: 4)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(runs_on)), raising=False)
    with told("num_cpus_here"):
        monkeypatch.setattr("ray._private.utils._get_docker_cpus", lambda: quota)
        assert ray_internals.num_cpus_here() == expected


@pytest.mark.parametrize(("version", "expected"), [(1, 1.5), (2, 1.5)])
def test_ray_reads_the_quotas_of_both_versions_of_cgroups(tmp_path: Path, version: int, expected: float) -> None:
    files = {1: {"quota": "150000", "period": "100000"}, 2: {"max": "150000 100000"}}[version]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "cpuset").write_text("0-3")
    with told("num_cpus_here"):
        from ray._private.utils import _get_docker_cpus

        found = _get_docker_cpus(*(str(tmp_path / name) for name in ("quota", "period", "cpuset", "max")))
    assert found == expected


def test_settings_and_tokens_are_read_again_and_a_token_in_the_home_counts(tmp_path: Path) -> None:
    code = """
import os
from pathlib import Path
os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="1", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="first")
import ray
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
from cifar_ray.distributed.ray_internals import accept_token_in_home, read_environment_again

def seen():
    return ray.util.get_node_ip_address(), get_auth_headers_if_auth_enabled({})

print(*seen())
os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_AUTH_TOKEN="second")
read_environment_again()
print(*seen())
del os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]
read_environment_again()
print(*seen())
(Path.home() / ".ray").mkdir()
(Path.home() / ".ray" / "auth_token").write_text("third")
read_environment_again()
accept_token_in_home()
print(*seen())
"""
    env = {**os.environ, "HOME": str(tmp_path)}
    env.pop("RAY_AUTH_TOKEN_PATH", None)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=120)
    first, *others = done.stdout.splitlines() or [""]
    sent = "127.0.0.1 {{'authorization': 'Bearer {}'}}"
    assert first.endswith(" {'authorization': 'Bearer first'}") and others == [
        sent.format("second"),
        "127.0.0.1 {}",
        sent.format("third"),
    ], (
        f"Ray {ray.__version__} keeps its settings or tokens where ray_internals.read_environment_again and "
        f"accept_token_in_home do not reach: {done.stdout}{done.stderr}"
    )


def test_the_address_of_a_cluster_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with told("resolve_address"):
        assert ray_internals.resolve_address("10.0.0.2:1") == "10.0.0.2:1"
        found = ray_internals.resolve_address("auto")
    # Or that of the only session which runs on this machine: test_cluster looks where there is none.
    assert re.fullmatch(r"[\w.]+:\d+", found)


def test_a_cluster_tells_its_nodes_and_this_machine_knows_which_run_here(hardware: object) -> None:
    context = ray.get_runtime_context()
    with told("alive_node_ids"):
        assert ray_internals.alive_node_ids(context.gcs_address, ANSWER_S) == {context.get_node_id()}
    with told("node_ids_here"):
        assert context.get_node_id() in ray_internals.node_ids_here()


def test_a_submitted_job_is_told_by_what_ray_hands_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with told("is_submitted_job"):
        assert not ray_internals.is_submitted_job()
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
        assert ray_internals.is_submitted_job()


def test_a_worker_that_is_lost_is_told_from_one_that_raised() -> None:
    # That it is what Ray raises for a worker that is killed, is seen where one is (test_pool).
    with told("is_lost_worker"):
        from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

        assert ray_internals.is_lost_worker(WorkerHealthCheckFailedError("no answer", ActorDiedError()))
        assert not ray_internals.is_lost_worker(RuntimeError("a loss that is not finite"))

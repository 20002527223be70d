"""What is used of Ray beyond its public interface, each with the reason; nothing else in the package reaches in there.

Every function imports what it needs by itself: what another version of Ray has moved breaks that function and its test
in `tests/distributed/test_ray_internals.py`, not all that stands here.
"""

import os

import psutil


def read_environment_again() -> None:
    """Have Ray see in this process, too, what has changed in the environment since it was imported.

    Ray reads its settings once a process, but a private session needs some of its own (no address but loopback's, a new
    token), and the next session others. What it starts inherits the environment; this process has to be told.
    """
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    ray_constants.ENABLE_RAY_CLUSTER = ray_constants.env_bool(
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, not ray_constants.IS_WINDOWS_OR_OSX
    )
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def num_cpus_here() -> int:
    """CPUs that this process may use, at least one: of a container's quota (cgroup 1 or 2) what is whole.

    `ray.init` counts them so too, but takes no notice of which CPUs the process may run on (as `taskset` sets it, and
    batch systems do), and makes no CPU of half of one.
    """
    from ray._private.utils import get_num_cpus

    quota = int(get_num_cpus(override_docker_cpu_warning=True))
    runs_on = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else quota
    return max(1, min(quota, runs_on))


def free_memory_here() -> float:
    """Bytes that this machine has left, or the container (cgroup 1 or 2) that this process is in, if that is less."""
    from ray._private.utils import get_system_memory, get_used_memory

    return float(min(psutil.virtual_memory().available, get_system_memory() - get_used_memory()))


def accept_token_in_home() -> None:
    """Let a token in the user's home count, unless RAY_AUTH_MODE says otherwise.

    `ray.init(address="auto")` does so by itself, but a cluster is asked who it is before that.
    """
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def resolve_address(wanted: str) -> str:
    """Return HOST:PORT of a cluster, as `ray.init` makes it of `auto` or of an address, without joining it.

    Raises:
        ConnectionError: it is `auto`, and this machine runs no cluster, or several.
    """
    from ray._private import services

    address: str = services.canonicalize_bootstrap_address_or_die(wanted)
    return address


def alive_node_ids(address: str, timeout_s: float) -> set[str]:
    """Ask a cluster for its nodes, in hexadecimal.

    Whatever is public of Ray waits 20 to 60 s for a cluster that is not there, and ends the process with some errors.

    Raises:
        ray.exceptions.AuthenticationError: this process is to send a token, and has none.
        grpc.RpcError: there is no cluster, or it refuses the token.
    """
    from ray._private import ray_constants
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[attr-defined]
    from ray.core.generated.gcs_service_pb2 import GetAllNodeInfoRequest  # type: ignore[attr-defined]
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    channel = init_grpc_channel(address, options=ray_constants.GLOBAL_GRPC_OPTIONS)
    try:
        answer = NodeInfoGcsServiceStub(channel).GetAllNodeInfo(GetAllNodeInfoRequest(), timeout=timeout_s)
    finally:
        channel.close()
    return {node.node_id.hex() for node in answer.node_info_list if node.state == GcsNodeInfo.ALIVE}


def node_ids_here() -> set[str]:
    """Ids of the nodes that run on this machine; before a session has begun, nothing public tells them."""
    from ray._private import services

    found: set[str] = services.find_node_ids()
    return found


def is_submitted_job() -> bool:
    """Whether `ray job submit` started this process: what its workers need is then settled, and `ray.init` adds to it.

    Nothing public tells a job's driver that it is one before it has called `ray.init`.
    """
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    return RAY_JOB_CONFIG_JSON_ENV_VAR in os.environ


def is_lost_worker(error: Exception) -> bool:
    """Whether Ray Train reports with this error that a worker's process is gone; the class is not exported."""
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return isinstance(error, WorkerHealthCheckFailedError)

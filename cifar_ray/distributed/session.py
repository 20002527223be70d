"""Ray: a private session on this machine, or a running cluster that is joined; quiet, and left again in any case."""

import contextlib
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Ray reads these when it is imported or when its processes start. On a cluster, Tune and Train hand on those that their
# workers read.
os.environ.update(
    # Trials use absolute paths and leave nothing behind: no need to move them into a folder of their own.
    RAY_CHDIR_TO_TRIAL_DIR="0",
    # This project writes its own records and TensorBoard events.
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
    # A trial that fails reports why, without a metric.
    TUNE_DISABLE_STRICT_METRIC_CHECKING="1",
    # The study is the record of a search; Tune's own snapshots are not used.
    TUNE_GLOBAL_CHECKPOINT_S="86400",
    # Start-up and shut-down of Ray Train: 13 s instead of 22 s.
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0",
    RAY_TRAIN_METRICS_ENABLED="0",
    RAY_TRAIN_ENABLE_PRINT_PATCH="0",
    # Final training waits for what other runs on a cluster hold, as trials do, and does not fail after a few minutes.
    RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="86400",
    RAY_USAGE_STATS_ENABLED="0",
)

import grpc
import ray
from ray.exceptions import AuthenticationError

import cifar_ray
from cifar_ray.distributed import ray_internals
from cifar_ray.distributed.hardware import Hardware, find_hardware
from cifar_ray.errors import InputError

ANSWER_S = 3.0
"""How long a cluster has to answer. Ray itself would wait 20 to 60 s for one that is not there."""


@contextlib.contextmanager
def ray_session(temp_dir: Path, num_cpus: int | None = None) -> Iterator[Hardware]:
    """Join the cluster that RAY_ADDRESS names for the length of a `with` block; without it, start Ray and stop it.

    A submitted job finds its cluster in the same way: Ray sets RAY_ADDRESS for it. What is started here is private: it
    listens on loopback alone, and answers only those who have its token.

    Args:
        temp_dir: a folder that nobody else may enter, with a short path, for the token, sockets and logs of a private
            session.
        num_cpus: makes a private session, whatever RAY_ADDRESS says, and one that offers so many CPUs. Without it a
            private session offers the CPUs that this process may use, and the GPUs that it finds.

    Raises:
        InputError: the cluster cannot be joined.
    """
    address = cluster_address() if num_cpus is None else None
    with _private(temp_dir) if address is None else contextlib.nullcontext():
        if address is None:
            ray.init(
                address="local",
                num_cpus=num_cpus or ray_internals.num_cpus_here(),
                include_dashboard=False,
                log_to_driver=False,
                _temp_dir=str(temp_dir / "ray"),  # which Ray opens to everybody, but not the folder around it
            )
        else:
            try:
                ray.init(address=address, log_to_driver=False, runtime_env=_runtime_env())
            except (ConnectionError, RuntimeError) as error:  # such as another version of Ray or of Python
                raise _not_joined(address, str(error)) from error
        try:
            yield find_hardware()
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _private(folder: Path) -> Iterator[None]:
    """Have Ray, and torch in its processes, listen on loopback alone, and ask for a new token that lies in `folder`."""
    token = folder / "auth_token"
    token.touch(mode=0o600, exist_ok=False)
    token.write_text(secrets.token_hex())
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    settings = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on any system: no cluster, and so no address but loopback's
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),  # a path: environments are inherited and printed
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
    }
    # A token of a cluster's would count more than that of a file.
    before = {name: os.environ.pop(name, None) for name in (*settings, "RAY_AUTH_TOKEN")}
    os.environ.update(settings)
    ray_internals.read_environment_again()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        ray_internals.read_environment_again()
        token.unlink()


def cluster_address() -> str | None:
    """Return HOST:PORT of the cluster to join, once it has answered; None where RAY_ADDRESS names none.

    Raises:
        InputError: there is no such cluster, it refuses this machine's token, or this machine is no node of it.
    """
    wanted = os.environ.get("RAY_ADDRESS", "")
    if wanted in ("", "local"):
        return None
    host, _, port = wanted.rpartition(":")
    if wanted == "auto":
        # As Ray does with `auto`, and with no other address: a token in the user's home counts.
        ray_internals.accept_token_in_home()
    elif not host or not port.isdigit() or "://" in wanted:
        raise InputError(
            f"--address: must be auto or HOST:PORT of a cluster that this machine is a node of, not {wanted!r}; "
            "from any other machine use `ray job submit`"
        )
    try:
        address = ray_internals.resolve_address(wanted)
    except ConnectionError:
        raise InputError(
            "--address: auto finds no Ray cluster on this machine; start one with `ray start`, or leave --address out"
        ) from None
    try:
        alive = ray_internals.alive_node_ids(address, ANSWER_S)
    except AuthenticationError:
        raise _not_joined(
            address, "RAY_AUTH_MODE is token, but there is none; put the cluster's token into ~/.ray/auth_token"
        ) from None
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise _not_joined(
                address, "it asks for its token; set RAY_AUTH_MODE=token, and put the token into ~/.ray/auth_token"
            ) from None
        raise _not_joined(
            address, "nothing there answers as a Ray cluster does; give the address that `ray start --head` printed"
        ) from None
    if not alive & ray_internals.node_ids_here():
        raise _not_joined(address, "this machine is no node of it; use `ray job submit`, or run this on a node")
    return address


def _not_joined(address: str, reason: str) -> InputError:
    return InputError(f"--address: cannot join the Ray cluster at {address}: {reason}")


def _runtime_env() -> dict[str, Any] | None:
    """What the workers of a joined cluster need beyond what is installed there: the package as it stands here.

    A submitted job brings its own: its working folder, or an image that holds the package.
    """
    if ray_internals.is_submitted_job():
        return None
    return {"py_modules": [str(Path(cifar_ray.__file__).parent)], "excludes": ["__pycache__"]}


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for Ray's session: removed afterwards, kept (and its path printed) if the block raised an error."""
    # Ray puts sockets below it, whose paths may have 107 bytes: not below a deep $TMPDIR.
    folder = Path(tempfile.mkdtemp(prefix="cifar_ray_", dir="/tmp" if os.path.isdir("/tmp") else None))
    keep = False
    try:
        yield folder
    except Exception as error:
        keep = not isinstance(error, InputError)
        raise
    finally:
        if keep:
            print(f"Ray's logs are kept in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def output_to_file(path: Path) -> Iterator[None]:
    """Send what this process and its children write to standard output and error into `path`.

    Ray writes there from C++ and from helper processes too, so the file descriptors themselves are redirected.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, copy in enumerate(saved, start=1):
            os.dup2(copy, target)
            os.close(copy)

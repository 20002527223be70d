"""Ray on this machine: a private session in a temporary folder, quiet, and always shut down."""

import contextlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Ray reads these when it is imported or when its processes start.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
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
    RAY_USAGE_STATS_ENABLED="0",
)

import ray

from cifar_ray.config import InputError


@dataclass(frozen=True)
class Hardware:
    """What the session can use."""

    kind: str
    """`cuda` where Ray sees a GPU, else `cpu`."""
    name: str
    """Of the GPU, else of the processor."""
    num_cpus: int
    num_gpus: int

    def slots(self, cpus_per_trial: int) -> int:
        """How many trials of one device run side by side."""
        by_cpus = self.num_cpus // cpus_per_trial
        return min(self.num_gpus, by_cpus) if self.num_gpus else by_cpus

    def resources(self, cpus_per_trial: int) -> dict[str, float]:
        """What one trial takes, by Ray's names."""
        return {"CPU": cpus_per_trial, "GPU": 1 if self.num_gpus else 0}


@contextlib.contextmanager
def ray_session(temp_dir: Path, num_cpus: int | None = None) -> Iterator[Hardware]:
    """Start Ray for the length of a `with` block, its sockets and logs in `temp_dir` (a short path).

    It offers the CPUs and GPUs that it finds, or `num_cpus` CPUs.
    """
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, _temp_dir=str(temp_dir))
    try:
        total = ray.cluster_resources()
        num_gpus = int(total.get("GPU", 0))
        gpu_name = next((name.split(":")[1] for name in total if name.startswith("accelerator_type:")), "GPU")
        kind, name = ("cuda", gpu_name) if num_gpus else ("cpu", _processor_name())
        yield Hardware(kind, name, int(total["CPU"]), num_gpus)
    finally:
        ray.shutdown()


def _processor_name() -> str:
    """What the processor calls itself, as far as the platform says."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


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

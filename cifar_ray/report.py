"""`python -m cifar_ray.report`: a report rebuilt from records, of one run or of several together; needs no torch."""

import datetime
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from cifar_ray.cli.flags import ReportSettings
from cifar_ray.cli.parser import parse_flags, run_command
from cifar_ray.errors import InputError
from cifar_ray.reporting.choice import choice
from cifar_ray.reporting.render import build_report
from cifar_ray.reporting.terminal import table_of
from cifar_ray.results.choice import Limits
from cifar_ray.results.merge import check_same_test_split, merge
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import RunFolder

EPILOG = """\
Of one run the report is rebuilt in its folder; of several, on the same test split, in a folder of its own.

examples:
  python -m cifar_ray.report runs/NAME runs/OTHER
  python -m cifar_ray.report runs/NAME --max-params 1M --max-latency-ms 2 --within 1
"""


def main(argv: Sequence[str]) -> int:
    settings = ReportSettings(**parse_flags(ReportSettings, "report", argv, EPILOG))
    runs = [Records(_run_folder(path)) for path in dict.fromkeys(settings.runs)]
    limits = Limits(settings.max_params, settings.max_latency_ms, settings.within)
    asked = None if limits == Limits() else limits
    records = runs[0] if len(runs) == 1 else _merged(settings, runs)
    html, _ = build_report(records.folder.root, asked)
    if table := table_of(records):
        print(table)
        print()
    for line in choice(records, asked).text:
        print(line)
    print(f"report      {html}")
    return 0


def _run_folder(path: Path) -> RunFolder:
    folder = RunFolder(path)
    if not folder.run_json.is_file():
        raise InputError(f"{path}: not a run: give a folder such as runs/NAME, with a run.json")
    return folder


def _merged(settings: ReportSettings, runs: Sequence[Records]) -> Records:
    """The records of all runs in a new folder."""
    check_same_test_split(runs)
    now = datetime.datetime.now().astimezone()
    target = RunFolder(settings.runs_dir / (settings.name or f"report-{now:%Y%m%d-%H%M%S}"))
    try:
        target.root.mkdir(parents=True)
    except FileExistsError:
        raise InputError(f"--name: a run {target.root.name!r} exists in {target.root.parent}; choose another") from None
    except OSError as error:
        raise InputError(f"--runs-dir: cannot make {target.root}: {error.strerror}; choose another folder") from None
    command = f"python -m cifar_ray.report {shlex.join(sys.argv[1:])}"
    at = now.isoformat(timespec="seconds")
    try:
        merge(runs, target, {"kind": "report", "command": command, "start": at, "end": at})
    except BaseException:
        shutil.rmtree(target.root)  # half of it would pass for a run
        raise
    return Records(target)


if __name__ == "__main__":
    run_command(main)

"""`python -m cifar_ray.tune`: search, final training of the finalists, evaluation, report."""

from collections.abc import Sequence

from cifar_ray.command import parse_flags, run_command
from cifar_ray.settings import TuneSettings


def main(argv: Sequence[str]) -> int:
    settings = parse_flags(TuneSettings, "tune", argv)
    # torch and Ray take seconds to import: a wrong flag is told, and --help shown, before that.
    from cifar_ray.pipeline import tune

    return tune(settings)


if __name__ == "__main__":
    run_command(main)

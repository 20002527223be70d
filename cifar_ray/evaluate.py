"""`python -m cifar_ray.evaluate`: saved models on labelled images, of their own test split or given later; report."""

import os
from collections.abc import Sequence

from cifar_ray.cli.flags import EvaluateSettings
from cifar_ray.cli.parser import parse_flags, run_command

EPILOG = """\
Classes are matched by the names of folders (or those that parquet files declare).

examples:
  python -m cifar_ray.evaluate runs/NAME/best --data my_new_images
  python -m cifar_ray.evaluate runs/NAME runs/OTHER/best
"""


def main(argv: Sequence[str]) -> int:
    settings = EvaluateSettings(**parse_flags(EvaluateSettings, "evaluate", argv, EPILOG))
    if settings.address is not None:
        os.environ["RAY_ADDRESS"] = settings.address
    # torch and Ray take seconds to import: a wrong flag is told, and --help shown, before that.
    from cifar_ray.driver.evaluate import evaluate_models

    return evaluate_models(settings)


if __name__ == "__main__":
    run_command(main)

"""`python -m cifar_ray.tune`: search, final training of the finalists, evaluation, report."""

import os
from collections.abc import Sequence

from cifar_ray.cli.flags import TuneSettings
from cifar_ray.cli.parser import parse_flags, run_command
from cifar_ray.cli.resume import run_settings

EPILOG = """\
spaces: cnn (convolutional networks from scratch), resnet (pretrained ResNets, or another network of torchvision's with
--set model/backbone=efficientnet_b0), module (the recipe of the network that --module names), or a Python file of your
own.
The default recipe is the first trial of every search, and goes to the final training too: it shows what searching
gained. Others are stopped early where they look worse than those before them.

examples:
  python -m cifar_ray.tune --data digits
  python -m cifar_ray.tune --space cnn,resnet --data my_images --time-budget 1h --max-params 1M
"""


def main(argv: Sequence[str]) -> int:
    settings = run_settings(TuneSettings, "tune", parse_flags(TuneSettings, "tune", argv, EPILOG))
    if settings.address is not None:
        os.environ["RAY_ADDRESS"] = settings.address
    # torch and Ray take seconds to import: a wrong flag is told, and --help shown, before that.
    from cifar_ray.driver.tune import tune

    return tune(settings)


if __name__ == "__main__":
    run_command(main)

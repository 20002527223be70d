"""`python -m cifar_ray.train`: named models over several seeds, evaluation, report."""

import os
import textwrap
from collections.abc import Sequence

from cifar_ray.cli.flags import TrainSettings
from cifar_ray.cli.parser import parse_flags, run_command
from cifar_ray.cli.resume import run_settings
from cifar_ray.presets import PRESETS, WAYS

EPILOG = f"""\
presets: {textwrap.fill(", ".join(PRESETS), 100, subsequent_indent="  ", break_on_hyphens=False)}
  and NAME-{", NAME-".join(WAYS)} of torchvision's other classification networks (efficientnet_b0 ...)

examples:
  python -m cifar_ray.train --preset mish-cnn --preset mish-bn-cnn --data digits
  python -m cifar_ray.train --config runs/NAME/best/config.json
"""


def main(argv: Sequence[str]) -> int:
    settings = run_settings(TrainSettings, "train", parse_flags(TrainSettings, "train", argv, EPILOG))
    if settings.address is not None:
        os.environ["RAY_ADDRESS"] = settings.address
    # torch and Ray take seconds to import: a wrong flag is told, and --help shown, before that.
    from cifar_ray.driver.train import train

    return train(settings)


if __name__ == "__main__":
    run_command(main)

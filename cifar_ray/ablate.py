"""`python -m cifar_ray.ablate`: what each choice of a configuration does, by a designed experiment around it."""

import os
import textwrap
from collections.abc import Sequence

from cifar_ray.cli.flags import AblateSettings
from cifar_ray.cli.parser import parse_flags, run_command
from cifar_ray.cli.resume import run_settings
from cifar_ray.presets import PRESETS, WAYS

FACTORS = (
    "norm, norm-placement, dropout, lr-schedule, early-stopping, augmentation, optimizer, activation, kernel-size, "
    "residual; of a backbone finetune, weights, image-size, head"
)

MORE_FACTORS = "policy, color-jitter, mix (augmentation by torchvision), head-dropout"
"""What is varied only where it is asked for."""

EPILOG = f"""\
factors: {textwrap.fill(FACTORS, 100, subsequent_indent="  ", break_on_hyphens=False)}

with --vary also: {MORE_FACTORS}, and any key

presets: {textwrap.fill(", ".join(PRESETS), 100, subsequent_indent="  ", break_on_hyphens=False)}
  and NAME-{", NAME-".join(WAYS)} of torchvision's other classification networks (efficientnet_b0 ...)

examples:
  python -m cifar_ray.ablate --data digits
  python -m cifar_ray.ablate --preset simple-cnn --vary norm --vary model/dropout=0,0.1,0.3 --cross norm,dropout
  python -m cifar_ray.ablate --config runs/NAME/best/config.json --dry-run
"""


def main(argv: Sequence[str]) -> int:
    settings = run_settings(AblateSettings, "ablate", parse_flags(AblateSettings, "ablate", argv, EPILOG))
    if settings.address is not None:
        os.environ["RAY_ADDRESS"] = settings.address
    # torch and Ray take seconds to import: a wrong flag is told, and --help shown, before that.
    from cifar_ray.driver.ablate import ablate

    return ablate(settings)


if __name__ == "__main__":
    run_command(main)

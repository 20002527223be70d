"""`python -m cifar_ray`: what commands there are."""

import argparse

from cifar_ray import __version__

COMMANDS = """\
commands, each with --help:
  python -m cifar_ray.tune      search architectures and recipes, train the best ones, evaluate, report
  python -m cifar_ray.train     train models that you name over several seeds, evaluate, report
  python -m cifar_ray.ablate    change one thing at a time in a configuration, and tell what each choice does
  python -m cifar_ray.evaluate  score and time saved models on labelled images, such as a test set given later
  python -m cifar_ray.report    rebuild or merge reports, choose a model within limits of size and latency
  python -m cifar_ray.predict   classify images with a saved model

start here, without a download:
  python -m cifar_ray.tune --space cnn --data digits
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m cifar_ray",
        usage="python -m cifar_ray.COMMAND [flags]",
        description="Ray-distributed hyperparameter search for image classifiers.",
        epilog=COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cifar_ray {__version__}")
    parser.parse_args()
    parser.print_help()


if __name__ == "__main__":
    main()

"""`python -m cifar_ray`, and `cifar-ray`: what commands there are; each of them as `cifar-ray COMMAND` too."""

import argparse
import runpy
import sys

from cifar_ray import __version__

COMMANDS = {
    "tune": "search architectures and recipes, train the best ones, evaluate, report",
    "train": "train models that you name over several seeds, evaluate, report",
    "ablate": "change one thing at a time in a configuration, and tell what each choice does",
    "evaluate": "score and time saved models on labelled images, such as a test set given later",
    "report": "rebuild or merge reports, choose a model within limits of size and latency",
    "predict": "classify images with a saved model",
}

EPILOG = "\n".join(
    [
        "commands, each with --help; `cifar-ray COMMAND` is the same:",
        *(f"  python -m cifar_ray.{name:8}  {what}" for name, what in COMMANDS.items()),
        "",
        "start here, without a download:",
        "  python -m cifar_ray.tune --space cnn --data digits",
    ]
)


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        command = sys.argv.pop(1)
        runpy.run_module(f"cifar_ray.{command}", run_name="__main__", alter_sys=True)
        return
    parser = argparse.ArgumentParser(
        prog="python -m cifar_ray",
        usage="python -m cifar_ray.COMMAND [flags]",
        description="Ray-distributed hyperparameter search for image classifiers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cifar_ray {__version__}")
    _, unknown = parser.parse_known_args()
    if unknown:
        print(f"error: no command {unknown[0]!r}; take one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    parser.print_help()


if __name__ == "__main__":
    main()

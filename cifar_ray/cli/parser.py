"""What the commands share: flags from a dataclass (one field, one flag), and exit codes."""

import argparse
import dataclasses
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from cifar_ray import __version__
from cifar_ray.errors import InputError


def flag(
    default: Any,
    help: str,
    parse: Callable[[str], Any] = str,
    metavar: str | None = None,
    positional: bool = False,
) -> Any:
    """Declare a field of a settings dataclass.

    Args:
        default: shown by `--help`, unless None. A tuple may be given several times.
        help: one line.
        parse: turns the text into a value; its ValueError is told to the user.
        metavar: stands for the value in `--help`.
        positional: the value stands alone, without a flag, and is required.
    """
    metadata = {"help": help, "parse": parse, "metavar": metavar, "positional": positional}
    return dataclasses.field(default=default, metadata=metadata)


def at_least(minimum: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `minimum` on."""

    def parse(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or int(text) < minimum:
            raise ValueError(f"must be a whole number of at least {minimum}, not {text!r}")
        return int(text)

    return parse


def one_of(*names: str) -> Callable[[str], str]:
    """Return a parser that takes one of `names`."""

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"must be one of {', '.join(names)}, not {text!r}")
        return text

    return parse


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps the description, and leaves the lines of the epilog as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return super()._fill_text(text, width, indent) if "\n" in text else textwrap.fill(text, width)


def _usage(settings: type) -> str:
    positional = [f for f in dataclasses.fields(settings) if f.metadata["positional"]]
    names = [f"{f.metadata['metavar']}{' ...' if isinstance(f.default, tuple) else ''}" for f in positional]
    return " ".join(["[flags]", *names])


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def option_of(name: str) -> str:
    """How the field of that name is given: `--max-epochs`."""
    return "--" + name.replace("_", "-")


def parse_flags(settings: type, command: str, argv: Sequence[str], epilog: str = "") -> dict[str, Any]:
    """Parse `argv` into values for the fields of the dataclass `settings`: those that are given, and no others.

    `--help` shows the docstring of the dataclass, its fields under the headings of its `groups` (names of fields by
    heading) if it has any, and then `epilog` as it is.

    Raises:
        InputError: an unknown flag or a bad value; the message names it.
    """
    parser = _OneLineParser(
        prog=f"python -m cifar_ray.{command}",
        usage=f"python -m cifar_ray.{command} {_usage(settings)}",
        description=settings.__doc__,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cifar_ray {__version__}")
    groups: dict[str, Sequence[str]] = getattr(settings, "groups", {})
    hints = typing.get_type_hints(settings)
    fields = {field.name: field for field in dataclasses.fields(settings)}
    options = {name: name if f.metadata["positional"] else option_of(name) for name, f in fields.items()}
    sections: dict[str, Any] = {}
    for heading, names in groups.items():
        sections |= dict.fromkeys(names, parser.add_argument_group(heading))
    for name in sorted(fields, key=[*sections, *fields].index):
        field = fields[name]
        several = isinstance(field.default, tuple)
        keywords: dict[str, Any] = {"help": field.metadata["help"], "metavar": field.metadata["metavar"]}
        if hints[name] is bool:
            keywords = {"action": "store_true", "default": argparse.SUPPRESS, "help": field.metadata["help"]}
        elif field.metadata["positional"]:
            keywords |= {"nargs": "+"} if several else {}
        else:
            shown = "" if field.default is None or several else f" (default: {field.default})"
            keywords |= {"default": argparse.SUPPRESS, "help": field.metadata["help"] + shown}
            keywords |= {"action": "append"} if several else {}
        sections.get(name, parser).add_argument(options[name], **keywords)
    given = vars(parser.parse_intermixed_args(argv))  # `predict MODEL a.png --json b.png` as well
    for name, value in given.items():
        parse = fields[name].metadata["parse"]
        try:
            if isinstance(value, list):
                given[name] = tuple(parse(text) for text in value)
            elif isinstance(value, str):
                given[name] = parse(value)
        except ValueError as error:
            raise InputError(f"{options[name]}: {error}") from None
    return given


def run_command(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a command on the process's arguments and exit: 2 with one line for bad input, 130 after Ctrl-C."""
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)

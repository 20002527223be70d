"""What the commands share: flags from a dataclass (one field, one flag), and exit codes."""

import argparse
import dataclasses
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from cifar_ray.config import InputError

Settings = TypeVar("Settings")


def flag(default: Any, help: str, parse: Callable[[str], Any] | None = None, metavar: str | None = None) -> Any:
    """Declare a field of a settings dataclass; `parse` turns the text into a value and raises ValueError."""
    return dataclasses.field(default=default, metadata={"help": help, "parse": parse, "metavar": metavar})


def at_least(minimum: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `minimum` on."""

    def parse(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < minimum:
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


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def parse_flags(settings: type[Settings], command: str, argv: Sequence[str]) -> Settings:
    """Parse `argv` into the dataclass `settings`; its docstring is the command's description.

    Raises:
        InputError: an unknown flag or a bad value; the message names it.
    """
    parser = _OneLineParser(prog=f"python -m cifar_ray.{command}", description=settings.__doc__, allow_abbrev=False)
    hints = typing.get_type_hints(settings)
    fields = {field.name: field for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
    for name, field in fields.items():
        option = "--" + name.replace("_", "-")
        if hints[name] is bool:
            parser.add_argument(option, action="store_true", help=field.metadata["help"])
            continue
        text = field.metadata["help"] + ("" if field.default is None else " (default: %(default)s)")
        parser.add_argument(option, default=field.default, help=text, metavar=field.metadata["metavar"])
    given = vars(parser.parse_args(argv))
    for name, field in fields.items():
        if isinstance(given[name], str) and given[name] is not field.default:
            parse = field.metadata["parse"] or (Path if Path in typing.get_args(hints[name]) else str)
            try:
                given[name] = parse(given[name])
            except ValueError as error:
                raise InputError(f"--{name.replace('_', '-')}: {error}") from None
    return settings(**given)


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

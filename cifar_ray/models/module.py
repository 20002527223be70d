"""Networks of the user's own, see :class:`~cifar_ray.config.ModuleConfig`: their file is read, run and called."""

import copy
import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pydantic
import torch
from torch import nn

from cifar_ray.config import ModuleConfig
from cifar_ray.errors import InputError, one_line, place_of

OF_THE_TASK = ("num_classes", "channels", "image_size")
"""What every network is called with."""

_JSON = pydantic.TypeAdapter[Any](pydantic.JsonValue)


def read_module(text: str) -> ModuleConfig:
    """Read what `--module FILE.py:NAME` names, with the defaults of its own parameters.

    Raises:
        InputError: the file is not there, cannot be loaded, imports one beside it, or defines no such class or
            function.
    """
    path, _, name = text.rpartition(":")
    try:
        source = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--module: {path}: cannot be read: {one_line(error)}") from None
    config = ModuleConfig(Path(path).name, name, source)
    earlier = set(sys.modules)
    try:
        make = _maker(config)
    except InputError as error:
        raise InputError(f"--module: {error}") from error
    if beside := _files_beside(Path(path), sys.modules.keys() - earlier):
        raise InputError(
            f"--module: {config.file} imports {beside[0]} beside it, and one file alone is kept with a model: "
            "move what it needs into that, or install the other"
        )
    return replace(config, params=_default_params(make))


def make_network(config: ModuleConfig, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build the network, which runs the user's code; weights come from torch's global random state.

    Raises:
        InputError: the file cannot be loaded, or what it gives is no network that can be trained; the message says how
            it was called.
    """
    make = _maker(config)
    params = copy.deepcopy(config.params)  # its code may change what it is given
    try:
        network = make(num_classes=num_classes, channels=channels, image_size=image_size, **params)
    except Exception as error:
        called = call_text(config, num_classes, channels, image_size)
        raise InputError(f"{called} cannot be built: {error_text(config, error)}") from error
    if fault := _fault(network):
        raise InputError(f"{call_text(config, num_classes, channels, image_size)} gives {fault}")
    return network


def call_text(config: ModuleConfig, num_classes: int, channels: int, image_size: int) -> str:
    """How a network is made, for messages."""
    sizes = dict(zip(OF_THE_TASK, (num_classes, channels, image_size), strict=True))
    given = ", ".join(f"{name}={value!r:.60}" for name, value in {**sizes, **config.params}.items())
    return f"{config.file}: {config.name}({given})"


def error_text(config: ModuleConfig, error: Exception) -> str:
    """What went wrong in the user's code, and where."""
    return f"{type(error).__name__}: {one_line(error):.300} ({place_of(error, config.file)})"


def _maker(config: ModuleConfig) -> Callable[..., Any]:
    module = _run(config.file, config.source)
    make = getattr(module, config.name, None)
    if not callable(make):
        own = [
            name
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
        ]
        has = f"it has {', '.join(own)}" if own else "it has none"
        raise InputError(f"{config.file} defines no class or function {config.name!r}; {has}")
    return make


@functools.cache
def _run(file: str, source: str) -> ModuleType:
    """The module that a source makes, once in a process."""
    module = ModuleType(f"cifar_ray_module_{Path(file).stem}")
    sys.modules[module.__name__] = module  # where dataclasses, for one, look for the names in it
    try:
        # A seed that the file sets is none of the training's.
        with torch.random.fork_rng(devices=[]):
            exec(compile(source, file, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:  # a script that ends itself must not end the command without a word
        told = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{place_of(error, file)} cannot be loaded: {told}") from error
    return module


def _files_beside(path: Path, modules: Iterable[str]) -> list[str]:
    """Names of the files in the folder of `path` that these modules are from."""
    files = [getattr(sys.modules[name], "__file__", None) for name in sorted(modules)]
    folder = path.resolve().parent
    return [Path(file).name for file in files if file and Path(file).resolve().parent == folder]


def _default_params(make: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of a signature that JSON can hold; others stay the user's code's own."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # it has none that Python knows of
        return {}
    found = {}
    for parameter in parameters:
        if parameter.name in OF_THE_TASK or parameter.default is inspect.Parameter.empty:
            continue
        try:
            found[parameter.name] = _JSON.validate_python(parameter.default)
        except pydantic.ValidationError:
            continue
    return found


def _fault(network: Any) -> str | None:
    """What is wrong with what was built, before it has seen an image."""
    if not isinstance(network, nn.Module):
        return f"a {type(network).__name__}, not an nn.Module"
    if any(nn.parameter.is_lazy(parameter) for parameter in network.parameters()):
        return "layers whose sizes are not known (nn.Lazy...): give their sizes"
    if not any(parameter.requires_grad for parameter in network.parameters()):
        return "a network without parameters to train"
    return None

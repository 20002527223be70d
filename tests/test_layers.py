"""The layout of `cifar_ray/`: imports go down a list of layers, and each layer does without some packages."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

COMMANDS = {"tune", "train", "ablate", "evaluate", "report", "predict"}

LAYERS = (
    "api",
    "driver",
    "presets",
    "tracking",
    "search",
    "evaluation",
    "distributed",
    "training",
    "cli",
    "reporting",
    "models",
    "data",
    "results",
    "config",
    "files",
    "text",
    "errors",
)
"""Folders and files of `cifar_ray/` below the commands: each imports what stands behind it, and never the other way."""

TORCH = {"torch", "torchvision", "torchmetrics"}
RAY = {"ray"}
OPTUNA = {"optuna"}
WITHOUT = {
    **dict.fromkeys(("errors", "text", "files", "config", "results", "reporting", "cli"), TORCH | RAY | OPTUNA),
    **dict.fromkeys(("data", "models", "training", "tracking"), RAY | OPTUNA),
    **dict.fromkeys(("distributed", "evaluation"), OPTUNA),
    "api": RAY | OPTUNA,
}
"""Packages that the code of a layer does without, so that what needs little starts fast and is tried alone."""

LATER = {"data": {"torchvision"}}
"""Packages that a layer imports inside a function all the same."""


def module_names() -> dict[str, Path]:
    """Every module below `cifar_ray`, by its dotted name; the package itself is left out."""
    names = {}
    for path in sorted((REPOSITORY / "cifar_ray").rglob("*.py")):
        parts = path.relative_to(REPOSITORY / "cifar_ray").with_suffix("").parts
        names[".".join(part for part in parts if part != "__init__")] = path
    del names[""]
    return names


MODULES = module_names()


def imported(path: Path) -> Iterator[str]:
    """Dotted names of everything that a file imports, at its top or inside a function.

    `from a import b` gives both `a` and `a.b`, since b may be a module.
    """
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}:{node.lineno}: write `from cifar_ray.x import y` instead"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module"):
            raise AssertionError(f"{path}:{node.lineno}: an import by name cannot be followed: write it out")


def own_modules(path: Path) -> set[str]:
    """Names below `cifar_ray` of the modules that a file imports."""
    return {name.removeprefix("cifar_ray.") for name in imported(path)} & set(MODULES)


def layer_of(module: str) -> str:
    return module.split(".")[0]


def file_of(module: str) -> str:
    return str(MODULES[module].relative_to(REPOSITORY))


@pytest.mark.parametrize("layer", sorted({layer_of(name) for name in MODULES} - COMMANDS - {"__main__", "checkpoint"}))
def test_every_folder_has_its_place_in_the_order(layer: str) -> None:
    assert layer in LAYERS, f"say in LAYERS where cifar_ray/{layer} stands: below all that imports it"


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name: str) -> None:
    places = {layer: place for place, layer in enumerate(LAYERS)}
    here = places.get(layer_of(name), -1)
    above = {other for other in own_modules(MODULES[name]) if places.get(layer_of(other), -1) < here}
    assert not above, (
        f"{file_of(name)} imports {', '.join(sorted(above))}, which stands above it: move what both need into a layer "
        "below both, or let the caller hand it over as an argument"
    )


@pytest.mark.parametrize("name", MODULES)
def test_a_command_is_imported_by_nobody(name: str) -> None:
    commands = own_modules(MODULES[name]) & COMMANDS
    assert not commands, f"{file_of(name)} imports the command {', '.join(commands)}: call what the command calls"


@pytest.mark.parametrize("name", MODULES)
def test_a_layer_does_without_some_packages(name: str) -> None:
    packages = {imported_name.split(".")[0] for imported_name in imported(MODULES[name])}
    unwanted = packages & WITHOUT.get(layer_of(name), set()) - LATER.get(layer_of(name), set())
    assert not unwanted, (
        f"{file_of(name)} imports {', '.join(sorted(unwanted))}, which cifar_ray/{layer_of(name)} does without: what "
        "needs it belongs into a layer above (LAYERS)"
    )


@pytest.mark.parametrize("name", MODULES)
def test_no_module_imports_a_search_space(name: str) -> None:
    packages = {imported_name.split(".")[0] for imported_name in imported(MODULES[name])}
    assert "search_spaces" not in packages, (
        f"{file_of(name)} imports a search space: load it with search.space.load_space, as a user's own space is"
    )


@pytest.mark.parametrize("path", sorted((REPOSITORY / "search_spaces").glob("*.py")), ids=lambda path: path.stem)
def test_a_search_space_imports_optuna_and_config_alone(path: Path) -> None:
    packages = {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names)
    assert packages <= {"optuna", "cifar_ray", "search_spaces"}, f"{path.name}: draw with Optuna, return plain values"
    assert own_modules(path) <= {"config"}, f"{path.name}: what a space may know of a run is config.Task"


def packages_loaded_by_importing(layers: set[str]) -> set[str]:
    """Top-level packages in a fresh Python after an import of every module of these layers."""
    return packages_loaded_by(name for name in MODULES if layer_of(name) in layers)


def packages_loaded_by(modules: Iterable[str]) -> set[str]:
    lines = [f"import cifar_ray.{name}" for name in modules]
    code = "\n".join([*lines, "import sys", "print(*{name.split('.')[0] for name in sys.modules})"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_reporting_and_what_it_needs_load_neither_torch_nor_ray_nor_optuna() -> None:
    plain = {"errors", "text", "files", "config", "results", "data", "reporting", "cli"}
    assert not packages_loaded_by_importing(plain) & (TORCH | RAY | OPTUNA)


def test_training_and_what_it_needs_load_neither_ray_nor_optuna() -> None:
    loaded = packages_loaded_by_importing(set(LAYERS[LAYERS.index("training") :]))
    assert "torch" in loaded
    assert not loaded & (RAY | OPTUNA)


def test_what_a_run_does_before_ray_is_up_does_not_load_torch() -> None:
    """It takes seconds, in which the workers import it too, once they are there."""
    assert not packages_loaded_by(["driver.tune", "driver.train", "driver.ablate"]) & (TORCH | {"sklearn", "scipy"})

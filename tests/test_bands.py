"""Imports go one way: plain, torch, ray, commands. Lazy imports inside functions count too."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
BANDS = (
    {
        "",
        "config",
        "results",
        "ranking",
        "figures",
        "report_parts",
        "records",
        "trial_sections",
        "sections",
        "render",
        "progress",
        "command",
        "settings",
        "estimate",
    },
    {
        "data",
        "decode",
        "image_folder",
        "models",
        "models.cnn",
        "models.norms",
        "models.resnet",
        "augment",
        "optim",
        "metrics",
        "loop",
        "checkpoint",
        "watch",
        "hparams",
        "weights",
        "features",
    },
    {
        "pretrained",
        "desk",
        "worker",
        "trial",
        "space",
        "presets",
        "study",
        "search",
        "benchmark",
        "runtime",
        "launch",
        "finals",
        "pipeline",
        "tune_run",
        "train_run",
    },
    {"tune", "train", "evaluate", "report", "predict", "__main__"},
)
"""Module names below `cifar_ray` ("" is the package itself). A new module is added to the band that it belongs to."""

TORCH = {"torch", "torchvision", "torchmetrics"}
RAY = {"ray", "optuna"}
FORBIDDEN = (TORCH | RAY, RAY, set(), set())
"""Top-level packages that a band does without."""


def module_names() -> dict[str, Path]:
    """Every module below `cifar_ray`, by its dotted name."""
    names = {}
    for path in sorted((REPOSITORY / "cifar_ray").rglob("*.py")):
        parts = path.relative_to(REPOSITORY / "cifar_ray").with_suffix("").parts
        names[".".join(part for part in parts if part != "__init__")] = path
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
            assert node.level == 0 and node.module, f"{path}:{node.lineno}: relative imports are not followed here"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module"):
            raise AssertionError(f"{path}:{node.lineno}: an import by name cannot be followed here")


def own_modules(path: Path) -> set[str]:
    """Names below `cifar_ray` of the modules that a file imports."""
    names = {name.removeprefix("cifar_ray").removeprefix(".") for name in imported(path) if is_own(name)}
    # `from cifar_ray import loop` names the package too, which holds nothing but the version.
    return names & set(MODULES) - {""}


def is_own(name: str) -> bool:
    return name.split(".")[0] == "cifar_ray"


def band_of(name: str) -> int:
    """Index of a module's band; one that stands in none is held to the plain band."""
    return next((index for index, band in enumerate(BANDS) if name in band), 0)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_stands_in_one_band(name: str) -> None:
    assert sum(name in band for band in BANDS) == 1, f"say in BANDS where cifar_ray.{name} belongs"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_no_package_that_its_band_does_without(name: str) -> None:
    packages = {imported_name.split(".")[0] for imported_name in imported(MODULES[name])}
    assert not packages & FORBIDDEN[band_of(name)]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_its_own_band_and_those_below(name: str) -> None:
    above = {other for other in own_modules(MODULES[name]) if band_of(other) > band_of(name)}
    assert not above


def test_a_command_module_is_imported_by_nobody() -> None:
    commands = BANDS[3]
    importers = {name: own_modules(path) & commands for name, path in MODULES.items()}
    assert not {name: found for name, found in importers.items() if found}


@pytest.mark.parametrize("name", MODULES)
def test_no_module_imports_a_search_space(name: str) -> None:
    # The driver loads spaces as files, which a user's own space is too.
    assert "search_spaces" not in {imported_name.split(".")[0] for imported_name in imported(MODULES[name])}


@pytest.mark.parametrize("path", sorted((REPOSITORY / "search_spaces").glob("*.py")), ids=lambda path: path.stem)
def test_a_search_space_imports_only_optuna_the_plain_band_and_other_spaces(path: Path) -> None:
    packages = {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names)
    assert packages <= {"optuna", "cifar_ray", "search_spaces"}
    assert own_modules(path) <= BANDS[0]


def modules_loaded_by_importing(names: set[str]) -> set[str]:
    """Top-level packages in a fresh Python after `import cifar_ray.NAME` for each name."""
    lines = [f"import cifar_ray.{name}" if name else "import cifar_ray" for name in sorted(names & set(MODULES))]
    code = "\n".join([*lines, "import sys", "print(*{name.split('.')[0] for name in sys.modules})"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_plain_band_loads_neither_torch_nor_ray_nor_optuna() -> None:
    assert not modules_loaded_by_importing(BANDS[0]) & (TORCH | RAY)


def test_importing_the_torch_band_loads_neither_ray_nor_optuna() -> None:
    loaded = modules_loaded_by_importing(BANDS[0] | BANDS[1])
    assert "torch" in loaded
    assert not loaded & RAY

"""Search spaces: Python files that draw a configuration with Optuna's `suggest_*` calls. Only the driver loads them."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution

from cifar_ray.config import ModuleConfig, Precision, Task, TrialConfig, from_text, has_value, trial_config, with_values
from cifar_ray.errors import InputError, one_line, place_of

optuna.logging.set_verbosity(optuna.logging.ERROR)  # it tells of every study that is made only to draw from it


@dataclass(frozen=True)
class Space:
    """A search space: a Python file with `space(trial, task)` and, if it likes, `default(task)`."""

    name: str
    draw: Callable[[Any, Task], dict[str, Any]]
    default: Callable[[Task], dict[str, Any]] | None = None
    """Parameter values of trial 0. Without it trial 0 is the default recipe of the built-in space `cnn`."""
    sha256: str = ""
    """Of its file and those that it imports: a run is not taken up again with others."""
    file: str = ""
    """For messages."""
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Texts of `--set` by key. A parameter of that name is not drawn but has this value; where a configuration draws no
    such parameter, what stands at that path gets it."""
    precision: Precision = "fp32"
    """Of all its configurations, whatever the file says: a run has one."""
    module: ModuleConfig | None = None
    """The network of its configurations of family `module`, which give only `params` that are to be others."""

    @property
    def _source(self) -> str:
        fixed = ", ".join(f"{key}={text}" for key, text in self.fixed.items())
        return f"space {self.name}{fixed and f' with --set {fixed}'}"

    def config(self, trial: optuna.Trial | optuna.trial.FixedTrial, task: Task) -> TrialConfig:
        """Draw a configuration. Raises InputError where the space's code is wrong, or what `fixed` gives it."""
        fixing = _Fixing(trial, self.fixed)
        try:
            values = self.draw(fixing if self.fixed else trial, task)
        except InputError:
            raise
        except Exception as error:
            raise self._told(error) from error
        config = trial_config(self._with_module(values), self._source)
        others = {key: text for key, text in self.fixed.items() if key not in fixing.met and has_value(config, key)}
        return replace(with_values(config, others, self._source), precision=self.precision)

    def _with_module(self, values: Any) -> Any:
        """The same with the network in it, where it is of family `module`; what is no configuration as it is."""
        if not isinstance(values, dict) or values.get("family") != "module":
            return values
        if self.module is None:
            raise InputError(f"{self._source}: its family module needs a network: give --module FILE.py:NAME")
        model = values.get("model", {})
        if not isinstance(model, dict):
            return values
        params = model.get("params", {})
        params = {**self.module.params, **params} if isinstance(params, dict) else params
        return {**values, "model": {**asdict(self.module), **model, "params": params}}

    def default_config(self, task: Task) -> TrialConfig:
        """The configuration of trial 0. Raises as :meth:`default_params`."""
        return self._default(task)[1]

    def default_params(self, task: Task) -> dict[str, Any]:
        """Parameter values of trial 0, but of those that are fixed; none for a space without a `default`.

        Of parameters that are drawn only because of what is fixed, such as the learning rate of another optimizer, it
        has the first choice or the middle of the range.

        Raises:
            InputError: `default` does not give the values of just those parameters that the space then draws.
        """
        return self._default(task)[0]

    def _default(self, task: Task) -> tuple[dict[str, Any], TrialConfig]:
        if self.default is None:
            return {}, replace(load_space("cnn"), fixed=self.fixed, precision=self.precision).default_config(task)
        if self.fixed:
            params, _ = replace(self, fixed={})._default(task)
            study = optuna.create_study(sampler=_Middle())
            study.enqueue_trial({name: value for name, value in params.items() if name not in self.fixed})
            trial = study.ask()
            config = self.config(trial, task)
            return trial.params, config
        try:
            params = self.default(task)
        except Exception as error:
            raise self._told(error) from error
        where = f"space {self.name}: default(task)"
        if not isinstance(params, dict):
            raise InputError(f"{where} must return a dict of parameter values, not {params!r:.60} ({self.file})")
        # As the search does it. A fixed trial would be content with values that are never asked for.
        study = optuna.create_study()
        study.enqueue_trial(params)
        trial = study.ask()
        try:
            config = self.config(trial, task)
        except InputError as error:
            raise InputError(f"{error}, with the values that its default(task) gives") from error
        try:
            # The study takes a value from outside its range, and only warns.
            optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=0.0)
        except ValueError as error:
            raise InputError(f"{where} gives a value that the space does not draw: {one_line(error)}") from error
        if lacking := trial.params.keys() - params.keys():
            raise InputError(f"{where} lacks {_names(lacking)}, which the space draws then: add it ({self.file})")
        if unknown := params.keys() - trial.params.keys():
            raise InputError(
                f"{where} gives {_names(unknown)}, which the space does not draw then: correct it ({self.file})"
            )
        return params, config

    def _told(self, error: Exception) -> InputError:
        return InputError(f"{self._source}: {type(error).__name__}: {one_line(error)} ({place_of(error, self.file)})")


class _Fixing:
    """A trial of which some parameters are not drawn, since they have a value already: no study hears of them."""

    def __init__(self, trial: optuna.Trial | optuna.trial.FixedTrial, fixed: Mapping[str, str]) -> None:
        self._trial = trial
        self._fixed = fixed
        self.met: set[str] = set()
        """Those that the space asked for."""

    def __getattr__(self, attribute: str) -> Any:
        of_trial = getattr(self._trial, attribute)
        if not attribute.startswith("suggest_"):
            return of_trial

        def suggest(name: str, *args: Any, **options: Any) -> Any:
            if name not in self._fixed:
                return of_trial(name, *args, **options)
            self.met.add(name)
            text = self._fixed[name]
            if attribute == "suggest_categorical":
                return _choice(name, text, *args, **options)
            return _number(name, text, whole=attribute == "suggest_int")

        return suggest


def _choice(name: str, text: str, choices: Sequence[Any]) -> Any:
    """The choice that a text stands for; where all of them are numbers, it may be another number."""
    value = from_text(text)
    for choice in choices:
        if choice == text or (choice == value and isinstance(choice, bool) == isinstance(value, bool)):
            return choice
    if all(map(is_number, [*choices, value])):
        return value
    raise InputError(f"--set: {name}={text}: must be one of {', '.join(map(str, choices))}")


def _number(name: str, text: str, whole: bool) -> int | float:
    value = from_text(text)
    if not is_number(value) or (whole and not isinstance(value, int)):
        raise InputError(f"--set: {name}={text}: must be a {'whole ' * whole}number")
    return value if whole else float(value)


class _Middle(optuna.samplers.BaseSampler):
    """Takes the first of several choices, and the middle of a range."""

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        if isinstance(param_distribution, CategoricalDistribution):
            return param_distribution.choices[0]
        low, high, step = param_distribution.low, param_distribution.high, param_distribution.step
        middle = math.sqrt(low * high) if param_distribution.log else (low + high) / 2
        return type(low)(low + (middle - low) // step * step if step else middle)


def load_spaces(names: str) -> list[Space]:
    """Load the spaces of a comma-separated list, each as :func:`load_space` does.

    Raises:
        InputError: there is no such space, its file is broken, or two of them have the same name.
    """
    spaces = [load_space(name) for name in names.split(",")]
    if len({space.name for space in spaces}) < len(spaces):
        raise InputError(f"--space: two spaces in {names!r} have the same name; give one only, or rename its file")
    return spaces


def load_space(name: str) -> Space:
    """Load a space by the name of a built-in one or the path of a Python file; only the driver does.

    Raises:
        InputError: there is no such space, or its file is broken.
    """
    package = importlib.util.find_spec("search_spaces")
    assert package is not None and package.submodule_search_locations
    builtin = {path.stem: path for path in Path(package.submodule_search_locations[0]).glob("[a-z]*.py")}
    path = builtin.get(name, Path(name))
    if name not in builtin and not (name.endswith(".py") and os.path.isfile(path)):
        known = ", ".join(sorted(builtin))
        raise InputError(f"--space: no space {name!r}; take one of {known}, or the path of a Python file")
    earlier = set(sys.modules)
    module = _import_file(path)
    files = [path, *_own_files(sys.modules.keys() - earlier)]
    if not callable(getattr(module, "space", None)):
        raise InputError(f"--space: {path} defines no function space(trial, task)")
    default = getattr(module, "default", None)
    if default is not None and not callable(default):
        raise InputError(f"--space: {path}: default must be a function default(task), not {default!r:.60}")
    sha256 = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return Space(path.stem, module.space, default, sha256, str(module.__file__))


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"cifar_ray_space_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script that ends itself must not end the command without a word
        place = place_of(error, str(module.__file__))
        raise InputError(f"--space: {place} cannot be loaded: {type(error).__name__}: {one_line(error)}") from error
    return module


def _own_files(modules: Iterable[str]) -> list[Path]:
    """Files of these modules by their names, what is installed left out: the versions of that stand in run.json."""
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed.append(str(Path(__file__).parents[1]))  # cifar_ray
    files = [getattr(sys.modules[name], "__file__", None) for name in sorted(modules)]
    return [Path(file) for file in files if file and not any(Path(file).is_relative_to(one) for one in installed)]


def _names(params: Iterable[Any]) -> str:
    return ", ".join(sorted(map(repr, params)))


def sample_space(space: Space, task: Task, num_samples: int) -> list[tuple[optuna.trial.FrozenTrial, TrialConfig]]:
    """Draw random configurations, none of which any study remembers, and trial 0's in front of them.

    Raises:
        InputError: the space gives something that is no valid configuration.
    """
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    if space.default is not None:
        study.enqueue_trial(space.default_params(task))
    trials = [study.ask() for _ in range(num_samples + 1)]
    configs = [space.config(trial, task) for trial in trials]
    drawn = list(zip(study.get_trials(deepcopy=False), configs, strict=True))  # each copy would be of all trials
    for name, domain in param_domains(trial for trial, _ in drawn).items():
        # A tuple comes back from the study's journal as a list, which Optuna then takes for another choice.
        if unfit := [one for one in domain or () if one is not None and not isinstance(one, (bool, int, float, str))]:
            raise InputError(
                f"space {space.name}: {name!r} has the choice {unfit[0]!r:.60}, which the study cannot keep: "
                f"choose among names or numbers, and look the value up ({space.file})"
            )
    return drawn


def check_fixed(space: Space, task: Task, samples: Sequence[tuple[optuna.trial.FrozenTrial, TrialConfig]]) -> None:
    """Refuse a key of `space.fixed` that the space draws no parameter for, and its configurations have no value of.

    Args:
        space: with what is fixed.
        task: what its `samples` were drawn for.
        samples: as of :func:`sample_space`; many enough to meet every parameter.

    Raises:
        InputError: there is such a key; the message says which ones there are.
    """
    for key, text in space.fixed.items():
        if any(has_value(config, key) for _, config in samples):
            continue
        others = {other: value for other, value in space.fixed.items() if other != key}
        drawn = param_domains(trial for trial, _ in sample_space(replace(space, fixed=others), task, len(samples)))
        if key in drawn:
            continue
        try:
            with_values(samples[0][1], {key: text}, "--set")
        except InputError as error:
            alike = [name for name in drawn if name.split("/")[0] == key.split("/")[0]] or drawn
            raise InputError(f"{error}; space {space.name} draws {', '.join(alike)}") from None


def param_domains(trials: Iterable[optuna.trial.FrozenTrial]) -> dict[str, Domain]:
    """What each parameter that the trials drew can be: the choices of a categorical one, the bounds of a number."""
    domains: dict[str, Domain] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                domains[name] = list(distribution.choices)
            elif isinstance(
                distribution, (optuna.distributions.IntDistribution, optuna.distributions.FloatDistribution)
            ):
                domains[name] = (distribution.low, distribution.high)
    return domains


Domain = list[Any] | tuple[float, float] | None
"""What a parameter is drawn from: a list of choices, an interval (low, high), or anything (None)."""


def union(*spaces: Mapping[str, Domain]) -> dict[str, Domain]:
    """The domains of every parameter of several spaces."""
    domains: dict[str, Domain] = {}
    for space in spaces:
        for name, domain in space.items():
            domains[name] = _union(domains[name], domain) if name in domains else domain
    return domains


def _union(first: Domain, second: Domain) -> Domain:
    if isinstance(first, list) and isinstance(second, tuple):
        first, second = second, first
    for value in second or ():
        first = with_value(first, value)
    return None if second is None else first


def with_value(domain: Domain, value: Any) -> Domain:
    """Widen a domain where it lacks `value`."""
    if isinstance(domain, list):
        # True equals 1, but TensorBoard tells them apart.
        known = (isinstance(value, bool), value) in [(isinstance(choice, bool), choice) for choice in domain]
        return domain if known else [*domain, value]
    if domain is None or not is_number(value):
        return None
    return (min(domain[0], value), max(domain[1], value))


def is_number(value: Any) -> bool:
    # Infinities are none: TensorBoard's server cannot send them, and then sends nothing.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

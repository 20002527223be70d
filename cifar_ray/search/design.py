"""The design of an ablation: a base configuration, factors that are varied one at a time, and the arms that this gives.

An arm is a configuration that is trained over several seeds. Each is the base with one factor at another level (or two,
where factors are crossed), and is compared with a control, the base. The design is plain data: nothing is trained here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations, product
from typing import Any

from cifar_ray.config import Task, TrialConfig, replaced
from cifar_ray.errors import InputError
from cifar_ray.results.ablation import BASE, EARLY_STOPPING
from cifar_ray.results.config_json import as_recorded
from cifar_ray.results.records import folder_name
from cifar_ray.search.factors import STANDARD, Factor, LeftOut, idle, kind_of, read_factor, reason_of

MULTIPLES = (1 / 3, 1.0, 3.0)
"""Learning rates that a level is tried at before it is given one of its own, as multiples of its usual one."""

SWEPT = ("norm", "optimizer")
"""Factors whose levels want a learning rate of their own."""


@dataclass(frozen=True)
class Arm:
    """A configuration that is trained over several seeds."""

    name: str
    config: TrialConfig
    factor: str | None = None
    level: str | None = None
    control: str | None = None
    """Name of the arm that it is compared with."""
    rate: str = "base"
    """Whether its learning rate is the `base`'s or its `own`."""
    patience: int | None = None
    """Of early stopping: what the trainings of its control would have left, had this patience ended them."""
    cells: Mapping[str, str] = field(default_factory=dict)
    """Of a combination: the level by factor."""

    def to_dict(self) -> dict[str, Any]:
        """As it stands in design.json."""
        facts = {"lr": self.config.optimizer.lr, "lr_schedule": self.config.lr_schedule.name}
        return {
            **asdict(self),
            **facts,
            "anneals": self.config.lr_schedule.anneals,
            "config": as_recorded(self.config.to_dict()),
        }


@dataclass(frozen=True)
class Design:
    """What is trained and compared."""

    base: TrialConfig
    factors: tuple[Factor, ...]
    arms: tuple[Arm, ...]
    """The base first. Arms at their own learning rates come later, see :func:`arms_at_own_rates`."""
    left_out: tuple[LeftOut, ...]
    cross: tuple[str, ...]

    @property
    def trained(self) -> list[Arm]:
        """The arms that are trained, and not kept from the training of another one."""
        return [arm for arm in self.arms if arm.patience is None]


# ---- arms ----


def make_design(base: TrialConfig, vary: Sequence[str], cross: str | None, task: Task, max_epochs: int) -> Design:
    """Return the design around a base.

    Args:
        base: the configuration that is changed.
        vary: as `--vary`; empty for the standard factors.
        cross: as `--cross`: names of factors, between commas.
        task: what the models are made for.
        max_epochs: of each training; patiences have to be shorter.

    Raises:
        InputError: as :func:`read_factor`, a factor is given twice, or `cross` names one that is not varied.
    """
    factors: list[Factor] = []
    left_out: list[LeftOut] = []
    for text in vary or STANDARD[kind_of(base)]:
        factor, others = read_factor(text, base, task)
        if factor.name in [one.name for one in factors]:
            raise InputError(f"--vary: {factor.name} is given twice; give all of its levels at once")
        left_out += others
        if factor.name == EARLY_STOPPING:
            factor, others = _short_enough(factor, max_epochs)
            left_out += others
        if factor.levels:
            factors.append(factor)
    if not factors:
        raise InputError(f"--vary: nothing is left to vary: {left_out[0].factor}: {left_out[0].reason}")
    factors = _with_constant_rate(factors, base, task)
    arms = [Arm(BASE, base)]
    # Early stopping last: its control is one of the other arms.
    for factor in sorted(factors, key=lambda factor: factor.name == EARLY_STOPPING):
        arms += _early_arms(factor, arms) if factor.name == EARLY_STOPPING else _arms_of(factor, base)
    names = tuple(part.strip() for part in cross.split(",")) if cross else ()
    crossed, others = _cells(base, factors, names)
    for arm in [*arms, *crossed]:
        _check_name(arm.name)
    return Design(base, tuple(factors), (*arms, *crossed), (*left_out, *others), names)


def _check_name(name: str) -> None:
    try:
        folder_name(f"{name}-seed10")
    except ValueError as error:
        raise InputError(f"--vary: {error}") from None


def _short_enough(factor: Factor, max_epochs: int) -> tuple[Factor, list[LeftOut]]:
    fit = tuple(level for level in factor.levels if int(level.name) < max_epochs)
    others = [
        LeftOut(factor.name, level.name, f"a training has {max_epochs} epochs")
        for level in factor.levels
        if level not in fit
    ]
    return replace(factor, levels=fit), others


def _with_constant_rate(factors: Sequence[Factor], base: TrialConfig, task: Task) -> list[Factor]:
    """Where early stopping is asked of a base whose schedule anneals, see to it that a constant one is there.

    Patience would cut an annealing short.
    """
    names = [factor.name for factor in factors]
    if EARLY_STOPPING not in names or not base.lr_schedule.anneals:
        return list(factors)
    constant, _ = read_factor("lr-schedule=constant", base, task)
    if constant.name not in names:
        return [*factors, constant]
    (level,) = constant.levels
    return [
        replace(factor, levels=(*factor.levels, level))
        if factor.name == constant.name and level not in factor.levels
        else factor
        for factor in factors
    ]


def _arms_of(factor: Factor, base: TrialConfig) -> list[Arm]:
    return [
        Arm(
            f"{factor.name}={_in_a_name(level.name)}",
            replaced(base, level.values, factor.name),
            factor.name,
            level.name,
            BASE,
        )
        for level in factor.levels
    ]


def _early_arms(factor: Factor, arms: Sequence[Arm]) -> list[Arm]:
    """Early stopping of the base, or where that anneals, of the base at a constant learning rate."""
    base = arms[0]
    control = base
    if base.config.lr_schedule.anneals:
        constant = replace(base.config, lr_schedule=replace(base.config.lr_schedule, name="constant"))
        control = next(arm for arm in arms if arm.config == constant)
    return [
        Arm(
            f"{factor.name}={level.name}",
            control.config,
            factor.name,
            level.name,
            control.name,
            patience=int(level.name),
        )
        for level in factor.levels
    ]


def _in_a_name(text: str) -> str:
    """A level in the name of a folder, where a path would lead elsewhere."""
    return text.replace("/", "_")


def _cells(base: TrialConfig, factors: Sequence[Factor], names: Sequence[str]) -> tuple[list[Arm], list[LeftOut]]:
    """Arms of all combinations of two and more levels that the base does not have, and those that no model can have."""
    if not names:
        return [], []
    by_name = {factor.name: factor for factor in factors if factor.name != EARLY_STOPPING}
    for name in names:
        if name not in by_name:
            raise InputError(f"--cross: {name} is not varied; take of {', '.join(by_name)}, or --vary it too")
    if len(set(names)) < 2:
        raise InputError("--cross: give two factors or more, such as norm,dropout")
    arms: list[Arm] = []
    left_out: list[LeftOut] = []
    for num in range(2, len(names) + 1):
        for chosen in combinations(names, num):
            for levels in product(*(by_name[name].levels for name in chosen)):
                cells = {name: level.name for name, level in zip(chosen, levels, strict=True)}
                name = " x ".join(f"{factor}={_in_a_name(level)}" for factor, level in cells.items())
                factor, level_name = " x ".join(chosen), " x ".join(cells.values())
                try:
                    config = base
                    for level in levels:
                        config = replaced(config, level.values, name)
                except InputError as error:
                    left_out.append(LeftOut(factor, level_name, reason_of(error)))
                    continue
                if reason := idle(config, [path for one in chosen for path in by_name[one].paths]):
                    left_out.append(LeftOut(factor, level_name, reason))
                    continue
                arms.append(Arm(name, config, factor, level_name, BASE, cells=cells))
    return arms, left_out


# ---- learning rates ----


@dataclass(frozen=True)
class Sweep:
    """The learning rates that a level, or the base, is tried at before it is given one of its own."""

    arm: Arm
    rates: tuple[float, ...]

    def at(self, lr: float) -> TrialConfig:
        """The arm's configuration at one of the rates."""
        return replace(self.arm.config, optimizer=replace(self.arm.config.optimizer, lr=lr))


def sweeps(design: Design) -> list[Sweep]:
    """The same sweep for the base and for each level of the factors that want a learning rate of their own."""
    usual = {(factor.name, level.name): level.usual_lr for factor in design.factors for level in factor.levels}
    arms = [arm for arm in design.arms if arm.factor in SWEPT]
    if not arms:
        return []
    found = []
    for arm in [design.arms[0], *arms]:
        centre = usual.get((str(arm.factor), str(arm.level))) or arm.config.optimizer.lr
        # Rounded, but for the usual one: somebody will type it.
        rates = tuple(centre if multiple == 1 else float(f"{centre * multiple:.3g}") for multiple in MULTIPLES)
        found.append(Sweep(arm, rates))
    return found


def arms_at_own_rates(design: Design, own: Mapping[str, float]) -> list[Arm]:
    """The arms of levels at their own learning rates.

    Where the base's own is the one that it has, they are compared with the base as it is, and a level whose own is the
    base's has no other arm; else with the base at its own rate, which is an arm too.

    Args:
        design: whose arms have the base's learning rate.
        own: the learning rate of each arm that was swept, by name; one that no rate suits is absent.
    """
    if BASE not in own:
        return []
    base = design.arms[0]
    same_base = own[BASE] == base.config.optimizer.lr
    control = base if same_base else _at_own_rate(base, own[BASE], None)
    arms = [] if same_base else [control]
    for arm in design.arms[1:]:
        if arm.name in own and not (same_base and own[arm.name] == arm.config.optimizer.lr):
            arms.append(_at_own_rate(arm, own[arm.name], control.name))
    return arms


def _at_own_rate(arm: Arm, lr: float, control: str | None) -> Arm:
    config = replace(arm.config, optimizer=replace(arm.config.optimizer, lr=lr))
    return replace(arm, name=f"{arm.name}, own rate", config=config, rate="own", control=control)

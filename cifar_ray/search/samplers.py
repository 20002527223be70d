"""How configurations are drawn: the samplers that `--sampler` names."""

from collections.abc import Callable
from functools import partial

from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from cifar_ray.config import Task
from cifar_ray.search.mutation import MutationSampler
from cifar_ray.search.space import Space


def tpe(seed: int) -> BaseSampler:
    """Optuna's TPE."""
    # Conditional parameters are modelled together with those they depend on (group), and running trials count as bad
    # ones (constant_liar), so that slots that ask side by side do not get the same answer. Trial 0 is a good start to
    # model from: five random draws beside it are enough.
    return TPESampler(n_startup_trials=6, multivariate=True, group=True, constant_liar=True, seed=seed)


def sampler_of(name: str, space: Space, task: Task) -> Callable[[int], BaseSampler]:
    """What makes the sampler `mutation`, `tpe` or `random` of a space from a seed."""
    makers: dict[str, Callable[[int], BaseSampler]] = {
        "mutation": partial(MutationSampler, space, task),
        "tpe": tpe,
        "random": RandomSampler,
    }
    return makers[name]

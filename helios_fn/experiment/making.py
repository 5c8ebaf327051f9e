"""What an experiment's first state is made of: model, optimiser with schedule and transforms, average."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .. import registry, tree
from ..nn import Average
from ..optim import Optimizer, chain, tunable
from ..types import Tree
from .create import create, resolved
from .parts import Part
from .spec import Experiment


def model_factory(experiment: Experiment) -> Callable[[], Any]:
    """What makes the model, for `helios_fn.functional`."""
    return functools.partial(create, registry.MODELS, experiment.model, experiment.source, ("model",))


def on(tensors: Tree, device: Any) -> Tree:
    """The tensors on a device; as they are if that is ``None``."""
    return tensors if device is None else tree.map(lambda leaf: leaf.to(device), tensors)


def make_optimizer(experiment: Experiment, *, in_state: bool = False) -> Optimizer:
    """The optimiser with its schedule, and the gradient transforms before it.

    With ``in_state`` its hyperparameters are in the state, as by `helios_fn.optim.tunable`.
    """
    source, part = experiment.source, experiment.optimizer
    rate = {}
    if experiment.schedule is not None:
        rate["lr"] = create(registry.SCHEDULES, experiment.schedule, source, ("schedule",))
    optimizer = create(registry.OPTIMIZERS, part, source, ("optimizer",), **rate)
    if in_state:
        optimizer = tunable(registry.OPTIMIZERS.get(part.name), **resolved(part, source, ("optimizer",)), **rate)
    transforms = [
        create(registry.GRADIENT_TRANSFORMS, each, source, ("optimizer", "transforms", str(at)))
        for at, each in enumerate(experiment.optimizer.transforms)
    ]
    return chain(*transforms, optimizer) if transforms else optimizer


def make_average(experiment: Experiment) -> Average | None:
    """The average that the step keeps, if any."""
    part: Part | None = experiment.step.average
    if part is None:
        return None
    average: Average = create(registry.AVERAGES, part, experiment.source, ("step", "average"))
    return average

"""An experiment's parts, made and put together."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

from .. import registry
from ..config import RunConfig
from ..distributed.environment import place
from ..driver import Validator, run
from ..driver import test as run_test
from ..nn import Functional, LossFn, functional
from ..random import Draws
from ..state import TrainState, init_state
from ..types import Observer, Result, Sink, Step
from .changes import RECORD, changes
from .create import create
from .evaluate import evaluation_of
from .loading import make_loader, make_validator, params_of, tested
from .making import make_average, make_optimizer, model_factory, on
from .spec import Experiment
from .together import check_together, ensemble_of

_LOGGER = logging.getLogger("helios_fn")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Built:
    """An experiment whose parts have been made: what `run` takes, as one object.

    Attributes:
        experiment: what it was made of.
        model, loss_fn: the network as a function of its weights, and the loss as one of these.
        step, state, loader, config: what to train, from where, on what, and how.
        validate: the `Validator` of ``[valid]``, where ``run.validate_every`` is set.
        sinks, observers: as the experiment lists them.
        evaluate: ``evaluate(params, buffers, batch) -> Aux``, the loss and its metrics by the model in eval form.
    """

    experiment: Experiment
    model: Functional
    loss_fn: LossFn
    step: Step
    state: TrainState
    loader: Any
    config: RunConfig
    validate: Validator | None
    sinks: tuple[Sink, ...]
    observers: tuple[Observer, ...]
    evaluate: Callable[..., Any]

    def __repr__(self) -> str:
        """What is trained on what, and how far it is, in one line; `Experiment.dumps` has the whole experiment."""
        made = self.experiment
        parts = {"model": made.model, "optimizer": made.optimizer, "dataset": made.data.dataset}
        names = ", ".join(f"{kind}={part.name!r}" for kind, part in parts.items())
        return f"Built({names}, root={self.config.root and str(self.config.root)!r}, state={self.state!r})"

    def run(self, **keywords: Any) -> Result:
        """Train by `helios_fn.run`; ``keywords`` are further arguments of it, or replace those of the experiment.

        Checkpoints record the experiment, for `load_run`. Where the run goes on from one whose experiment differs in
        what decides bits, a warning says in which keys.
        """
        for change in changes(self.experiment) if place().rank == 0 else []:
            _LOGGER.warning("%s: from here on the bits are those of neither", change)
        given: dict[str, Any] = {
            "validate": self.validate,
            "sinks": self.sinks,
            "observers": self.observers,
            "record": {RECORD: self.experiment.dumps()},
        }
        return run(self.step, self.state, self.loader, self.config, **{**given, **keywords})

    def test(self, state: TrainState | None = None) -> Mapping[str, float]:
        """Evaluate ``state``, by default the built one, on ``[test]``, or else on ``[valid]``.

        Raises:
            ValueError: the experiment has neither.
        """
        data, section = tested(self.experiment)
        loader = make_loader(self.experiment, data, section)
        params = params_of(data)
        return run_test(
            self.evaluate, self.state if state is None else state, loader, params=params, device=self.config.device
        )


def build(experiment: Experiment, *, discover: bool = True) -> Built:
    """Make all parts of an experiment; see `Experiment.build`."""
    if discover:
        registry.discover(*experiment.discover)
    if experiment.sweep is None:
        return _build(experiment, "keyed" if experiment.step.options.get("compile") else "scope")
    if not experiment.sweep.together:
        experiment.source.fail(
            ("sweep",), "a sweep is many runs: build each of experiment.members(), or set sweep.together = true"
        )
    check_together(experiment)
    # The draws of a mapped step cannot come from the global generators.
    first = _build(next(iter(experiment.members().values())), "keyed")
    return dataclasses.replace(first, experiment=experiment, config=experiment.run, **ensemble_of(experiment, first))


def _build(experiment: Experiment, draws: Draws) -> Built:
    source, device = experiment.source, experiment.run.device
    model, params, buffers = functional(model_factory(experiment), seed=experiment.seed, draws=draws)
    loss = create(registry.LOSSES, experiment.loss, source, ("loss",))
    optimizer, average = make_optimizer(experiment), make_average(experiment)
    kept = {} if average is None else {"average": average}
    loss_fn = functools.partial(loss, model)
    evaluate = evaluation_of(loss, model)
    return Built(
        experiment=experiment,
        model=model,
        loss_fn=loss_fn,
        step=create(registry.STEPS, experiment.step, source, ("step",), loss_fn, optimizer, **kept),
        state=init_state(
            on(params, device), optimizer, buffers=on(buffers, device), seed=experiment.seed, average=average
        ),
        loader=make_loader(experiment, experiment.data, "data"),
        config=experiment.run,
        validate=make_validator(experiment, evaluate),
        sinks=_all(experiment, registry.SINKS, "sinks"),
        observers=_all(experiment, registry.OBSERVERS, "observers"),
        evaluate=evaluate,
    )


def _all(experiment: Experiment, of: registry.Registry[Any], section: str) -> tuple[Any, ...]:
    parts = getattr(experiment, section)
    return tuple(create(of, part, experiment.source, (section, str(at))) for at, part in enumerate(parts))

"""A sweep as one run: all members in one ensemble."""

from __future__ import annotations

from typing import Any

from ..ensemble import ensemble, evaluate_members, stack
from ..nn import functional
from ..state import init_state
from ..step import make_step
from .loading import make_validator
from .making import make_average, make_optimizer, model_factory, on
from .spec import Experiment

_TUNABLE = ("adafactor", "adam", "adamw", "lion", "muon", "rmsprop", "sgd")


def check_together(experiment: Experiment) -> None:
    """Check that the members can be trained as one: they differ in seeds and in numbers of one optimiser alone.

    Raises:
        ValueError: they cannot; the message says why.
    """
    sweep, source = experiment.sweep, experiment.source
    assert sweep is not None
    path = ("sweep", "together")
    for key, values in sweep.values.items():
        section, _, option = key.partition(".")
        if key == "seed":
            continue
        if section != "optimizer" or not option or not all(type(value) is float for value in values):
            source.fail(
                path,
                f"members are trained together where they differ in seed and in fractions that are options of the "
                f"optimiser, but {key} differs, with {values!r}: write 1.0 for 1, or set together = false",
            )
        if experiment.optimizer.name not in _TUNABLE:
            source.fail(
                path,
                f"{key} can differ among members of {', '.join(_TUNABLE)}, not of {experiment.optimizer.name!r}: "
                "set together = false",
            )
    if experiment.step.name != "make_step" or experiment.step.options:
        source.fail(path, "members are trained together by the plain make_step: leave its options out of [step]")
    if experiment.run.early_stop is not None:
        source.fail(path, "early_stop would end all members at once: leave it out, or set together = false")


def ensemble_of(experiment: Experiment, first: Any) -> dict[str, Any]:
    """What of a sweep's first member, built alone with keyed draws, is another in the ensemble of all.

    All see the batches of the first member's seed. A member whose loss is not finite is frozen; the others go on.
    """
    assert experiment.sweep is not None
    members = list(experiment.members().values())
    in_state = any(key != "seed" for key in experiment.sweep.values)
    average = make_average(experiment)
    states = []
    for each in members:
        _, params, buffers = functional(model_factory(each), seed=each.seed)
        params, buffers = (on(part, each.run.device) for part in (params, buffers))
        optimizer = make_optimizer(each, in_state=in_state)
        states.append(init_state(params, optimizer, buffers=buffers, seed=each.seed, average=average))
    step = make_step(first.loss_fn, make_optimizer(members[0], in_state=in_state), average=average)
    evaluate = evaluate_members(first.evaluate)
    return {
        "step": ensemble(step, non_finite="freeze"),
        "state": stack(states),
        "validate": make_validator(experiment, evaluate),
        "evaluate": evaluate,
    }

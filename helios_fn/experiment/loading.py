"""The loaders of an experiment, and what validation and test read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from .. import registry
from ..data import CustomOrder, Loader
from ..driver import Validator
from ..state import TrainState
from ..types import Source
from .create import create
from .parts import Data, Evaluation
from .spec import Experiment


def make_loader(experiment: Experiment, data: Data, section: str) -> Any:
    """The loader of a section, or the dataset itself where that is a source of batches.

    Raises:
        ValueError: a part or an argument is wrong; the message has the place in the file.
    """
    source = experiment.source
    dataset = create(registry.DATASETS, data.dataset, source, (section, "dataset"))
    arguments = _arguments(experiment, data, section)
    if isinstance(dataset, Source):
        if arguments:
            stranger = next(iter(arguments))
            source.fail(
                (section, stranger),
                f"{section}.{stranger} has no effect: dataset {data.dataset.name!r} makes the batches itself",
            )
        return dataset
    shuffle = {"shuffle": False} if isinstance(data, Evaluation) and data.shuffle is None and data.order is None else {}
    try:
        return Loader(dataset, **{"batch_size": None, **shuffle, **arguments})
    except (TypeError, ValueError) as error:
        source.fail((section,), f"[{section}] {error}", error)


def _arguments(experiment: Experiment, data: Data, section: str) -> dict[str, Any]:
    """The arguments of a `Loader` that are not as by default."""
    source, found = experiment.source, {}
    for field in dataclasses.fields(Data):
        value = getattr(data, field.name)
        if field.name not in ("dataset", "transforms", "order", "collate") and value != field.default:
            found[field.name] = value
    if data.transforms:
        found["transform"] = Composed(
            tuple(
                create(registry.TRANSFORMS, each, source, (section, "transforms", str(at)))
                for at, each in enumerate(data.transforms)
            )
        )
    if data.collate is not None:
        found["collate"] = create(registry.COLLATES, data.collate, source, (section, "collate"))
    if data.order is not None:
        order = create(registry.ORDERS, data.order, source, (section, "order"))
        options = ", ".join(f"{key}={value!r}" for key, value in data.order.options.items())
        is_function = not hasattr(order, "open")
        found["order"] = CustomOrder(order, label=f"{data.order.name}({options})") if is_function else order
    return found


@dataclasses.dataclass(frozen=True)
class Composed:
    """Transforms of a sample, one after another; they draw from the same generator."""

    transforms: tuple[Callable[..., Any], ...]

    def __call__(self, sample: Any, rng: Any) -> Any:
        """The sample after the last of them."""
        for transform in self.transforms:
            sample = transform(sample, rng)
        return sample


def make_validator(experiment: Experiment, evaluate: Callable[..., Any]) -> Validator | None:
    """The validator of ``[valid]``, if there is one and it is ever called."""
    data = experiment.valid
    if data is None or experiment.run.validate_every is None:
        return None
    loader = make_loader(experiment, data, "valid")
    return Validator(evaluate, loader, params=params_of(data), device=experiment.run.device)


def tested(experiment: Experiment) -> tuple[Evaluation, str]:
    """The section that a test reads, and its name."""
    for section in ("test", "valid"):
        found = getattr(experiment, section)
        if found is not None:
            return found, section
    raise ValueError(f"{experiment.source.name}: there is nothing to test on: add a section [test]")


def params_of(data: Evaluation) -> Callable[[TrainState], Any]:
    """What an evaluation takes of a state."""
    return _averages if data.params == "averages" else _params


def _params(state: TrainState) -> Any:
    return state.params


def _averages(state: TrainState) -> Any:
    return state.averages

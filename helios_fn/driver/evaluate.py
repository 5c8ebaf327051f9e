"""Evaluation: weighted means of metrics over a loader, exact over ragged batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .. import random
from ..errors import RunFailed
from ..state import TrainState
from ..types import Aux, Cursor, Key, Share, Source, Tree
from .batches import describe_batch, one_source, to_device

EvalFn = Callable[[Any, Any, Any], Aux]
OnBatch = Callable[[int, int | None], None]


class Validator:
    """``validate(state) -> metrics``: runs ``eval_fn`` over a loader and averages its metrics by weight.

    Args:
        eval_fn: ``eval_fn(params, buffers, batch) -> Aux(metrics={...}, weight=len(batch))``.
        loader: what to evaluate on; anything that `run` accepts, not the training loader itself.
        params: picks the parameters to evaluate, for example ``lambda state: state.averages``.
        device: where batches are moved before ``eval_fn`` sees them.

    Each call sees the same batches and the same random draws, derived from the run's seed alone.
    """

    def __init__(
        self,
        eval_fn: EvalFn,
        loader: Any,
        *,
        params: Callable[[TrainState], Tree] = lambda state: state.params,
        device: Any = None,
    ) -> None:
        self._eval_fn = eval_fn
        self._source = one_source(loader)
        if self._source.batches_per_epoch is None:
            raise ValueError("a stream has no end to evaluate up to: hand over a Loader, or limit the stream yourself")
        self._params = params
        self._device = device
        self.last_batch: Any = None

    @property
    def batches(self) -> int | None:
        """How many batches one evaluation reads."""
        return self._source.batches_per_epoch

    @property
    def source(self) -> Source:
        """What is read."""
        return self._source

    def close(self) -> None:
        """Stop the loader's workers, if it has any; the next call starts them again."""
        self._source.close()

    def __call__(self, state: TrainState, on_batch: OnBatch | None = None) -> dict[str, float]:
        """The weighted mean of each metric.

        Raises:
            TypeError: ``eval_fn`` returned something else than an `Aux` with metrics.
            ValueError: the metrics of two batches have different names, or the total weight is 0.
        """
        key = random.fold_in(state.key, "validate")
        feed = self._source.open(Cursor(), key=key, share=Share("epoch", 1))
        mean = _WeightedMean()
        try:
            with torch.no_grad():
                for done, delivery in enumerate(feed, start=1):
                    self.last_batch = to_device(delivery.items[0], self._device)
                    mean.add(self._evaluate(state, self.last_batch, random.fold_in(key, done)))
                    if on_batch is not None:
                        on_batch(done, self.batches)
                    if delivery.cursor.epoch > 0:
                        break
        finally:
            feed.close()
        self.last_batch = None
        return mean.value()

    def _evaluate(self, state: TrainState, batch: Any, key: Key) -> Aux:
        with random.scope(key):
            aux = self._eval_fn(self._params(state), state.buffers, batch)
        if not isinstance(aux, Aux) or not aux.metrics:
            raise TypeError(
                f"eval_fn must return hf.Aux(metrics={{...}}, weight=len(batch)), got {type(aux).__name__}"
                + (" without metrics" if isinstance(aux, Aux) else "")
            )
        return aux


class _WeightedMean:
    """Sums in float64 in the order of the batches, so the result does not depend on how they were fetched."""

    def __init__(self) -> None:
        self._totals: dict[str, float] = {}
        self._weight = 0.0

    def add(self, aux: Aux) -> None:
        metrics = {name: float(value) for name, value in (aux.metrics or {}).items()}
        if self._weight and metrics.keys() != self._totals.keys():
            raise ValueError(f"eval_fn returned metrics {sorted(metrics)} after {sorted(self._totals)}")
        weight = float(aux.weight)
        if not weight >= 0:
            raise ValueError(f"Aux.weight must count samples or tokens, got {weight}")
        if weight:
            for name, value in metrics.items():
                self._totals[name] = self._totals.get(name, 0.0) + weight * value
        self._weight += weight

    def value(self) -> dict[str, float]:
        if not self._weight:
            raise ValueError("the total weight of the evaluation is 0: Aux.weight must count samples or tokens")
        return {name: total / self._weight for name, total in self._totals.items()}


def test(
    eval_fn: EvalFn,
    state: TrainState,
    loader: Any,
    *,
    params: Callable[[TrainState], Tree] = lambda state: state.params,
    device: Any = None,
    pass_through: tuple[type[BaseException], ...] = (),
    on_batch: OnBatch | None = None,
) -> Mapping[str, float]:
    """Evaluate a trained state once and return the weighted mean of each metric.

    The arguments are those of `Validator`; ``on_batch(done, total)`` is called after each batch.

    Raises:
        RunFailed: ``eval_fn`` or the loader raised; types in ``pass_through`` pass unchanged.
    """
    validator = Validator(eval_fn, loader, params=params, device=device)
    try:
        return validator(state, on_batch)
    except pass_through:
        raise
    except Exception as error:
        batch = describe_batch(validator.last_batch)
        raise RunFailed(f"testing failed on batch {batch}: {type(error).__name__}: {error}", batch=batch) from error
    finally:
        validator.close()


# pytest collects whatever is called test; this is the library's.
test.__test__ = False  # type: ignore[attr-defined]

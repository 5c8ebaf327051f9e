"""Evaluation: weighted means of metrics over a loader, exact over ragged batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .. import random, tree
from ..distributed import current
from ..dtensors import any_sharded
from ..errors import RunFailed
from ..schedule import rank_slice
from ..state import TrainState
from ..types import Aux, Cursor, Key, Share, Source, Tree
from .batches import describe_batch, one_source, to_device
from .table import Table

EvalFn = Callable[[Any, Any, Any], Aux]
OnBatch = Callable[[int, int | None], None]


class Validator:
    """``validate(state) -> metrics``: runs ``eval_fn`` over a loader and averages its metrics by weight.

    Args:
        eval_fn: ``eval_fn(params, buffers, batch) -> Aux(metrics={...}, weight=len(batch))``.
        loader: what to evaluate on; anything that `run` accepts, not the training loader itself.
        params: picks the parameters to evaluate, for example ``lambda state: state.averages``.
        device: where batches are moved before ``eval_fn`` sees them.

    Each call sees the same batches and the same random draws, derived from the run's seed alone. Several processes
    share the batches, and all get the mean over all of them: the same bits whatever their number. Where parameters are
    sharded, each process evaluates every batch.

    Example:
        >>> def eval_fn(params, buffers, batch):
        ...     return hf.Aux(weight=len(batch), metrics={"mean": batch.float().mean()})
        ...
        >>> validate = hf.Validator(eval_fn, hf.Loader(torch.arange(10), 4))
        >>> validate(hf.init_state({"w": torch.zeros(1)}))
        {'mean': 4.5}
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
        world = current()
        assert self.batches is not None  # no stream
        table = Table()
        if any_sharded(tree.leaves((self._params(state), state.buffers))):
            # Whoever gathers a parameter needs all the others to do so: the same number of batches each.
            self._fill(table, state, range(self.batches), on_batch)
            return table.mean()
        start, stop = rank_slice(self.batches, world.rank, world.size)
        if start < stop:
            self._fill(table, state, range(start, stop), on_batch)
        return table.of_all(world).mean()

    def _fill(self, table: Table, state: TrainState, batches: range, on_batch: OnBatch | None) -> None:
        """Evaluate these batches, one row of the table each."""
        key = random.fold_in(state.key, "validate")
        feed = self._source.open(Cursor(batch=batches.start), key=key, share=Share("epoch", 1))
        try:
            with torch.no_grad():
                for number, delivery in zip(batches, feed, strict=False):
                    self.last_batch = to_device(delivery.items[0], self._device)
                    table.add(self._evaluate(state, self.last_batch, random.fold_in(key, number + 1)))
                    if on_batch is not None:
                        on_batch(number + 1 - batches.start, len(batches))
        finally:
            feed.close()
        self.last_batch = None

    def _evaluate(self, state: TrainState, batch: Any, key: Key) -> Aux:
        with random.scope(key):
            aux = self._eval_fn(self._params(state), state.buffers, batch)
        if not isinstance(aux, Aux) or not aux.metrics:
            raise TypeError(
                f"eval_fn must return hf.Aux(metrics={{...}}, weight=len(batch)), got {type(aux).__name__}"
                + (" without metrics" if isinstance(aux, Aux) else "")
            )
        return aux


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

    Where several processes train together, all of them must call this: they share the batches.

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

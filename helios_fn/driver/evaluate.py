"""Evaluation: metrics over a loader, exact over ragged batches."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..distributed import current
from ..state import TrainState
from ..types import Aux, Source, Tree
from .fold import Fold, OnBatch
from .table import Table

EvalFn = Callable[[Any, Any, Any], Aux]


class Validator:
    """``validate(state) -> metrics``: runs ``eval_fn`` over a loader and gathers its metrics.

    Args:
        eval_fn: ``eval_fn(params, buffers, batch) -> Aux(metrics={...}, weight=len(batch))``. Scalars are averaged by
            weight; metrics of `helios_fn.metrics`, called on the batch, are merged and computed at the end.
        loader: what to evaluate on; anything that `run` accepts, not the training loader itself.
        params: picks the parameters to evaluate, for example ``lambda state: state.averages``.
        device: where batches are moved before ``eval_fn`` sees them.

    Each call sees the same batches and the same random draws, derived from the run's seed alone. Several processes
    share the batches, and all get the result over all of them: the same bits whatever their number. Where parameters
    are sharded, each process evaluates every batch.

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
        self.fold = Fold(eval_fn, loader, params, device, purpose="validate")

    @property
    def batches(self) -> int | None:
        """How many batches one evaluation reads."""
        return self.fold.batches

    @property
    def source(self) -> Source:
        """What is read."""
        return self.fold.source

    @property
    def last_batch(self) -> Any:
        """The batch that is being evaluated."""
        return self.fold.last_batch

    def limit(self, batches: float) -> Validator:
        """A validator of the first batches only: so many, or that fraction of them (a float). Both read one loader."""
        return self._with(self.fold.limited(batches))

    def over(self, loader: Any) -> Validator:
        """A validator that does the same on another loader."""
        return self._with(self.fold.over(loader))

    def _with(self, fold: Fold) -> Validator:
        other = copy.copy(self)  # of a class derived from this one, with all that it has besides
        other.fold = fold
        return other

    def close(self) -> None:
        """Stop the loader's workers, if it has any; the next call starts them again."""
        self.fold.close()

    def __call__(self, state: TrainState, on_batch: OnBatch | None = None) -> dict[str, float]:
        """The metrics that are scalars, by name.

        Raises:
            TypeError: ``eval_fn`` returned something else than an `Aux` with metrics.
            ValueError: the metrics of two batches have different names, or the total weight is 0.
        """
        return {name: value for name, value in self.results(state, on_batch).items() if isinstance(value, float)}

    def results(self, state: TrainState, on_batch: OnBatch | None = None) -> dict[str, Any]:
        """All metrics, by name: floats, and CPU tensors such as the matrix of `helios_fn.metrics.confusion`.

        Raises as calling it does.
        """
        table, shared = self._table(state, on_batch)
        return table.results(current() if shared else None)

    def try_out(self, state: TrainState, batches: int) -> dict[str, float] | None:
        """The metrics of the first batches of this process; ``None`` where none has any weight, so nothing is known."""
        table, _ = self._table(state, None, batches)
        if not table.weighs:
            return None
        return {name: value for name, value in table.results().items() if isinstance(value, float)}

    def _table(self, state: TrainState, on_batch: OnBatch | None, most: int | None = None) -> tuple[Table, bool]:
        table = Table()
        batches, shared = self.fold.share(state, current(), most)
        # Closed at once: a failure would keep the feed open as long as somebody looks at it.
        with contextlib.closing(self.fold.results(state, batches, on_batch)) as found:
            for aux in found:
                table.add(_checked(aux))
        return table, shared


def _checked(aux: Any) -> Aux:
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
    pass_through: Iterable[type[BaseException]] = (),
    on_batch: OnBatch | None = None,
) -> Mapping[str, Any]:
    """Evaluate a trained state once and return its metrics by name.

    Floats for the weighted means of scalars and for what metrics compute; results with dimensions, such as the matrix
    of `helios_fn.metrics.confusion`, are CPU tensors.

    Where several processes train together, all of them must call this: they share the batches.

    The arguments are those of `Validator`; ``on_batch(done, total)`` is called after each batch.

    Raises:
        RunFailed: ``eval_fn`` or the loader raised; types in ``pass_through`` pass unchanged.
    """
    validator = Validator(eval_fn, loader, params=params, device=device)
    with contextlib.closing(validator), validator.fold.failing("testing", pass_through):
        return validator.results(state, on_batch)


# pytest collects whatever is called test; this is the library's.
test.__test__ = False  # type: ignore[attr-defined]

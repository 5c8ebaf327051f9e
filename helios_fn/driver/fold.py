"""A function called on the batches of an evaluation, each in a keyed scope of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import torch

from .. import random, tree
from ..data.plan import portion
from ..distributed import World
from ..dtensors import any_sharded
from ..errors import RunFailed
from ..frames import focused
from ..schedule import rank_slice
from ..state import TrainState
from ..types import Cursor, Share, Source, Tree
from .batches import describe_batch, one_source, to_device
from .passing import checked_types

OnBatch = Callable[[int, int | None], None]
Params = Callable[[TrainState], Tree]


class Fold:
    """``function(params, buffers, batch)`` over a loader.

    A result depends on the state and the number of its batch alone: each batch has its own key.

    Args:
        function: what is called, without gradients.
        loader: what it is called on; anything with an end that `run` accepts.
        params: picks the parameters that it is called with.
        device: where batches are moved before.
        purpose: names the random draws.
        limit: only so many of the first batches, or that fraction of them (a float).

    Attributes:
        source: what is read.
        batches: how many batches that are.
        last_batch: the batch that is being evaluated, for messages.
    """

    def __init__(
        self,
        function: Callable[[Any, Any, Any], Any],
        loader: Any,
        params: Params,
        device: Any,
        *,
        purpose: str,
        limit: float | None = None,
    ) -> None:
        self._function = function
        self.source: Source = one_source(loader)
        whole = self.source.batches_per_epoch
        if whole is None:
            raise ValueError("a stream has no end to evaluate up to: hand over a Loader, or limit the stream yourself")
        self.batches = whole if limit is None else portion(limit, whole)
        self._params, self._device, self._purpose = params, device, purpose
        self.last_batch: Any = None

    def over(self, loader: Any, limit: float | None = None) -> Fold:
        """The same function over another loader."""
        return Fold(self._function, loader, self._params, self._device, purpose=self._purpose, limit=limit)

    def limited(self, batches: float) -> Fold:
        """The same over the first batches only; both read one source."""
        return self.over(self.source, portion(batches, self.batches))

    def share(self, state: TrainState, world: World, most: int | None = None) -> tuple[range, bool]:
        """The batches of this process (of the first ``most``), and whether each has a part of them (else: all)."""
        count = self.batches if most is None else min(most, self.batches)
        if any_sharded(tree.leaves((self._params(state), state.buffers))):
            # Whoever gathers a parameter needs all the others to do so: the same number of batches each.
            return range(count), False
        start, stop = rank_slice(count, world.rank, world.size)
        return range(start, stop), world.size > 1

    def results(self, state: TrainState, batches: range, on_batch: OnBatch | None = None) -> Generator[Any, None, None]:
        """What the function returns for each of these batches, in order."""
        if not batches:
            return
        key = random.fold_in(state.key, self._purpose)
        feed = self.source.open(Cursor(batch=batches.start), key=key, share=Share("epoch", 1))
        try:
            for number, delivery in zip(batches, feed, strict=False):
                self.last_batch = to_device(delivery.items[0], self._device)
                with torch.no_grad(), _no_search(), random.scope(random.fold_in(key, number + 1)):
                    result = self._function(self._params(state), state.buffers, self.last_batch)
                yield result
                if on_batch is not None:
                    on_batch(number + 1 - batches.start, len(batches))
        finally:
            feed.close()
        self.last_batch = None

    @contextlib.contextmanager
    def failing(self, doing: str, pass_through: Iterable[type[BaseException]]) -> Iterator[None]:
        """Raise what goes wrong as `RunFailed` with the batch, but for types in ``pass_through``."""
        types = checked_types(pass_through)
        try:
            yield
        except types:
            raise
        except Exception as error:
            batch = describe_batch(self.last_batch)
            message = f"{doing} failed on batch {batch}: {type(error).__name__}: {error}"
            raise RunFailed(message, batch=batch) from focused(error)

    def close(self) -> None:
        """Stop the loader's workers, if it has any; they start again with the next reading."""
        self.source.close()


@contextlib.contextmanager
def _no_search() -> Iterator[None]:
    """Without cuDNN's search for the fastest kernel, which a ragged last batch would start over in each evaluation."""
    before = torch.backends.cudnn.benchmark
    if not before:
        yield
        return
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before

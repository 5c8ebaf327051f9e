"""Predictions: the outputs of a function over a loader, in the order of the samples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from .. import tree
from ..distributed import World, current
from ..state import TrainState
from ..types import Tree
from .fold import Fold, OnBatch
from .packing import gathered
from .passing import PassThrough, checked_types

PredictFn = Callable[[Any, Any, Any], Tree]


def predict(
    predict_fn: PredictFn,
    state: TrainState,
    loader: Any,
    *,
    params: Callable[[TrainState], Tree] = lambda state: state.params,
    device: Any = None,
    pass_through: Iterable[type[BaseException]] = (),
    on_batch: OnBatch | None = None,
) -> Tree:
    """The outputs for all samples of a loader: a tree of CPU tensors whose first dimension counts samples, in order.

        probabilities = hf.predict(lambda p, b, batch: model.eval(p, b, batch[0])[0].softmax(1), state, loader)

    Law: the bits are those of ``predict_fn`` on each batch, joined; they depend on the state and the loader alone.
    Random draws are a function of the run's seed and the number of the batch. Several processes share the batches, and
    all get all outputs. Where they do not fit into memory, `predict_batches` gives one batch after another.

    Args:
        predict_fn: ``predict_fn(params, buffers, batch) -> outputs``, a tree of tensors with one row for each sample.
        state: whose parameters predict.
        loader: with an end, and not shuffled, for nobody could tell which output belongs to which sample.
        params: picks the parameters, for example ``lambda state: state.averages``.
        device: where batches are moved before ``predict_fn`` sees them.
        pass_through: exception types that are raised unchanged.
        on_batch: ``on_batch(done, total)``, called after each batch of this process.

    Raises:
        RunFailed: ``predict_fn`` or the loader raised, or the outputs of two batches do not fit together.
        ValueError: the loader is shuffled, or has no end.
    """
    fold = _fold(predict_fn, loader, params, device)
    world = current()
    with contextlib.closing(fold), fold.failing("predicting", pass_through):
        batches, shared = fold.share(state, world)
        outputs = [_on_cpu(each) for each in fold.results(state, batches, on_batch)]
        for number, output in zip(batches, outputs, strict=True):
            _check_like(outputs[0], output, f"batch {number}")
        if not shared:
            return _joined(outputs)
        return _of_all(outputs, fold, state, world)


def predict_batches(
    predict_fn: PredictFn,
    state: TrainState,
    loader: Any,
    *,
    params: Callable[[TrainState], Tree] = lambda state: state.params,
    device: Any = None,
    pass_through: Iterable[type[BaseException]] = (),
) -> Iterator[tuple[int, Tree]]:
    """The outputs of one batch after another, as pairs of the batch's number and its outputs on the CPU.

        for number, probabilities in hf.predict_batches(predict_fn, state, loader):
            np.save(f"out/{number:06}.npy", probabilities)

    For outputs that do not fit into memory. Joined, they are what `predict` returns, whose arguments and errors these
    are. Several processes each get their own batches: consecutive ones, each number in exactly one process.
    """
    fold = _fold(predict_fn, loader, params, device)
    return _batches(fold, state, checked_types(pass_through))


def _batches(fold: Fold, state: TrainState, pass_through: PassThrough) -> Iterator[tuple[int, Tree]]:
    batches, _ = fold.share(state, current())
    first = None
    with contextlib.closing(fold), contextlib.closing(fold.results(state, batches)) as found:
        for number in batches:
            # What the reader of this generator raises is not ours to wrap.
            with fold.failing("predicting", pass_through):
                output = _on_cpu(next(found))
                first = output if first is None else first
                _check_like(first, output, f"batch {number}")
            yield number, output


def _fold(predict_fn: Any, loader: Any, params: Any, device: Any) -> Fold:
    if not callable(predict_fn):
        raise TypeError(
            f"predict_fn must be a function of (params, buffers, batch), got {type(predict_fn).__name__}: the order is "
            "predict(predict_fn, state, loader)"
        )
    fold = Fold(predict_fn, loader, params, device, purpose="predict")
    if fold.source.describe().get("order") == "shuffled":
        raise ValueError(
            "predictions for a shuffled loader would come in an order that nobody knows: "
            "hf.Loader(..., shuffle=False), or loader.replace(shuffle=False)"
        )
    return fold


def _on_cpu(output: Tree) -> Tree:
    rows = set()
    for path, leaf in tree.items(output):
        if not isinstance(leaf, torch.Tensor) or not leaf.dim():
            raise TypeError(
                f"predict_fn must return tensors with a row for each sample, got {tree.describe(leaf)}"
                + (f" at {path}" if path else "")
            )
        rows.add(len(leaf))
    if len(rows) != 1:
        raise ValueError(f"all outputs of a batch must have as many rows as it has samples, got {sorted(rows)}")
    return tree.map(lambda leaf: leaf.detach().cpu(), output)


def _check_like(first: Tree, other: Tree, whose: str) -> None:
    def form(output: Tree) -> list[str]:
        return [f"{path} {leaf.dtype} [n, {', '.join(map(str, leaf.shape[1:]))}]" for path, leaf in tree.items(output)]

    if form(first) != form(other) or tree.structure(first) != tree.structure(other):
        raise ValueError(f"the outputs of {whose}, {form(other)}, do not fit those before, {form(first)}")


def _joined(outputs: list[Tree]) -> Tree:
    return tree.map(lambda *leaves: torch.cat(leaves), *outputs)


def _of_all(outputs: list[Tree], fold: Fold, state: TrainState, world: World) -> Tree:
    """The outputs of all processes, in order. One without a batch looks at the first, to know their structure."""
    if outputs:
        like = outputs[0]
    else:
        [first] = fold.results(state, range(1))
        like = _on_cpu(first)
    parts = gathered(tree.leaves(_joined(outputs)) if outputs else [], world)
    structure = tree.structure(like)
    wholes = [tree.unflatten(structure, leaves) for leaves in parts if leaves]
    for whole in wholes:
        _check_like(wholes[0], whole, "another process")
    return _joined(wholes)

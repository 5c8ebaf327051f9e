"""The training state: one immutable pytree that holds everything that can influence the future."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from . import random, tree
from .errors import StateDonated
from .random.keys import consecutive
from .text import plural, size
from .types import Counters, Cursor, Key, MicroBatches, Tree, Validation

DEFAULT_SEED = 6691
OUTPUT_ONLY = ("metrics", "validation.metrics", "cursor.position")
"""Paths of a `TrainState` whose structure is not known before training; they come from a checkpoint alone."""


@tree.register
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TrainState:
    """Everything that can influence the future of a training run.

    Leaves are tensors or Python scalars; apart from ``metrics`` and ``validation.metrics``, structure,
    shapes and dtypes never change during a run.

    Attributes:
        params: trainable tensors, usually a dict by name.
        buffers: the other tensors of the module (running statistics, frozen weights), or ``None``.
        opt_state: the optimiser's memory.
        key: the constant root key, int64 of shape (2,); use `step_key` and `micro_keys`.
        cursor: the next micro-batch to consume.
        counters: completed iterations and consumed micro-batches.
        validation: what validation has found so far.
        metrics: 0-d tensors that the last step wrote for the log; output only.
        averages: averaged parameters, or ``None``.
        first_bad: int64 0-d, the first iteration whose loss or gradients were not finite, or -1.
        extra: whatever else the user's step wants to remember.
    """

    params: Tree
    buffers: Tree
    opt_state: Tree
    key: Key
    cursor: Cursor
    counters: Counters
    validation: Validation
    metrics: dict[str, torch.Tensor]
    averages: Tree
    first_bad: torch.Tensor
    extra: Tree

    def __repr__(self) -> str:
        """Where training stands and what each field holds, in one line; `helios_fn.summary` lists the tensors."""
        at = f"iteration={self.counters.iteration}, epoch={self.cursor.epoch}"
        fields = ("params", "buffers", "opt_state", "averages", "metrics", "extra")
        held = [f"{name}={text}" for name in fields if (text := _held(getattr(self, name)))]
        return f"TrainState({', '.join([at, *held])})"

    def replace(self, **changes: Any) -> TrainState:
        """A copy with some fields changed.

        Raises:
            TypeError: a name is not that of a field.

        Example:
            >>> state = hf.init_state({"w": torch.zeros(1)}, extra={"best": 0.0})
            >>> state.replace(extra={"best": 0.5}).extra, state.extra
            ({'best': 0.5}, {'best': 0.0})
        """
        if torch.compiler.is_compiling():
            return dataclasses.replace(self, **changes)
        new = renewed(self, changes)
        if len(new.__dict__) != _FIELDS:
            wrong = next(name for name in changes if name not in self.__dict__)
            fields = ", ".join(self.__dict__)
            raise TypeError(f"TrainState has no field {wrong!r}, only {fields}. What is your own belongs into extra")
        return new


_FIELDS = len(dataclasses.fields(TrainState))


def renewed(state: TrainState, changes: dict[str, Any]) -> TrainState:
    """`TrainState.replace` for callers who are outside of compiled regions and know the names."""
    # What dataclasses.replace does, at a tenth of its cost.
    new = object.__new__(TrainState)
    fields = new.__dict__
    fields.update(state.__dict__)
    fields.update(changes)
    return new


class _Donated:
    """Stands where a donated state had its tensors, and says so to whoever looks for them."""

    __slots__ = ()

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise StateDonated(
            "this state was given away: a donating step wrote the next state into its memory. Use the state that the "
            "step returned; to keep an older one, call the step itself instead of step.donating, or set donate=False"
        )

    def __getattr__(self, name: str) -> Any:
        if name == "__wrapped__":  # which `inspect` asks of all that a module holds
            raise AttributeError(name)
        return self._refuse()

    __getitem__ = __iter__ = __len__ = __contains__ = __call__ = __bool__ = _refuse


_DONATED = _Donated()


def _held(field: Tree) -> str:
    """What a field of a state holds, in a few words; empty where that is nothing."""
    if field is _DONATED:
        return "<given away>"
    leaves = tree.leaves(field)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    words = []
    if tensors:
        total = sum(leaf.numel() * leaf.element_size() for leaf in tensors)
        words.append(f"{plural(len(tensors), 'tensor')}, {size(total)}")
    if len(leaves) > len(tensors):
        words.append(plural(len(leaves) - len(tensors), "value"))
    return f"<{' and '.join(words)}>" if words else ""


def give_away(state: TrainState) -> None:
    """Take from ``state`` the fields whose memory a donating step overwrites, before the first write.

    From then on, using its ``params``, ``opt_state`` or ``averages`` raises `StateDonated`.
    """
    for name in ("params", "opt_state", "averages"):
        object.__setattr__(state, name, _DONATED)


def is_given_away(state: TrainState) -> bool:
    """Whether a donating step has taken the memory of ``state``."""
    return state.params is _DONATED


def init_state(
    params: Tree,
    optimizer: Any = None,
    *,
    buffers: Tree = None,
    seed: int = DEFAULT_SEED,
    opt_state: Tree = None,
    average: Any = None,
    extra: Tree = None,
) -> TrainState:
    """The state before the first iteration.

    Args:
        params: trainable tensors, any pytree.
        optimizer: gives ``opt_state`` by its ``init(params)``; or hand over ``opt_state`` itself, for
            steps with several optimisers.
        buffers: the other tensors of the module.
        seed: every random draw of the run is derived from it.
        average: gives ``averages`` by its ``init(params)``, such as `helios_fn.ema`.
        extra: the user's own state.

    Raises:
        ValueError: both an optimiser and an ``opt_state`` are given.
        TypeError: ``params`` holds no tensor, or ``optimizer`` or ``average`` is something else.

    Example:
        >>> model, params, buffers = hf.functional(lambda: torch.nn.Linear(2, 1))
        >>> state = hf.init_state(params, hf.optim.sgd(0.1), buffers=buffers, seed=0)
        >>> state.counters, state.cursor.epoch, sorted(state.params)
        (Counters(iteration=0, micro_step=0), 0, ['bias', 'weight'])
    """
    if optimizer is not None and opt_state is not None:
        raise ValueError("give optimizer or opt_state, not both: optimizer.init(params) would overwrite opt_state")
    if optimizer is not None:
        check_optimizer(optimizer)
    if average is not None and not callable(getattr(average, "init", None)):
        raise TypeError(f"average must be an average such as hf.ema(0.999), got {tree.describe(average)}")
    if not any(isinstance(leaf, torch.Tensor) for leaf in tree.leaves(params)):
        raise TypeError(f"params holds no tensor: got {tree.describe(params)}. Hand over what hf.functional returned")
    params, buffers = _sorted(params), _sorted(buffers)
    return TrainState(
        params=params,
        buffers=buffers,
        opt_state=opt_state if optimizer is None else optimizer.init(params),
        key=random.key(seed),
        cursor=Cursor(),
        counters=Counters(),
        validation=Validation(metrics={}),
        metrics={},
        averages=None if average is None else average.init(params),
        first_bad=torch.tensor(-1, dtype=torch.int64),
        extra=extra,
    )


def _sorted(node: Tree) -> Tree:
    """The tree with its dicts in canonical order, in which steps return them: compilers notice the order."""
    if type(node) is dict:
        return {name: _sorted(node[name]) for name in sorted(node)}
    if type(node) in (list, tuple):
        return type(node)(map(_sorted, node))
    return node


def check_optimizer(optimizer: Any) -> None:
    """Refuse what is not an optimiser of `helios_fn.optim`. It is known by its functions, being defined further up.

    Raises:
        TypeError: it is none; the message says what to write instead.
    """
    if all(callable(getattr(optimizer, name, None)) for name in ("init", "update", "count", "monitor")):
        return
    cls = optimizer if isinstance(optimizer, type) else type(optimizer)
    got = f"{'the class' if cls is optimizer else 'an instance of'} {cls.__name__}"
    if issubclass(cls, torch.optim.Optimizer):
        owner = "torch.optim." if cls.__module__.startswith("torch.optim.") else ""
        remedy = f": write hf.optim.from_torch({owner}{cls.__name__}, lr=...)"
    elif callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None)):
        got = repr(optimizer)
        remedy = ", a transform without an optimiser: write hf.optim.chain(transform, hf.optim.adamw(...))"
    elif callable(optimizer) and hasattr(optimizer, "__name__"):
        got, remedy = optimizer.__name__, f": call it, as in {optimizer.__name__}(...)"
    else:
        remedy = ": write hf.optim.adamw(...), say"
    raise TypeError(f"optimizer must be an optimiser of hf.optim, got {got}{remedy}")


def step_key(state: Any, name: str) -> Key:
    """The key of this iteration for one named purpose: a function of the seed, the name and the position.

    Example:
        >>> state = hf.init_state({"w": torch.zeros(1)}, seed=0)
        >>> torch.equal(hf.step_key(state, "noise"), hf.step_key(state, "noise"))
        True
        >>> torch.equal(hf.step_key(state, "noise"), hf.step_key(state, "mixup"))
        False
    """
    return consecutive(state.key, name, state.counters.micro_step, 1)[0]


def micro_keys(state: Any, batch: Any) -> list[Key]:
    """One key for each micro-batch that this process holds, the same whichever process holds it."""
    first = state.counters.micro_step
    if isinstance(batch, MicroBatches):
        return consecutive(state.key, "micro", first + batch.start, len(batch.items))
    return consecutive(state.key, "micro", first, 1)

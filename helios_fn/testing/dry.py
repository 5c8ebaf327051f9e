"""A dry run: one call of a step with tensors that have shapes and no values, to know what it takes before it is run."""

from __future__ import annotations

import contextlib
import linecache
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .. import random, tree
from ..dtensors import any_sharded
from ..errors import NotTraceable
from ..state import TrainState
from .bill import MemoryBill
from .ledger import Ledger, bytes_of

_SMALL = 64  # elements: what keys, counts and constants have
_MODEST = 1 << 14  # elements: more than the state of a generator has
_READ = torch.ops.aten._local_scalar_dense.default
_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep
_TESTING = os.path.dirname(__file__) + os.sep
_TORCH = os.path.dirname(torch.__file__) + os.sep
_VALUELESS = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
    fake_tensor.UnsupportedOperatorException,
)
# torch has no type for these.
_SAID = ("not supported for tensor subclasses", "Cannot access data pointer", "data is not allocated")
_NO_HOOKS = "saved tensor hooks"


def dry_run(
    step: Callable[[Any, Any], Any],
    state: TrainState | Callable[[], TrainState],
    batch: Any,
    *,
    donate: bool = False,
) -> MemoryBill:
    """Call a step with tensors that have shapes, dtypes and devices but no values, and tell what memory it takes.

    Nothing is computed and next to nothing allocated, so a model that would not fit can be asked about on any machine:
    hand over functions that make the state and the batch. A step that does not fit together (shapes, dtypes,
    devices) raises its own error.

    Where helios_fn itself looks at values (is the loss finite? is the gradient to be clipped?), the usual or the more
    expensive answer is taken. A compiled step is followed without the compiler, which as a rule needs less memory.
    Fused kernels of optimisers write in place and count as nothing beside their results.

    Args:
        step: as for `helios_fn.run`.
        state: any state, which stays as it is; or a function that makes one, and is called dry itself.
        batch: what the step receives: a batch, or `helios_fn.MicroBatches`; or a function that makes it.
        donate: call ``step.donating``, which writes the new state into the memory of the old one, as the driver does
            with states of its own.

    Raises:
        NotTraceable: what the step does depends on values: it reads them (``.item()``, ``float()``, ``if`` on a tensor,
            ``.numpy()``), or a shape follows from them (``nonzero``, boolean masks); names the line.
        TypeError: the state is sharded, or ``donate`` is asked of a step that cannot.
    """
    call = getattr(step, "donating", None) if donate else step
    if not callable(call):
        raise TypeError(f"donate=True needs a step of hf.make_step or hf.compile, got {tree.describe(step)}")
    if not callable(state) and any_sharded(tree.leaves(state)):
        raise TypeError("a sharded state cannot be run dry: ask for the state of one process, with gathered parameters")
    try:
        return _bill(step, call, state, batch, donate, hooks=True)
    except RuntimeError as error:
        if _NO_HOOKS not in str(error):
            raise
    return _bill(step, call, state, batch, donate, hooks=False)


def _bill(step: Any, call: Callable[..., Any], state: Any, batch: Any, donate: bool, hooks: bool) -> MemoryBill:
    fake = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    with random.preserved_globals(), _quiet(), _without_compiler(step), _named_faults():
        with _Dry(fake, None):
            state, batch = (made() if callable(made) else made for made in (state, batch))
        state, batch = _valueless(state, fake, keep=True), _valueless(batch, fake, keep=False)
        ledger = Ledger(leaf for leaf in tree.leaves((state, batch)) if isinstance(leaf, torch.Tensor))
        parts = _parts(state, batch)
        saving = torch.autograd.graph.saved_tensors_hooks(ledger.save, lambda tensor: tensor)
        with saving if hooks else contextlib.nullcontext(), _Dry(fake, ledger), _Places():
            result = call(state, batch)
    del result
    return MemoryBill(
        **parts,
        activations=ledger.saved_peak if hooks else None,
        peak=ledger.peak - ledger.start + sum(parts.values()),
        donated=donate,
    )


def _parts(state: TrainState, batch: Any) -> dict[str, int]:
    """Bytes by part of the state, and of the batch; what appears twice counts where it appears first."""
    seen: set[int] = set()
    parts = {
        name: bytes_of(tree.leaves(getattr(state, name)), seen)
        for name in ("params", "buffers", "opt_state", "averages")
    }
    parts["other"] = bytes_of(tree.leaves(state), seen)
    parts["batch"] = bytes_of(tree.leaves(batch), seen)
    return parts


def _valueless(inputs: Any, fake: fake_tensor.FakeTensorMode, *, keep: bool) -> Any:
    """The same tree with stand-ins for tensors; with ``keep``, copies of keys, counts and the like."""

    def stand_in(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or isinstance(leaf, fake_tensor.FakeTensor):
            return leaf
        if keep and leaf.is_cpu and (leaf.dim() == 0 or (leaf.dtype is torch.int64 and leaf.shape == (2,))):
            return leaf.clone()
        return fake.from_tensor(leaf)

    return tree.map(stand_in, inputs)


class _Dry(TorchDispatchMode):
    """Runs operations on stand-ins, enters their results in the ledger, and small ones on the host really.

    Keys, counts and constants so keep their values, which decide what is drawn and done.
    """

    def __init__(self, fake: fake_tensor.FakeTensorMode, ledger: Ledger | None) -> None:
        super().__init__()
        self._fake = fake
        self._ledger = ledger

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((args, kwargs))
        fake = any(isinstance(tensor, fake_tensor.FakeTensor) for tensor in tensors)
        if func is _READ and fake:
            return _answer(tensors[0])
        if not fake and all(_costs_nothing(tensor, _MODEST) for tensor in tensors):
            if not tensors:  # it may make a large one: look at its shape first
                with self._fake:
                    fake = not all(_costs_nothing(made, _SMALL) for made in _tensors(func(*args, **kwargs)))
            if not fake:
                return func(*args, **kwargs)
        with self._fake:
            found = func(*args, **kwargs)
        if self._ledger is not None:
            self._ledger.note(_tensors(found))
        return found


class _Places(TorchFunctionMode):
    """Gives stand-ins addresses that tell them apart, as update in place needs to know."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.data_ptr and isinstance(args[0], fake_tensor.FakeTensor):
            storage, offset = args[0].untyped_storage(), args[0].storage_offset() * args[0].element_size()
            return (storage._cdata << 48) + offset
        return func(*args, **(kwargs or {}))


def _tensors(arguments: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]


def _costs_nothing(tensor: torch.Tensor, most: int) -> bool:
    """Whether a tensor is on the host and has few elements, or belongs to the skeleton of a module."""
    return tensor.is_meta or (tensor.is_cpu and tensor.numel() <= most)


def _answer(tensor: torch.Tensor) -> Any:
    """What our own code reads from a tensor without values: yes, or a number that is finite and large."""
    place = _reader()
    if place is None or not place[0].startswith(_OURS):
        raise fake_tensor.DataDependentOutputException(_READ)
    if tensor.dtype is torch.bool:
        return True
    return 1e30 if tensor.is_floating_point() else 1


def _reader() -> tuple[str, int] | None:
    """The file and line that asked, torch and this module left out."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((_TORCH, _TESTING)) and not name.startswith("<"):
            return name, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _explained(error: Exception) -> str:
    """Which line of the user's needs a value."""
    trace, place = error.__traceback__, None
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not name.startswith((_OURS, _TORCH)):
            place = name, trace.tb_lineno
        trace = trace.tb_next
    line = linecache.getline(*place).strip() if place else ""
    where = f" because of {place[0]}:{place[1]}{': ' + line if line else ''}" if place else ""
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"the step cannot be run dry{where}: it needs the value of a tensor, or a shape that follows from values "
        f"({why}). Leave .item(), float(), .numpy(), `if` on tensors, nonzero and boolean masks out of the step, or "
        "measure it with real tensors"
    )


@contextlib.contextmanager
def _named_faults() -> Iterator[None]:
    """What cannot be known without values becomes one error, which names the line."""
    try:
        yield
    except _VALUELESS as error:
        raise NotTraceable(_explained(error)) from error
    except RuntimeError as error:
        if any(words in str(error) for words in _SAID):
            raise NotTraceable(_explained(error)) from error
        raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The user's own error is enough: torch would log its traceback before it is raised."""
    logger = logging.getLogger(fake_tensor.__name__)
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


@contextlib.contextmanager
def _without_compiler(step: Any) -> Iterator[None]:
    """Compiled regions run as they were written."""
    if getattr(step, "compile", None) is None:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield

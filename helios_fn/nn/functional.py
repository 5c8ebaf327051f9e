"""An ordinary module as a pure function of its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .. import random
from ..state import DEFAULT_SEED
from ..types import Key
from . import session
from .acceptable import check_module
from .skeleton import Skeleton, Tensors, strip

Buffers = dict[str, torch.Tensor]

_NO_BUFFERS: Buffers = {}


def functional(
    factory: Callable[[], nn.Module] | nn.Module,
    *,
    seed: int = DEFAULT_SEED,
    draws: random.Draws = "scope",
) -> tuple[Functional, dict[str, torch.Tensor], Buffers]:
    """Split a module into a function and its tensors: ``(model, params, buffers)``.

    ``params`` holds the trainable parameters and ``buffers`` all other tensors: buffers, persistent or
    not, and parameters with ``requires_grad=False``. Both are dicts by the names that the module uses,
    hold copies, and name a tied tensor once, by its first name. The model itself keeps no weights.

    Args:
        factory: a callable without arguments that returns a module, such as a module class. It runs in
            a keyed scope: the initial weights depend on ``seed`` alone and no global generator is
            consumed. A module instance is accepted too; its present weights are taken, and it is
            neither kept nor changed.
        seed: of the initial weights.
        draws: how a call with a key draws. "scope" keys the global generators: any code, at full speed, but not
            in compiled regions nor under ``vmap`` over keys. "keyed" draws by `random.keyed`, which works there
            too, with the same dropout masks everywhere, and refuses the few random functions that cannot be keyed.
            The two draw different numbers.

    Raises:
        TypeError: not a module, or one that does not let its caller choose the weights (wrappers for
            data parallel training, sharded, compiled and scripted modules).
        ValueError: weights without values (lazy or meta), a layer that rewrites its weights, or ``draws`` is
            neither "scope" nor "keyed".

    Example:
        >>> model, params, buffers = hf.functional(lambda: torch.nn.Linear(3, 2), seed=0)
        >>> output, buffers = model(params, buffers, torch.zeros(5, 3))
        >>> output.shape
        torch.Size([5, 2])
    """
    if draws not in ("scope", "keyed"):
        raise ValueError(f"draws must be 'scope' or 'keyed', got {draws!r}")
    module = factory if isinstance(factory, nn.Module) else _build(factory, seed)
    check_module(module)
    model = Functional(module, draws)
    tensors = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    with torch.no_grad():
        values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    return (
        model,
        {name: values[name] for name in model.param_names},
        {name: values[name] for name in model.buffer_names},
    )


class Functional:
    """A module without weights, called as ``model(params, buffers, *args, key=None, **kwargs)``.

    The call returns ``(output, new_buffers)`` and is pure as far as the module is: the forward pass
    must depend on its inputs, its parameters and buffers and torch's, Python's and NumPy's generators
    only, and change nothing but its buffers (no counters kept in attributes). Buffers are handed to
    the module as copies, so whatever it writes to them in place, the caller's tensors stay as they
    are. Trainable and frozen parameters are handed over as they are: a forward pass must not write to
    them (a tensor that it does write to belongs into a buffer).

    With ``key`` the call runs in ``random.scope(key)``, or ``random.keyed(key)`` for a model made with
    ``draws="keyed"``: dropout and the like are a function of the key. Without one, draws come from the
    context that the caller has opened.

    ``model(...)`` is the train form: submodules are in the modes that the module came with, so frozen
    batch norms stay in eval mode; but a module that came wholly in eval mode is put into train mode.
    ``model.eval(...)`` is the eval form: all submodules in eval mode. The forms differ in nothing else.

    Safe for use within itself and from several threads (but calls with a key must take turns: the generators
    belong to the process). Modules that recompute activations (``torch.utils.checkpoint``) work inside
    `value_and_grad`. In a compiled region, and under ``vmap`` over keys, a key does no harm where nothing
    draws; for modules that do, make the model with ``draws="keyed"``.
    """

    def __init__(self, module: nn.Module, draws: random.Draws = "scope") -> None:
        stripped = strip(module)
        if not stripped.training:
            stripped.train()
        self._train = _Form(stripped, draws)
        self._eval = _Form(copy.deepcopy(stripped).eval(), draws)

    @property
    def param_names(self) -> tuple[str, ...]:
        """The keys of ``params``."""
        return self._train.pattern.param_names

    @property
    def buffer_names(self) -> tuple[str, ...]:
        """The keys of ``buffers``."""
        return self._train.pattern.buffer_names

    @property
    def all_param_names(self) -> tuple[str, ...]:
        """The names of all parameters, frozen ones included."""
        return tuple(name for name, _ in self._train.pattern.module.named_parameters())

    def remade(self, change: Callable[[nn.Module], None]) -> Functional:
        """A model made of a changed copy of the module, whose parameters have no values; this one stays as it is."""
        module = strip(self._train.pattern.module)
        change(module)
        return Functional(module, self._train.draws)

    def __call__(
        self, params: Tensors, buffers: Tensors | None, /, *args: Any, key: Key | None = None, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Train form: ``(output, new_buffers)``.

        Raises:
            ValueError: names in ``params`` or ``buffers`` are missing or unknown, or the forward pass
                made or removed a buffer.
            TypeError: the module draws, and its draws cannot be a function of the key: see ``draws``.
        """
        return self._train.call(params, buffers, args, kwargs, key)

    def eval(
        self, params: Tensors, buffers: Tensors | None, /, *args: Any, key: Key | None = None, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Eval form: the same pair, with all submodules in eval mode. Raises as the train form does."""
        return self._eval.call(params, buffers, args, kwargs, key)

    def __repr__(self) -> str:
        return f"Functional({self._train.pattern.module!r})"


class _Form:
    """A module in fixed modes, and the skeletons that calls borrow: each call has one to itself."""

    def __init__(self, module: nn.Module, draws: random.Draws) -> None:
        self.pattern = Skeleton(module)
        self.draws = draws
        self._shell = _Shell(module)
        # list.pop and list.append are atomic: no lock is needed, and none could go to another process.
        self._idle: list[Skeleton] = []

    def call(
        self, params: Tensors, buffers: Tensors | None, args: tuple[Any, ...], kwargs: dict[str, Any], key: Key | None
    ) -> tuple[Any, Buffers | None]:
        if key is not None:
            with random.context(key, self.draws):
                return self.call(params, buffers, args, kwargs, None)
        run = self._run_traced if torch.compiler.is_compiling() else self._run
        if buffers is None:
            return run(params, _NO_BUFFERS, args, kwargs)[0], None
        return run(params, buffers, args, kwargs)

    def _run(
        self, params: Tensors, buffers: Tensors, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Buffers]:
        holder = session.current()
        loan = _Loan(self, params, buffers) if holder is None else self._held(holder, params, buffers)
        skeleton = loan.skeleton
        loan.busy = True
        try:
            skeleton.bind(params, buffers)
            output = skeleton.module(*args, **kwargs)
            if not skeleton.holds_buffers:
                return output, dict(buffers)
            new_buffers = skeleton.collect(buffers)
            if holder is not None:
                # A recomputation writes to buffers again: let it not write to those returned.
                skeleton.bind_copies(buffers)
            return output, new_buffers
        finally:
            loan.busy = False
            if holder is None:
                loan.close()

    def _held(self, holder: session.Session, params: Tensors, buffers: Tensors) -> _Loan:
        """The session's loan for exactly these tensors, or a new one."""
        for loan in holder.loans:
            if isinstance(loan, _Loan) and loan.serves(self, params, buffers):
                return loan
        loan = _Loan(self, params, buffers)
        holder.loans.append(loan)
        return loan

    def _run_traced(
        self, params: Tensors, buffers: Tensors, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Buffers]:
        # The compiler follows functional_call, but not writes into dicts that it did not see made.
        pattern = self.pattern
        pattern.check(params, buffers)
        tensors = {f"module.{name}": tensor for name, tensor in (*params.items(), *buffers.items())}
        tensors.update({f"module.{name}": buffers[name].clone() for name in pattern.copied_names})
        output, written = torch.func.functional_call(self._shell, tensors, (pattern.copied_names, args, kwargs))
        return output, {name: written.get(name, tensor) for name, tensor in buffers.items()}

    def borrow(self) -> Skeleton:
        try:
            return self._idle.pop()
        except IndexError:
            return Skeleton(copy.deepcopy(self.pattern.module))


class _Loan:
    """A skeleton in use, for one call or for the calls of one session that have the same tensors."""

    __slots__ = ("_buffers", "_form", "_params", "busy", "skeleton")

    def __init__(self, form: _Form, params: Tensors, buffers: Tensors) -> None:
        self._form, self._params, self._buffers = form, params, buffers
        self.skeleton = form.borrow()
        self.busy = False

    def serves(self, form: _Form, params: Tensors, buffers: Tensors) -> bool:
        return self._form is form and self._params is params and self._buffers is buffers and not self.busy

    def close(self) -> None:
        self.skeleton.release()
        self._form._idle.append(self.skeleton)


class _Shell(nn.Module):
    """Returns the buffers beside the output, while ``functional_call`` still has them in place."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Buffers]:
        output = self.module(*args, **kwargs)
        buffers = dict(self.module.named_buffers())
        return output, {name: buffers[name] for name in names}


def _build(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    if not callable(factory):
        raise TypeError(f"functional() takes a module or a callable that returns one, got {type(factory).__name__}")
    with random.scope(random.fold_in(random.key(seed), "init")):
        module = factory()
    if not isinstance(module, nn.Module):
        raise TypeError(f"the factory must return a torch.nn.Module, got {type(module).__name__}")
    return module

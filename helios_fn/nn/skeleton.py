"""A module without its weights, and the table of places where weights are put for one call."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from ..tracing import is_traced

Tensors = Mapping[str, torch.Tensor]


class Slot(NamedTuple):
    """One place of one tensor: the dict of the submodule that holds it, and the key there."""

    name: str
    owner: dict[str, Any]
    key: str
    placeholder: torch.Tensor


def strip(module: nn.Module) -> nn.Module:
    """A deep copy of ``module`` whose parameters and buffers have shapes and dtypes but no values.

    Raises:
        TypeError: the module cannot be copied.
    """
    # deepcopy takes what the memo already holds, so no weight is ever copied and ties survive.
    memo: dict[int, Any] = {id(parameter): _placeholder(parameter) for parameter in module.parameters()}
    memo.update({id(buffer): _placeholder(buffer) for buffer in module.buffers()})
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise TypeError(
            f"{type(module).__name__} cannot be copied ({error}). A module must not hold tensors that are the "
            "result of a computation, as torch.nn.utils.weight_norm leaves there (its successor "
            "torch.nn.utils.parametrizations.weight_norm works), nor locks, files or processes"
        ) from error


class Skeleton:
    """A stripped module that holds weights only between `bind` and `release`. Not shared between calls."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        parameters = _slots(module, "_parameters")
        self._params = [slot for slot in parameters if slot.placeholder.requires_grad]
        self._frozen = [slot for slot in parameters if not slot.placeholder.requires_grad]
        self._buffers = _slots(module, "_buffers")
        self._absent = _absent_buffers(module)
        self._recurrent = [submodule for submodule in module.modules() if isinstance(submodule, nn.RNNBase)]
        self.holds_buffers = bool(self._buffers or self._absent)
        self._first = list({slot.name: slot for slot in reversed(self._buffers)}.values())
        self.param_names = _names(self._params)
        self.copied_names = _names(self._buffers)
        self.buffer_names = (*self.copied_names, *_names(self._frozen))

    def bind(self, params: Tensors, buffers: Tensors) -> None:
        """Put ``params`` and frozen parameters in place, and copies of the other ``buffers``.

        Raises:
            ValueError: names are missing or unknown.
        """
        if len(params) != len(self.param_names) or len(buffers) != len(self.buffer_names):
            self.check(params, buffers)
        try:
            for name, owner, key, _ in self._params:
                owner[key] = params[name]
            for name, owner, key, _ in self._frozen:
                owner[key] = buffers[name]
            if self._buffers:
                self.bind_copies(buffers)
        except (KeyError, TypeError):
            self.check(params, buffers)
            raise

    def bind_copies(self, buffers: Tensors) -> None:
        """Put copies of those ``buffers`` in place that are not frozen parameters."""
        copies = _copies([buffers[name] for name in self.copied_names])
        by_name = dict(zip(self.copied_names, copies, strict=True))
        for name, owner, key, _ in self._buffers:
            owner[key] = by_name[name]

    def collect(self, buffers: Tensors) -> dict[str, torch.Tensor]:
        """The buffers as the forward pass left them; frozen parameters are those of ``buffers``.

        Raises:
            ValueError: a buffer has come or gone.
        """
        for name, owner, key in self._absent:
            if owner.get(key) is not None:
                raise ValueError(
                    f"the module filled its empty buffer {name!r}: register it with a tensor to begin with"
                )
        found = dict(buffers)
        for slot in self._first:
            tensor = slot.owner.get(slot.key)
            if not isinstance(tensor, torch.Tensor):
                raise ValueError(f"the module replaced its buffer {slot.name!r} by {tensor!r}: it must stay a tensor")
            found[slot.name] = tensor
        return found

    def release(self) -> None:
        """Forget the weights."""
        for slots in (self._params, self._frozen, self._buffers):
            for _, owner, key, placeholder in slots:
                owner[key] = placeholder
        for _, owner, key in self._absent:
            owner[key] = None
        for module in self._recurrent:
            # torch's recurrent layers keep a second list of their weights.
            module._init_flat_weights()

    def check(self, params: Tensors, buffers: Tensors) -> None:
        """Refuse names that are missing or unknown, see `bind`."""
        _check_names("params", params, self.param_names)
        _check_names("buffers", buffers, self.buffer_names)


def _slots(module: nn.Module, kind: str) -> list[Slot]:
    """All places of one kind. A tied tensor goes by its first name, as in ``named_parameters()``."""
    names: dict[int, str] = {}
    found: dict[tuple[int, str], Slot] = {}
    for name, owner, key in _entries(module, kind):
        tensor = owner[key]
        if tensor is not None:
            found.setdefault((id(owner), key), Slot(names.setdefault(id(tensor), name), owner, key, tensor))
    return list(found.values())


def _names(slots: list[Slot]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(slot.name for slot in slots))


def _absent_buffers(module: nn.Module) -> list[tuple[str, dict[str, Any], str]]:
    return [(name, owner, key) for name, owner, key in _entries(module, "_buffers") if owner[key] is None]


def _entries(module: nn.Module, kind: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    for prefix, submodule in module.named_modules(remove_duplicate=False):
        owner = getattr(submodule, kind)
        for key in owner:
            yield (f"{prefix}.{key}" if prefix else key), owner, key


def _placeholder(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _copies(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Copies, with one kernel launch for all of them on an accelerator."""
    if not tensors or tensors[0].device.type == "cpu" or is_traced():
        return [tensor.clone() for tensor in tensors]
    copies = [torch.empty_like(tensor) for tensor in tensors]
    torch._foreach_copy_(copies, tensors)
    return copies


def _check_names(argument: str, given: Tensors, expected: tuple[str, ...]) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"{argument} must be a dict of names to tensors, got {type(given).__name__}")
    missing = [name for name in expected if name not in given]
    unknown = [name for name in given if name not in expected]
    if not missing and not unknown:
        return
    words = [f"{argument} do not fit the module"]
    if missing:
        words.append(f"missing: {', '.join(map(repr, missing))}")
    if unknown:
        words.append(f"unknown: {', '.join(_with_hint(name, expected) for name in unknown)}")
    raise ValueError("; ".join(words))


def _with_hint(name: str, expected: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(str(name), expected, n=1)
    return f"{name!r} (did you mean {close[0]!r}?)" if close else repr(name)

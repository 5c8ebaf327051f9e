"""Taking parameters out of training, and putting them back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..patterns import Chooser, closest
from .functional import Buffers, Functional

Split = tuple[Functional, dict[str, torch.Tensor], Buffers]


def freeze(
    model: Functional, params: dict[str, torch.Tensor], buffers: Buffers | None, patterns: str | Sequence[str]
) -> Split:
    """The same model with some parameters among its buffers: ``(model, params, buffers)``, as `functional` gives them.

        model, params, buffers = functional(network)
        trained, report = restore("runs/pretrained", {"params": params}, only="params.backbone.*")
        model, params, buffers = freeze(model, trained["params"], buffers, "backbone.*")

    Frozen parameters have no gradient, no optimiser memory and no average, and a checkpoint holds them once.
    ``loss_fn`` stays as it is: the model takes them from the buffers, and returns the very same tensors there, so that
    an iteration of several micro-batches does nothing for them either. What lies before the first trainable layer is
    not differentiated at all.

    Nothing is copied, and the arguments stay as they are. To train them later, call `unfreeze` and make a new state: a
    structure that changes is another phase, with an optimiser state of its own. Modes are not touched: batch norms that
    are to use their statistics as they are must be in eval mode when `functional` sees them.

    For trees that no `functional` made: keep frozen tensors in ``state.buffers`` yourself, or give them no optimiser by
    ``optim.groups({"backbone.*": None}, default=...)``, which still computes their gradients.

    Args:
        model: from `functional`, or from an earlier call.
        params: its trainable parameters.
        buffers: its other tensors.
        patterns: which to freeze, shell patterns over whole names (``*`` matches dots too); ``"!head.*"`` means all
            but these. Parameters that are frozen already stay so.

    Raises:
        TypeError: ``model`` does not come from `functional`.
        ValueError: a pattern matches no parameter.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> model, params, buffers = hf.functional(network)
        >>> model, params, buffers = hf.freeze(model, params, buffers, "0.*")
        >>> sorted(params), sorted(buffers)
        (['1.bias', '1.weight'], ['0.bias', '0.weight'])
    """
    return _split(model, params, buffers, patterns, trainable=False)


def unfreeze(
    model: Functional, params: dict[str, torch.Tensor], buffers: Buffers | None, patterns: str | Sequence[str]
) -> Split:
    """The inverse of `freeze`: parameters among the buffers become trainable, other buffers are never chosen.

        model, params, buffers = unfreeze(model, state.params, state.buffers, "backbone.layer4.*")
        state = init_state(params, optimizer, buffers=buffers)

    Raises:
        TypeError: ``model`` does not come from `functional`, or a parameter is not of a floating dtype.
        ValueError: a pattern matches no parameter.
    """
    return _split(model, params, buffers, patterns, trainable=True)


def _split(
    model: Functional,
    params: dict[str, torch.Tensor],
    buffers: Buffers | None,
    patterns: str | Sequence[str],
    *,
    trainable: bool,
) -> Split:
    if not isinstance(model, Functional):
        raise TypeError(
            f"the model must be what functional() returned, got {type(model).__name__}: other functions take frozen "
            "tensors from where you put them, such as state.buffers"
        )
    chosen = _chosen(model, patterns)

    def marked(module: nn.Module) -> None:
        for name, parameter in module.named_parameters():
            if name in chosen:
                if trainable and not (parameter.is_floating_point() or parameter.is_complex()):
                    raise TypeError(f"the parameter {name!r} is {parameter.dtype} and has no gradient: leave it frozen")
                parameter.requires_grad_(trainable)

    new, values = model.remade(marked), {**(buffers or {}), **params}
    missing = [name for name in (*new.param_names, *new.buffer_names) if name not in values]
    if missing:
        raise ValueError(f"params and buffers are not those of the model: they have no {missing[0]!r}")
    return (
        new,
        {name: values[name] for name in new.param_names},
        {name: values[name] for name in new.buffer_names},
    )


def _chosen(model: Functional, patterns: str | Sequence[str]) -> set[str]:
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"patterns must be a pattern such as 'backbone.*', or a list of them, got {patterns!r}")
    names, chooser = model.all_param_names, Chooser(patterns)
    for pattern in chooser.idle(names):
        raise ValueError(f"the pattern {pattern!r} matches no parameter; names close to it: {closest(pattern, names)}")
    return {name for name in names if chooser(name)}

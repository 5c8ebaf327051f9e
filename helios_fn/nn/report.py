"""Reading what a loss function says beside its loss: weight and metrics, checked and normalised."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch

from .. import tree
from ..tracing import is_traced
from ..types import Aux, Scalar

Weight: TypeAlias = Scalar | torch.Tensor


def read_aux(aux: Any) -> Aux:
    """``aux`` itself; ``None`` means an empty one.

    Raises:
        TypeError: it is something else.
    """
    if aux is None:
        return Aux()
    if not isinstance(aux, Aux):
        raise TypeError(f"beside its loss, a loss_fn returns an hf.Aux or None, got {tree.describe(aux)}")
    return aux


def read_weight(weight: Any, index: int) -> Weight:
    """The weight of micro-batch ``index`` as a Python number, or as a 0-d tensor where reading it would
    wait for an accelerator (or is not possible under a transform); such a weight is not checked.

    Raises:
        TypeError: not a real number or tensor.
        ValueError: negative, infinite, NaN, or a tensor with dimensions.
    """
    if type(weight) is int and weight >= 0:  # which is what most people have
        return weight
    if isinstance(weight, torch.Tensor):
        if weight.dim() != 0 or weight.is_complex():
            raise ValueError(
                f"the weight of micro-batch {index} must be a real number or 0-d tensor, got {tree.describe(weight)}: "
                "give the number of samples or tokens that its loss is a mean over"
            )
        if is_traced() or weight.device.type != "cpu":
            return weight.detach()
        weight = weight.item()  # exact, and on the CPU no wait
    elif not isinstance(weight, numbers.Real):
        raise TypeError(f"the weight of micro-batch {index} must be a number or tensor, got {tree.describe(weight)}")
    if not 0 <= weight < math.inf:
        raise ValueError(f"the weight of micro-batch {index} must be finite and not negative, got {weight!r}")
    return int(weight) if isinstance(weight, numbers.Integral) else float(weight)


def read_metrics(metrics: Mapping[str, Any] | None) -> dict[str, torch.Tensor]:
    """The metrics as detached floating point 0-d tensors; Python numbers become float64 on the CPU.

    Raises:
        TypeError: not a mapping of names to numbers and tensors.
        ValueError: a tensor with dimensions.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics must map names to scalars, got {type(metrics).__name__}")
    return {_name(name): _scalar(name, value) for name, value in metrics.items()}


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"metrics are named by strings, got {name!r}")
    return name


def _scalar(name: str, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        if value.dim() != 0:
            raise ValueError(f"metric {name!r} must be a 0-d tensor, got {tree.describe(value)}: take its mean")
        return value.detach() if value.is_floating_point() else value.detach().to(torch.float32)
    if isinstance(value, numbers.Real):
        return torch.tensor(float(value), dtype=torch.float64)
    raise TypeError(f"metric {name!r} must be a number or 0-d tensor, got {tree.describe(value)}")

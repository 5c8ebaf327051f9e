"""Which functions of torch are random, what stands in for each, and why some have no stand-in.

Torch itself says which of its operators are random (``torch.Tag.nondeterministic_seeded``); a test holds
this table against that list, so that a function is either here or not random.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import init

from . import attention, dropout, fills, samplers
from .pooling import POOLS

StandIn = Callable[..., Any]
"""Called as ``stand_in(source, *args, **kwargs)`` with the arguments of the function that it stands for."""

STAND_INS: dict[Callable[..., Any], StandIn] = {
    F.dropout: dropout.dropout,
    F.dropout1d: dropout.dropout1d,
    F.dropout2d: dropout.dropout2d,
    F.dropout3d: dropout.dropout3d,
    F.alpha_dropout: dropout.alpha,
    F.feature_alpha_dropout: dropout.feature_alpha,
    torch.dropout: dropout.plain,
    torch.dropout_: dropout.plain_,
    torch.native_dropout: dropout.native,
    torch.feature_dropout: dropout.feature,
    torch.feature_dropout_: dropout.feature_,
    torch.alpha_dropout: dropout.alpha,
    torch.alpha_dropout_: dropout.alpha_,
    torch.feature_alpha_dropout: dropout.feature_alpha,
    torch.feature_alpha_dropout_: dropout.feature_alpha_,
    F.scaled_dot_product_attention: attention.scaled_dot_product_attention,
    F.multi_head_attention_forward: attention.multi_head_attention_forward,
    F.gumbel_softmax: samplers.gumbel_softmax,
    F.rrelu: samplers.rrelu,
    torch.rrelu: samplers.rrelu,
    torch.rrelu_: samplers.rrelu_,
    torch.rand: samplers.rand,
    torch.randn: samplers.randn,
    torch.randint: samplers.randint,
    torch.randperm: samplers.randperm,
    torch.rand_like: samplers.rand_like,
    torch.randn_like: samplers.randn_like,
    torch.randint_like: samplers.randint_like,
    torch.normal: samplers.gaussian,
    torch.bernoulli: samplers.bernoulli,
    Tensor.bernoulli: samplers.bernoulli,
    torch.multinomial: samplers.multinomial,
    Tensor.multinomial: samplers.multinomial,
    Tensor.uniform_: fills.uniform_,
    Tensor.normal_: fills.normal_,
    Tensor.log_normal_: fills.log_normal_,
    Tensor.bernoulli_: fills.bernoulli_,
    Tensor.exponential_: fills.exponential_,
    Tensor.geometric_: fills.geometric_,
    Tensor.cauchy_: fills.cauchy_,
    Tensor.random_: fills.random_,
    **POOLS,
}

_REJECTION = "it draws an unknown number of times"
_KERNEL = "it draws inside of a kernel"
_INIT = "modules are made outside, by the factory that hf.functional is given"
REFUSED: dict[Callable[..., Any], str] = {
    torch.poisson: _REJECTION,
    torch.binomial: _REJECTION,
    torch._standard_gamma: _REJECTION,
    torch._sample_dirichlet: _REJECTION,
    torch._C._nn.rrelu_with_noise: _KERNEL,  # type: ignore[attr-defined]
    torch._C._nn.rrelu_with_noise_: _KERNEL,  # type: ignore[attr-defined]
    init.uniform_: _INIT,
    init.normal_: _INIT,
    init.kaiming_uniform_: _INIT,
}
"""Random functions without a stand-in, and the reason."""

_NAMES = (
    "_cudnn_init_dropout_state",
    "_cudnn_rnn",
    "_fill_mem_eff_dropout_mask_",
    "_fused_dropout",
    "_lstm_mps",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_attention_math_for_mps",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_triton_scaled_dot_attention",
    "miopen_rnn",
)
KERNELS: dict[Callable[..., Any], str] = {getattr(torch, name): _KERNEL for name in _NAMES if hasattr(torch, name)}
"""More of these, that nobody but torch calls and the compiler cannot look up. Not all are in all builds."""

RECURRENT: frozenset[Callable[..., Any]] = frozenset({torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu})
"""They draw only between layers, in training."""

EMPTY: frozenset[Callable[..., Any]] = frozenset(
    {torch.empty, torch.empty_like, torch.empty_strided, Tensor.new_empty, Tensor.new}
)
"""What makes tensors that are to be filled."""

UNUSUAL: frozenset[Callable[..., Any]] = frozenset(REFUSED) | RECURRENT | EMPTY
"""What has no stand-in and yet is not simply passed on."""

OPERATORS = (torch._ops.OperatorBase, torch._ops.OpOverloadPacket)
"""Operators of ``torch.ops``, those included that take functions (``torch.cond``, compiled checkpoints)."""


def recurrent_dropout(args: tuple[Any, ...]) -> bool:
    """Whether a call of one of `RECURRENT` draws. Packed sequences have one argument more before the weights."""
    start = 3 if isinstance(args[3], bool) else 4
    _, layers, p, training = args[start : start + 4]
    return bool(training and p > 0 and layers > 1)


def is_random_operator(operator: Any) -> bool:
    """Whether an operator of ``torch.ops``, of torch or of a user, says of itself that it is random."""
    if isinstance(operator, torch._ops.OpOverloadPacket):
        return any(is_random_operator(getattr(operator, name)) for name in operator.overloads())
    return isinstance(operator, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in operator.tags

"""Attention whose dropout is drawn from keys: torch's own draws inside of its kernels."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F

from .dropout import dropout
from .source import Source

_PARAMETERS = tuple(inspect.signature(F.multi_head_attention_forward).parameters)


def scaled_dot_product_attention(
    source: Source,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """``F.scaled_dot_product_attention``: torch's kernels without dropout, else the formula, step by step.

    Raises:
        ValueError: both ``attn_mask`` and ``is_causal`` are given.
    """
    if dropout_p == 0:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if attn_mask is not None and is_causal:
        raise ValueError("give attn_mask or is_causal=True, not both")
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    if is_causal:
        shape = (query.shape[-2], key.shape[-2])
        attn_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    weights = _softmax(scores, attn_mask)
    return dropout(source, weights, dropout_p) @ value


def multi_head_attention_forward(source: Source, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``F.multi_head_attention_forward``: torch's attention weights, our dropout of them, and what follows from it."""
    given = {**dict(zip(_PARAMETERS, args, strict=False)), **kwargs}
    p = given["dropout_p"] if given.get("training", True) else 0.0
    if p == 0:
        return F.multi_head_attention_forward(**given)
    asked = {"dropout_p": 0.0, "need_weights": True, "average_attn_weights": False}
    weights = F.multi_head_attention_forward(**{**given, **asked})[1]
    assert weights is not None  # they were asked for
    weights = dropout(source, weights, p)
    heads = weights @ _values(given)
    # (n, heads, length, width) or (heads, length, width) -> (length, n, embed) or (length, embed)
    joined = (heads.permute(2, 0, 1, 3) if heads.dim() == 4 else heads.transpose(0, 1)).flatten(-2)
    output = F.linear(joined, given["out_proj_weight"], given["out_proj_bias"])
    if not given.get("need_weights", True):
        return output, None
    return output, weights.mean(-3) if given.get("average_attn_weights", True) else weights


def _values(given: dict[str, Any]) -> torch.Tensor:
    """What the weights are applied to: (n, heads, length, width), without n for a single sequence."""
    value, heads = given["value"], given["num_heads"]
    batched = value.dim() == 3
    if not batched:
        value = value.unsqueeze(1)
    count, embed = value.shape[1], given["embed_dim_to_check"]
    v = given.get("static_v")
    if v is None:
        own, bias = given.get("v_proj_weight"), given["in_proj_bias"]
        weight = given["in_proj_weight"][2 * embed :] if own is None else own
        v = F.linear(value, weight, None if bias is None else bias[2 * embed :])
        if given["bias_v"] is not None:
            v = torch.cat([v, given["bias_v"].repeat(1, count, 1)])
        v = v.reshape(v.shape[0], count * heads, embed // heads).transpose(0, 1)
    if given["add_zero_attn"]:
        v = F.pad(v, (0, 0, 0, 1))
    v = v.unflatten(0, (count, heads))
    return v if batched else v.squeeze(0)


def _softmax(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Rows that are masked altogether get zeros, as in torch."""
    if mask is None:
        return scores.softmax(-1)
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).masked_fill(scores.amax(-1, keepdim=True) == -math.inf, 0.0)

"""Gradient transforms: pure functions to be put before an optimiser by `chain`."""

from __future__ import annotations

from ._masked import masked as masked
from .adaptive import adaptive_clip as adaptive_clip
from .decay import add_decayed_weights as add_decayed_weights
from .keep import keep_gradients as keep_gradients
from .noise import gradient_noise as gradient_noise
from .running import ema_of_gradients as ema_of_gradients
from .running import trace as trace

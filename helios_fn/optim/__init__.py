"""Optimisers as pure functions: ``init(params)`` and ``update(grads, opt_state, params)``."""

from __future__ import annotations

from . import schedules as schedules
from .adam import adam as adam
from .adamw import adamw as adamw
from .adaptor import from_torch as from_torch
from .base import Optimizer as Optimizer
from .base import Transform as Transform
from .base import chain as chain
from .clip import clip_by_global_norm as clip_by_global_norm
from .clip import clip_by_value as clip_by_value
from .every import every as every
from .sgd import sgd as sgd

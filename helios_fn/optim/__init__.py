"""Optimisers as pure functions over trees.

    optimizer = chain(clip_by_global_norm(1.0), adamw(schedules.warmup_cosine(3e-4, 100, 10_000)))
    opt_state = optimizer.init(params)
    params, opt_state = optimizer.update(grads, opt_state, params)

All memory is in ``opt_state``, and ``update`` writes to none of its inputs.
"""

from __future__ import annotations

from . import schedules as schedules
from .adafactor import adafactor as adafactor
from .adam import adam as adam
from .adamw import adamw as adamw
from .adaptor import from_torch as from_torch
from .base import Optimizer as Optimizer
from .base import Transform as Transform
from .base import chain as chain
from .clip import clip_by_global_norm as clip_by_global_norm
from .clip import clip_by_value as clip_by_value
from .clip import clip_gradients as clip_gradients
from .clip import global_norm as global_norm
from .every import every as every
from .groups import groups as groups
from .lion import lion as lion
from .lookahead import lookahead as lookahead
from .loss_scale import LossScaleState as LossScaleState
from .loss_scale import loss_scale as loss_scale
from .loss_scale import loss_scaled as loss_scaled
from .muon import muon as muon
from .rmsprop import rmsprop as rmsprop
from .sgd import sgd as sgd
from .skip import skip_non_finite as skip_non_finite
from .transforms import adaptive_clip as adaptive_clip
from .transforms import add_decayed_weights as add_decayed_weights
from .transforms import ema_of_gradients as ema_of_gradients
from .transforms import gradient_noise as gradient_noise
from .transforms import keep_gradients as keep_gradients
from .transforms import masked as masked
from .transforms import trace as trace
from .tunable import tunable as tunable

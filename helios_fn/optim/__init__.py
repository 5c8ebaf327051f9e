"""Optimisers as pure functions over trees.

    optimizer = chain(clip_by_global_norm(1.0), adamw(schedules.warmup_cosine(3e-4, 100, 10_000)))
    opt_state = optimizer.init(params)
    params, opt_state = optimizer.update(grads, opt_state, params)

All memory is in ``opt_state``, and ``update`` writes to none of its inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Optimizer as Optimizer
from .base import Transform as Transform
from .base import chain as chain

# Each is imported when it is first used: most programs need one or two. None of them is called like its module.
if TYPE_CHECKING:
    from . import schedules as schedules
    from ._adafactor import adafactor as adafactor
    from ._adam import adam as adam
    from ._adamw import adamw as adamw
    from ._every import every as every
    from ._groups import groups as groups
    from ._lion import lion as lion
    from ._lookahead import lookahead as lookahead
    from ._loss_scale import LossScaleState as LossScaleState
    from ._loss_scale import loss_scale as loss_scale
    from ._loss_scale import loss_scaled as loss_scaled
    from ._muon import muon as muon
    from ._rmsprop import rmsprop as rmsprop
    from ._sgd import sgd as sgd
    from ._tunable import tunable as tunable
    from .adaptor import from_torch as from_torch
    from .clip import clip_by_global_norm as clip_by_global_norm
    from .clip import clip_by_value as clip_by_value
    from .clip import clip_gradients as clip_gradients
    from .clip import global_norm as global_norm
    from .skip import skip_non_finite as skip_non_finite
    from .transforms import adaptive_clip as adaptive_clip
    from .transforms import add_decayed_weights as add_decayed_weights
    from .transforms import ema_of_gradients as ema_of_gradients
    from .transforms import gradient_noise as gradient_noise
    from .transforms import keep_gradients as keep_gradients
    from .transforms import masked as masked
    from .transforms import trace as trace
else:
    from ..later import later as _later

    __getattr__, __dir__ = _later(
        __name__,
        "schedules",
        names={
            "_adafactor": "adafactor",
            "_adam": "adam",
            "_adamw": "adamw",
            "_every": "every",
            "_groups": "groups",
            "_lion": "lion",
            "_lookahead": "lookahead",
            "_loss_scale": "LossScaleState loss_scale loss_scaled",
            "_muon": "muon",
            "_rmsprop": "rmsprop",
            "_sgd": "sgd",
            "_tunable": "tunable",
            "adaptor": "from_torch",
            "clip": "clip_by_global_norm clip_by_value clip_gradients global_norm",
            "skip": "skip_non_finite",
            "transforms": "adaptive_clip add_decayed_weights ema_of_gradients gradient_noise keep_gradients masked "
            "trace",
        },
    )

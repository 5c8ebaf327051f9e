"""The registries, what a part of each kind is, and the library's own parts by name."""

from __future__ import annotations

from typing import Any

from .base import Registry

MODELS: Registry[Any] = Registry("model")
"""``create(name, **options) -> nn.Module``: what an experiment trains, to be handed to `helios_fn.functional`."""

NETWORKS: Registry[Any] = Registry("network")
"""``create(name, **options) -> nn.Module``: what models are made of, such as backbones and heads."""

DATASETS: Registry[Any] = Registry("dataset")
"""``create(name, **options)`` -> a map-style dataset, or a source such as a `Loader` or `Stream`."""

TRANSFORMS: Registry[Any] = Registry("transform", binds=True)
"""``transform(sample, rng) -> sample``, with ``rng`` a NumPy generator."""

COLLATES: Registry[Any] = Registry("collate", binds=True)
"""``collate(samples) -> batch``."""

ORDERS: Registry[Any] = Registry("order", binds=True)
"""``order(key, epoch, n) -> indices``, or a class of the protocol `helios_fn.data.Order`: what others call samplers."""

LOSSES: Registry[Any] = Registry("loss", binds=True)
"""``loss(model, params, buffers, batch, key) -> loss`` or ``(loss, Aux)``."""

METRICS: Registry[Any] = Registry("metric", binds=True)
"""``metric(output, target) -> 0-d tensor``, the mean over a batch."""

OPTIMIZERS: Registry[Any] = Registry("optimizer")
"""``create(name, **options) -> helios_fn.optim.Optimizer``."""

GRADIENT_TRANSFORMS: Registry[Any] = Registry("gradient transform")
"""``create(name, **options) -> helios_fn.optim.Transform``: what stands before an optimiser in a chain."""

SCHEDULES: Registry[Any] = Registry("schedule")
"""``create(name, **options)`` -> a function of the update count."""

AVERAGES: Registry[Any] = Registry("average")
"""``create(name, **options)`` -> an average of the parameters, such as `helios_fn.ema`."""

STEPS: Registry[Any] = Registry("step")
"""``create(name, loss_fn, optimizer, **options)`` -> ``step(state, batch) -> state``."""

OBSERVERS: Registry[Any] = Registry("observer")
"""``create(name, **options) -> helios_fn.Observer``."""

SINKS: Registry[Any] = Registry("sink")
"""``create(name, **options) -> helios_fn.Sink``."""

REGISTRIES: tuple[Registry[Any], ...] = (
    MODELS, NETWORKS, DATASETS, TRANSFORMS, COLLATES, ORDERS, LOSSES, METRICS, OPTIMIZERS, GRADIENT_TRANSFORMS,
    SCHEDULES, AVERAGES, STEPS, OBSERVERS, SINKS,
)  # fmt: skip

create_model = MODELS.create
create_network = NETWORKS.create
create_dataset = DATASETS.create
create_transform = TRANSFORMS.create
create_collate = COLLATES.create
create_order = ORDERS.create
create_loss = LOSSES.create
create_metric = METRICS.create
create_optimizer = OPTIMIZERS.create
create_schedule = SCHEDULES.create
create_average = AVERAGES.create
create_step = STEPS.create
create_observer = OBSERVERS.create
create_sink = SINKS.create

# By name alone: nothing is imported before it is created.
OPTIMIZERS.known(
    "helios_fn.optim",
    "adafactor adam adamw every groups lion lookahead loss_scaled muon rmsprop sgd skip_non_finite",
)
GRADIENT_TRANSFORMS.known(
    "helios_fn.optim",
    "adaptive_clip add_decayed_weights clip_by_global_norm clip_by_value ema_of_gradients gradient_noise "
    "keep_gradients trace",
)
SCHEDULES.known(
    "helios_fn.optim.schedules",
    "constant cosine cosine_restarts exponential linear linear_warmup piecewise polynomial step_decay warmup_cosine",
)
AVERAGES.known("helios_fn.nn", "ema swa")
STEPS.known("helios_fn.step", "make_step")
ORDERS.known("helios_fn.data", "shuffled=Shuffled sequential=Sequential")
SINKS.known("helios_fn.sinks", "jsonl=JsonLines textlog=TextLog csv=CSV tensorboard=TensorBoard")
LOSSES.known("helios_fn.nn.supervised", "cross_entropy mse")
METRICS.known("helios_fn.nn.supervised", "accuracy top_k")

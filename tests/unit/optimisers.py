"""The table of optimisers that the laws of `test_optim_laws` run over: a new optimiser is one more row here."""

from __future__ import annotations

import functools
import inspect
from typing import Any, NamedTuple

import torch

from helios_fn import optim, tree
from helios_fn.optim import schedules

DTYPES = {
    "float32": [torch.float32] * 3,
    "float64": [torch.float64] * 3,
    "bfloat16": [torch.bfloat16] * 3,
    "mixed": [torch.float32, torch.bfloat16, torch.float64],
}
FACTOR = schedules.warmup_cosine(1.0, 7, 40, 0.1)
MODES = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}


class Row(NamedTuple):
    """An optimiser: ``build(lr)``, and beside it torch's own, ``cls(params, lr=lr, **hyper)``, where torch has it.

    ``matrices``: all parameters must be; ``mixed``: torch's bits are the same with several dtypes; ``traced``: it has a
    formula; ``smooth``: finite differences see its derivative; ``slack`` multiplies the tolerance of comparisons.
    """

    build: Any
    cls: Any = None
    hyper: dict[str, Any] = {}  # noqa: RUF012 # never changed
    lr: float = 0.05
    matrices: bool = False
    mixed: bool = True
    traced: bool = True
    smooth: bool = True
    slack: float = 1.0


def native_rows() -> dict[str, Row]:
    o = torch.optim
    variants: dict[str, Any] = {
        "adamw": (optim.adamw, o.AdamW, {}),
        "adamw amsgrad maximize": (optim.adamw, o.AdamW, {"amsgrad": True, "maximize": True, "eps": 1e-6}),
        "adam": (optim.adam, o.Adam, {"betas": (0.8, 0.95)}),
        "adam decay": (optim.adam, o.Adam, {"weight_decay": 0.1, "amsgrad": True}),
        "sgd": (optim.sgd, o.SGD, {}),
        "sgd momentum": (optim.sgd, o.SGD, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
        "sgd nesterov": (optim.sgd, o.SGD, {"momentum": 0.8, "nesterov": True}),
        "sgd maximize": (optim.sgd, o.SGD, {"momentum": 0.8, "maximize": True, "weight_decay": 0.01}),
        "rmsprop": (optim.rmsprop, o.RMSprop, {"weight_decay": 0.1, "maximize": True}),
        "rmsprop centered": (optim.rmsprop, o.RMSprop, {"centered": True, "momentum": 0.9, "eps": 1e-3}),
        "adafactor": (optim.adafactor, o.Adafactor, {}),
        "adafactor eps": (optim.adafactor, o.Adafactor, {"eps": (1e-6, 1e-2), "weight_decay": 0.1, "d": 1.5}),
    }
    rows = {}
    for name, (factory, cls, hyper) in variants.items():
        for mode, flag in MODES.items():
            if mode != "fused" or cls in (o.AdamW, o.Adam, o.SGD):
                build = functools.partial(factory, mode=mode, **hyper)
                rows[f"{name} {mode}"] = Row(build, cls, {**hyper, **flag}, mixed=name != "adafactor")
    muons: dict[str, Any] = {"muon": {}, "muon plain": {"nesterov": False, "adjust_lr_fn": "match_rms_adamw"}}
    for name, hyper in muons.items():
        build = functools.partial(optim.muon, **hyper)
        # Its arithmetic in bfloat16 has steps, and rounds otherwise in a batch; plain, torch's differs for bfloat16.
        plain = name == "muon plain"
        rows[name] = Row(build, o.Muon, hyper, matrices=True, mixed=not plain, smooth=False, slack=1e4)
    return rows


def adapted_rows() -> dict[str, Row]:
    o = torch.optim
    variants = {
        "Adagrad": (o.Adagrad, {"initial_accumulator_value": 0.1, "lr_decay": 0.01}),
        "RMSprop": (o.RMSprop, {"momentum": 0.9, "centered": True}),
        "NAdam": (o.NAdam, {"decoupled_weight_decay": True, "weight_decay": 0.01}),
        "RAdam": (o.RAdam, {"weight_decay": 0.01}),
        "Adadelta": (o.Adadelta, {}),
        "Adamax": (o.Adamax, {}),
        "ASGD": (o.ASGD, {"t0": 5, "lambd": 0.01}),
        "Rprop": (o.Rprop, {}),
        "Adafactor": (o.Adafactor, {}),
        "Muon": (o.Muon, {}),
        "SGD": (o.SGD, {"momentum": 0.9, "dampening": 0.5}),
        "SGD nesterov": (o.SGD, {"momentum": 0.9, "nesterov": True}),
        "AdamW": (o.AdamW, {"amsgrad": True}),
    }
    table = {}
    for name, (cls, hyper) in variants.items():
        has_foreach = "foreach" in inspect.signature(cls).parameters
        for foreach in (False, True) if has_foreach else (None,):
            given = {**hyper, "foreach": foreach} if has_foreach else hyper
            build = functools.partial(lambda cls, given, lr: optim.from_torch(cls, lr=lr, **given), cls, given)
            row = Row(build, cls, given, lr=0.01, matrices=name == "Muon", traced=False)
            table[f"from_torch {name} foreach={foreach}"] = row
    return table


def composed_rows() -> dict[str, Row]:
    momentum = functools.partial(optim.sgd, momentum=0.9)
    clip = optim.clip_by_global_norm(0.5)
    return {
        "lion": Row(lambda lr: optim.lion(lr, weight_decay=0.1)),
        "chain": Row(lambda lr: optim.chain(clip, optim.clip_by_value(0.1), optim.adamw(lr)), smooth=False),
        "every": Row(lambda lr: optim.every(3, optim.adamw(lr))),
        "every 1": Row(lambda lr: optim.every(1, momentum(lr))),
        "every chain": Row(lambda lr: optim.every(2, optim.chain(clip, momentum(lr)))),
        "chain every": Row(lambda lr: optim.chain(clip, optim.every(2, optim.adam(lr))), smooth=False),
        "every adapted": Row(lambda lr: optim.every(2, optim.from_torch(torch.optim.NAdam, lr=lr)), traced=False),
        "groups": Row(lambda lr: optim.groups({"*.bias": momentum(lr)}, default=optim.adamw(lr))),
        "groups frozen": Row(
            lambda lr: optim.groups({"layer.w*": None, "scale": optim.lion(lr)}, default=momentum(lr))
        ),
        "every groups": Row(
            lambda lr: optim.every(2, optim.groups({"scale": optim.rmsprop(lr)}, default=momentum(lr)))
        ),
        "tunable adamw": Row(lambda lr: optim.tunable(optim.adamw, lr=lr, betas=(0.8, 0.9), weight_decay=0.1)),
        "tunable sgd": Row(lambda lr: optim.tunable(optim.sgd, lr=lr, momentum=0.9, dampening=0.1, mode="foreach")),
        "groups tunable": Row(
            lambda lr: optim.groups({"scale": optim.tunable(optim.rmsprop, lr=lr, alpha=0.9)}, default=optim.adam(lr))
        ),
    }


NATIVE, ADAPTED, COMPOSED = native_rows(), adapted_rows(), composed_rows()
ALL = {**NATIVE, **ADAPTED, **COMPOSED}
TORCH = {name: row for name, row in ALL.items() if row.cls is not None}
TRACED = [name for name, row in ALL.items() if row.traced]
# One row for each formula: modes differ in kernels only.
FORMULAS = [name for name in TRACED if not name.endswith((" fused", " foreach"))]


def params_of(dtypes=DTYPES["float32"], *, matrices: bool = False, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, 3), (5, 5), (3, 4)] if matrices else [(4, 3), (5,), ()]
    leaves = [torch.randn(shape, generator=generator).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    return {"layer": {"bias": leaves[1], "weight": leaves[0]}, "scale": leaves[2]}


def grads_at(step: int, params):
    generator = torch.Generator().manual_seed(1000 + step)
    return tree.map(lambda leaf: torch.randn(leaf.shape, generator=generator).to(leaf.dtype), params)


def started(name: str, lr: Any = 0.01, dtypes=DTYPES["float32"]):
    """An optimiser of the table, parameters that it takes, and its first state."""
    optimizer, params = ALL[name].build(lr=lr), params_of(dtypes, matrices=ALL[name].matrices)
    return optimizer, params, optimizer.init(params)


def trained(optimizer, params, state, start: int, stop: int, **given: Any):
    """After the updates ``start`` to ``stop - 1``."""
    for step in range(start, stop):
        params, state = optimizer.update(grads_at(step, params), state, params, weight=step % 3 + 1, **given)
    return params, state


def copied(state):
    """A copy that shares no memory."""
    return tree.map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, state)


def transposed(leaf):
    """The same values, laid out in memory the other way round, as gradients of ``x @ w.T`` are."""
    return leaf.t().contiguous().t() if leaf.dim() == 2 else leaf


def kinds(state):
    return [
        (path, leaf.dtype, leaf.shape) if isinstance(leaf, torch.Tensor) else (path, type(leaf))
        for path, leaf in tree.items(state)
    ]

"""Which modules can be called as functions of their weights, and what to hand over instead of the others."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

# By name: importing the classes would load torch.distributed.fsdp for everybody.
_WRAPPERS = {
    "DataParallel": "hand over the wrapped module (wrapper.module); gradients are reduced inside the step",
    "DistributedDataParallel": "hand over the wrapped module (wrapper.module); gradients are reduced inside the step",
    "FullyShardedDataParallel": "hand over the module before it is wrapped, and shard the params as DTensors",
    "FSDPModule": "hand over the module before fully_shard is applied, and shard the params as DTensors",
    "OptimizedModule": "hand over the module before torch.compile (compiled._orig_mod), and compile the step instead",
    "ScriptModule": "hand over the Python module before it is scripted or traced",
}


def check_module(module: nn.Module) -> None:
    """Refuse modules that would not be functions of the weights that a call hands over.

    Raises:
        TypeError: a (sub)module keeps or moves its weights behind the caller's back.
        ValueError: weights without values, or a layer that rewrites its weights in forward.
    """
    for path, submodule in module.named_modules():
        where = f"{type(submodule).__name__}{f' at {path!r}' if path else ''}"
        for base in type(submodule).__mro__:
            remedy = _WRAPPERS.get(base.__name__) if base.__module__.startswith("torch.") else None
            if remedy is not None:
                raise TypeError(f"{where} ({base.__name__}) does not let a call choose its weights: {remedy}")
        if isinstance(submodule, nn.Embedding | nn.EmbeddingBag) and submodule.max_norm is not None:
            raise ValueError(
                f"{where} has max_norm={submodule.max_norm} and so rewrites its weight in forward: "
                "leave max_norm out and normalise the weight that is used, or the params after each update"
            )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if type(tensor).__name__ == "DTensor":
            raise TypeError(
                f"{name!r} is sharded (a DTensor) and its module's forward relies on that: hand over the module "
                "before it is sharded, and shard the params that come back"
            )
        if is_lazy(tensor):
            raise ValueError(f"{name!r} has no shape yet (lazy module): run one batch through the module first")
        if tensor.device == torch.device("meta"):
            raise ValueError(f"{name!r} is on the meta device and has no values: initialise the module on a real one")

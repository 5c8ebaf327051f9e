"""The savers that `checkpoint` compares: each takes a state and the path of a new file or folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from helios_fn.checkpoint import Store

from . import standin

State = dict[str, dict[str, torch.Tensor]]
Wait = Callable[[], Any]
"""Returns when a save is over."""


def fsync(path: Path) -> None:
    """Make a file durable."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def torch_save(state: State, path: Path, *, durable: bool = False) -> None:
    """The call that everybody makes."""
    torch.save(state, path)
    if durable:
        fsync(path)


def flat(state: State) -> dict[str, torch.Tensor]:
    """One dict, as safetensors takes it."""
    return {f"{part}.{name}": leaf for part, leaves in state.items() for name, leaf in leaves.items()}


def safe_save(state: State, path: Path) -> None:
    """Safetensors' own writer."""
    from safetensors.torch import save_file

    save_file(flat(state), path)


def dcp_save(state: State, path: Path) -> None:
    """Without a process group; its writer syncs its files."""
    import torch.distributed.checkpoint as dcp

    dcp.save(state, checkpoint_id=path, no_dist=True)


def dcp_async(state: State, path: Path) -> Wait:
    """Copies the state, and writes the copy in a thread."""
    import torch.distributed.checkpoint as dcp

    future: Any = dcp.async_save(state, checkpoint_id=path, no_dist=True)
    return lambda: getattr(future, "upload_completion", future).result()


def our_save(store: Store, state: State, path: Path) -> None:
    """Durable when it returns."""
    number = int(path.name.removeprefix("saved"))
    store.save(state, epoch=0, iteration=number, micro_step=number, record={})


def our_writer(store: Store) -> Callable[[State, Path], Wait]:
    """Checked by the thread that trains and written by the driver's writer; nothing is copied."""
    from helios_fn.checkpoint import Prepared, Writer

    writer = Writer()

    def begin(state: State, path: Path) -> Wait:
        number = int(path.name.removeprefix("saved"))
        pending = store.prepare(state, epoch=0, iteration=number, micro_step=number, record={})
        writer.submit(Prepared(pending.folder, lambda: store.commit(pending, background=True)))
        return writer.drain

    return begin


def lightning_save(state: State) -> Callable[[State, Path], None]:
    """A trainer that holds a module of these parameters, and AdamW after a step."""
    standin.torchvision()
    import lightning.pytorch as pl

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(leaf.clone() for leaf in state["params"].values())

    module = Module()
    optimizer = torch.optim.AdamW(module.parameters())
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(module)
    trainer.strategy._lightning_module = module
    trainer.strategy.optimizers = [optimizer]
    return lambda _, path: trainer.save_checkpoint(path.with_suffix(".ckpt"))


def at_once(save: Callable[[State, Path], None]) -> Callable[[State, Path], Wait]:
    """A saver that has nothing left to do when it returns."""

    def begin(state: State, path: Path) -> Wait:
        save(state, path)
        return lambda: None

    return begin

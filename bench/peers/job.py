"""The job that all train: shuffled samples, augmentation drawn in the dataset, dropout, BatchNorm, AdamW, a schedule.

Nothing in it knows of resuming. Sizes are such that an epoch has a ragged last batch and checkpoints fall both in the
middle of an epoch and on its last batch.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

SEED = 6691
SAMPLES, BATCH_SIZE, EPOCHS = 60, 8, 3
ACCUMULATION = 2  # micro-batches in an iteration
CHECKPOINT_EVERY = 2  # iterations

BATCHES_PER_EPOCH = math.ceil(SAMPLES / BATCH_SIZE)
MICRO_BATCHES = EPOCHS * BATCHES_PER_EPOCH
ITERATIONS = MICRO_BATCHES // ACCUMULATION
LEARNING_RATE, WARMUP = 1e-2, 3
FEATURES, CLASSES = 16, 4

Sample = tuple[int, torch.Tensor, int]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Data(Dataset[Sample]):
    """Samples with their numbers. The augmentation draws from torch's and Python's global generators, as is usual."""

    def __init__(self) -> None:
        self.x = torch.randn(SAMPLES, FEATURES, generator=torch.Generator().manual_seed(0))
        self.y = self.x[:, :CLASSES].argmax(1).tolist()

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Sample:
        x = self.x[index] + 0.1 * torch.randn(FEATURES)
        return index, -x if random.random() < 0.5 else x, self.y[index]


class StatefulData(Data):
    """The same with the generators' states as its own, for loaders that save a dataset's state in each worker."""

    def state_dict(self) -> dict[str, Any]:
        return {"torch": torch.get_rng_state(), "random": random.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["torch"])
        random.setstate(state["random"])


def network() -> nn.Module:
    """A small classifier with dropout and batch statistics."""
    return nn.Sequential(
        nn.Linear(FEATURES, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, CLASSES)
    )


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, weight_decay=0.01)


def scheduler_of(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def factor(update: int) -> float:
    """Of the learning rate: a linear warm-up, then a cosine to nothing."""
    if update < WARMUP:
        return (update + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (update - WARMUP) / (ITERATIONS - WARMUP)))


Final = Mapping[str, Mapping[str, torch.Tensor]]


def final_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> Final:
    """What training has made: parameters, buffers, and the optimiser's memory."""
    memory = optimizer.state_dict()["state"]
    return {
        "parameters": dict(module.named_parameters()),
        "buffers": dict(module.named_buffers()),
        "moments": {f"{index}.{name}": value for index, kept in memory.items() for name, value in kept.items()},
    }


def digest(*tensors: torch.Tensor) -> str:
    """Of the bytes, shapes and dtypes."""
    found = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        found.update(plain.numpy().tobytes())
    return found.hexdigest()[:16]


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of all the tensors, in the order of their names."""
    return digest(*(tensors[name] for name in sorted(tensors)))

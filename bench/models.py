"""What is trained in the benchmarks: four kinds of network, with batches that cost nothing to make."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

LEARNING_RATE = 1e-4
Batch = tuple[torch.Tensor, torch.Tensor]


class Workload(NamedTuple):
    """A network and its batches; the loss is always the cross entropy."""

    name: str
    network: Callable[[], nn.Module]
    batches: Callable[[], list[Batch]]

    def cycle(self) -> Iterator[Batch]:
        """The batches, again and again: several, so that no training here ends in zero gradients."""
        return itertools.cycle(self.batches())


class Block(nn.Module):
    """A transformer block with four causal heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.before(x)).view(batch, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heads.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.between(x))))


class GPT(nn.Module):
    """A small language model over 128 symbols."""

    def __init__(self, width: int = 128, layers: int = 4, length: int = 64) -> None:
        super().__init__()
        self.symbols, self.positions = nn.Embedding(128, width), nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.symbols(x) + self.positions
        for block in self.blocks:
            h = block(h)
        return self.head(h).flatten(0, 1)


class Deep(nn.Module):
    """Many small tensors: a chain of narrow layers, two tensors each."""

    def __init__(self, tensors: int, width: int = 8) -> None:
        super().__init__()
        layers = [nn.Linear(width, width) for _ in range(tensors // 2)]
        for layer in layers:  # by default signals vanish over hundreds of layers, and subnormal numbers are slow
            nn.init.orthogonal_(layer.weight)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def mlp_network() -> nn.Module:
    """26 thousand parameters."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def conv_network() -> nn.Module:
    """Three convolutions with batch norm on images of 16 by 16."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 16, 1), (16, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def classified(shape: tuple[int, ...], classes: int, count: int = 16) -> list[Batch]:
    """Batches of normal inputs with random labels."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(shape, generator=generator), torch.randint(0, classes, shape[:1], generator=generator))
        for _ in range(count)
    ]


def text(batch: int, length: int = 64, count: int = 16) -> list[Batch]:
    """Batches of random symbols, each to be told from the ones before."""
    generator = torch.Generator().manual_seed(1)
    pieces = [torch.randint(0, 128, (batch, length + 1), generator=generator) for _ in range(count)]
    return [(piece[:, :-1].contiguous(), piece[:, 1:].flatten()) for piece in pieces]


MLP = Workload("MLP 26k", mlp_network, lambda: classified((32, 64), 10))
GPT_SMALL = Workload("GPT 0.8M", GPT, lambda: text(8))
CONV = Workload("conv + BatchNorm", conv_network, lambda: classified((16, 3, 16, 16), 10))
MANY_100 = Workload("100 tensors", lambda: Deep(100), lambda: classified((8, 8), 8))
MANY_500 = Workload("500 tensors", lambda: Deep(500), lambda: classified((8, 8), 8))


def pure_parts(workload: Workload) -> tuple[Any, Any, Any]:
    """``(loss_fn, params, buffers)`` of a workload, in our form."""
    import helios_fn as hf

    model, params, buffers = hf.functional(workload.network, seed=0)

    def loss_fn(params: Any, buffers: Any, batch: Batch, key: Any) -> tuple[torch.Tensor, hf.Aux]:
        x, y = batch
        logits, buffers = model(params, buffers, x)
        return F.cross_entropy(logits, y), hf.Aux(buffers=buffers)

    return loss_fn, params, buffers


def module_like(workload: Workload, params: Any, buffers: Any) -> nn.Module:
    """The workload's module with these weights."""
    module = workload.network()
    module.load_state_dict({**params, **buffers})
    return module

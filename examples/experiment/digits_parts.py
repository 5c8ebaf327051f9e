"""The parts of the experiments in this folder: real images, an augmentation, and a small network."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from helios_fn.registry import DATASETS, MODELS, NETWORKS, TRANSFORMS


@DATASETS.register
def digits(split: str) -> TensorDataset:
    """scikit-learn's digits, 8 x 8 pixels: 1500 to train on and 297 to test on."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rows = {"train": slice(0, 1500), "test": slice(1500, None)}[split]
    images = torch.tensor(x[rows], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return TensorDataset(images, torch.tensor(y[rows]))


@TRANSFORMS.register
def shift(sample, rng: np.random.Generator, pixels: int = 1):
    """The image moved by up to some pixels in each direction: another way in each epoch, the same after a resume."""
    image, label = sample
    top, left = rng.integers(0, 2 * pixels, size=2, endpoint=True)
    height, width = image.shape[-2:]
    return F.pad(image, (pixels,) * 4)[:, top : top + height, left : left + width], label


@NETWORKS.register
def cnn(channels: int = 16) -> nn.Module:
    """Two convolutions and a pooling."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
    )  # fmt: skip


@NETWORKS.register
def mlp(width: int = 64) -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())


@MODELS.register
class Classifier(nn.Module):
    """Ten classes on top of a network; ``network = {name = "cnn"}`` is made before this is called."""

    def __init__(self, network: nn.Module, dropout: float = 0.25) -> None:
        super().__init__()
        features = network.eval()(torch.zeros(1, 1, 8, 8)).shape[1]
        self.network, self.head = network.train(), nn.Sequential(nn.Dropout(dropout), nn.Linear(features, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.network(images))

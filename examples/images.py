"""Real images for the examples: Fashion-MNIST where Debian's package put it, else scikit-learn's digits."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch

FASHION = Path("/usr/share/datasets/fashion-mnist")  # apt-get install dataset-fashion-mnist


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """1500 images to train on and 297 to test on: float32 [n, 1, 8, 8] in [0, 1], int64 labels."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(y)
    return x[:1500], y[:1500], x[1500:], y[1500:]


def fashion_mnist() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """60,000 images to train on and 10,000 to test on: float32 [n, 1, 28, 28] in [0, 1], int64 labels."""

    def read(name: str, header: int) -> torch.Tensor:
        with gzip.open(FASHION / f"{name}.gz") as file:
            return torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=header).copy())

    def images(name: str) -> torch.Tensor:
        return read(f"{name}-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28).float() / 255

    def labels(name: str) -> torch.Tensor:
        return read(f"{name}-labels-idx1-ubyte", 8).long()

    return images("train"), labels("train"), images("t10k"), labels("t10k")


def load(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``digits`` or ``fashion``: train images and labels, test images and labels."""
    if name == "digits":
        return digits()
    if not FASHION.is_dir():
        raise SystemExit(f"{FASHION} is not there: apt-get install dataset-fashion-mnist, or use --data digits")
    return fashion_mnist()

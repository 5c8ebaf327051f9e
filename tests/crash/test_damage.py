"""No damage to the bytes of a checkpoint goes unnoticed, and the checkpoint before it takes its place."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from helios_fn.checkpoint import Store, verify
from helios_fn.errors import CheckpointError

from .scenes import newest_value, open_store, save
from .tally import Finding, Outcome, Trial

FILES = ("manifest.json", "state.json", "tensors.safetensors")


class Damaged:
    """A root with checkpoints 1 and 2, of which a file of the newer can be changed, and becomes whole again."""

    def __init__(self, root: Path, name: str) -> None:
        self.store: Store = open_store(root)
        save(self.store, 1)
        self.path = save(self.store, 2) / name
        self.whole = self.path.read_bytes()

    def check(self, kind: str, content: bytes, *, fallback: bool) -> None:
        """Hold ``content`` instead: refused with the file's name, and with ``fallback`` passed over."""
        self.path.write_bytes(content)
        with Trial(kind, Outcome.REJECTED):
            try:
                verify(self.path.parent)
            except CheckpointError as error:
                if self.path.name not in str(error):
                    raise Finding(Outcome.UNCLEAR, f"{self.path.name} is not named: {error}") from error
            else:
                raise Finding(Outcome.SILENT, f"{kind} of {self.path.name} was not noticed")
            if fallback:
                self._check_fallback()
        self.path.write_bytes(self.whole)

    def _check_fallback(self) -> None:
        if newest_value(self.store) != 1:
            raise Finding(Outcome.LOST, "the checkpoint before was not found")
        (self.store.root / "damaged" / self.path.parent.name).rename(self.path.parent)


@pytest.fixture(params=FILES)
def damaged(request: pytest.FixtureRequest, memory: Path) -> Damaged:
    return Damaged(memory / "root", request.param)


def flip(damaged: Damaged, bits: Iterable[int], fallback: Callable[[int], bool]) -> None:
    for bit in bits:
        content = bytearray(damaged.whole)
        content[bit // 8] ^= 1 << bit % 8
        damaged.check("bit flip", bytes(content), fallback=fallback(bit))


def truncate(damaged: Damaged, fallback: Callable[[int], bool]) -> None:
    for length in range(len(damaged.whole)):
        damaged.check("truncation", damaged.whole[:length], fallback=fallback(length))


def test_the_checkpoint_is_small_enough_for_all_of_its_bits(damaged: Damaged) -> None:
    """Each of them is flipped, here or in the soak."""
    assert sum(os.path.getsize(damaged.path.with_name(name)) for name in FILES) <= 4096


def test_a_flipped_bit_is_noticed_in_every_byte(damaged: Damaged) -> None:
    """One bit of each byte, chosen at random; with the fallback for some."""
    chosen = random.Random(0)
    bits = [8 * position + chosen.randrange(8) for position in range(len(damaged.whole))]
    flip(damaged, bits, lambda bit: bit // 8 % 32 == 0)


def test_every_truncation_is_noticed(damaged: Damaged) -> None:
    """Whatever number of bytes is missing at the end; with the fallback for some."""
    truncate(damaged, lambda length: length % 32 == 0)


@pytest.mark.soak
def test_every_flipped_bit_makes_the_checkpoint_before_the_newest(damaged: Damaged) -> None:
    """All of them."""
    flip(damaged, range(8 * len(damaged.whole)), lambda bit: True)


@pytest.mark.soak
def test_every_truncation_makes_the_checkpoint_before_the_newest(damaged: Damaged) -> None:
    """All of them."""
    truncate(damaged, lambda length: True)


@pytest.mark.soak
def test_two_flipped_bits_are_noticed(damaged: Damaged) -> None:
    """Two thousand random pairs per file: a weak checksum would let some through that cancel each other."""
    chosen = random.Random(1)
    for _ in range(2000):
        content = bytearray(damaged.whole)
        for bit in chosen.sample(range(8 * len(content)), 2):
            content[bit // 8] ^= 1 << bit % 8
        damaged.check("two bit flips", bytes(content), fallback=False)


@pytest.mark.soak
def test_swapped_and_repeated_blocks_are_noticed(damaged: Damaged) -> None:
    """Blocks of 16 bytes exchanged, zeroed, or put twice: what a confused disk does."""
    size, whole = 16, damaged.whole
    blocks = [whole[at : at + size] for at in range(0, len(whole), size)]
    for i in range(len(blocks)):
        for j in range(i):
            swapped = [*blocks]
            swapped[i], swapped[j] = swapped[j], swapped[i]
            repeated = [*blocks]
            repeated[i] = repeated[j]
            for changed in (b"".join(swapped), b"".join(repeated)):
                if changed != whole:
                    damaged.check("misplaced block", changed, fallback=False)
        zeroed = b"".join([*blocks[:i], bytes(len(blocks[i])), *blocks[i + 1 :]])
        if zeroed != whole:
            damaged.check("misplaced block", zeroed, fallback=False)

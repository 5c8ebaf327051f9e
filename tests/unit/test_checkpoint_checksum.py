"""Checksums: what they are, and which damage they cannot miss."""

from __future__ import annotations

import functools
import hashlib
import random
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_fn import tree
from helios_fn.checkpoint import FileSystem, Store, verify
from helios_fn.checkpoint.aside import MOST
from helios_fn.checkpoint.checksum import CHUNK, COLUMNS, Checksums, FileEntry, damaged, entry_of
from helios_fn.errors import CheckpointError

MIB = 1 << 20


@functools.cache
def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def model(data: bytes) -> FileEntry:
    """The definition, word by word."""
    chunks = []
    for start in range(0, len(data), CHUNK):
        chunk = data[start : start + CHUNK]
        padded = chunk + bytes(-len(chunk) % 8)
        words = struct.unpack(f"<{len(padded) // 8}Q", padded)
        hasher = hashlib.sha256(struct.pack("<Q", len(chunk)))
        for columns in (COLUMNS, COLUMNS + 1):
            sums = [sum(words[first::columns]) % 2**64 for first in range(min(columns, len(words)))]
            hasher.update(struct.pack(f"<{len(sums)}Q", *sums))
        chunks.append(hasher.hexdigest()[:32])
    return FileEntry(len(data), tuple(chunks))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 8 * COLUMNS, 8 * COLUMNS + 8, 8 * COLUMNS + 9, 100_003, CHUNK + 5])
def test_they_are_what_the_definition_says(size: int) -> None:
    """At every border between one case and the next."""
    assert entry_of(noise(size)) == model(noise(size))


def test_they_never_change() -> None:
    """Golden values: with others, no checkpoint written so far could be read."""
    assert entry_of(b"helios").chunks == ("4b3864e8cafdceadfd7da81e79940a43",)
    data = bytes(range(256)) * (CHUNK // 256) + b"more"
    assert entry_of(data).chunks == ("c3200ed2241073cb2cbd482bfba2bd05", "eee191c72ae60f0c4d68da766a6040ff")


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(0, 3 * MIB),
    start=st.integers(0, 9),
    cuts=st.lists(st.one_of(st.integers(1, 20), st.integers(1, 30_000), st.integers(1, MIB)), min_size=1, max_size=9),
)
def test_where_the_pieces_end_does_not_matter(size: int, start: int, cuts: list[int]) -> None:
    """Nor where in memory they begin."""
    data = memoryview(noise(3 * MIB + 9))[start : start + size]
    checksums, position, turn = Checksums(), 0, 0
    while position < size:
        piece = data[position : position + cuts[turn % len(cuts)]]
        # Past the list the rest comes whole, or tiny pieces would take for ever.
        piece = piece if turn < 50 else data[position:]
        checksums.update(piece)
        position, turn = position + len(piece), turn + 1
    assert checksums.entry() == entry_of(bytes(data))


def flipped(data: bytes, *bits: int) -> bytes:
    changed = bytearray(data)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_flipped_bit_is_noticed() -> None:
    """All of them, in a file of less than a row and in one of many rows."""
    for size, stride in ((137, 1), (90_001, 1009)):
        data, whole = noise(size), entry_of(noise(size))
        for bit in range(0, 8 * size, stride):
            assert entry_of(flipped(data, bit)) != whole


@settings(max_examples=150, deadline=None)
@given(
    words=st.lists(st.integers(0, 250_000 // 8 - 1), min_size=1, max_size=3, unique=True),
    changes=st.lists(st.one_of(st.integers(1, 2**64 - 1), st.sampled_from([1, 2**31, 2**63])), min_size=3, max_size=3),
    row=st.booleans(),
)
def test_damage_to_three_words_is_noticed(words: list[int], changes: list[int], row: bool) -> None:
    """Whatever is done to them, also where they share a column and the changes cancel."""
    words = [words[0] % COLUMNS + COLUMNS * n for n in range(len(words))] if row else words
    data = bytearray(noise(250_000))
    for word, change in zip(words, changes, strict=False):
        (old,) = struct.unpack_from("<Q", data, 8 * word)
        struct.pack_into("<Q", data, 8 * word, (old + change) % 2**64)
    assert entry_of(bytes(data)) != entry_of(noise(250_000))


@settings(max_examples=100, deadline=None)
@given(start=st.integers(0, 233_000), length=st.integers(1, 16 << 10), fill=st.sampled_from([0, 255, None]))
def test_a_damaged_run_is_noticed(start: int, length: int, fill: int | None) -> None:
    """Zeros, ones, or another place's bytes over as much as 16 KiB."""
    data = bytearray(noise(250_000))
    data[start : start + length] = noise(99_999)[:length] if fill is None else bytes([fill]) * length
    assert entry_of(bytes(data)) != entry_of(noise(250_000))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 1023), min_size=2, max_size=2, unique=True), st.sampled_from([512, 4096, 8 * COLUMNS]))
def test_swapped_pages_are_noticed(places: list[int], page: int) -> None:
    """Sectors, pages and whole rows."""
    data = bytearray(noise(16 << 20)[: 1024 * page])
    one, other = (slice(place * page, (place + 1) * page) for place in places)
    data[one], data[other] = data[other], data[one]
    assert damaged(entry_of(noise(16 << 20)[: 1024 * page]), entry_of(bytes(data)))


# In a checkpoint ------------------------------------------------------------------------------------------


class Volatile(FileSystem):
    def sync(self, handle: int) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


def state(value: int) -> dict[str, torch.Tensor]:
    """Three chunks and a bit."""
    return {
        "first": torch.full((5,), value),
        "large": torch.arange(value, value + 2 * CHUNK // 8 + 77),
        "last": torch.arange(value, value + CHUNK // 8, dtype=torch.float64),
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("chunks"), "run", files=Volatile())
    for i in (1, 2):
        store.save(state(i), epoch=0, iteration=i, micro_step=i, record={})
    return store


@pytest.fixture
def file(store: Store):
    """The tensor file of the second checkpoint; put right again afterwards."""
    path = store.folder / "run_epoch_0_iter_2" / "tensors.safetensors"
    whole = path.read_bytes()
    yield path
    path.write_bytes(whole)


def overwrite(path: Path, start: int, data: bytes) -> None:
    with path.open("r+b") as opened:
        opened.seek(start)
        opened.write(data)


@pytest.mark.parametrize("chunk", range(4))
def test_damage_is_located(store: Store, file: Path, chunk: int) -> None:
    """The message names the bytes of the chunk and the leaves that lie there."""
    whole = file.read_bytes()
    position = min(chunk * CHUNK + 12345, len(whole) - 1)
    overwrite(file, position, bytes([whole[position] ^ 64]))
    end = min((chunk + 1) * CHUNK, len(whole)) - 1
    leaf = "state['large']" if chunk < 2 else "state['last']"
    like = {name: torch.empty_like(leaf) for name, leaf in state(0).items()}
    newest = store.entries()[0]
    for call in (lambda: verify(file.parent), lambda: store.load(newest, like)):
        with pytest.raises(CheckpointError) as caught:
            call()
        assert f"{file} is damaged: the checksum of bytes {chunk * CHUNK} to {end} differs" in str(caught.value)
        assert leaf in str(caught.value)


def test_chunks_that_changed_places_are_noticed(file: Path) -> None:
    """Both are named."""
    whole = file.read_bytes()
    overwrite(file, 0, whole[CHUNK : 2 * CHUNK] + whole[:CHUNK])
    with pytest.raises(CheckpointError, match=f"bytes 0 to {CHUNK - 1}, {CHUNK} to {2 * CHUNK - 1} differs"):
        verify(file.parent)


def test_a_chunk_of_another_checkpoint_is_noticed(store: Store, file: Path) -> None:
    """Of the same place, with other values."""
    other = (store.folder / "run_epoch_0_iter_1" / file.name).read_bytes()
    overwrite(file, CHUNK, other[CHUNK : 2 * CHUNK])
    with pytest.raises(CheckpointError, match=f"bytes {CHUNK} to {2 * CHUNK - 1} differs"):
        verify(file.parent)


def test_a_file_that_ends_at_the_border_of_a_chunk_is_noticed(file: Path) -> None:
    """Or one byte to either side of it; also one that goes on."""
    whole = file.read_bytes()
    for border in (*range(0, len(whole), CHUNK), len(whole)):
        for length in {max(border + change, 0) for change in (-1, 0, 1)} - {len(whole)}:
            with file.open("r+b") as opened:
                opened.truncate(length)
            with pytest.raises(CheckpointError, match=f"it has {length} bytes instead of {len(whole)}"):
                verify(file.parent)
            overwrite(file, 0, whole)


def test_one_thread_or_several_write_the_same(store: Store, tmp_path: Path) -> None:
    """And what was written in the background is read as it was."""
    alone = Store(tmp_path, "run", files=Volatile())
    pending = alone.prepare(state(2), epoch=0, iteration=2, micro_step=2, record={})
    path = alone.commit(pending, background=True)
    assert verify(path).files == verify(store.folder / path.name).files
    assert tree.diff(alone.load(alone.at(path), state(2)), state(2)) == []


def test_verifying_takes_no_memory_for_the_tensors(store: Store) -> None:
    """A few pieces of it are in memory at a time, however large the file is."""
    import tracemalloc

    tracemalloc.start()
    verify(store.folder / "run_epoch_0_iter_2")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (MOST + 2) * MIB

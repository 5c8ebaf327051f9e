"""The TFRecord framing of TensorBoard's event files.

One record is: length (uint64), its masked CRC-32C (uint32), the data, its masked CRC-32C, all little
endian, see https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details.
"""

from __future__ import annotations

import functools
import struct

import numpy as np

_REACH = 512  # bytes: a row of some twenty metrics


def _table_entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_TABLE = tuple(_table_entry(byte) for byte in range(256))


def frame(data: bytes) -> bytes:
    """One record. Records may be concatenated, and a file cut between two of them is whole."""
    return b"".join((_head(len(data)), data, struct.pack("<I", _masked(crc32c(data)))))


def crc32c(data: bytes) -> int:
    """The Castagnoli CRC of RFC 3720. TensorBoard's own loops over the bytes in Python, for most of a row's time."""
    length = len(data)
    # A CRC is linear over XOR: the sum of what each byte contributes from its place, and of the start value.
    places, contributions, starts = _contributions()
    if length <= _REACH:
        found = contributions.take(places[_REACH - length :] + np.frombuffer(data, np.uint8))
        return int(np.bitwise_xor.reduce(found)) ^ starts[length] ^ 0xFFFFFFFF
    register, rest = 0xFFFFFFFF, length % _REACH
    register = _bytewise(data[:rest], register)
    blocks = np.frombuffer(data, np.uint8, offset=rest).reshape(-1, _REACH)
    # So many at a time that what is looked up stays small.
    for at in range(0, len(blocks), _REACH):
        sums = np.bitwise_xor.reduce(contributions.take(places + blocks[at : at + _REACH]), axis=1)
        for found in sums.tolist():
            register = found ^ _past_a_block(register)
    return register ^ 0xFFFFFFFF


def _past_a_block(register: int) -> int:
    """The register after ``_REACH`` bytes of zero: it counts as if it were XORed into the first four."""
    first, second, third, fourth = _block_heads()
    return first[register & 0xFF] ^ second[register >> 8 & 0xFF] ^ third[register >> 16 & 0xFF] ^ fourth[register >> 24]


@functools.cache
def _block_heads() -> list[list[int]]:
    """The tables of the first four places of a block."""
    places, contributions, _ = _contributions()
    return [contributions[start : start + 256].tolist() for start in places[:4]]


def _bytewise(data: bytes, register: int) -> int:
    for byte in data:
        register = _TABLE[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register


@functools.cache
def _contributions() -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Where each place's table begins, the tables by distance from the end, the start value after n bytes."""
    tables = np.empty((_REACH, 256), np.uint32)
    tables[0] = _TABLE
    starts = [0xFFFFFFFF]
    for distance in range(1, _REACH):
        tables[distance] = tables[0][tables[distance - 1] & 0xFF] ^ (tables[distance - 1] >> 8)
    for _ in range(_REACH):
        starts.append(_bytewise(b"\0", starts[-1]))
    return np.arange(_REACH)[::-1] * 256, tables.ravel(), starts


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@functools.lru_cache(maxsize=64)  # the rows of a run have few lengths
def _head(length: int) -> bytes:
    size = struct.pack("<Q", length)
    return size + struct.pack("<I", _masked(crc32c(size)))

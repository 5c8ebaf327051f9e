"""The operators of compiled programs in C++: half a microsecond where Python needs a hundred.

The code is compiled with the compiler that torch's inductor uses, once per machine, when a program that inductor
has compiled first draws. Where that fails, Python and NumPy do the same work; both give the same bits.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

import torch

from .derive import ABSORB

_INDUCTOR = "torch._inductor.codecache"
_SOURCE = (
    """
// Inductor's flags forbid it, since its own code is written in vectors.
#pragma GCC optimize("tree-loop-vectorize")

#include <cstdint>
#include <algorithm>

typedef uint32_t u32;
typedef uint64_t u64;

// Words of 32 bits whose products are widened: the form that compilers turn into vector instructions.
template <int N>
static inline void philox(u32 (&c0)[N], u32 (&c1)[N], u32 (&c2)[N], u32 (&c3)[N], u64 key) {
    for (int round = 0; round < 10; ++round) {
        const u32 r0 = (u32)key + round * 0x9E3779B9u, r1 = (u32)(key >> 32) + round * 0xBB67AE85u;
        for (int i = 0; i < N; ++i) {
            const u64 p0 = (u64)c0[i] * 0xD2511F53u, p1 = (u64)c2[i] * 0xCD9E8D57u;
            c0[i] = (u32)(p1 >> 32) ^ c1[i] ^ r0;
            c1[i] = (u32)p1;
            c2[i] = (u32)(p0 >> 32) ^ c3[i] ^ r1;
            c3[i] = (u32)p0;
        }
    }
}

extern "C" void helios_words(const u64* keys, int64_t m, int64_t count, u32* out) {
    const int N = 64;
    u32 c0[N], c1[N], c2[N], c3[N];
    for (int64_t k = 0; k < m; ++k) {
        for (int64_t start = 0; start < count; start += N) {
            for (int i = 0; i < N; ++i) {
                const u64 position = keys[2 * k + 1] + (u64)(start + i);
                c0[i] = (u32)position;
                c1[i] = (u32)(position >> 32);
                c2[i] = c3[i] = 0;
            }
            philox<N>(c0, c1, c2, c3, keys[2 * k]);
            const int size = (int)std::min<int64_t>(N, count - start);
            u32* to = out + 4 * (k * count + start);
            for (int i = 0; i < size; ++i) {
                to[4 * i] = c0[i];
                to[4 * i + 1] = c1[i];
                to[4 * i + 2] = c2[i];
                to[4 * i + 3] = c3[i];
            }
        }
    }
}

extern "C" void helios_derive(const u64* parents, const u64* numbers, int64_t m, u32 tag, u64* out) {
    for (int64_t i = 0; i < m; ++i) {
        const u64 offset = parents[2 * i + 1], number = numbers[i];
        u32 r0[1] = {(u32)offset}, r1[1] = {(u32)(offset >> 32)}, r2[1] = {0}, r3[1] = {HELIOS_ABSORB};
        philox<1>(r0, r1, r2, r3, parents[2 * i]);
        u32 w0[1] = {(u32)number ^ r3[0]}, w1[1] = {(u32)(number >> 32)}, w2[1] = {r2[0]}, w3[1] = {tag};
        philox<1>(w0, w1, w2, w3, r0[0] | (u64)r1[0] << 32);
        out[2 * i] = w0[0] | (u64)w1[0] << 32;
        out[2 * i + 1] = w2[0] | (u64)w3[0] << 32;
    }
}
"""
).replace("HELIOS_ABSORB", str(ABSORB))


def words(keys: torch.Tensor, count: int) -> torch.Tensor | None:
    """The draw blocks of keys, int64 (m, 2), as int32 (m, count, 4); ``None`` where there is no C++."""
    library = _library()
    if library is None:
        return None
    keys = keys.contiguous()
    made = torch.empty((len(keys), count, 4), dtype=torch.int32)
    library.helios_words(keys.data_ptr(), len(keys), count, made.data_ptr())
    return made


def derive(parents: torch.Tensor, numbers: torch.Tensor, tag: int) -> torch.Tensor | None:
    """The children of keys, int64 (m, 2), for numbers, int64 (m,), as int64 (m, 2); ``None`` where there is no C++."""
    library = _library()
    if library is None:
        return None
    parents, numbers = parents.contiguous(), numbers.contiguous()
    made = torch.empty_like(parents)
    library.helios_derive(parents.data_ptr(), numbers.data_ptr(), len(parents), tag, made.data_ptr())
    return made


def _library() -> Any:
    # Only in programs that inductor has compiled: it costs seconds to load, and has a compiler by then.
    return _compiled() if _INDUCTOR in sys.modules else None


@functools.cache
def _compiled() -> Any:
    try:
        library = sys.modules[_INDUCTOR].CppCodeCache.load(_SOURCE)
        integer, pointer = ctypes.c_int64, ctypes.c_void_p
        library.helios_words.argtypes = [pointer, integer, integer, pointer]
        library.helios_derive.argtypes = [pointer, pointer, integer, ctypes.c_uint32, pointer]
        library.helios_words.restype = library.helios_derive.restype = None
    except Exception:  # whatever is missing, the slow way remains
        return None
    return library

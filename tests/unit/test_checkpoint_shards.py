"""What a sharded checkpoint says of its pieces is not believed."""

from __future__ import annotations

import pytest

from helios_fn.checkpoint.header import Entry
from helios_fn.checkpoint.leaves import Piece, ShardedSpec, sharded_from_json, sharded_to_json
from helios_fn.checkpoint.shards import (
    ShardFile,
    check_pieces,
    is_shard_file,
    shard_file_name,
    shard_files_from_json,
    shard_files_to_json,
)

SPEC = ShardedSpec("float32", (5, 2), (Piece(0, 0, (0, 0), (3, 2)), Piece(1, 0, (3, 0), (2, 2))))
NAMES = [shard_file_name(rank, 2) for rank in range(2)]
FILES = (ShardFile(NAMES[0], (Entry("a", "F32", (3, 2)),)), ShardFile(NAMES[1], (Entry("a", "F32", (2, 2)),)))


def test_descriptions_come_back():
    """There and back."""
    assert sharded_from_json(sharded_to_json(SPEC)) == SPEC
    assert shard_files_from_json(shard_files_to_json(FILES)) == FILES
    check_pieces([SPEC], FILES, ["state.json", "tensors.safetensors", *NAMES])


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float31"},
        {"dtype": 3},
        {"shape": [5]},
        {"shape": "5, 2"},
        {"shape": [5, 3]},
        {"pieces": None},
        {"pieces": []},
        {"pieces": [[0, 0, [0, 0], [5]]]},
        {"pieces": [[0, 0, [0, 0], [5, 2], 0]]},
        {"pieces": [[0, 0, [0, 1], [5, 2]]]},
        {"pieces": [[0, 0, [0, -1], [5, 2]]]},
        {"pieces": [[0, 0, [0, 0], [3, 2]], [1, 0, [0, 0], [2, 2]]]},
        {"pieces": [[0, 0, [0, 0], [5, 2]], [1, 0, [1, 0], [0, 2]]]},
        {"pieces": [[True, 0, [0, 0], [5, 2]]]},
    ],
)
def test_a_sharded_tensor_that_its_pieces_do_not_make_up_is_refused(change):
    """Unknown dtypes, pieces outside, too many, too few, twice in one place, or of nothing."""
    with pytest.raises(ValueError):
        sharded_from_json({**sharded_to_json(SPEC), **change})


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        [["shards-00000-of-00002.safetensors"]],
        [["../shards-00000-of-00002.safetensors", []]],
        [["manifest.json", []]],
        [[NAMES[0], [["a", "F33", [1]]]]],
        [[NAMES[0], [["a", "F32", [1]], ["a", "F32", [1]]]]],
    ],
)
def test_bad_lists_of_shard_files_are_refused(data):
    """Names that lead elsewhere among them."""
    with pytest.raises(ValueError):
        shard_files_from_json(data)


@pytest.mark.parametrize(
    ("leaves", "files"),
    [
        ([], NAMES),  # entries that nobody refers to
        ([SPEC, SPEC], NAMES),  # and those that two do
        ([SPEC._replace(dtype="float64")], NAMES),
        ([SPEC._replace(pieces=(SPEC.pieces[0], Piece(2, 0, (3, 0), (2, 2))))], NAMES),
        ([SPEC], NAMES[:1]),
        ([SPEC], [*NAMES, shard_file_name(0, 3)]),
    ],
)
def test_pieces_and_files_that_do_not_fit_each_other_are_refused(leaves, files):
    """Each entry is one piece of one leaf, and the manifest lists exactly these files."""
    with pytest.raises(ValueError):
        check_pieces(leaves, FILES, files)


def test_only_names_that_are_written_are_shard_files():
    """No separators, no other digits."""
    assert is_shard_file(shard_file_name(7, 100000))
    for name in ("shards-0-of-2.safetensors", f"{NAMES[0]}/", NAMES[0].replace("0", chr(0x660))):
        assert not is_shard_file(name)

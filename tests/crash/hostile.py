"""What somebody who means harm, or a careless copy, may do to the folder of a checkpoint."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import shutil
import socket
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

FILES = ("manifest.json", "state.json", "tensors.safetensors")


class Attack(NamedTuple):
    """Something done to the folder of checkpoint 3, beside which 1 and 2 are sound.

    Attributes:
        do: ``do(folder, outside)``; ``outside`` is a folder beside the root, which must stay as it is afterwards.
        newest: the value of the checkpoint that is right afterwards.
    """

    do: Callable[[Path, Path], object]
    newest: float = 2.0


def _missing(*names: str) -> Attack:
    return Attack(lambda folder, outside: [(folder / name).unlink() for name in names])


def _from_before(*names: str) -> Attack:
    def copy(folder: Path, outside: Path) -> None:
        for name in names:
            shutil.copy(folder.with_name("run_epoch_0_iter_2") / name, folder / name)

    return Attack(copy)


def _subsets() -> list[tuple[str, ...]]:
    return [names for size in (1, 2, 3) for names in itertools.combinations(FILES, size)]


def link(path: Path, outside: Path, target: str) -> None:
    """A link, to the thing itself moved outside where ``target`` is empty."""
    if not target:
        target = str(outside / "moved")
        path.rename(target)
    else:
        _clear(path)
    path.symlink_to(target)


def fifo(path: Path, outside: Path) -> None:
    _clear(path)
    os.mkfifo(path)


def unix_socket(path: Path, outside: Path) -> None:
    _clear(path)
    here = os.open(path.parent, os.O_RDONLY)  # the name of a socket has to be short
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def device(path: Path, outside: Path) -> None:
    _clear(path)
    with contextlib.suppress(PermissionError):  # then it is only missing
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))


def empty_folder(path: Path, outside: Path) -> None:
    _clear(path)
    path.mkdir()


def empty_file(path: Path, outside: Path) -> None:
    _clear(path)
    path.touch()


def sparse(path: Path, outside: Path) -> None:
    """A terabyte that takes no place."""
    _clear(path)
    path.touch()
    os.truncate(path, 1 << 40)


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


STRANGE = {
    "a link to itself moved away": partial(link, target=""),
    "a link to nothing": partial(link, target="nothing"),
    "a link in a circle": lambda path, outside: link(path, outside, path.name),
    "a link to endless zeros": partial(link, target="/dev/zero"),
    "a link to all files": partial(link, target="/"),
    "a pipe": fifo,
    "a socket": unix_socket,
    "a device": device,
    "a folder": empty_folder,
    "an empty file": empty_file,
    "a terabyte": sparse,
}
"""What may stand in the place of a file or folder."""

BOMBS = {
    "brackets": b"[" * 4_000_000,
    "braces": b'{"a":' * 800_000,
    "brackets in a string": b'"' + b"[" * 4_000_000 + b'"\n',
    "digits": b"9" * 4_000_000 + b"\n",
    "a huge exponent": b"1e999999999\n",
    "two keys alike": b'{"a":1,"a":2}\n',
    "many keys": b"{" + b",".join(b'"%d":%d' % (i, i) for i in range(100_000)) + b"}\n",
    "a long string": b'"' + b"x" * 4_000_000 + b'"\n',
    "backslashes": b'"' + b"\\" * 4_000_001,
    "surrogates": b'"\\ud800"\n',
    "a byte order mark": b"\xef\xbb\xbf{}\n",
    "wide characters": "{}\n".encode("utf-16"),
    "zeros": bytes(4_000_000),
    "noise": bytes(range(256)) * 1000,
    "a header of 2^60 bytes": (1 << 60).to_bytes(8, "little") + b'{"a":{}}',
    "a header as long as the file": (16).to_bytes(8, "little") + b'{"a":{}}',
    "a header of 2^64 - 1 bytes": b"\xff" * 8 + b'{"a":{}}',
    "a pickle": pickle.dumps(os.system),
}
"""What a file may hold."""


def _hold(name: str, content: bytes) -> Attack:
    return Attack(lambda folder, outside: (folder / name).write_bytes(content))


def _added(folder: Path, outside: Path) -> None:
    """Everything that does not belong there, beside all that does."""
    for number, make in enumerate(STRANGE.values()):
        extra = folder / f"extra-{number}"
        extra.touch()
        make(extra, outside)
    for name in ("__init__.py", "state.json.pkl", ".hidden", "a\nb", "\x1b[31m", "x" * 255, os.fsdecode(b"\xff")):
        (folder / name).write_bytes(b"raise SystemExit")


def _hard_links(folder: Path, outside: Path) -> None:
    for name in FILES:
        os.link(folder / name, folder / f"{name}.2")


def _clocks(folder: Path, outside: Path) -> None:
    """The older, the later."""
    for number, path in enumerate(sorted(folder.parent.iterdir())):
        for file in [*path.iterdir(), path]:
            os.utime(file, (4e9 - number * 1e9, 4e9 - number * 1e9))


def _back_to_1970(folder: Path, outside: Path) -> None:
    for file in [*folder.iterdir(), folder]:
        os.utime(file, (0, 0))


def _another_run(folder: Path, outside: Path) -> None:
    """Sound, but of another run; its name is no reason to load it."""
    shutil.rmtree(folder)
    shutil.copytree(outside / "other", folder)


def _manifest_of_another_run(folder: Path, outside: Path) -> None:
    shutil.copy(outside / "other" / "manifest.json", folder)


def _odd_name(folder: Path, name: str) -> None:
    _hold("state.json", b"").do(folder, folder)
    folder.rename(folder.with_name(folder.name + name))


ATTACKS: dict[str, Attack] = {
    **{f"without {' and '.join(names)}": _missing(*names) for names in _subsets()},
    **{f"{' and '.join(names)} of the one before": _from_before(*names) for names in _subsets()},
    **{
        f"{name} is {what}": Attack(lambda folder, outside, name=name, make=make: make(folder / name, outside))
        for name in FILES
        for what, make in STRANGE.items()
    },
    **{f"{name} holds {what}": _hold(name, bomb) for name in FILES for what, bomb in BOMBS.items()},
    **{f"the folder is {what}": Attack(make) for what, make in STRANGE.items()},
    "more than belongs there": Attack(_added, newest=3.0),
    "hard links": Attack(_hard_links, newest=3.0),
    "clocks that run backwards": Attack(_clocks, newest=3.0),
    "a clock set to 1970": Attack(_back_to_1970, newest=3.0),
    "another run's checkpoint": Attack(_another_run),
    "another run's manifest": Attack(_manifest_of_another_run),
    "a name with a new line": Attack(lambda folder, outside: _odd_name(folder, "_\n")),
    "a name with colours": Attack(lambda folder, outside: _odd_name(folder, "_\x1b[31m")),
    "a name of bytes": Attack(lambda folder, outside: _odd_name(folder, os.fsdecode(b"_\xff\xfe"))),
    "a name that is as long as can be": Attack(
        lambda folder, outside: _odd_name(folder, "_".ljust(255 - len(folder.name), "x"))
    ),
}

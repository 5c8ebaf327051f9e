"""Names in the user's code that lead out of the state: clocks, the system's randomness, addresses, files.

What is found by reading code is a suspicion, never a verdict: such a name may well be harmless.
"""

from __future__ import annotations

import builtins
import dis
import os
import sys
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

from .reach import Reach, named_code

_CLOCK = "reads the clock"
_SYSTEM = "draws from the operating system"
_PROCESS = "depends on the process or the machine"
_FILES = "reads what may change"
_ADDRESS = "gives an address in memory"
_HASH = "may give another number in each process"
_SET = "makes a set, whose order may be another in each process"

_KNOWN = {
    **dict.fromkeys(
        [f"time.{name}{ns}" for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time")
         for ns in ("", "_ns")]
        + ["time.localtime", "time.gmtime", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"], _CLOCK,
    ),
    **dict.fromkeys(["posix.urandom", "nt.urandom", "posix.getrandom", "secrets.token_bytes", "secrets.randbits",
                     "secrets.token_hex", "uuid.uuid1", "uuid.uuid4", "random.SystemRandom"], _SYSTEM),
    **dict.fromkeys(["posix.getpid", "posix.getppid", "nt.getpid", "os.getenv", "posix.cpu_count", "os.cpu_count",
                     "_thread.get_ident", "threading.get_ident", "_socket.gethostname", "socket.gethostname",
                     "platform.node", "posix.uname"], _PROCESS),
    **dict.fromkeys(["_io.open", "io.open", "posix.listdir", "posix.scandir", "posix.stat", "glob.glob", "glob.iglob",
                     "os.walk", "genericpath.getmtime", "genericpath.exists"], _FILES),
    **dict.fromkeys(["builtins.id"], _ADDRESS),
    **dict.fromkeys(["builtins.hash"], _HASH),
    **dict.fromkeys(["builtins.set", "builtins.frozenset"], _SET),
}  # fmt: skip
# Of an object that is known only when the code runs, the name of the method must do.
_METHODS = dict.fromkeys(("read_text", "read_bytes", "iterdir", "rglob"), _FILES)
_UNKNOWN = object()
_LITERAL = "a set"  # written as one, without a name


class Suspect(NamedTuple):
    """A name that leads out of the state: what it does, and where it stands."""

    name: str
    does: str
    where: str

    def __str__(self) -> str:
        if self.name == _LITERAL:
            return f"{self.where} {self.does}"
        return f"{self.where} names {self.name}, which {self.does}"


def suspects(found: Reach) -> list[Suspect]:
    """The suspicious names in all functions found, each once."""
    named = [suspect for function in found.functions for suspect in _in_function(function)]
    return list(dict.fromkeys(named))


def _in_function(function: types.FunctionType) -> Iterator[Suspect]:
    known = {
        name: cell.cell_contents
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        if _is_bound(cell)
    }
    yield from _in_code(function.__code__, {**vars(builtins), **function.__globals__, **known}, named_code(function))


def _in_code(code: types.CodeType, names: dict[str, Any], owner: str) -> Iterator[Suspect]:
    names = dict(names)
    names.update(dict.fromkeys(code.co_varnames, _UNKNOWN))
    value: Any = _UNKNOWN
    spelled, line = "", code.co_firstlineno
    for each in dis.get_instructions(code):
        line = (each.positions.lineno if each.positions else None) or line
        where = f"{code.co_filename.rpartition('/')[2]}:{line}, in {owner.partition(' (')[0]},"
        if each.opname in ("IMPORT_NAME", "IMPORT_FROM"):
            value, spelled = _imported(each, value), each.argval
        elif each.opname.startswith("STORE_"):
            names[str(each.argval)] = value if value is not _UNKNOWN and each.opname == "STORE_FAST" else _UNKNOWN
            value = _UNKNOWN
        elif each.opname in ("BUILD_SET", "SET_ADD"):
            yield Suspect(_LITERAL, _SET, where)
        elif each.opname.startswith("LOAD_") and isinstance(each.argval, str):
            if "ATTR" in each.opname or "METHOD" in each.opname:
                value, spelled = _attribute(value, each.argval), f"{spelled}.{each.argval}"
            else:
                value, spelled = names.get(each.argval, _UNKNOWN), each.argval
            does = _what(value, spelled)
            if does:
                yield Suspect(spelled, does, where)
        elif isinstance(each.argval, types.CodeType):
            yield from _in_code(each.argval, names, owner)
        elif each.opname not in ("PUSH_NULL", "PRECALL", "CACHE", "COPY_FREE_VARS", "RESUME"):
            value = _UNKNOWN


def _imported(instruction: dis.Instruction, value: Any) -> Any:
    if instruction.opname == "IMPORT_NAME":
        return sys.modules.get(instruction.argval, _UNKNOWN)
    return _attribute(value, instruction.argval)


def _attribute(value: Any, name: str) -> Any:
    # Of modules and classes only: what an object's attribute is, its code may decide.
    return getattr(value, name, _UNKNOWN) if isinstance(value, types.ModuleType | type) else _UNKNOWN


def _what(value: Any, spelled: str) -> str | None:
    if value is os.environ:
        return _PROCESS
    if value is _UNKNOWN:
        return _METHODS.get(spelled.rpartition(".")[2]) if "." in spelled else None
    if isinstance(value, types.ModuleType):
        return None
    name = getattr(value, "__qualname__", None)
    module = getattr(value, "__module__", None)
    if not isinstance(name, str):
        return None
    return _KNOWN.get(f"{module}.{name}") or (_KNOWN.get(name) if module is None else None)


def _is_bound(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False

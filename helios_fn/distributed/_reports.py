"""What a launched process says to the one that started it, and the error made of it."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import distributed

from ..errors import LaunchFailed, PeerLost


class Ready(NamedTuple):
    """The process has come up and waits for its call."""


class Returned(NamedTuple):
    """The function has returned.

    Attributes:
        value: its pickled value.
    """

    value: bytes


class Failure(NamedTuple):
    """There is no value.

    Attributes:
        what: a phrase whose subject is the rank: "was killed by SIGKILL".
        details: a traceback, or nothing.
        lost: whether the rank only suffers from the loss of another one.
    """

    what: str
    details: str = ""
    lost: bool = False


class Whereabouts(NamedTuple):
    """Where the process is in its program.

    Attributes:
        stack: as in a traceback.
    """

    stack: str


Outcome = Returned | Failure


def raised(error: BaseException) -> Failure:
    """The failure of a function that raised ``error``; the caller's own frame is left out of the traceback."""
    lines = traceback.format_exception(type(error), error, error.__traceback__ and error.__traceback__.tb_next)
    if isinstance(error, SystemExit):
        return Failure(f"called sys.exit({'' if error.code is None else repr(error.code)})", "".join(lines))
    what = traceback.format_exception_only(error)[-1].strip() if isinstance(error, SyntaxError) else _brief(error)
    return Failure(f"raised {what}", "".join(lines), lost=any(_is_loss(each) for each in _chain(error)))


def ended(code: int, *, began: bool) -> Failure:
    """The failure of a process that ended by itself, with the exit status ``code``, and said nothing.

    Args:
        code: negative for a signal.
        began: whether it had come as far as to wait for its call.
    """
    how = f"left with exit code {code}" if code >= 0 else f"was killed by {_signal_name(-code)}"
    if not began:
        return Failure(
            f"{how} while it started, before the function was called",
            "What it printed says why. A new process imports the script anew: what starts processes must stand under\n"
            "    if __name__ == '__main__':",
        )
    if code >= 0:
        return Failure(f"{how} (os._exit?) before its function returned")
    return Failure(how + (" (out of memory?)" if -code == signal.SIGKILL else ""))


def launch_failed(outcomes: Mapping[int, Outcome], order: list[int]) -> LaunchFailed:
    """The error for these outcomes: the cause, a line for every other rank, and the cause's traceback.

    The cause is the first failure that is not just the loss of a peer, or else the first of all.

    Args:
        outcomes: of each rank.
        order: the ranks in the order in which their outcomes came.
    """
    failures = {rank: each for rank in order if isinstance(each := outcomes[rank], Failure)}
    cause = min(failures, key=lambda rank: failures[rank].lost)  # the first of the smallest
    lines = [f"rank {cause} of {len(outcomes)} {failures[cause].what}"]
    for rank in sorted(outcomes):
        if rank != cause:
            other = failures.get(rank)
            lines.append(f"  rank {rank} {other.what if other else 'returned its value'}")
    if failures[cause].details:
        lines.append(f"\nOn rank {cause}:\n{failures[cause].details.rstrip()}")
    texts = {
        rank: "\n".join(filter(None, (f"rank {rank} {each.what}", each.details))) for rank, each in failures.items()
    }
    return LaunchFailed("\n".join(lines), rank=cause, failures=dict(sorted(texts.items())))


def _brief(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and what it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_loss(error: BaseException) -> bool:
    if isinstance(error, PeerLost | distributed.DistError):
        return True
    # Gloo's errors have no type of their own, but name the file of its that says so.
    return type(error) is RuntimeError and "gloo/transport/" in str(error)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

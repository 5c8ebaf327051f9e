"""Profiles: how hard the laws look, chosen by the environment variable HELIOS_FN_PROFILE."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .interrupt import KINDS, Stop, usual_stops

if TYPE_CHECKING:
    from hypothesis import settings

VARIABLE = "HELIOS_FN_PROFILE"
_WORLDLY = 4


class Profile(NamedTuple):
    """How hard to look.

    Attributes:
        name: ``"dev"``, ``"ci"`` or ``"nightly"``.
        stops: at how many places the law of resumption interrupts a job; ``None`` is after every iteration, in
            every way.
        generated: how many examples each law generates; ``None`` is its quick form alone.
        examples: of a Hypothesis test that does not say how many it wants.
        derandomized: whether Hypothesis tries the same examples each time.
    """

    name: str
    stops: int | None
    generated: int | None
    examples: int
    derandomized: bool

    def stops_of(self, last: int) -> Sequence[Stop | list[Stop]]:
        """Where to interrupt a run of ``last`` iterations."""
        if self.stops is None:
            return [Stop(at, kind) for at in range(1, last) for kind in KINDS]
        alone = usual_stops(last, self.stops)
        return [*alone, alone] if len(alone) > 1 else alone

    def options(self, law: str) -> dict[str, Any]:
        """What a law is given by default, if it takes it."""
        if law == "processes":  # each stop costs the start of a process
            return {"stops": usual_stops if self.stops is None else None}
        if law == "world":  # each example costs a few runs of other processes
            return {"examples": self.generated and max(1, self.generated // _WORLDLY)}
        return {"stops": self.stops_of, "examples": self.generated}


PROFILES = {
    "dev": Profile("dev", stops=3, generated=None, examples=20, derandomized=False),
    "ci": Profile("ci", stops=8, generated=20, examples=100, derandomized=True),
    "nightly": Profile("nightly", stops=None, generated=200, examples=1000, derandomized=False),
}


def chosen() -> Profile:
    """The profile that the environment names; ``"ci"`` where nothing does but ``CI`` is set, else ``"dev"``.

    Raises:
        ValueError: there is no such profile.
    """
    name = os.environ.get(VARIABLE) or ("ci" if os.environ.get("CI") else "dev")
    if name not in PROFILES:
        raise ValueError(f"{VARIABLE} is {name!r}: choose from {', '.join(PROFILES)}")
    return PROFILES[name]


def register() -> type[settings]:
    """Make the profiles known to Hypothesis, as ``helios_fn-dev`` and so on; none has a deadline.

    Returns:
        The settings of Hypothesis, which know them.

    Raises:
        ImportError: Hypothesis is not installed.
    """
    from hypothesis import HealthCheck, settings

    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    common = settings(settings.get_profile("default"), deadline=None, suppress_health_check=checks, print_blob=True)
    for profile in PROFILES.values():
        more = {"derandomize": True, "database": None} if profile.derandomized else {}
        settings.register_profile(f"helios_fn-{profile.name}", common, max_examples=profile.examples, **more)
    return settings

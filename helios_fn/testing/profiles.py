"""Profiles: how hard the laws look, chosen by the environment variable HELIOS_FN_PROFILE."""

from __future__ import annotations

import os
from typing import NamedTuple

from .interrupt import KINDS, Stop, Stops, usual_stops
from .trace import Job, run_with

VARIABLE = "HELIOS_FN_PROFILE"


class Profile(NamedTuple):
    """How hard to look.

    Attributes:
        name: ``"dev"``, ``"ci"`` or ``"nightly"``.
        stops: at how many places the law of resumption interrupts a job; ``None`` is after every iteration, in
            every way.
        examples: of a Hypothesis test that does not say how many it wants.
        derandomized: whether Hypothesis tries the same examples each time.
    """

    name: str
    stops: int | None
    examples: int
    derandomized: bool

    def stops_of(self, job: Job) -> Stops:
        """Where to interrupt ``job``, which is run once to see how long it is."""
        last = len(run_with(job, []).batches)
        if self.stops is None:
            return [Stop(at, kind) for at in range(1, last) for kind in KINDS]
        alone = usual_stops(last, self.stops)
        return [*alone, alone] if len(alone) > 1 else alone


PROFILES = {
    "dev": Profile("dev", stops=3, examples=20, derandomized=False),
    "ci": Profile("ci", stops=8, examples=100, derandomized=True),
    "nightly": Profile("nightly", stops=None, examples=1000, derandomized=False),
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


def register() -> None:
    """Make the profiles known to Hypothesis, as ``helios_fn-dev`` and so on; none has a deadline."""
    from hypothesis import HealthCheck, settings

    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    common = settings(settings.get_profile("default"), deadline=None, suppress_health_check=checks, print_blob=True)
    for profile in PROFILES.values():
        more = {"derandomize": True, "database": None} if profile.derandomized else {}
        settings.register_profile(f"helios_fn-{profile.name}", common, max_examples=profile.examples, **more)

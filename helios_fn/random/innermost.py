"""Which context of randomness a thread is in: the innermost one decides where draws come from."""

from __future__ import annotations

import threading
from typing import Any


class _Open(threading.local):
    # Per thread, so that a thread started inside a scope is told so instead of racing for its generator.
    innermost: Any = None


opened = _Open()
"""``opened.innermost`` is the `scope` or `keyed` of this thread that was entered last, or ``None``."""

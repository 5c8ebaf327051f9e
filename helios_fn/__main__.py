"""``python -m helios_fn``: run experiments and look after checkpoints from the command line, see `helios_fn.cli`."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name may hold what the terminal cannot show
    sys.exit(main())

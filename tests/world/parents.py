"""Processes that launch others. They come from a fork server, which costs milliseconds and not seconds."""

from __future__ import annotations

import runpy

from helios_fn.distributed import launch

from ..forked import stay_with_the_server
from . import ranks


def run_script(connection, path):
    """Do what ``python path`` does."""
    stay_with_the_server()
    try:
        runpy.run_path(path, run_name="__main__")
    except BaseException as error:
        connection.send(f"{type(error).__name__}: {error}")
    else:
        connection.send("done")


def launch_two(connection, name, folder, grace=30.0):
    """Launch two ranks and tell their values, or that they were interrupted."""
    stay_with_the_server()
    try:
        connection.send(launch(getattr(ranks, name), folder, processes=2, grace=grace))
    except KeyboardInterrupt:
        connection.send("KeyboardInterrupt")

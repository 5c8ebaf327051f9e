from __future__ import annotations

import pytest

from .gloo import Group


@pytest.fixture(scope="session")
def two():
    group = Group(2)
    yield group
    group.close()


@pytest.fixture(scope="session")
def four():
    group = Group(4)
    yield group
    group.close()

"""A held-out set and a tiny model, on all devices and on one."""

import pytest
from tiny_world import World


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"), 8)


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """The same on one device."""
    return World(tmp_path_factory.mktemp("world"), 1)

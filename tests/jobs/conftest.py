"""Fixtures."""

import socket

import pytest


@pytest.fixture
def free_port():
    """A port of this machine that nothing listens on."""
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]

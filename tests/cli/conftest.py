"""Fixtures."""

import pytest

from lrp_jax import cli


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        try:
            status = cli.main(["explain", *map(str, words)])
        except SystemExit as end:
            status = end.code
        return (status, *capsys.readouterr())

    return run

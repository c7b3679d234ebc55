"""``lrp-jax methods``."""

import lrp_jax
from lrp_jax import cli


def test_methods(capsys):
    assert cli.main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["method", *lrp_jax.METHODS]
    assert "masks=4000" in lines[-1]
    assert cli.main(["methods", "occlusion"]) == 0
    assert "window: edge of the window" in capsys.readouterr().out

"""Habits of the public interface."""

import inspect
import json
import re
from pathlib import Path

import pytest

import lrp_jax
from lrp_jax import metrics
from lrp_jax.methods import METHODS

ROOT = Path(__file__).parent.parent
METRICS = [f for f in vars(metrics).values() if inspect.isfunction(f) and f.__module__ == metrics.__name__]
FUNCTIONS = {name: getattr(lrp_jax, name) for name in lrp_jax.__all__ if inspect.isfunction(getattr(lrp_jax, name))}


@pytest.mark.parametrize(
    "function",
    [*FUNCTIONS.values(), *METRICS, *(method.function for method in METHODS.values())],
    ids=lambda f: f.__name__,
)
def test_options_are_keyword_only_and_everything_is_annotated(function):
    signature = inspect.signature(function)
    assert signature.return_annotation is not signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not parameter.empty
        if parameter.default not in (parameter.empty, None):
            assert parameter.kind is parameter.KEYWORD_ONLY, parameter


@pytest.mark.parametrize("name", lrp_jax.__all__)
def test_public_names_are_documented(name):
    assert inspect.getdoc(getattr(lrp_jax, name))


@pytest.mark.parametrize("module", ["rules", "propagation", "metrics", "methods", "attribution"])
def test_attribution_knows_nothing_of_flax(module):
    source = (Path(lrp_jax.__file__).parent / f"{module}.py").read_text()
    assert not re.search(r"^\s*(import|from) (flax|lrp_jax\.(vit|checkpoint|convert))", source, re.MULTILINE)


@pytest.mark.slow
def test_the_examples_of_the_readme_run(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    runnable = [block for block in blocks if "convert(" not in block]  # which needs a file of the reader's
    assert len(runnable) >= 3
    scope = {}
    for block in runnable:
        exec(block, scope)
    assert "(8, 10) (8, 2) (8, 2, 8, 8)" in capsys.readouterr().out


@pytest.mark.slow
def test_the_tour_runs():
    cells = json.loads((ROOT / "notebooks" / "tour.ipynb").read_text())["cells"]
    scope = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), scope)
    assert scope["summary"].images == 24


def test_continuous_integration_runs_the_command_of_the_readme():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    (command,) = re.findall(r"^pip install .*pytest.*$", readme, re.MULTILINE)
    assert command in ci.splitlines()

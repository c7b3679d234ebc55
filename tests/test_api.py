"""Habits of the public interface."""

import ast
import inspect
import json
import re
from pathlib import Path

import pytest

import lrp_jax
from lrp_jax import metrics
from lrp_jax.methods import METHODS

ROOT = Path(__file__).parent.parent
PACKAGE = Path(lrp_jax.__file__).parent
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


# The rooms of the house, the ground first: each imports from its own and from those before it.
ROOMS = (
    *(
        "xla",
        "version",
        "checks",
        "files",
        "meshes",
        "primitives",
        "program",
        "rules",
        "model",
        "outline",
        "walk",
        "probe",
        "signals",
        "maps",
        "metrics",
        "methods",
    ),
    *("attribution", "conservation", "tracing", "tokens"),
    *("labels", "pictures", "exporting", "vit_config", "vit", "weights", "datasets"),
    *("evaluate", "jobs", "cli"),
)
WITHOUT_FLAX = ROOMS[: ROOMS.index("vit")]


def imports(path):
    """The modules that a file names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    below = ROOMS[: ROOMS.index(room) + 1]
    for name in imports(path):
        if name.startswith("lrp_jax"):
            assert name.split(".")[1] in below, f"{room} imports {name}"
        assert not (room in WITHOUT_FLAX and name.startswith("flax")), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path):
    """What is longer holds two concepts; tables may be long."""
    text = path.read_text()
    assert len(text.splitlines()) <= 400 or path.stem.endswith("tables")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


@pytest.mark.slow
def test_the_tour_runs():
    cells = json.loads((ROOT / "notebooks" / "tour.ipynb").read_text())["cells"]
    scope = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), scope)
    assert scope["summary"].images == 10


def test_continuous_integration_runs_the_command_of_the_readme():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    (command,) = re.findall(r"^pip install .*pytest.*$", readme, re.MULTILINE)
    assert command in ci.splitlines()

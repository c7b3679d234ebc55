"""The documentation: every code block runs, every command and every link names what there is."""

import argparse
import itertools
import re
import shlex
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers import BLOCK, blocks, promised
from PIL import Image

import lrp_jax
from lrp_jax import cli
from lrp_jax.evaluate import PROTOCOLS
from lrp_jax.labels import imagenet_classes
from lrp_jax.methods import METHODS
from lrp_jax.rules import RULES
from lrp_jax.weights import FAMILIES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPT = re.compile(r"python scripts/\S+\.py[^`\n]*")
OTHERS = ("text", "bibtex")
HOW_TO = ("a-model-of-your-own", "add-a-method", "add-a-protocol", "add-a-rule-set", "add-a-weight-format")


def commands(code):
    """The commands of a bash block, one by one."""
    lines = code.replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


#: Whose blocks need the extra ``zoo``: tests/test_zoo.py runs them.
ZOO = ROOT / "docs" / "other-libraries.md"
PYTHON = [page for page in PAGES if page != ZOO and blocks(page, "python")]
BASH = [page for page in PAGES if any("lrp-jax" in code for _, code in blocks(page, "bash"))]


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(path)


def timm_weights():
    """A DeiT-Ti of one block, 2 x 2 patches and 1,000 classes, under timm's names."""
    rng, width = np.random.default_rng(0), 192
    layers = {"norm1": (), "attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    layers |= {"norm2": (), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    shapes = {f"blocks.0.{name}": shape for name, shape in layers.items()}
    shapes |= {"norm": (), "head": (1000, width), "patch_embed.proj": (width, 3, 16, 16)}
    weights = {"cls_token": rng.normal(size=(1, 1, width)), "pos_embed": rng.normal(size=(1, 5, width))}
    for name, shape in shapes.items():
        weights[f"{name}.weight"] = rng.normal(size=shape) / 8 if shape else np.ones(width)
        weights[f"{name}.bias"] = np.zeros(shape[0] if shape else width)
    return {name: array.astype(np.float32) for name, array in weights.items()}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the pages name."""
    monkeypatch.chdir(tmp_path)
    synsets = [synset for synset, _ in imagenet_classes()[:2]]
    for name in ("photo.jpg", "folder/a.png", "flat/a.png", "flat/b.png", "segmented/images/a.png"):
        picture(tmp_path / name)
    for synset in synsets:
        picture(tmp_path / "val" / synset / "a.png")
    (tmp_path / "val.txt").write_text("a.png 0\nb.png 1\n")
    mask = np.zeros((40, 50), np.uint8)
    mask[10:20, 10:30] = 255
    (tmp_path / "segmented" / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "segmented" / "masks" / "a.png")
    weights = timm_weights()
    safetensors.numpy.save_file(weights, "vit_base_patch16_224.safetensors")
    names = [name for _, name in imagenet_classes()]
    lrp_jax.save("vit.safetensors", *lrp_jax.convert(weights, class_names=names))
    return tmp_path


@pytest.fixture
def registries():
    """What a page registers is gone after it."""
    tables = (RULES, METHODS, FAMILIES, PROTOCOLS)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.slow
@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.stem)
@pytest.mark.usefixtures("place", "registries")
def test_python_blocks_run(page, capsys):
    scope = {"__name__": "page"}
    others = page.stem == "any-model"  # models of other libraries promote as JAX does by default
    dtypes, ranks = ("standard", "allow") if others else ("strict", "raise")
    with jax.numpy_dtype_promotion(dtypes), jax.numpy_rank_promotion(ranks):
        for _, code in blocks(page, "python"):
            exec(compile(code, str(page), "exec"), scope)
    out = capsys.readouterr().out
    for line in promised(page.read_text()):
        assert line in out.splitlines()  # what a comment says is printed, is
    if page.stem == "README":
        assert "(8, 10) (8, 2) (8, 2, 8, 8)" in out


@pytest.mark.slow
@pytest.mark.parametrize("page", BASH, ids=lambda page: page.stem)
def test_commands_run(page, place):
    """A few images where a page evaluates hundreds; what a page converts to is not there before."""
    for _, code in blocks(page, "bash"):
        for command in commands(code):
            words = shlex.split(command)
            if words[0] != "lrp-jax":
                continue
            few = "12" if "pointing" in words else "2"
            words = [few if before == "--images" else word for before, word in itertools.pairwise(["", *words])]
            if words[1] == "convert":
                (place / words[3]).unlink(missing_ok=True)
            assert cli.main(words[1:]) == 0, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_other_commands_name_what_there_is(page):
    """Extras of pip, scripts and their options, also where they stand in the text; the blocks' languages."""
    assert {language for language, _ in BLOCK.findall(page.read_text())} <= {"python", "bash", *OTHERS}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = SCRIPT.findall(page.read_text())
    for _, code in blocks(page, "bash"):
        for command in commands(code):
            words = shlex.split(command)
            assert words[0] in ("lrp-jax", "pip", "pytest", "pre-commit", "python"), command
            if words[0] == "python":
                assert command in found
            if words[0] == "pip":
                assert words[1] == "install"
                assert re.fullmatch(r"\.(\[\w+\])?", words[-1]), command
    for command in found:
        words = shlex.split(command)
        source = (ROOT / words[1]).read_text()
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in source, command
    for extra in re.findall(r"pip install [^`\n]*\.\[(\w+)\]|extra `(\w+)`", page.read_text()):
        assert max(extra) in extras


def flags(parser):
    """The options of a parser and of the commands in it."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from flags(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_in_the_text_are_there(page):
    known = set(flags(cli._parser())) | {o for f in (ROOT / "scripts").glob("*.py") for o in _options(f)}
    for option in re.findall(r"`(--[a-z][a-z-]*)", page.read_text()):
        assert option in known


def _options(script):
    return re.findall(r'"(--[a-z-]+)"', script.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_files_exist(page):
    text = BLOCK.sub("", page.read_text())
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if "://" not in link:
            assert (page.parent / link.partition("#")[0]).exists(), link
    for path in re.findall(r"`((?:lrp_jax|tests|scripts|docs)/[\w/.-]*)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_exist(page):
    """Of modules and of what is in them: ``lrp_jax.explain``, ``lrp_jax.weights.FAMILIES``."""
    for name in re.findall(r"`(lrp_jax(?:\.\w+)+)`", BLOCK.sub("", page.read_text())):
        value = lrp_jax
        for part in name.split(".")[1:]:
            value = getattr(value, part)


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 125


@pytest.mark.parametrize("name", HOW_TO)
def test_how_to_pages_are_short_and_linked(name):
    page = ROOT / "docs" / f"{name}.md"
    assert len(page.read_text().splitlines()) <= 70
    for index in ("README.md", "CONTRIBUTING.md"):
        assert f"(docs/{name}.md)" in (ROOT / index).read_text()


def test_figures_of_the_readme_are_those_of_the_long_tables():
    """Every number of a row is in the rows of that name."""

    def rows(text):
        lines = [line.strip("|").split("|") for line in text.splitlines() if line[:1] == "|"]
        cells = [[cell.strip(" ↑↓") for cell in line] for line in lines]
        return [row for row in cells if re.match(r"-?\d", row[1])]

    long = rows((ROOT / "docs" / "results.md").read_text()) + rows((ROOT / "docs" / "cost.md").read_text())
    short = rows((ROOT / "README.md").read_text())
    assert len(short) >= 8
    for name, *values in short:
        same = [value for row in long if row[0] == name for value in row[1:]]
        assert set(values) <= set(same), name


def test_every_method_family_and_protocol_is_named():
    readme, weights, evaluation = (
        (ROOT / name).read_text() for name in ("README.md", "docs/weights.md", "docs/evaluation.md")
    )
    assert all(f"`{name}`" in readme for name in METHODS)
    assert all(family.title.removeprefix("the ").partition("'s")[0] in weights for family in FAMILIES.values())
    assert all(f"`{name}`" in evaluation for name in PROTOCOLS)

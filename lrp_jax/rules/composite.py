"""Rules chosen by place: which rule set holds for which operations of a model."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lrp_jax.checks import check_choice, set_field
from lrp_jax.rules.base import GRADIENT, OPERATIONS, PARTS, Rules, named


@dataclasses.dataclass(frozen=True)
class Where:
    """Which operations of a model: those of which all holds that is said here.

    Attributes:
        kind: an operation of :class:`Rules`, as ``"dense"``.
        part: ``"embedding"``, ``"attention"``, ``"mlp"`` or ``"head"``, see :data:`lrp_jax.rules.PARTS`.
        depth: the number of a block, or several, as ``range(3)``; below 0: counted from the last block.
        parameter: the name of a parameter that the operation reads, its path in the parameters: ``"head/kernel"``, with
            ``*`` for any letters, as in ``"blocks/mlp/*"``.
        line: where the operation is written, in a traced model, as ``"model.py:12"``; ``*`` likewise.
    """

    kind: str | None = None
    _: dataclasses.KW_ONLY
    part: str | None = None
    depth: int | Sequence[int] | None = None
    parameter: str | None = None
    line: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("kind", OPERATIONS), ("part", PARTS)):
            if getattr(self, name) is not None:
                check_choice(self, name, known)
        depths = self.depth if isinstance(self.depth, (Sequence, range)) else (0 if self.depth is None else self.depth,)
        if isinstance(depths, str) or not all(isinstance(d, int) and not isinstance(d, bool) for d in depths):
            raise ValueError(f"depth must be the number of a block, or several; got {self.depth!r}.")
        if self.depth is not None:
            set_field(self, "depth", tuple(depths))
        for name in ("parameter", "line"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ValueError(f"{name} must be a text, got {value!r}.")
        if not self._said:
            raise ValueError("a pattern must say a kind, part, depth, parameter or line; all else has the default.")

    @property
    def _said(self) -> frozenset[str]:
        return frozenset(f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None)

    def __str__(self) -> str:
        said = (f.name for f in dataclasses.fields(self) if f.name in self._said)
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in said)

    def holds(self, name: str, place: dict[str, Any]) -> bool:
        """Whether what is said of ``name`` holds of a place that tells it."""
        if name == "depth":
            wanted, blocks = self.depth, place.get("blocks")
            assert isinstance(wanted, tuple)
            return place["depth"] in [d + blocks if d < 0 and blocks else d for d in wanted]
        if name == "parameter":
            return any(fnmatch.fnmatchcase(read, self.parameter or "") for read in place["parameters"])
        if name == "line":
            return is_written_at(place["line"], self.line or "")
        return bool(getattr(self, name) == place[name])


def is_written_at(place: str, line: str) -> bool:
    """Whether a place, a file's path and a line, is one that is named ``"model.py:12"``, with ``*`` for any letters."""
    return fnmatch.fnmatchcase(f"/{place}", f"*/{line}")


@dataclasses.dataclass(frozen=True)
class Choice:
    """The rules of some operations.

    Attributes:
        where: which operations.
        rules: of these.
        open: what of ``where`` is not told yet.
    """

    where: Where
    rules: Rules
    open: frozenset[str]

    def at(self, place: dict[str, Any]) -> Choice | None:
        """With what a place tells; None: these are other operations."""
        told = {"parameter" if name == "parameters" else name for name in place} & self.open
        if not all(self.where.holds(name, place) for name in told):
            return None
        return Choice(self.where, self.rules.at(**place), self.open - told)


@dataclasses.dataclass(frozen=True)
class Choices:
    """The rules at a place: of the first pattern that holds of it, else the default.

    Attributes:
        name: of the rule set.
        choices: the patterns and their rules, as far as they are told.
        default: the rules where none holds.
        checked: whether a pattern that matches nothing is an error.
    """

    name: str
    choices: tuple[Choice, ...]
    default: Rules
    checked: bool

    def __call__(self, **place: Any) -> Rules:
        """The rules, with what a place tells; see :meth:`Rules.at`."""
        found: list[Choice] = []
        for choice in self.choices:
            told = choice.at(place)
            if told is not None and not told.open:
                return chosen(self.name, found, told.rules, self.checked)
            found += [told] if told is not None else []
        return chosen(self.name, found, self.default.at(**place), self.checked)


def chosen(name: str, choices: Sequence[Choice], default: Rules, checked: bool) -> Rules:
    """The rule set of some choices: where nothing more is told, what they say of kinds."""
    operations = {}
    for kind in OPERATIONS:
        of_kind = (c.rules for c in choices if c.open <= {"kind"} and c.where.kind in (None, kind))
        operations[kind] = getattr(next(of_kind, default), kind)
    return Rules(
        name=name,
        **operations,
        times_values=any(rules.times_values for rules in (*(c.rules for c in choices), default)),
        places=Choices(name, tuple(choices), default, checked) if choices or default.places is not None else None,
    )


def composite(patterns: Sequence[tuple[Where, str | Rules]], default: str | Rules, *, name: str | None = None) -> Rules:
    """A rule set that is not the same everywhere: the first pattern that matches an operation says its rules.

    A pattern that matches no operation of the model that is explained is an error there; :func:`lrp_jax.matches` counts
    them. A model of other blocks than :class:`lrp_jax.ViT` and traced models tells of its places by
    :meth:`Rules.at`.

    Args:
        patterns: which operations, and their rules, a set or a name.
        default: the rules of all others.
        name: of the set; None: of those that it is made of.

    Returns:
        The set, to be given wherever rules are an option.

    Raises:
        ValueError: something is no pattern or no rule set, or some sets send gradients back and others relevance.
    """
    for pattern in patterns:
        if not (isinstance(pattern, tuple) and len(pattern) == 2 and isinstance(pattern[0], Where)):
            raise ValueError(f"patterns must be pairs of a lrp_jax.Where and rules, got {pattern!r}.")
    if not patterns:
        raise ValueError("patterns must be at least one.")
    choices = [Choice(where, named(rules), where._said) for where, rules in patterns]
    default = named(default)
    sets = [*(choice.rules for choice in choices), default]
    relevance = [rules.name for rules in sets if not rules.times_values and rules != GRADIENT]
    gradients = [rules.name for rules in sets if rules.times_values or rules == GRADIENT]
    if relevance and gradients:
        raise ValueError(
            f"rules of one model all send back relevance, or all gradients; got {relevance[0]}, which sends relevance, "
            f"and {gradients[0]}, which sends gradients."
        )
    return chosen(name or f"composite of {', '.join(dict.fromkeys(r.name for r in sets))}", choices, default, True)


class Pattern(NamedTuple):
    """A pattern of a composite, as it is counted.

    Attributes:
        where: the pattern; None: the default.
        rules: the name of its rules.
        tag: of the operations that it matches.
    """

    where: Where | None
    rules: str
    tag: str


def tagged(rules: Rules, operations: Callable[[str], Rules], tag: str = "") -> tuple[Rules, list[Pattern]]:
    """A composite with operations of a tag for the rules of each pattern, and these patterns.

    Patterns of composites in composites are counted as well; those of rules that are made of places by themselves not.
    """
    of = rules.places
    assert isinstance(of, Choices)
    patterns: list[Pattern] = []

    def tag_of(i: int | str, where: Where | None, rules: Rules) -> Rules:
        here = f"{tag}{i}:"
        if isinstance(rules.places, Choices) and rules.places.checked:
            found, inner = tagged(rules, operations, here)
            patterns.extend(inner)
            return found
        patterns.append(Pattern(where, rules.name, here))
        return operations(here)

    choices = [dataclasses.replace(c, rules=tag_of(i, c.where, c.rules)) for i, c in enumerate(of.choices)]
    return chosen(of.name, choices, tag_of("-", None, of.default), True), patterns

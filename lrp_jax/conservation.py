"""Conservation: how much relevance stands where in a model, and which operations make or lose it.

Axis letters: B images, K targets an image, L blocks.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from lrp_jax.attribution import batched, checked
from lrp_jax.files import needs, replacing
from lrp_jax.methods.modified import TOKENS
from lrp_jax.model import Model, Params, ask, depth, full_precision
from lrp_jax.rules import GRADIENT, OPERATIONS, Rules, named
from lrp_jax.rules.taps import Entry, with_accounts
from lrp_jax.signals import directions, walk
from lrp_jax.walk import relevance_of


@partial(jax.tree_util.register_dataclass, data_fields=("received", "sent"), meta_fields=("depth", "part", "kind"))
@dataclasses.dataclass(frozen=True)
class Amount:
    """The relevance of operations of one kind in one part of a model.

    Attributes:
        depth: the number of their block; None: none.
        part: of :data:`lrp_jax.rules.PARTS`; None: not told.
        kind: the operation of :class:`Rules`.
        received: the relevance of what they give, ``[B, K]``.
        sent: the relevance that they send back to what they read, ``[B, K]``.
    """

    depth: int | None
    part: str | None
    kind: str
    received: Any
    sent: Any

    @property
    def lost(self) -> Any:
        """Received and not sent: what stays in biases or a softmax; below 0, it is made."""
        return self.received - self.sent


#: The columns of a report, and what is counted in each.
COLUMNS = {
    "biases": ("dense", "patch_embed", "layer_norm"),
    "softmax": ("softmax",),
    "products": ("matmul", "multiply"),
    "activations": ("activation",),
    "sums": ("add", "mean"),
}
#: What stands at the tokens and not at the image.
_BESIDE = "class token, positions"


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("logits", "targets", "explained", "blocks", "inputs", "amounts"),
    meta_fields=("rules",),
)
@dataclasses.dataclass(frozen=True)
class Conservation:
    """How much relevance stands where; ``print`` shows the means over images and targets.

    A pytree: a function under ``jax.jit`` may return it, or what it computes of its arrays. They are NumPy's outside.

    Attributes:
        rules: the name of the rule set.
        logits: ``[B, C]``.
        targets: int ``[B, K]`` or float ``[B, K, C]``.
        explained: the relevance that is sent back, ``[B, K]``: the target's logit, for modified gradients.
        blocks: what stands at the tokens that enter each block, ``[B, K, L]``; None: the model does not say where.
        inputs: what stands at the image or the embeddings, ``[B, K]``.
        amounts: what operations receive and send.
    """

    rules: str
    logits: Any
    targets: Any
    explained: Any
    blocks: Any
    inputs: Any
    amounts: Sequence[Amount]

    @property
    def residual_sums(self) -> dict[tuple[int | None, str | None], Any]:
        """What stands at the residual additions, ``[B, K]``, by block and part."""
        return {(a.depth, a.part): a.received for a in self.amounts if a.kind == "add"}

    def lost(self, kinds: Sequence[str] = OPERATIONS, *, depth: int | None = None, part: str | None = None) -> Any:
        """What operations of some kinds keep, ``[B, K]``; of one block or part, if that is said."""
        found = [
            a.lost for a in self.amounts if a.kind in kinds and depth in (None, a.depth) and part in (None, a.part)
        ]
        return sum(found, start=0 * self.explained)

    @property
    def gap(self) -> Any:
        """The largest part of what is explained that neither stands at the first tokens nor is lost by an operation.

        Without tokens, at the image. Rounding, where the report closes. A number; under ``jax.jit``, an array.
        """
        behind = [a.lost for a in self.amounts if self.blocks is None or a.part != "embedding"]
        stands = self.inputs if self.blocks is None else self.blocks[..., 0]
        missing = self.explained - stands - sum(behind)
        scale = abs(self.explained) + abs(stands) + sum(map(abs, behind))
        largest = (abs(missing) / scale.clip(jnp.finfo(scale.dtype).tiny)).max()
        return largest if isinstance(largest, jax.core.Tracer) else float(largest)

    def rows(self) -> list[tuple[str, dict[str, float]]]:
        """The report from the logit down, means over images and targets: where, and what stands or is lost there.

        Raises:
            ValueError: under ``jax.jit`` there are no numbers yet.
        """
        if isinstance(self.explained, jax.core.Tracer):
            raise ValueError(
                "the rows of a report are numbers, which jax.jit, vmap and grad do not have yet: return the report "
                "from the function, and print it outside."
            )
        stages: list[tuple[str, dict[str, Any]]] = [("head", {"part": "head"})]
        depths = sorted({a.depth for a in self.amounts if a.depth is not None}, reverse=True)
        stages += [
            (f"block {depth}, {part}", {"depth": depth, "part": part})
            for depth in depths
            for part in ("mlp", "attention")
        ]
        stages += [("embedding", {"part": "embedding"})] if self.blocks is not None or depths else []
        parts = {a.part for a in self.amounts}
        if not parts & {"head", "embedding"}:
            stages = [("model", {})]
        sums = self.residual_sums
        found = []
        for name, place in stages:
            stands = sums.get((place.get("depth"), place.get("part"))) if name.startswith("block") else None
            stands = self.explained if name in ("head", "model") else stands
            row = {} if stands is None else {"relevance": float(stands.mean())}
            found.append(
                (name, row | {column: float(self.lost(kinds, **place).mean()) for column, kinds in COLUMNS.items()})
            )
        if self.blocks is not None:
            tokens = self.blocks[..., 0]
            others = tokens - self.lost(part="embedding") - self.inputs
            found.insert(-1, ("tokens", {"relevance": float(tokens.mean())}))
            found.append((_BESIDE, {"relevance": float(others.mean())}))
        return [*found, ("input", {"relevance": float(self.inputs.mean())})]

    def __str__(self) -> str:
        rows, lines = self.rows(), [("from the logit down", "relevance", *(f"lost: {column}" for column in COLUMNS))]
        rounding = 64 * np.finfo(self.explained.dtype).eps * np.abs(self.explained).max()
        for name, row in rows:
            shown = {column: f"{value:.4g}" if abs(value) > rounding else "0" for column, value in row.items()}
            lines.append((name, *(shown.get(column, "") for column in ("relevance", *COLUMNS))))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
        ]
        return "\n".join(
            [f"{self.rules}, mean of {self.explained.size} maps", *table, f"unaccounted for: {self.gap:.1e}"]
        )

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw what stands at each stage, and what is lost there.

        Args:
            path: the picture to write.

        Raises:
            ImportError: the extra ``evaluate`` is not installed.
        """
        figure = needs("matplotlib.figure", extra="evaluate").Figure(figsize=(9, 5), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        rows = self.rows()
        at = np.arange(len(rows))
        stands = [(i, row["relevance"]) for i, (name, row) in enumerate(rows) if "relevance" in row and name != _BESIDE]
        above.plot(*zip(*stands, strict=True), marker="o")
        above.set(ylabel="relevance", title=f"{self.rules}, mean of {self.explained.size} maps")
        bottom = np.zeros((2, len(rows)))
        for column in COLUMNS:
            lost = np.array([row.get(column, 0.0) for _, row in rows])
            side = (lost < 0).astype(int)
            below.bar(at, lost, bottom=bottom[side, at], label=column)
            bottom[side, at] += lost
        below.set(ylabel="lost (below 0: made)")
        below.set_xticks(at, [name for name, _ in rows], rotation=60, ha="right")
        for axes in (above, below):
            axes.axhline(0, color="black", linewidth=0.8)
            axes.grid(alpha=0.3)
        below.legend()
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=120)


def conservation(
    model: Model,
    params: Params,
    images: Any,
    targets: ArrayLike | None = None,
    *,
    rules: str | Rules = "libragrad",
) -> Conservation:
    """Find where relevance stands in a model, and which operations make or lose it.

    It works inside the caller's ``jit``, ``vmap`` and ``grad``: the report's arrays are then JAX's.

    Args:
        model: the model.
        params: its parameters.
        images: as of :func:`lrp_jax.explain`.
        targets: likewise.
        rules: a name in :data:`lrp_jax.RULES` or a rule set.

    Returns:
        The report: relevance is a cotangent's sum; of modified gradients, the sum of their products with the values.
        For these it closes: what is explained is what stands at the tokens, and what biases and a softmax keep.

    Raises:
        ValueError: an argument has the wrong rank, dtype, shape or value.
    """
    rules = named(rules)
    with full_precision():
        images, targets = checked(model, params, images, targets)
        entries: dict[Entry, None] = {}  # in the order in which they are run
        jax.eval_shape(partial(_report, model, rules, entries), params, images, targets)
        found = _compiled(model, rules, tuple(entries), params, images, targets)
    arrays: dict[str, Any] = jax.tree.map(lambda x: x if isinstance(x, jax.core.Tracer) else np.asarray(x), found)
    amounts = arrays.pop("amounts")
    counted = [Amount(*entry, amounts[..., i, 0], amounts[..., i, 1]) for i, entry in enumerate(entries)]
    return Conservation(rules.name, amounts=counted, **arrays)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(
    model: Model, rules: Rules, entries: tuple[Entry, ...], params: Params, images: Any, targets: Array | None
) -> Any:
    return _report(model, rules, dict.fromkeys(entries), params, images, targets)


def _report(
    model: Model, rules: Rules, entries: dict[Entry, None], params: Params, images: Any, targets: Array | None
) -> Any:
    """The arrays of a report; where entries are not known yet, they are found, and their amounts are not."""
    return batched(partial(_of_one, rules=rules, entries=entries), model, params, images, targets)


def _of_one(
    model: Any, params: Params, image: Array, targets: Array | None, *, rules: Rules, entries: dict[Entry, None]
) -> Any:
    rules = dataclasses.replace(rules, times_values=rules.times_values or rules == GRADIENT)
    known = {entry: i for i, entry in enumerate(entries)}
    accounts = jnp.zeros((len(known), 2), jnp.float64 if image.dtype == jnp.float64 else jnp.float32)

    def tapped(rules: Rules, accounts: Array) -> tuple[Rules, None]:
        def account(entry: Entry) -> Array:
            entries.setdefault(entry)
            return accounts[known[entry]] if known else jnp.zeros(2, accounts.dtype)

        return with_accounts(rules, account), None

    tokens = TOKENS if depth(model) and not ask(model, "without_tokens") else None
    found = walk(model, params, image, targets, rules, tokens=tokens, taps=accounts, tapped=tapped)
    weights = directions(found.targets, found.logits)
    return {
        "logits": found.logits,
        "targets": found.targets,
        "explained": relevance_of(weights, found.logits[None], rules).sum(axis=-1),
        "blocks": None if tokens is None else found.tokens[0].sum(axis=-1),
        "inputs": relevance_of(found.image[:, 0], image[None], rules).reshape(len(weights), -1).sum(axis=-1),
        "amounts": found.taps[:, 0],
    }

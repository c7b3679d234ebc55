"""What the files beside weights say, and where each word of it stands."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

#: The fields of :class:`lrp_jax.ViTConfig` that say how a picture becomes an image.
PICTURES = frozenset({"mean", "std", "interpolation", "resize"})
#: How much larger than the image a picture is before the crop: by its shorter edge, or by both; None: it is resized to
#: the image; ``"cover"``: to the smallest size that covers it.
Enlarge = float | tuple[float, float] | str | None

#: Fields of :class:`lrp_jax.ViTConfig` that a caller may give instead of a file; the weights say the rest.
OPEN = PICTURES | {"num_heads", "gelu", "norm_epsilon", "final_norm_epsilon", "readout", "class_names"}
OPEN |= {"multi_label", "regression"}


class Fact(NamedTuple):
    """What a field of a file says.

    Attributes:
        name: a field of :class:`lrp_jax.ViTConfig`, or what :mod:`lrp_jax.weights.configure` finds in the weights.
        value: its value.
        origin: file, field and value, for messages.
    """

    name: str
    value: Any
    origin: str


@dataclasses.dataclass
class Told:
    """What the files say.

    Attributes:
        facts: in the order of the files; the last of a name holds.
        notes: what is not done as a file says, a sentence each.
        unknown: the fields that are in no table, a sentence a file.
    """

    facts: list[Fact] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of the last fact of a name."""
        return next((fact.value for fact in reversed(self.facts) if fact.name == name), default)

    def tell(self, origin: str, **values: Any) -> None:
        """Add facts of one origin."""
        self.facts += [Fact(name, value, origin) for name, value in values.items()]

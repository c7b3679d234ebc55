"""Relevance of tokens, drawn: in HTML and in the terminal."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

# Relevance for the target and against it.
_FOR, _AGAINST = (214, 69, 48), (58, 110, 196)


class TokenMap:
    """Tokens on the colour of their relevance: HTML in a notebook, colours in a terminal.

    Red is for the target, blue against it, the stronger the larger beside the largest of all.
    """

    def __init__(self, tokens: Sequence[str], relevance: np.ndarray) -> None:
        self.tokens = tokens
        largest = np.abs(relevance).max(initial=0)
        self.strength = relevance / largest if largest > 0 else np.zeros_like(relevance)

    def _repr_html_(self) -> str:
        return "<div>" + "".join(map(self._span, self.tokens, self.strength)) + "</div>"

    def __str__(self) -> str:
        return "".join(map(self._coloured, self.tokens, self.strength))

    __repr__ = __str__

    @property
    def html(self) -> str:
        """The HTML, to be written to a file."""
        return self._repr_html_()

    def _span(self, token: str, strength: float) -> str:
        red, green, blue = _FOR if strength >= 0 else _AGAINST
        colour = f"rgba({red},{green},{blue},{abs(strength):.3f})"
        style = f"background:{colour};padding:0.1em 0.15em;border-radius:0.2em;white-space:pre-wrap"
        return f'<span style="{style}" title="{strength:+.3f}">{html.escape(token)}</span>'

    def _coloured(self, token: str, strength: float) -> str:
        colour = _FOR if strength >= 0 else _AGAINST
        red, green, blue = (round(255 + (c - 255) * abs(strength)) for c in colour)
        # Nothing of a token steers the terminal.
        visible = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in token)
        return f"\x1b[38;2;0;0;0;48;2;{red};{green};{blue}m{visible}\x1b[0m"


def show_tokens(tokens: Sequence[str], relevance: ArrayLike) -> TokenMap:
    """Tokens on the colour of their relevance: shown by a notebook, printed to a terminal.

    Args:
        tokens: the N tokens as text, spaces included.
        relevance: ``[N]``, of one target.

    Returns:
        What a notebook shows, ``print`` prints, and whose ``html`` is a fragment of HTML.

    Raises:
        ValueError: there are not as many tokens as values, or a value is not finite.
    """
    relevance = np.asarray(relevance, np.float64)
    if isinstance(tokens, str) or relevance.shape != (len(tokens),):
        got = "one string" if isinstance(tokens, str) else f"{len(tokens)} tokens"
        raise ValueError(f"relevance must be [N] for N tokens, got the shape {relevance.shape} for {got}.")
    if not np.isfinite(relevance).all():
        raise ValueError("relevance must be finite, got NaN or infinite values.")
    return TokenMap(list(map(str, tokens)), relevance)

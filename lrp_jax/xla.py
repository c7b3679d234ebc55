"""What must be told to XLA before it starts, so that sums are right."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import MutableMapping

# Releases whose compiler for CPUs sums wrongly where an array that has an axis more is multiplied by one that has not,
# as in the gradient of a norm for several classes: all but the first come out wrong, by a part or all of their value.
# tests/test_xla.py shows it; 0.10.1 and 0.11.0 are right. Installation excludes them.
_SUM_WRONGLY = frozenset({"0.10.2"})
_FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def set_flags(version: str, environment: MutableMapping[str, str]) -> None:
    """Leave out, of a compiler that needs it, the library that sums wrongly; unless the user's flags speak of it.

    Args:
        version: of jaxlib.
        environment: of the process.
    """
    flags = environment.get("XLA_FLAGS", "")
    if version in _SUM_WRONGLY and _FLAG not in flags:
        environment["XLA_FLAGS"] = f"{flags} {_FLAG}=".strip()


set_flags(importlib.metadata.version("jaxlib"), os.environ)

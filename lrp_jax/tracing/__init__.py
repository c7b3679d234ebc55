"""Models of any framework: traced, recognised, and run by the operations of a rule set."""

from lrp_jax.tracing.model import Traced, trace
from lrp_jax.tracing.operations import TABLE, Operation, register
from lrp_jax.tracing.program import Equation

__all__ = ["TABLE", "Equation", "Operation", "Traced", "register", "trace"]

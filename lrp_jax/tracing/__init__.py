"""Models of any framework: traced, recognised, and run by the operations of a rule set."""

from lrp_jax.program import Equation
from lrp_jax.tracing.derivatives import UnsupportedError
from lrp_jax.tracing.model import Traced
from lrp_jax.tracing.operations import TABLE, Operation, register
from lrp_jax.tracing.tracer import trace

__all__ = ["TABLE", "Equation", "Operation", "Traced", "UnsupportedError", "register", "trace"]

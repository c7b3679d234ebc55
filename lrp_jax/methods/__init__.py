"""The attribution methods, each a function of one image; :mod:`lrp_jax.methods.base` says what one is."""

# Importing a file registers its methods: METHODS lists them in this order.
from lrp_jax.methods import relevance  # isort: split

from lrp_jax.methods import attention  # isort: split

from lrp_jax.methods import modified  # isort: split

from lrp_jax.methods import gradient, masking
from lrp_jax.methods.base import METHODS, Method, register

__all__ = ["METHODS", "Method", "attention", "gradient", "masking", "modified", "register", "relevance"]

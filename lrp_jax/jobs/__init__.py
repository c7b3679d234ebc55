"""Attribution of whole datasets, on all devices of a machine and on many machines, into a store; and a page of it.

Needs the extra ``jobs``.
"""

from lrp_jax.jobs.pipeline import Progress
from lrp_jax.jobs.run import Report, attribute, join
from lrp_jax.jobs.sources import ArrayFile, Pictures, Source, TarShards, open_source
from lrp_jax.jobs.store import Store, StoreError
from lrp_jax.jobs.work import DTYPES

__all__ = [
    "DTYPES",
    "ArrayFile",
    "Pictures",
    "Progress",
    "Report",
    "Source",
    "Store",
    "StoreError",
    "TarShards",
    "attribute",
    "join",
    "open_source",
]

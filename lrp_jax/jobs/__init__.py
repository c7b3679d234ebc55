"""Attribution of whole datasets, on all devices of a machine and on many machines, into a store; and a page of it.

Needs the extra ``jobs``.
"""

from lrp_jax.jobs.page import Page, gallery
from lrp_jax.jobs.pipeline import Progress
from lrp_jax.jobs.run import Report, attribute, join
from lrp_jax.jobs.sources import ArrayFile, Pictures, Source, TarShards, image_of, open_source
from lrp_jax.jobs.store import Store, StoreError
from lrp_jax.jobs.work import DTYPES

__all__ = [
    "DTYPES",
    "ArrayFile",
    "Page",
    "Pictures",
    "Progress",
    "Report",
    "Source",
    "Store",
    "StoreError",
    "TarShards",
    "attribute",
    "gallery",
    "image_of",
    "join",
    "open_source",
]

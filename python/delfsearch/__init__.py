"""Find the same place, building or object in a large photo collection.

The public names are imported when first used, so that ``import delfsearch`` stays fast and never
imports torch by itself.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from delfsearch.errors import (
        IndexFormatError,
        PhotoError,
        WeightsError,
    )
    from delfsearch.extraction.extractor import DelfExtractor
    from delfsearch.extraction.reduction import PcaReduction
    from delfsearch.features import LocalFeatures
    from delfsearch.index.delf_index import DelfIndex
    from delfsearch.index.product_quantizers import (
        LocallyOptimizedPQ,
        OptimizedPQ,
        ProductQuantizer,
    )
    from delfsearch.index.quantized_kdtree import QuantizedKDTree
    from delfsearch.matches import Hit, Matches
    from delfsearch.search import ImageSearch
    from delfsearch.verification.verifier import Verifier
    from delfsearch.where import Where

_HOME = {
    "DelfExtractor": "delfsearch.extraction.extractor",
    "DelfIndex": "delfsearch.index.delf_index",
    "Hit": "delfsearch.matches",
    "ImageSearch": "delfsearch.search",
    "IndexFormatError": "delfsearch.errors",
    "LocalFeatures": "delfsearch.features",
    "LocallyOptimizedPQ": "delfsearch.index.product_quantizers",
    "Matches": "delfsearch.matches",
    "OptimizedPQ": "delfsearch.index.product_quantizers",
    "PcaReduction": "delfsearch.extraction.reduction",
    "PhotoError": "delfsearch.errors",
    "ProductQuantizer": "delfsearch.index.product_quantizers",
    "QuantizedKDTree": "delfsearch.index.quantized_kdtree",
    "Verifier": "delfsearch.verification.verifier",
    "WeightsError": "delfsearch.errors",
    "Where": "delfsearch.where",
}

__all__ = [
    "DelfExtractor",
    "DelfIndex",
    "Hit",
    "ImageSearch",
    "IndexFormatError",
    "LocalFeatures",
    "LocallyOptimizedPQ",
    "Matches",
    "OptimizedPQ",
    "PcaReduction",
    "PhotoError",
    "ProductQuantizer",
    "QuantizedKDTree",
    "Verifier",
    "WeightsError",
    "Where",
    "__version__",
]

try:
    __version__ = version("delfsearch")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'delfsearch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

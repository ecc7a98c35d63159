"""The errors that callers may want to tell apart. Bad arguments raise ValueError or TypeError."""

from __future__ import annotations


class PhotoError(ValueError):
    """A photo cannot be read or is refused; the message says which one, why, and the remedy."""


class WeightsError(ValueError):
    """Network weights are absent, damaged, or do not fit what was asked of them."""


class IndexFormatError(ValueError):
    """A folder is not an index of this library, is damaged, or is of a newer format version."""


class DatasetError(ValueError):
    """An evaluation set is absent, incomplete or malformed; the message names what and where."""

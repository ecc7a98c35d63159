"""ImageRecord: what an index knows of one photo besides its features."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from delfsearch._validation import check_real
from delfsearch.storage.catalog import TABLES, to_json

_TEXT = ("path", "content_hash", "label")
_DEGREES = {"latitude": 90.0, "longitude": 180.0}


@dataclass(frozen=True)
class ImageRecord:
    """One row of the image table.

    id : int64, stable for ever. path, label : None where none was given. content_hash :
    BLAKE2b-256 of the file in hexadecimal. width, height : pixels, 0 where unknown. n_features :
    features in the index. latitude, longitude : degrees. metadata : the caller's own entries,
    anything that JSON can hold.
    """

    id: int
    path: str | None = None
    content_hash: str | None = None
    width: int = 0
    height: int = 0
    n_features: int = 0
    label: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_row(row: tuple[Any, ...]) -> ImageRecord:
        """Decode a row of the images table."""
        fields = dict(zip(TABLES["images"], row))
        return ImageRecord(**{**fields, "metadata": json.loads(row[-1])})

    def to_row(self) -> tuple[Any, ...]:
        """Encode as a row of the images table."""
        return (
            self.id,
            self.path,
            self.content_hash,
            self.width,
            self.height,
            self.n_features,
            self.label,
            self.latitude,
            self.longitude,
            to_json(self.metadata),
        )


@dataclass(frozen=True)
class NotIndexed:
    """A photo that was offered and is not in the index under its own path.

    reason : why. duplicate_of : the id of the photo with the same content, None where the photo
    was refused. content_hash : of a file that could be read and yet was refused.
    """

    path: str
    reason: str
    duplicate_of: int | None = None
    content_hash: str | None = None


def split_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Turn one photo's metadata into fields of ImageRecord; ValueError names what does not fit.

    path, content_hash, label, latitude and longitude have columns; other keys are kept as JSON.
    """
    if not isinstance(metadata, (Mapping, type(None))):
        raise TypeError(
            f"metadata must hold one mapping per photo, e.g. {{'path': ...}}; got {metadata!r}"
        )
    fields: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for key, value in (metadata or {}).items():
        if not isinstance(key, str):
            raise TypeError(f"metadata keys must be strings; got {key!r}")
        if key in _TEXT:
            if value is not None and not isinstance(value, str):
                raise TypeError(f"metadata {key} must be a string; got {value!r}")
            try:
                (value or "").encode()
            except UnicodeEncodeError:
                raise ValueError(f"metadata {key} is not valid Unicode: {value!r}") from None
            fields[key] = value
        elif key in _DEGREES:
            limit = _DEGREES[key]
            fields[key] = (
                None if value is None else check_real(value, key, minimum=-limit, maximum=limit)
            )
        else:
            rest[key] = value
    try:
        to_json(rest)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be what JSON can hold: {error}") from None
    fields["metadata"] = rest
    return fields

"""What DelfIndex and its builder read and write in the catalog: records, attachments, notes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch.features import LocalFeatures
from delfsearch.storage.catalog import to_json
from delfsearch.storage.records import ImageRecord, NotIndexed, split_metadata
from delfsearch.storage.store import IndexStore


def make_records(
    image_ids: Iterable[int],
    photos: Sequence[LocalFeatures],
    metadata: Sequence[Mapping[str, Any] | None] | None,
) -> list[ImageRecord]:
    """Combine ids, features and metadata, one of each a photo, into rows of the image table."""
    if metadata is None:
        metadata = [None] * len(photos)
    if len(metadata) != len(photos):
        raise ValueError(
            f"metadata must have one entry per photo ({len(photos)}); got {len(metadata)}"
        )
    return [
        ImageRecord(
            id=int(image_id),
            width=photo.image_size[0],
            height=photo.image_size[1],
            n_features=len(photo),
            **split_metadata(entry),
        )
        for image_id, photo, entry in zip(image_ids, photos, metadata)
    ]


def metadata_of(record: ImageRecord) -> dict[str, Any]:
    """Return the metadata that makes this record again."""
    return {
        "path": record.path,
        "content_hash": record.content_hash,
        "label": record.label,
        "latitude": record.latitude,
        "longitude": record.longitude,
        **record.metadata,
    }


def insert_records(store: IndexStore, records: Sequence[ImageRecord]) -> None:
    """Add rows to the image table, move the next id past them, strike notes about their paths."""
    catalog = store.catalog
    catalog.insert("images", [record.to_row() for record in records])
    next_id = max([catalog.value("next_id", 0), *(record.id + 1 for record in records)])
    catalog.set_value("next_id", next_id)
    if catalog.scalar("SELECT count(*) FROM not_indexed"):
        for record in records:
            catalog.delete("not_indexed", "path = ?", (record.path,))


def update_record(store: IndexStore, record: ImageRecord, **changes: Any) -> None:
    """Replace the row of a photo by one with these fields changed."""
    store.catalog.delete("images", "id = ?", (record.id,))
    store.catalog.insert("images", [replace(record, **changes).to_row()])


def attach(
    store: IndexStore, title: str, parameters: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Keep parameters and arrays under a title, replacing what had it."""
    key = f"attachment {title}"
    old = store.catalog.value(key)
    if old is not None and to_json(old["parameters"]) == to_json(dict(parameters)):
        kept = {} if old["folder"] is None else store.arrays(old["folder"])
        if kept.keys() == arrays.keys() and all(
            kept[name].dtype == array.dtype and np.array_equal(kept[name], array)
            for name, array in arrays.items()
        ):
            return
    if old is not None and old["folder"] is not None:
        store.drop_folder(old["folder"])
    folder = store.add_folder("attachment", arrays) if arrays else None
    store.catalog.set_value(key, {"parameters": dict(parameters), "folder": folder})


def attachment(
    store: IndexStore, title: str
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
    """Return the parameters and arrays under a title, or None."""
    entry = store.catalog.value(f"attachment {title}")
    if entry is None:
        return None
    arrays = {} if entry["folder"] is None else dict(store.arrays(entry["folder"]))
    return dict(entry["parameters"]), arrays


def note_not_indexed(store: IndexStore, entries: Iterable[NotIndexed]) -> None:
    """Note photos that were refused or are duplicates, each path once."""
    for entry in entries:
        store.catalog.delete("not_indexed", "path = ?", (entry.path,))
        row = (entry.path, entry.reason, entry.duplicate_of, entry.content_hash)
        store.catalog.insert("not_indexed", [row])


def image_with_content(store: IndexStore, content_hash: str) -> ImageRecord | None:
    """Return the first photo with this content, or None."""
    rows = store.catalog.select("images", "content_hash = ?", (content_hash,))
    return ImageRecord.from_row(rows[0]) if rows else None


def first_with_content(store: IndexStore, content_hash: str) -> str | None:
    """Return the path of the photo with this content that was indexed, or else refused."""
    image = image_with_content(store, content_hash)
    if image is not None:
        return image.path
    refused = store.catalog.select("not_indexed", "content_hash = ?", (content_hash,))
    return str(refused[0][0]) if refused else None

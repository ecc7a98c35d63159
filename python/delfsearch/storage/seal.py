"""The seal: a small file beside the catalog with the checksum of all its bytes.

Table checksums cover every row; the seal also covers what is no row (unused bytes of a page,
indexes, headers). It is written after each commit. A crash in between leaves the seal of an earlier
generation, which says nothing about the file and is no damage; the next commit renews it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from delfsearch.storage.arrays import hash_file
from delfsearch.storage.catalog import FILE_NAME

SEAL_NAME = "catalog.blake2b"


def _text(generation: int, digest: str) -> str:
    body = f"generation {generation}\ncatalog {digest}\n"
    return body + f"seal {hashlib.blake2b(body.encode(), digest_size=32).hexdigest()}\n"


def write_seal(folder: Path, generation: int, *, catalog: Path | None = None) -> None:
    """Seal the catalog as it is now, or the one about to replace it, replacing the old seal."""
    temporary = folder / (SEAL_NAME + ".new")
    with temporary.open("w", newline="\n") as file:
        file.write(_text(generation, hash_file(catalog or folder / FILE_NAME)))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / SEAL_NAME)


def seal_problems(folder: Path, generation: int) -> list[str]:
    """Return what the seal finds wrong with the catalog of this generation."""
    try:
        text = (folder / SEAL_NAME).read_bytes().decode("ascii", "replace")
    except FileNotFoundError:
        return [f"{SEAL_NAME}: is missing (the next save writes it)"]
    try:
        words = text.split()
        sealed, digest = int(words[1]), words[3]
    except (IndexError, ValueError):
        return [f"{SEAL_NAME}: is damaged"]
    if text != _text(sealed, digest):
        return [f"{SEAL_NAME}: is damaged"]
    if sealed < generation:
        return []
    if sealed > generation or digest != hash_file(folder / FILE_NAME):
        return [f"{FILE_NAME}: does not fit its seal"]
    return []

"""Checkpoints: a folder with tensors (safetensors) and what else there is to know (JSON).

    checkpoint-00001200/state.safetensors   parameters, statistics, state of the optimiser
    checkpoint-00001200/state.json          step, settings, checksum of the other file

A checkpoint is written under another name, made durable, and moved into place; only then is the one
before it removed. So there is a whole one at any moment, whatever fails. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from delfsearch.storage.arrays import hash_file, sync_folder
from delfsearch.training.processes import Processes

FORMAT_VERSION = 1
_PREFIX = "checkpoint-"
_TENSORS, _STATE = "state.safetensors", "state.json"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CheckpointError(ValueError):
    """A checkpoint cannot be written, is damaged, or belongs to a run of other settings."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """step : steps that are done. tensors : by name. state : JSON-able, settings among it."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def digest(self) -> str:
        """Return a checksum of the state; of what was read, a checksum of the tensors is in it."""
        text = json.dumps(self.state, sort_keys=True)
        return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def remedy(error: Exception, *, or_else: str = "") -> str:
    """Say what to do where a file cannot be written; or_else : what helps against no space too."""
    first = "put that right"
    if getattr(error, "errno", None) in _NO_SPACE:
        first = f"free some space, or {or_else}," if or_else else "free some space"
    return f"{first} and run again: it goes on from what is finished"


@contextlib.contextmanager
def written(what: str, path: Path, *, or_else: str = "") -> Iterator[None]:
    """Turn an OSError into a CheckpointError that says what cannot be written where, and why."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{what} cannot be written to {path} ({error.strerror or error}); "
            f"{remedy(error, or_else=or_else)}"
        ) from error


def refuse_unshared(folder: Path, processes: Processes, found: str | None = None) -> None:
    """Raise CheckpointError in every process where they do not all find the same in a folder.

    found : what this process finds; None means the names of the files. All processes must call it.
    """
    if found is None:
        found = ", ".join(sorted(os.listdir(folder))) if folder.is_dir() else "no such folder"
    if not processes.is_common(found):
        raise CheckpointError(
            f"the {processes.count} processes do not find the same in {folder} (process "
            f"{processes.index}: {found or 'nothing'}): give an output folder that all machines "
            "share, or copy this one to all of them, or delete it on all"
        )


def make_folder(folder: Path) -> Path:
    """Return a folder, made if it is not there. Raises CheckpointError where it cannot be one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        usable = os.access(folder, os.W_OK | os.X_OK)
    except OSError as error:
        raise CheckpointError(
            f"output folder {folder} cannot be made ({error.strerror or error}); give another"
        ) from error
    if not usable:
        raise CheckpointError(f"output folder {folder} may not be written to; give another")
    return folder


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint into a folder, then remove those before it; return its path.

    Raises CheckpointError where it cannot be written; the one before it is then still there.
    """
    place = folder / f"{_PREFIX}{checkpoint.step:08d}"
    if place.is_dir():
        return place  # of the same run, and whole: it would have been refused else
    part = folder / f"{place.name}.part"
    data = safetensors.torch.save({k: t.contiguous() for k, t in checkpoint.tensors.items()})
    state = {
        "format": FORMAT_VERSION,
        "step": checkpoint.step,
        "blake2b": hashlib.blake2b(data, digest_size=32).hexdigest(),
        **checkpoint.state,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove(part)
        part.mkdir()
        _write(part / _TENSORS, data)
        _write(part / _STATE, json.dumps(state, indent=1).encode("utf-8"))
        sync_folder(part)
        os.rename(part, place)
        sync_folder(folder)
    except OSError as error:
        _remove(part, quietly=True)
        before = latest_path(folder)
        kept = "none was written before" if before is None else f"{before.name} is still there"
        why = error.strerror or str(error)
        if error.errno in _NO_SPACE:
            free = shutil.disk_usage(folder).free if folder.is_dir() else 0
            why = (
                f"no space: {len(data) / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free. "
                "Free some and run the same again"
            )
        raise CheckpointError(f"checkpoint {place} cannot be written, {kept} ({why})") from error
    leftovers = folder.glob(f"{_PREFIX}*.part")  # of writers that were killed
    for other in [*(path for _, path in _all(folder) if path != place), *leftovers]:
        _remove(other, quietly=True)
    return place


def latest_path(folder: Path) -> Path | None:
    """Return the checkpoint of the most steps, None where there is none."""
    found = _all(folder)
    return found[-1][1] if found else None


def read_checkpoint(folder: Path, settings: Mapping[str, Any]) -> Checkpoint | None:
    """Return the latest checkpoint in a folder, None where there is none.

    settings : those of the run that wants to go on. Raises CheckpointError that names the first one
    that differs from the checkpoint's, or what is damaged.
    """
    place = latest_path(folder)
    if place is None:
        return None
    remedy = f"delete {place} to begin anew"
    try:
        state = json.loads((place / _STATE).read_text(encoding="utf-8"))
        version, step, digest = state["format"], int(state["step"]), state["blake2b"]
        held = state["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{place / _STATE} is damaged ({error}); {remedy}") from None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{place} is of checkpoint format {version}, this version reads {FORMAT_VERSION}; "
            f"use the version that wrote it, or {remedy}"
        )
    refuse_differences(held, settings, str(folder))
    try:
        if hash_file(place / _TENSORS) != digest:
            raise CheckpointError(
                f"{place / _TENSORS} is damaged: it does not match its checksum; {remedy}"
            )
        tensors = safetensors.torch.load_file(place / _TENSORS)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{place / _TENSORS} cannot be read ({error}); {remedy}") from None
    return Checkpoint(step, tensors, state)


def refuse_differences(held: Any, given: Any, where: str, name: str = "") -> None:
    """Raise CheckpointError for the first setting that differs, by its dotted name."""
    given = json.loads(json.dumps(given))  # as JSON gives it back
    if isinstance(held, dict) and isinstance(given, dict):
        for key in [*given, *(key for key in held if key not in given)]:
            inner = f"{name}.{key}" if name else key
            refuse_differences(held.get(key), given.get(key), where, inner)
    elif held != given:
        raise CheckpointError(
            f"{where} holds a run of {name}={held!r}; got {given!r}. Go on with the same settings "
            "and photos, or give another output folder"
        )


def _all(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    return sorted(
        (int(path.name[len(_PREFIX) :]), path)
        for path in folder.glob(f"{_PREFIX}*")
        if path.name[len(_PREFIX) :].isdecimal()
    )


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _remove(path: Path, *, quietly: bool = False) -> None:
    if path.exists():
        shutil.rmtree(path, ignore_errors=quietly)

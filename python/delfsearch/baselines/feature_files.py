"""Local features and global vectors from files that other tools wrote, and writing such files.

HDF5, hloc's layout (extra `hdf5`): one group a photo, named by its path relative to the photos'
folder, with the datasets keypoints (n, 2), descriptors (d, n), and optionally scores (n,), scales
(n,) and image_size (2,) as (width, height); for global vectors global_descriptor (d,).
hloc's keypoints have pixel centres at integers (it adds the half pixel only when it hands them to
COLMAP), so nothing is shifted; files that count pixel centres at .5 are read with centres="half".
hloc ignores EXIF orientation when it reads photos, this library applies it: rotate such photos
first. It writes half precision unless told otherwise, which is read as it is.

NPZ: one file a photo, its path with ".npz" behind it, in a folder of its own or beside the photo,
with the same arrays but descriptors (n, d). For global vectors one file with names (n,) and
vectors (n, d).

Nothing is unpickled, and every array is checked.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from delfsearch._validation import check_choice, check_matrix
from delfsearch.baselines.optional import import_optional
from delfsearch.errors import PhotoError
from delfsearch.features import LocalFeatures

LAYOUTS = ("columns", "rows")
CENTRES = ("integer", "half")
GLOBAL_NAME = "global_descriptor"
_OPTIONAL = ("scores", "scales", "image_size")


class FeatureFile:
    """The local features in one HDF5 file of hloc's layout, read photo by photo.

    path : the file. layout : "columns", descriptors (d, n) as hloc's; "rows", (n, d).
    centres : where pixel centres lie in the file: "integer" (hloc) or "half".
    Raises ValueError where it is no HDF5 file; ImportError where h5py is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        layout: str = "columns",
        centres: str = "integer",
    ) -> None:
        self.path = Path(path)
        self.layout = check_choice(layout, "layout", LAYOUTS)
        self.centres = check_choice(centres, "centres", CENTRES)
        with _open_hdf5(self.path):
            pass

    def names(self) -> list[str]:
        """Return the names of the photos in the file, sorted."""
        return _names_with(self.path, "keypoints")

    def read(self, name: str) -> LocalFeatures:
        """Return the features of one photo. KeyError where it is not there; ValueError."""
        with _open_hdf5(self.path) as file:
            arrays = _datasets(file, name, ("keypoints", "descriptors"), _OPTIONAL)
        return _to_features(arrays, self.layout, self.centres, f"{name!r} of {self.path}")

    def __iter__(self) -> Iterator[tuple[str, LocalFeatures]]:
        return ((name, self.read(name)) for name in self.names())


def write_features(
    path: str | os.PathLike[str],
    features: Iterable[tuple[str, LocalFeatures]] | Mapping[str, LocalFeatures],
    *,
    half: bool = False,
) -> None:
    """Write features in hloc's layout.

    path : an HDF5 file; one that is there is extended, photos of the same name are replaced.
    features : pairs of a name (relative path, "/" between parts) and its features.
    half : write floats in half precision, as hloc does by default.
    """
    h5py = import_optional("h5py", extra="hdf5", purpose="writing HDF5 files")
    pairs = features.items() if isinstance(features, Mapping) else features
    with h5py.File(os.fspath(path), "a") as file:
        for name, photo in pairs:
            if name in file:
                del file[name]
            group = file.create_group(name)
            arrays = {
                "keypoints": photo.keypoints_xy,
                "descriptors": np.ascontiguousarray(photo.descriptors.T),
                "scores": photo.scores,
                "scales": photo.scales,
                "image_size": np.array(photo.image_size, np.int64),
            }
            for key, array in arrays.items():
                narrow = half and array.dtype.kind == "f"
                group.create_dataset(key, data=array.astype(np.float16) if narrow else array)


def read_npz(
    path: str | os.PathLike[str], *, layout: str = "rows", centres: str = "integer"
) -> LocalFeatures:
    """Return the features of one photo from an NPZ file, see the module.

    keypoints may also be named keypoints_xy, as write_npz does. layout, centres : see FeatureFile.
    Raises ValueError where the file is damaged, holds objects, lacks an array or arrays disagree.
    """
    check_choice(layout, "layout", LAYOUTS)
    check_choice(centres, "centres", CENTRES)
    arrays = _read_npz(Path(path))
    if "keypoints_xy" in arrays:
        arrays["keypoints"] = arrays["keypoints_xy"]
    for name in ("keypoints", "descriptors"):
        if name not in arrays:
            raise ValueError(f"{path} must hold {name}; it holds {', '.join(arrays) or 'nothing'}")
    return _to_features(arrays, layout, centres, str(path))


def write_npz(path: str | os.PathLike[str], features: LocalFeatures) -> None:
    """Write the features of one photo as an NPZ file that read_npz reads."""
    with open(path, "wb") as file:
        np.savez(
            file,
            keypoints_xy=features.keypoints_xy,
            descriptors=features.descriptors,
            scores=features.scores,
            scales=features.scales,
            image_size=np.array(features.image_size, np.int64),
        )


def read_vectors(path: str | os.PathLike[str]) -> dict[str, NDArray[np.float32]]:
    """Return global vectors (d,) by photo name, from HDF5 (global_descriptor) or NPZ.

    Raises ValueError where the file is damaged, dimensions differ or a value is not finite.
    """
    file = Path(path)
    if file.suffix == ".npz":
        arrays = _read_npz(file)
        if not {"names", "vectors"} <= set(arrays):
            raise ValueError(f"{path} must hold names and vectors; it holds {', '.join(arrays)}")
        names = [str(name) for name in arrays["names"]]
        X = check_matrix(arrays["vectors"], "vectors")
        if len(names) != len(X):
            raise ValueError(f"{path} holds {len(names)} names for {len(X)} vectors")
        return dict(zip(names, X))
    result: dict[str, NDArray[np.float32]] = {}
    for name in _names_with(file, GLOBAL_NAME):
        with _open_hdf5(file) as opened:
            vector = _datasets(opened, name, (GLOBAL_NAME,), ())[GLOBAL_NAME]
        result[name] = check_matrix(vector.reshape(1, -1), f"{GLOBAL_NAME} of {name!r}")[0]
    if len({len(vector) for vector in result.values()}) > 1:
        raise ValueError(f"{path}: {GLOBAL_NAME} must have one dimension for all photos")
    return result


class StoredFeatures:
    """A local system whose features were made elsewhere and lie in files.

    path : an HDF5 file of hloc's layout, or a folder of NPZ files.
    root : the folder that names in the files are relative to; None takes photos as names.
    name : of the system, in tables. layout, centres : see FeatureFile; None is the format's own.
    """

    kind: Literal["local"] = "local"
    needs: Literal["nothing"] = "nothing"
    max_squared_distance: float | None = None
    suggested_min_inliers: int | None = None

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        root: str | os.PathLike[str] | None = None,
        name: str = "file",
        layout: str | None = None,
        centres: str = "integer",
    ) -> None:
        self.path = Path(path)
        self.root = None if root is None else Path(root)
        self.name = name
        self._folder = self.path.is_dir()
        self._layout = layout or ("rows" if self._folder else "columns")
        self._centres = centres
        self._file = (
            None
            if self._folder
            else FeatureFile(self.path, layout=self._layout, centres=self._centres)
        )

    @property
    def ran(self) -> str:
        """What actually runs, for the caption of a table."""
        return f"features stored in {self.path.name}"

    def fit(self, photos: Iterable[Any], y: Any = None) -> StoredFeatures:
        """Do nothing, as there is nothing to learn; return self."""
        return self

    def stream(self, photos: Iterable[Any]) -> Iterator[tuple[Any, LocalFeatures | PhotoError]]:
        """Yield (photo, its features); a photo that the files lack yields a PhotoError."""
        for photo in photos:
            name = photo_name(photo, self.root)
            try:
                if self._file is not None:
                    yield photo, self._file.read(name)
                else:
                    file = self.path / f"{name}.npz"
                    yield photo, read_npz(file, layout=self._layout, centres=self._centres)
            except (KeyError, OSError):
                yield photo, PhotoError(f"{self.path} holds no features of {name!r}; extract them")
            except ValueError as error:
                yield photo, PhotoError(str(error))


class StoredVectors:
    """A global system whose vectors were made elsewhere and lie in a file, see read_vectors.

    path : the file. root : as for StoredFeatures. name : of the system, in tables.
    query_expansion : rounds that GlobalIndex.query should make.
    """

    kind: Literal["global"] = "global"
    needs: Literal["nothing"] = "nothing"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        root: str | os.PathLike[str] | None = None,
        name: str = "file",
        query_expansion: int = 0,
    ) -> None:
        self.path = Path(path)
        self.root = None if root is None else Path(root)
        self.name = name
        self.query_expansion = query_expansion
        self._vectors = read_vectors(self.path)

    @property
    def ran(self) -> str:
        """What actually runs, for the caption of a table."""
        return f"vectors stored in {self.path.name}"

    def fit(self, photos: Iterable[Any], y: Any = None) -> StoredVectors:
        """Do nothing, as there is nothing to learn; return self."""
        return self

    def stream(
        self, photos: Iterable[Any]
    ) -> Iterator[tuple[Any, NDArray[np.float32] | PhotoError]]:
        """Yield (photo, its vector); a photo that the file lacks yields a PhotoError."""
        for photo in photos:
            name = photo_name(photo, self.root)
            vector = self._vectors.get(name)
            missing = PhotoError(f"{self.path} holds no vector of {name!r}; extract it")
            yield photo, missing if vector is None else vector


def photo_name(photo: Any, root: Path | None) -> str:
    """Return a photo's name in a file: its path relative to root, "/" between the parts."""
    if not isinstance(photo, (str, os.PathLike)):
        raise TypeError(f"stored features are found by path; got a {type(photo).__name__}")
    path = Path(photo)
    if root is None:
        return path.as_posix()
    try:
        return path.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        raise ValueError(f"photo {os.fspath(photo)!r} does not lie in root {root}") from None


def _to_features(
    arrays: Mapping[str, NDArray[Any]], layout: str, centres: str, shown: str
) -> LocalFeatures:
    keypoints, descriptors = arrays["keypoints"], arrays["descriptors"]
    if keypoints.ndim != 2 or keypoints.shape[1] < 2:
        raise ValueError(f"keypoints of {shown} must be (n, 2); got {keypoints.shape}")
    if descriptors.ndim != 2:
        raise ValueError(f"descriptors of {shown} must be 2-D; got {descriptors.shape}")
    n = len(keypoints)
    rows = descriptors.T if layout == "columns" else descriptors
    if len(rows) != n:
        other = LAYOUTS[1 - LAYOUTS.index(layout)]
        fits = descriptors.shape[0 if layout == "columns" else 1] == n
        hint = f"; they fit layout={other!r}" if fits else ""
        raise ValueError(
            f"descriptors of {shown} must be {'(d, n)' if layout == 'columns' else '(n, d)'} for "
            f"{n} keypoints; got {descriptors.shape}{hint}"
        )
    if rows.dtype == np.float16:
        rows = rows.astype(np.float32)
    size = arrays.get("image_size", np.zeros(2)).reshape(-1)
    if size.shape != (2,):
        raise ValueError(f"image_size of {shown} must be (width, height); got {size}")
    xy = np.asarray(keypoints[:, :2], np.float64) - (0.5 if centres == "half" else 0.0)
    try:
        return LocalFeatures(
            xy.astype(np.float32),
            rows,
            arrays.get("scores"),  # type: ignore[arg-type]  # ones where there are none
            arrays.get("scales"),  # type: ignore[arg-type]
            (int(size[0]), int(size[1])),
        )
    except ValueError as error:
        raise ValueError(f"{shown}: {error}") from None


@contextmanager
def _open_hdf5(path: Path) -> Iterator[Any]:
    h5py = import_optional("h5py", extra="hdf5", purpose="reading HDF5 files")
    if not path.is_file():
        raise ValueError(f"{path} is not there; pass an HDF5 file")
    try:
        file = h5py.File(os.fspath(path), "r")
    except OSError as error:
        raise ValueError(f"{path} is not a readable HDF5 file ({error})") from None
    with file:
        yield file


def _names_with(path: Path, dataset: str) -> list[str]:
    found: list[str] = []
    with _open_hdf5(path) as file:
        # visit goes through hard links only: no soft or external link leads out of the file.
        file.visit(lambda name: found.append(name) if name.endswith(f"/{dataset}") else None)
    return sorted(name[: -len(dataset) - 1] for name in found)


def _datasets(
    file: Any, name: str, needed: tuple[str, ...], optional: tuple[str, ...]
) -> dict[str, NDArray[Any]]:
    """Return the arrays of one group, numbers only."""
    h5py = import_optional("h5py", extra="hdf5", purpose="reading HDF5 files")
    group = file.get(name)
    if not isinstance(group, h5py.Group):
        raise KeyError(name)
    arrays: dict[str, NDArray[Any]] = {}
    for key in (*needed, *optional):
        link = group.get(key, getlink=True)
        dataset = group.get(key) if isinstance(link, h5py.HardLink) else None
        if not isinstance(dataset, h5py.Dataset):
            if key in needed:
                raise ValueError(f"{name!r} must hold the dataset {key}")
            continue
        if dataset.dtype.kind not in "fiu":
            raise ValueError(f"{key} of {name!r} must be numbers; got {dataset.dtype}")
        arrays[key] = np.asarray(dataset[()])
    return arrays


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except FileNotFoundError:
        raise
    # A damaged archive may raise almost anything in zipfile, zlib or NumPy's header parser.
    except Exception as error:
        raise ValueError(f"{path} is not a readable NPZ file ({error})") from None

"""ImageSearch: a folder of photos, searchable. Extractor, index and verifier from one object.

photos --extractor--> LocalFeatures --index--> Matches --verifier--> Hits
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError

from delfsearch._validation import check_choice, check_integer
from delfsearch.boxes import Box, PhotoPart, crop, inside
from delfsearch.errors import IndexFormatError
from delfsearch.evaluation.folder import PhotoFolder
from delfsearch.features import LocalFeatures
from delfsearch.index.builder import IndexBuilder, IndexUpdater
from delfsearch.index.delf_index import DelfIndex
from delfsearch.intake import Progress, take_in
from delfsearch.matches import Hit
from delfsearch.storage.arrays import hash_file
from delfsearch.storage.photo_files import (
    PathLike,
    PhotoFile,
    list_photos,
    name_of,
    printable,
)
from delfsearch.verification.verifier import Verifier
from delfsearch.where import Where

if TYPE_CHECKING:
    from delfsearch.extraction.extractor import DelfExtractor

Labels = Mapping[Any, str] | Sequence[str | None] | None

# Parameters of an extractor that belong to the machine: they may differ when a run is resumed.
_MACHINE = ("device", "n_jobs", "verbose")
# Query photos whose features are held at a time by query_many.
_QUERY_BATCH = 16


class ImageSearch(BaseEstimator):  # type: ignore[misc]
    """Finds the photos of a folder that show the same place, building or object as a photo.

    extractor : DelfExtractor, or anything with its fit, transform, stream, get_state and
        from_state; None means DelfExtractor(). An extractor that has no reduction yet learns it in
        `fit`, from these photos; from then on it is frozen and kept with the index.
    index : unfitted DelfIndex; None means DelfIndex() with the extractor's max_squared_distance,
        where it has one.
    verifier : Verifier; None means Verifier().
    duplicates : what becomes of a photo file whose bytes are those of one that is indexed: "once"
        notes it in duplicates_, "all" indexes it too.
    Learned: index_, extractor_, verifier_; photo_root_, the folder that names are relative to.

    Living in a folder (`fit` with index_path, `save`, `load`), `add` and `remove` are on disk when
    they return.
    """

    def __init__(
        self,
        extractor: DelfExtractor | Any | None = None,
        index: DelfIndex | None = None,
        verifier: Verifier | None = None,
        *,
        duplicates: str = "once",
    ) -> None:
        self.extractor = extractor
        self.index = index
        self.verifier = verifier
        self.duplicates = duplicates

    # -- indexing -----------------------------------------------------------------------------

    def fit(
        self,
        photos: PathLike | Iterable[PathLike],
        labels: Labels = None,
        *,
        index_path: PathLike | None = None,
        progress: Progress | None = None,
        learn_reduction: bool = False,
    ) -> ImageSearch:
        """Index all photos of a folder, or the listed ones.

        photos : a folder, searched with its subfolders for files that Pillow can decode, or paths.
            A folder in the library's own format (photos.csv and ground_truth.json) says itself what
            to index, its database photos, and their labels, their scenes.
        labels : path -> label (paths as given, or relative to the folder), or one for each path.
        index_path : a new folder to build the index in, in bounded memory; work is committed every
            256 photos or 60 seconds. A run that was interrupted, and is started again with the same
            photos, goes on where it stopped and makes the same index, byte for byte. Photos that
            it dealt with are not looked at again. None builds in RAM; see `save`.
        progress : called as progress(done, total, seconds, path) after each photo; photos of an
            interrupted run count as done from the start.
        learn_reduction : fit the extractor on these photos even where it has a reduction already
            (its weights may bring a general one).
        Returns self. Photos that cannot be read are listed in skipped_ and do not stop the rest.
        Raises ValueError where there is no photo or none can be read, FileExistsError where
        index_path holds something else, PermissionError where it cannot be written.
        """
        check_choice(self.duplicates, "duplicates", ("once", "all"))
        root, items = _list(photos, labels)
        index = clone(self.index) if self.index is not None else self._default_index()
        builder = IndexBuilder(index, None if index_path is None else Path(index_path))
        try:
            extractor = self._freeze_extractor(builder, items, learn_reduction)
            known = builder.known_names
            todo = [item for item in items if printable(item.name) not in known]
            take_in(
                extractor, todo, builder, progress, total=len(items), duplicates=self.duplicates
            )
            verifier = Verifier() if self.verifier is None else clone(self.verifier)
            place = None if index_path is None else Path(index_path)
            builder.attach("search", _settings(verifier, self.duplicates, root, place), {})
            self.index_ = builder.finish()
        except BaseException:
            builder.close()
            raise
        self._extractor, self.verifier_, self.photo_root_ = extractor, verifier, root
        return self

    def add(
        self,
        photos: PathLike | Iterable[PathLike],
        labels: Labels = None,
        *,
        progress: Progress | None = None,
    ) -> list[int]:
        """Index further photos with the frozen extractor; returns the ids of the new and changed.

        photos, labels, progress : as in fit. A photo whose path is indexed already is passed over
        if its content is the same; if not, its features are replaced and it keeps its id.
        """
        self._check_fitted()
        _, items = _list(photos, labels, self.photo_root_)
        updater = IndexUpdater(self.index_)
        changed = [item for item in items if not self._is_current(item)]
        take_in(
            self.extractor_,
            changed,
            updater,
            progress,
            total=len(items),
            duplicates=self.duplicates,
        )
        return updater.ids

    def remove(self, photos: Iterable[int | PathLike]) -> list[int]:
        """Remove photos, given by id or path, all or none; returns their ids, never used again.

        Raises KeyError that names the first one that is not in the index.
        """
        self._check_fitted()
        _refuse_one(photos)
        ids = list(dict.fromkeys(self._id_of(photo) for photo in photos))
        self.index_.remove(ids)
        if self.index_.path is not None:
            self.index_.save()
        return ids

    # -- searching ----------------------------------------------------------------------------

    def query(
        self,
        photo: Any,
        *,
        box: Box | None = None,
        top: int | None = 10,
        min_inliers: int | None = None,
        exclude_ids: Iterable[int] | None = None,
        where: Where | Mapping[str, Any] | None = None,
    ) -> list[Hit]:
        """Find the indexed photos that show what a photo shows; an empty list means no match.

        photo : path, PIL image, array, or LocalFeatures of the indexed dimension.
        box : (x0, y0, x1, y1) in pixels of the upright photo: only that part is asked for. Hits are
            in pixels of the whole photo all the same.
        top : at most this many hits, None for all. min_inliers : None means the verifier's.
        exclude_ids : photos that must not answer. where : those that may, see Where; a mapping
            stands for Where(**mapping).
        Returns hits sorted by score with path and label. Raises PhotoError where the photo cannot
        be read, ValueError where the index is empty or the box lies outside the photo.
        Source: Sec. 5.2; Sec. 4.1 for the box (crop, then extract).
        """
        return self.query_many(
            [photo],
            boxes=[box],
            top=top,
            min_inliers=min_inliers,
            exclude_ids=None if exclude_ids is None else [exclude_ids],
            where=where,
        )[0]

    def query_many(
        self,
        photos: Iterable[Any],
        *,
        boxes: Sequence[Box | None] | None = None,
        top: int | None = 10,
        min_inliers: int | None = None,
        exclude_ids: Sequence[Iterable[int] | None] | None = None,
        where: Where | Mapping[str, Any] | None = None,
    ) -> list[list[Hit]]:
        """Answer several photos, some at a time; each answer is that of `query`.

        boxes, exclude_ids : one entry for each photo, or None. where : for all of them.
        """
        self._check_fitted()
        where = Where.of(where)
        _refuse_one(photos)
        photos = list(photos)
        if top is not None:
            check_integer(top, "top", minimum=1)
        boxes = [None] * len(photos) if boxes is None else boxes
        excluded = [None] * len(photos) if exclude_ids is None else exclude_ids
        for name, values in (("boxes", boxes), ("exclude_ids", excluded)):
            if len(values) != len(photos):
                raise ValueError(
                    f"{name} must have one entry per photo ({len(photos)}); got {len(values)}"
                )
        answers: list[list[Hit]] = []
        for start in range(0, len(photos), _QUERY_BATCH):
            part = slice(start, start + _QUERY_BATCH)
            features = self._extract(photos[part], boxes[part])
            matches = self.index_.query_many(features, exclude_ids=excluded[part], where=where)
            for hits in self.verifier_.verify_many(matches, min_inliers=min_inliers):
                answers.append([*islice(self._with_paths(hits), top)])
        return answers

    # -- what it holds ------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of indexed photos."""
        self._check_fitted()
        return len(self.index_)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "index_")

    @property
    def extractor_(self) -> Any:
        """The frozen extractor; after `load` it is made when first asked for."""
        self._check_fitted()
        if self._extractor is None:
            self._extractor = self._stored_extractor(self.index_.attachment("extractor"))
        return self._extractor

    @property
    def skipped_(self) -> list[tuple[str, str]]:
        """The photos that could not be indexed, with the reason, sorted by path."""
        self._check_fitted()
        return [(e.path, e.reason) for e in self.index_.not_indexed() if e.duplicate_of is None]

    @property
    def duplicates_(self) -> list[tuple[str, str]]:
        """The photos with the content of an indexed one, which is named second, sorted by path."""
        self._check_fitted()
        return [
            (e.path, self.index_.image(e.duplicate_of).path or "")
            for e in self.index_.not_indexed()
            if e.duplicate_of is not None
        ]

    def path_of(self, photo: Hit | int) -> Path:
        """Return where the file of a hit (or of an id) is; FileNotFoundError if it is gone.

        Looked for in photo_root_ as it was, then where it would be if it moved with the index; set
        photo_root_, or give it to load, where photos are elsewhere.
        """
        self._check_fitted()
        name = self.index_.image(photo.id if isinstance(photo, Hit) else photo).path
        if name is None:
            raise FileNotFoundError(f"photo {photo} was indexed without a path")
        roots = [self.photo_root_, self._moved_root()]
        for file in [Path(name)] if os.path.isabs(name) else [r / name for r in roots if r]:
            if file.exists():
                return file
        raise FileNotFoundError(
            f"photo {name!r} is not in {self.photo_root_}; if the photos moved, give photo_root"
        )

    # -- on disk ------------------------------------------------------------------------------

    def save(self, path: PathLike | None = None) -> ImageSearch:
        """Write index and frozen extractor to a new folder, which this object lives in from now on.

        path : None commits to the folder it lives in already. Errors as in DelfIndex.save.
        """
        self._check_fitted()
        place = self.index_.path if path is None else Path(path)
        settings = _settings(self.verifier_, self.duplicates, self.photo_root_, place)
        self.index_.attach("search", settings, {})
        self.index_.save(path)
        return self

    @classmethod
    def load(
        cls,
        path: PathLike,
        *,
        extractor: Any | None = None,
        photo_root: PathLike | None = None,
        n_jobs: int | None = None,
        verify: bool = False,
    ) -> ImageSearch:
        """Open an index; the network is loaded at the first photo only.

        extractor : one of the class that made the index; None means DelfExtractor(). What was
            frozen comes from the index, what belongs to the machine (device, n_jobs) from here.
        photo_root : where the photos are, if not where they were.
        n_jobs : threads of index and verifier. verify : also compare every byte with its checksum.
        Raises IndexFormatError as DelfIndex.load does.
        """
        index = DelfIndex.load(path, n_jobs=n_jobs, verify=verify)
        stored = index.attachment("search")
        if stored is None or index.attachment("extractor") is None:
            raise IndexFormatError(
                f"{path} holds features without an extractor (DelfIndex saved it); open it with "
                "DelfIndex.load"
            )
        settings = stored[0]
        try:
            verifier = Verifier(**settings["verifier"], n_jobs=n_jobs)
            root = settings["photo_root"]
            search = cls(extractor, None, verifier, duplicates=settings["duplicates"])
        except (KeyError, TypeError) as error:
            raise IndexFormatError(f"{path} is damaged: {error}") from error
        search.index_ = index
        search.verifier_ = verifier
        root = root if photo_root is None else os.path.abspath(photo_root)
        search.photo_root_ = None if root is None else Path(root)
        search._extractor = None
        return search

    # -- inside -------------------------------------------------------------------------------

    def _check_fitted(self) -> None:
        if not hasattr(self, "index_"):
            raise NotFittedError("this ImageSearch holds nothing yet; call fit or load first")

    def _given_extractor(self) -> Any:
        if self.extractor is not None:
            return self.extractor
        from delfsearch.extraction.extractor import DelfExtractor  # imports torch

        return DelfExtractor()

    def _default_index(self) -> DelfIndex:
        limit = getattr(self._given_extractor(), "max_squared_distance", None)
        return DelfIndex(max_squared_distance=limit)

    def _freeze_extractor(
        self, builder: IndexBuilder, items: Sequence[PhotoFile], learn: bool
    ) -> Any:
        """Return the extractor of an interrupted run, or make one that is fitted and store it."""
        given = self._given_extractor()
        parameters = {**_plain_parameters(given), "learn_reduction": learn}
        stored = builder.attachment("extractor")
        if stored is not None:
            begun_with, _ = builder.attachment("extractor_parameters") or ({}, {})
            for name, value in parameters.items():
                if begun_with.get(name) != value:
                    raise ValueError(
                        f"this index was begun with an extractor of {name}="
                        f"{begun_with.get(name)!r}; got {value!r}. Resume with that, or index "
                        "into a new folder"
                    )
            return self._stored_extractor(stored)
        if not learn:
            try:
                given.get_state()
            except NotFittedError:
                learn = True
        if learn:
            given = clone(given).fit([item.file for item in items])
        builder.attach("extractor_parameters", parameters, {})
        builder.attach("extractor", *given.get_state())
        return given

    def _stored_extractor(
        self, stored: tuple[dict[str, Any], dict[str, NDArray[Any]]] | None
    ) -> Any:
        if stored is None:
            raise IndexFormatError("the index holds no extractor")
        given = self._given_extractor()
        machine = {k: v for k, v in given.get_params(deep=False).items() if k in _MACHINE}
        return type(given).from_state(*stored).set_params(**machine)

    def _is_current(self, item: PhotoFile) -> bool:
        found = self.index_.find(path=printable(item.name))
        if not found:
            return False
        try:
            return found[0].content_hash == hash_file(item.file)
        except OSError:
            return False

    def _id_of(self, photo: int | PathLike) -> int:
        if isinstance(photo, (int, np.integer)):
            return self.index_.image(int(photo)).id
        for name in (os.fspath(photo), name_of(photo, self.photo_root_)):
            if found := self.index_.find(path=name):
                return found[0].id
        raise KeyError(f"no photo {os.fspath(photo)!r} in the index")

    def _extract(self, photos: Sequence[Any], boxes: Sequence[Box | None]) -> list[LocalFeatures]:
        """Extract query photos, each from its box, with keypoints in pixels of the whole photo."""
        features: list[LocalFeatures | None] = []
        parts: list[Any] = []
        for photo, box in zip(photos, boxes):
            if isinstance(photo, LocalFeatures):
                features.append(photo if box is None else inside(photo, box))
                continue
            features.append(None)
            limit = getattr(self.extractor_, "max_pixels", None)
            parts.append(photo if box is None else crop(photo, box, max_pixels=limit))
        images = [part.photo if isinstance(part, PhotoPart) else part for part in parts]
        extracted = iter(self.extractor_.transform(images) if images else ())
        whole = (
            part.to_whole(found) if isinstance(part, PhotoPart) else found
            for part, found in zip(parts, extracted)
        )
        return [next(whole) if found is None else found for found in features]

    def _with_paths(self, hits: Iterable[Hit]) -> Iterator[Hit]:
        for hit in hits:
            try:
                record = self.index_.image(hit.id)
            except KeyError:  # another process has removed it since this index was loaded
                continue
            yield dataclasses.replace(hit, path=record.path, label=record.label)

    def _moved_root(self) -> Path | None:
        settings, _ = self.index_.attachment("search") or ({}, {})
        relative, place = settings.get("photo_root_relative"), self.index_.path
        if relative is None or place is None:
            return None
        return Path(os.path.normpath(place.absolute() / relative))


def _list(
    photos: PathLike | Iterable[PathLike], labels: Labels, root: Path | None = None
) -> tuple[Path | None, list[PhotoFile]]:
    """List photo files; a folder in the library's own format says itself which."""
    if isinstance(photos, (str, os.PathLike)) and PhotoFolder.is_one(photos):
        folder = PhotoFolder.read(photos, check_files=False)
        root = Path(os.path.abspath(photos)) if root is None else root
        photos = [folder.root / path for path in folder.database]
        if labels is None and folder.labels:
            labels = {os.fspath(folder.root / path): name for path, name in folder.labels.items()}
    return list_photos(photos, labels, root)


def _refuse_one(photos: Any) -> None:
    # A string is a list of its letters, and an array one of its rows.
    one = (str, bytes, os.PathLike, int, np.integer, LocalFeatures)
    if isinstance(photos, one) or (isinstance(photos, np.ndarray) and photos.ndim < 4):
        raise TypeError(
            f"photos must be a list of photos; got one {type(photos).__name__}. Pass [photo]"
        )


def _settings(
    verifier: Verifier, duplicates: str, root: Path | None, place: Path | None
) -> dict[str, Any]:
    """Return what an index keeps for ImageSearch, besides the extractor."""
    relative = None
    if place is not None and root is not None:
        try:
            relative = Path(os.path.relpath(root, place)).as_posix()
        except ValueError:  # on another drive
            relative = None
    return {
        "photo_root": None if root is None else str(root),
        "photo_root_relative": relative,
        "verifier": {k: v for k, v in verifier.get_params().items() if k not in _MACHINE},
        "duplicates": duplicates,
    }


def _plain_parameters(extractor: Any) -> dict[str, Any]:
    """Return an extractor's parameters as JSON gives them back, those of the machine left out."""
    parameters = {k: v for k, v in extractor.get_params(deep=False).items() if k not in _MACHINE}
    plain: dict[str, Any] = json.loads(json.dumps(parameters, default=str))
    return plain

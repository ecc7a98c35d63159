"""L2-normalise, project on the principal components, optionally whiten, L2-normalise again.

fit sees the rows in blocks and keeps a (d, d) covariance, so its memory does not grow with the
number of rows; the eigenvectors are those of sklearn.decomposition.PCA on the normalised rows, the
largest coefficient of each made positive. A row of zeros stays zero before the projection. Source:
Sec. 3.4.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from delfsearch._validation import check_integer

_BLOCK_ROWS = 4096


def l2_normalize(X: NDArray[Any]) -> NDArray[Any]:
    """Return the rows of X scaled to length 1; rows of zeros stay zero."""
    norms = np.sqrt(np.einsum("ij,ij->i", X, X, dtype=np.float64))[:, None]
    result = np.zeros_like(X)
    np.divide(X, norms, out=result, where=norms > 0, casting="same_kind")
    return result


class _Covariance:
    """Mean and scatter of a stream of rows, in float64, merged block by block (Chan et al.)."""

    def __init__(self, dimension: int) -> None:
        self.n = 0
        self.mean = np.zeros(dimension)
        self.scatter = np.zeros((dimension, dimension))

    def add(self, X: NDArray[Any]) -> None:
        for start in range(0, len(X), _BLOCK_ROWS):
            block = l2_normalize(X[start : start + _BLOCK_ROWS].astype(np.float64))
            mean = block.mean(axis=0)
            block -= mean
            shift = mean - self.mean
            n = self.n + len(block)
            self.scatter += block.T @ block
            self.scatter += np.outer(shift, shift) * (self.n * len(block) / n)
            self.mean += shift * (len(block) / n)
            self.n = n


class PcaReduction(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """L2, PCA, optional whitening, L2: the paper's reduction of descriptors, as a transformer.

    n_components : dimensions kept, 1 <= n_components <= min(rows, columns) of the fitted data.
    whiten : divide each component by its standard deviation before the last normalisation.
    Learned: mean_ (d,), components_ (n_components, d), explained_variance_ (n_components,),
    explained_variance_ratio_ (n_components,), n_samples_seen_.
    """

    def __init__(self, n_components: int = 40, *, whiten: bool = False) -> None:
        self.n_components = n_components
        self.whiten = whiten

    def fit(self, X: Any, y: Any = None) -> PcaReduction:
        """Learn mean and components from X (n, d); returns self."""
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        covariance = _Covariance(X.shape[1])
        covariance.add(X)
        return self._learn(covariance)

    def fit_blocks(self, blocks: Iterable[NDArray[Any]]) -> PcaReduction:
        """Learn from an iterable of (n_i, d) blocks, holding one at a time; returns self."""
        covariance: _Covariance | None = None
        for block in blocks:
            if covariance is None:
                covariance = _Covariance(block.shape[1])
            covariance.add(block)
        if covariance is None:
            raise ValueError("blocks must hold at least two rows; got no block")
        self.n_features_in_ = len(covariance.mean)
        return self._learn(covariance)

    def _learn(self, covariance: _Covariance) -> PcaReduction:
        n, d = covariance.n, len(covariance.mean)
        limit = min(n, d)
        k = check_integer(self.n_components, "n_components", minimum=1)
        if k > limit:
            raise ValueError(
                f"n_components must be at most min(n_samples, n_features) = {limit}; got {k} for "
                f"n_samples = {n}, n_features = {d}. Fit on more rows or keep fewer components"
            )
        variances, vectors = np.linalg.eigh(covariance.scatter / (n - 1))
        variances = np.maximum(variances[::-1], 0.0)
        components = vectors[:, ::-1].T[:k]
        largest = np.abs(components).argmax(axis=1)
        signs = np.sign(components[np.arange(k), largest])
        self.mean_ = covariance.mean
        self.components_ = np.ascontiguousarray(components * signs[:, None])
        self.explained_variance_ = variances[:k]
        total = variances.sum()
        self.explained_variance_ratio_ = variances[:k] / total if total > 0 else variances[:k]
        self.n_samples_seen_ = n
        return self

    def transform(self, X: Any) -> NDArray[Any]:
        """Return X (n, d) reduced to (n, n_components), rows of length 1, in X's precision."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        components = self.projection().astype(X.dtype)
        projected = l2_normalize(X) @ components.T
        projected -= components @ self.mean_.astype(X.dtype)
        return l2_normalize(projected)

    def projection(self) -> NDArray[np.float64]:
        """Return (n_components, d), what rows of length 1, less the mean, are multiplied by."""
        check_is_fitted(self)
        components = self.components_
        if self.whiten:
            deviation = np.sqrt(self.explained_variance_)
            floor = max(float(deviation.max(initial=0.0)) * 1e-6, np.finfo(np.float32).tiny)
            components = components / np.maximum(deviation, floor)[:, None]
        return components

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return what transform needs, as float32 arrays; from_arrays restores it."""
        check_is_fitted(self)
        return {
            "pca.mean": self.mean_.astype(np.float32),
            "pca.components": self.components_.astype(np.float32),
            "pca.explained_variance": self.explained_variance_.astype(np.float32),
        }

    @classmethod
    def from_arrays(
        cls, arrays: dict[str, Any], n_components: int | None = None, *, whiten: bool = False
    ) -> PcaReduction:
        """Restore a fitted reduction; n_components keeps only the first ones.

        arrays : pca.mean (d,), pca.components (k, d), pca.explained_variance (k,).
        Raises ValueError where they disagree or hold fewer than n_components.
        """
        mean, components, variance = (
            np.asarray(arrays[f"pca.{name}"], np.float64)
            for name in ("mean", "components", "explained_variance")
        )
        if components.ndim != 2 or mean.shape != components.shape[1:]:
            raise ValueError(
                f"pca.mean and pca.components disagree: shapes {mean.shape}, {components.shape}"
            )
        if variance.shape != components.shape[:1]:
            raise ValueError(f"pca.explained_variance must have {len(components)} elements")
        k = len(components) if n_components is None else n_components
        if k > len(components):
            raise ValueError(
                f"n_components must be at most {len(components)}, what the stored PCA has; got "
                f"{k}: "
                "call fit to learn another"
            )
        reduction = cls(k, whiten=whiten)
        reduction.mean_ = mean
        reduction.components_ = components[:k]
        reduction.explained_variance_ = variance[:k]
        reduction.n_features_in_ = len(mean)
        return reduction

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

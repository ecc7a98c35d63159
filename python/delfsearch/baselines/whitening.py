"""Discriminative whitening, learned from rows that show the same thing.

The differences of matching rows span what must not count: their second moment S is made the
identity by the inverse of its Cholesky factor; a PCA of all rows in that space then puts what
distinguishes them first and may drop the rest. Source: Mikolajczyk and Matas, "Improving
descriptors for fast tree matching by optimal linear projection"; siaMAC uses it as its learned
whitening (Radenovic, Tolias, Chum). Differs: S may be shrunk towards a multiple of the identity,
without which it is singular for fewer pairs than dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from delfsearch._validation import check_integer, check_real
from delfsearch.extraction.reduction import l2_normalize


class DiscriminativeWhitening(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Whiten by the differences of matching rows, rotate by PCA, optionally reduce; L2 at the end.

    n_components : dimensions kept, at most the columns; None keeps all.
    shrinkage : in 0 ... 1, the share of mean(diag(S)) I in the covariance that is whitened.
    normalize : whether transform scales its rows to length 1.
    Learned: mean_ (d,), components_ (n_components, d) so that transform is
    (x - mean_) components_^T before normalisation; n_pairs_.
    """

    def __init__(
        self, n_components: int | None = None, *, shrinkage: float = 0.1, normalize: bool = True
    ) -> None:
        self.n_components = n_components
        self.shrinkage = shrinkage
        self.normalize = normalize

    def fit(self, X: Any, y: Any = None, *, pairs: Any = None) -> DiscriminativeWhitening:
        """Learn from X (n, d) and from what matches in it; returns self.

        y : (n,) labels; every two rows of the same label match.
        pairs : (m, 2) rows that match, instead of y.
        Raises ValueError where neither is given or nothing matches, or S stays singular.
        """
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        n, d = X.shape
        k = d if self.n_components is None else self.n_components
        k = check_integer(k, "n_components", minimum=1)
        if k > d:
            raise ValueError(f"n_components must be at most n_features = {d}; got {k}")
        shrinkage = check_real(self.shrinkage, "shrinkage", minimum=0.0, maximum=1.0)
        if pairs is not None:
            moment, n_pairs, members = _moment_of_pairs(X, pairs)
        elif y is not None:
            moment, n_pairs, members = _moment_of_labels(X, y)
        else:
            raise ValueError(
                "DiscriminativeWhitening requires y to be passed, but the target y is None: give "
                "labels of what matches, or pairs"
            )
        if n_pairs == 0:
            raise ValueError("no two rows match: some label of y must be there at least twice")
        moment = (1 - shrinkage) * moment + shrinkage * np.trace(moment) / d * np.eye(d)
        try:
            factor = np.linalg.cholesky(moment)
        except np.linalg.LinAlgError:
            raise ValueError(
                f"the differences of {n_pairs} pairs do not span {d} dimensions; give more pairs "
                f"or a larger shrinkage than {shrinkage}"
            ) from None
        self.mean_ = X[members].mean(axis=0)
        whitened = np.linalg.solve(factor, (X - self.mean_).T)
        _, vectors = np.linalg.eigh(whitened @ whitened.T / n)
        rotation = vectors[:, ::-1].T[:k]
        components = np.linalg.solve(factor.T, rotation.T).T
        largest = np.abs(components).argmax(axis=1)
        signs = np.sign(components[np.arange(k), largest])
        self.components_ = np.ascontiguousarray(components * signs[:, None])
        self.n_pairs_ = n_pairs
        return self

    def transform(self, X: Any) -> NDArray[Any]:
        """Return X (n, d) as (n, n_components), in X's precision."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        components = self.components_.astype(X.dtype)
        projected = X @ components.T
        projected -= components @ self.mean_.astype(X.dtype)
        return l2_normalize(projected) if self.normalize else projected

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _moment_of_pairs(
    X: NDArray[np.float64], pairs: Any
) -> tuple[NDArray[np.float64], int, NDArray[np.int64]]:
    """Return the mean of d d^T over the pairs' differences, their number, and the rows in them."""
    rows = np.asarray(pairs)
    if rows.ndim != 2 or rows.shape[1] != 2 or (rows.size and rows.dtype.kind not in "iu"):
        raise ValueError(f"pairs must be integers (m, 2); got {rows.dtype} {rows.shape}")
    if rows.size and (rows.min() < 0 or rows.max() >= len(X)):
        raise ValueError(f"pairs must be rows of X, 0 to {len(X) - 1}; got {rows.max()}")
    difference = X[rows[:, 0]] - X[rows[:, 1]]
    moment = difference.T @ difference / max(len(rows), 1)
    return moment, len(rows), np.unique(rows).astype(np.int64)


def _moment_of_labels(
    X: NDArray[np.float64], y: Any
) -> tuple[NDArray[np.float64], int, NDArray[np.int64]]:
    """Return the same over all pairs of rows with the same label, without listing them."""
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.ravel()
    if labels.shape != (len(X),):
        raise ValueError(f"y must have one label per row, ({len(X)},); got {labels.shape}")
    moment = np.zeros((X.shape[1], X.shape[1]))
    n_pairs = 0
    members = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            continue
        # Over all pairs i < j, the sum of (xi - xj)(xi - xj)^T is n times the scatter.
        centred = X[rows] - X[rows].mean(axis=0)
        moment += len(rows) * (centred.T @ centred)
        n_pairs += len(rows) * (len(rows) - 1) // 2
        members.append(rows)
    together = np.concatenate(members) if members else np.zeros(0, np.int64)
    return moment / max(n_pairs, 1), n_pairs, together

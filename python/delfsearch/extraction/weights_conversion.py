"""Any readable weights -> one of our files, with what is known of them set right on the way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from delfsearch.extraction.weights import Weights, load_weights, make_weights, save_weights
from delfsearch.extraction.weights_io.datum import read_pca
from delfsearch.extraction.weights_io.safetensors_files import digest_arrays


def convert_weights(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    layout: str | None = None,
    bn_eps: float | None = None,
    input_mean: Sequence[float] | None = None,
    input_std: Sequence[float] | None = None,
    score_scale: float | None = None,
    pca: str | os.PathLike[str] | None = None,
    provenance: str | None = None,
    licence: str | None = None,
) -> Weights:
    """Read weights of any format and write them as a safetensors file that says all about itself.

    source : as load_weights takes it. target : path of the new file, ending in .safetensors.
    dtype : "float32", "float16" or "bfloat16", of kernels and matrices.
    layout, bn_eps, input_mean, input_std, score_scale, provenance, licence : instead of what the
        source says or its format implies, see Weights.
    pca : a folder of .datum files or an .h5 file, see weights_io/datum.py; instead of the source's.
    Returns the weights as the new file holds them. Raises WeightsError as load_weights does;
    ValueError where the target has another ending.
    """
    path = Path(target)
    if path.suffix != ".safetensors":
        raise ValueError(f"target must end in .safetensors; got {os.fspath(target)!r}")
    weights = load_weights(
        source, layout=layout, bn_eps=bn_eps, input_mean=input_mean, input_std=input_std
    )
    given: dict[str, Any] = {
        "score_scale": score_scale,
        "provenance": provenance,
        "licence": licence,
    }
    meta = {**weights.to_meta(), **{k: v for k, v in given.items() if v is not None}}
    if meta["score_scale"] != weights.score_scale:
        meta["score_meaning"] = ""  # it was that of the other scale
    if pca is not None:
        weights = replace(weights, pca=read_pca(Path(pca)))
    arrays = weights.to_arrays()
    make_weights(arrays, meta, digest_arrays(arrays), os.fspath(source))  # refused before writing
    save_weights(path, arrays, meta, dtype=dtype)
    return load_weights(path)

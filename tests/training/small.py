"""Everything small: a trunk with seeded random weights, drawn photos, short runs on one thread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from random_weights import save_random_weights

from delfsearch.extraction.weights import read_safetensors, save_weights
from delfsearch.training import Matcher, Optimization, RunOptions, Views
from delfsearch.training.processes import Processes

VIEWS = Views(resize_side=54, crop_side=48)
OPTIMIZATION = Optimization(epochs=2, batch_size=4)
# Drawings have fewer inliers than photographs.
CONGAS = Matcher("congas", 15, 8.0, (("n_components", None),))
RUN = RunOptions(n_jobs=1, device="cpu", checkpoint_every=2)


def save_small_weights(path: Path, layout: str = "keras", **more: np.ndarray) -> Path:
    """Write random weights whose features neither vanish nor explode; more: further tensors."""
    save_random_weights(path)
    arrays, meta = read_safetensors(path)
    rng = np.random.default_rng(1)
    for name, array in arrays.items():
        if name.endswith("running_var"):
            arrays[name] = rng.uniform(0.8, 1.2, array.shape).astype(np.float32)
        elif "bn" in name or "downsample.1" in name:
            low, high = (-0.1, 0.1) if not name.endswith("weight") else (0.8, 1.2)
            if "bn3" in name and name.endswith("weight"):
                low, high = 0.2, 0.4
            arrays[name] = rng.uniform(low, high, array.shape).astype(np.float32)
    meta = {key: value for key, value in meta.items() if key != "sha256"}
    save_weights(path, {**arrays, **more}, {**meta, "layout": layout})
    return path


class Apart(Processes):
    """The first of two processes, of which the other one finds no folder."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.count = 2

    def joined(self, items):
        return [*items, "no such folder"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are equal to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


def stop_after(step: int):
    """A progress callback that stops a run after a step, as Ctrl-C does."""

    def progress(what: str, done: int, total: int) -> None:
        if what == "steps" and done >= step:
            raise KeyboardInterrupt

    return progress


PCA = {
    "pca.mean": np.full(1024, 0.02, np.float32),
    "pca.components": np.eye(8, 1024, dtype=np.float32),
    "pca.explained_variance": np.linspace(1, 0.1, 8).astype(np.float32),
}

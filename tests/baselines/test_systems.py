"""Every system by name, behind the same two interfaces."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from random_weights import save_random_weights
from test_learned_features import aliked_tensors, xfeat_tensors

from delfsearch import DelfIndex, LocalFeatures, Verifier
from delfsearch.baselines import SYSTEMS, GlobalIndex, load_system
from delfsearch.baselines.feature_files import write_features
from delfsearch.errors import PhotoError


@pytest.fixture(scope="module")
def options(tmp_path_factory, resnet_path, vgg_path, photo_paths):
    """What each name needs to run without a download."""
    folder = tmp_path_factory.mktemp("systems")
    torch.save(xfeat_tensors(), folder / "xfeat.pth")
    torch.save(aliked_tensors(), folder / "aliked.pth")
    one = LocalFeatures(np.zeros((3, 2), np.float32), np.eye(3, dtype=np.float32))
    write_features(folder / "f.h5", {path.name: one for path in photo_paths})
    names = np.array([path.name for path in photo_paths])
    np.savez(folder / "v.npz", names=names, vectors=np.eye(6, dtype=np.float32))
    root = photo_paths[0].parent
    n_jobs, few = {"n_jobs": 1}, {"n_components": 4}
    dir_ = {"weights": resnet_path, "sides": (64, 96), "n_components": 8, **n_jobs}
    siamac = {"weights": vgg_path, **few, **n_jobs}
    weights = save_random_weights(folder / "random.safetensors")
    return {
        "delf": {"weights": weights, "scales": (1.0,), "max_features": 50, **few, **n_jobs},
        "dir": dir_,
        "dir+qe": dir_,
        "siamac": siamac,
        "siamac+qe": siamac,
        "congas": {"threshold": 0.003, **few, **n_jobs},
        "sift": n_jobs,
        "rootsift": n_jobs,
        "xfeat": {"weights": folder / "xfeat.pth", "detection_threshold": 0.0, **n_jobs},
        "aliked": {"weights": folder / "aliked.pth", **n_jobs},
        "lift": {"folder": folder},
        "features": {"path": folder / "f.h5", "root": root, "name": "features"},
        "vectors": {"path": folder / "v.npz", "root": root, "name": "vectors"},
    }


@pytest.mark.parametrize("name", SYSTEMS)
def test_one_interface(name, options, photo_paths):
    system = load_system(name, **options[name])
    assert system.name == name
    assert system.kind in ("local", "global") and system.needs in ("nothing", "photos", "labels")
    assert isinstance(system.ran, str) and system.ran
    labels = [0, 0, 1, 1, 2, 2] if system.needs == "labels" else None
    assert system.fit(photo_paths, labels) is system
    assert system.needs == "nothing"
    results = list(system.stream(photo_paths))
    assert [photo for photo, _ in results] == photo_paths
    values = [value for _, value in results]
    if name == "lift":  # no files here
        assert all(isinstance(value, PhotoError) for value in values)
    elif system.kind == "local":
        assert all(isinstance(value, LocalFeatures) for value in values)
        assert system.max_squared_distance is None
        index = DelfIndex(max_squared_distance=system.max_squared_distance).fit(values)
        hits = Verifier(min_inliers=3).verify(index.query(values[0], k=6))
        if name not in ("features",):  # three points at one place are no match
            assert hits[0].id == 0
    else:
        vectors = np.stack(values)
        assert vectors.dtype == np.float32 and vectors.ndim == 2
        assert system.query_expansion == (1 if name.endswith("+qe") else 0)
        scores, ids = (
            GlobalIndex().fit(vectors).query(vectors, k=3, query_expansion=system.query_expansion)
        )
        if not system.query_expansion:
            assert ids[:, 0].tolist() == list(range(6))
        assert scores.shape == (6, 3)


def test_names_and_contradictions():
    assert SYSTEMS[:10] == (
        "delf",
        "dir",
        "dir+qe",
        "siamac",
        "siamac+qe",
        "congas",
        "sift",
        "rootsift",
        "xfeat",
        "aliked",
    )
    with pytest.raises(ValueError, match="name must be one of"):
        load_system("surf")
    with pytest.raises(ValueError, match="means root=True"):
        load_system("rootsift", root=False)
    assert load_system("sift").root is False
    assert load_system("dir+qe").query_expansion == 1
    with pytest.raises(TypeError):
        load_system("congas", n_octaves=3)


def test_min_inliers_are_suggested_where_they_were_measured():
    suggested = {
        name: load_system(name).suggested_min_inliers
        for name in ("delf", "congas", "sift", "rootsift", "xfeat", "aliked")
    }
    assert suggested == {
        "delf": None,
        "congas": 19,
        "sift": None,
        "rootsift": 47,
        "xfeat": 79,
        "aliked": None,
    }
    assert load_system("congas", n_components=None).suggested_min_inliers is None
    assert load_system("rootsift", n_components=40).suggested_min_inliers is None
    assert load_system("xfeat", weights="other.pth").suggested_min_inliers is None


def test_importing_loads_no_torch():
    code = "import sys, delfsearch.baselines; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

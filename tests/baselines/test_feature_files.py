"""Reading and writing other tools' files: hloc's HDF5, NPZ, LIFT's output."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delfsearch import LocalFeatures
from delfsearch.baselines.feature_files import (
    FeatureFile,
    StoredFeatures,
    StoredVectors,
    read_npz,
    read_vectors,
    write_features,
    write_npz,
)
from delfsearch.baselines.lift import LiftFeatures, read_lift
from delfsearch.errors import PhotoError


def features(n: int = 7, d: int = 5, seed: int = 0, dtype=np.float32) -> LocalFeatures:
    generator = np.random.default_rng(seed)
    descriptors = generator.uniform(0, 1 if dtype == np.float32 else 255, (n, d)).astype(dtype)
    return LocalFeatures(
        generator.uniform(-0.5, 600, (n, 2)).astype(np.float32),
        descriptors,
        generator.uniform(size=n).astype(np.float32),
        generator.uniform(1, 4, n).astype(np.float32),
        (640, 480),
    )


def same(a: LocalFeatures, b: LocalFeatures, tolerance: float = 0.0) -> None:
    assert a.descriptors.dtype == b.descriptors.dtype and a.image_size == b.image_size
    for name in ("keypoints_xy", "descriptors", "scores", "scales"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_hloc_round_trip(tmp_path, dtype):
    path = tmp_path / "features.h5"
    written = {
        "db/a.jpg": features(7, 5, 0, dtype),
        "db/deep/b ü.jpg": features(1, 5, 1, dtype),
        "query.jpg": features(0, 5, 2, dtype),
    }
    write_features(path, written)
    file = FeatureFile(path)
    assert file.names() == sorted(written)
    for name, expected in written.items():
        same(file.read(name), expected)
    assert [name for name, _ in file] == sorted(written)
    # Written again, a photo is replaced and the others stay.
    write_features(path, [("db/a.jpg", features(3, 5, 9, dtype))])
    assert len(file.read("db/a.jpg")) == 3 and len(file.read("db/deep/b ü.jpg")) == 1


@given(st.integers(0, 6), st.integers(1, 6), st.booleans())
@settings(max_examples=20, deadline=None)
def test_any_shape_round_trips(tmp_path_factory, n, d, half):
    path = tmp_path_factory.mktemp("h5") / "f.h5"
    written = features(n, d, n + 10 * d)
    write_features(path, {"a": written}, half=half)
    same(FeatureFile(path).read("a"), written, 2e-3 if half else 0.0)


def hloc_file(path, **arrays):
    """A file as hloc writes it: half precision, descriptors in columns."""
    with h5py.File(path, "w") as file:
        group = file.create_group("db/1.jpg")
        for name, array in arrays.items():
            group[name] = array
    return path


def test_what_hloc_writes(tmp_path):
    path = hloc_file(
        tmp_path / "f.h5",
        keypoints=np.array([[10.5, 20.0], [0.0, 3.0], [1.0, 1.0]], np.float16),
        descriptors=np.arange(6, dtype=np.float16).reshape(2, 3),
        scores=np.array([0.5, 0.25, 1.0], np.float16),
        image_size=np.array([640, 480]),
        oris=np.zeros(3),
    )
    read = FeatureFile(path).read("db/1.jpg")
    assert read.keypoints_xy.tolist() == [[10.5, 20.0], [0.0, 3.0], [1.0, 1.0]]
    assert read.descriptors.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert read.descriptors.dtype == np.float32
    assert read.scores.tolist() == [0.5, 0.25, 1.0] and read.scales.tolist() == [1, 1, 1]
    assert read.image_size == (640, 480)
    shifted = FeatureFile(path, centres="half").read("db/1.jpg")
    assert (shifted.keypoints_xy == read.keypoints_xy - 0.5).all()


def test_rows_and_columns_are_not_guessed(tmp_path):
    path = hloc_file(tmp_path / "f.h5", keypoints=np.zeros((3, 2)), descriptors=np.zeros((3, 8)))
    with pytest.raises(ValueError, match="layout='rows'"):
        FeatureFile(path).read("db/1.jpg")
    assert FeatureFile(path, layout="rows").read("db/1.jpg").dimension == 8


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"keypoints": np.zeros((2, 2))}, "must hold the dataset descriptors"),
        ({"keypoints": np.zeros(4), "descriptors": np.zeros((5, 2))}, r"must be \(n, 2\)"),
        ({"keypoints": np.zeros((2, 2)), "descriptors": np.zeros(4)}, "must be 2-D"),
        ({"keypoints": np.zeros((2, 2)), "descriptors": np.zeros((5, 3))}, r"\(d, n\)"),
        ({"keypoints": np.full((2, 2), np.nan), "descriptors": np.zeros((5, 2))}, "finite"),
        (
            {"keypoints": np.zeros((2, 2)), "descriptors": np.zeros((5, 2)), "scores": np.ones(3)},
            "scores",
        ),
        (
            {
                "keypoints": np.zeros((2, 2)),
                "descriptors": np.zeros((5, 2)),
                "image_size": np.ones(3),
            },
            "image_size",
        ),
        ({"keypoints": np.array([[b"a", b"b"]]), "descriptors": np.zeros((5, 1))}, "numbers"),
    ],
)
def test_malformed_groups_are_refused(tmp_path, arrays, message):
    path = hloc_file(tmp_path / "f.h5", **arrays)
    with pytest.raises(ValueError, match=message):
        FeatureFile(path).read("db/1.jpg")


def test_links_lead_nowhere(tmp_path):
    other = tmp_path / "other.h5"
    write_features(other, {"secret": features()})
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("a")
        group["keypoints"] = h5py.ExternalLink(str(other), "/secret/keypoints")
        group["descriptors"] = h5py.ExternalLink(str(other), "/secret/descriptors")
    assert FeatureFile(path).names() == []
    with pytest.raises(ValueError, match="must hold"):
        FeatureFile(path).read("a")


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="not there"):
        FeatureFile(tmp_path / "absent.h5")
    (tmp_path / "no.h5").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a readable HDF5"):
        FeatureFile(tmp_path / "no.h5")
    write_features(tmp_path / "f.h5", {"a": features()})
    with pytest.raises(KeyError):
        FeatureFile(tmp_path / "f.h5").read("b")
    with pytest.raises(ValueError, match="layout must be one of"):
        FeatureFile(tmp_path / "f.h5", layout="hloc")
    with pytest.raises(ValueError, match="centres must be one of"):
        FeatureFile(tmp_path / "f.h5", centres="0")


def test_npz_round_trip_and_other_names(tmp_path):
    written = features()
    write_npz(tmp_path / "a.npz", written)
    same(read_npz(tmp_path / "a.npz"), written)
    np.savez(tmp_path / "b.npz", keypoints=written.keypoints_xy, descriptors=written.descriptors.T)
    with pytest.raises(ValueError, match="layout='columns'"):
        read_npz(tmp_path / "b.npz")
    assert (read_npz(tmp_path / "b.npz", layout="columns").descriptors == written.descriptors).all()


class Hostile:
    ran: tuple[str, ...] = ()

    def __reduce__(self):
        return (setattr, (Hostile, "ran", ("executed",)))


def test_hostile_npz_is_refused(tmp_path):
    np.savez(tmp_path / "h.npz", keypoints=np.array([Hostile()]), descriptors=np.zeros((1, 2)))
    with pytest.raises(ValueError, match="not a readable NPZ"):
        read_npz(tmp_path / "h.npz")
    assert Hostile.ran == ()
    (tmp_path / "no.npz").write_bytes(b"PK\x03\x04broken")
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npz").write_bytes((tmp_path / "one.npy").read_bytes())
    for name in ("no.npz", "one.npz"):
        with pytest.raises(ValueError, match="not a readable NPZ"):
            read_npz(tmp_path / name)
    np.savez(tmp_path / "few.npz", keypoints=np.zeros((1, 2)))
    with pytest.raises(ValueError, match="must hold descriptors"):
        read_npz(tmp_path / "few.npz")


def test_stored_features_as_a_system(tmp_path):
    photos = [tmp_path / "photos" / "db" / f"{i}.jpg" for i in range(3)]
    written = {f"db/{i}.jpg": features(3 + i, 4, i) for i in range(2)}
    write_features(tmp_path / "f.h5", written)
    folder = tmp_path / "npz"
    (folder / "db").mkdir(parents=True)
    for name, photo in written.items():
        write_npz(folder / f"{name}.npz", photo)
    for path in (tmp_path / "f.h5", folder):
        system = StoredFeatures(path, root=tmp_path / "photos", name="mine").fit([])
        assert (system.name, system.kind, system.needs) == ("mine", "local", "nothing")
        assert path.name in system.ran
        results = list(system.stream(photos))
        assert [photo for photo, _ in results] == photos
        same(results[0][1], written["db/0.jpg"])
        same(results[1][1], written["db/1.jpg"])
        assert isinstance(results[2][1], PhotoError)
    by_name = StoredFeatures(tmp_path / "f.h5")
    same(next(by_name.stream(["db/1.jpg"]))[1], written["db/1.jpg"])
    with pytest.raises(ValueError, match="does not lie in root"):
        list(StoredFeatures(tmp_path / "f.h5", root=tmp_path / "photos").stream(["/elsewhere.jpg"]))
    with pytest.raises(TypeError, match="by path"):
        list(by_name.stream([np.zeros((4, 4))]))


def test_stored_vectors(tmp_path):
    X = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    names = ["a.jpg", "b/c.jpg", "d.jpg"]
    np.savez(tmp_path / "v.npz", names=np.array(names), vectors=X)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        for name, vector in zip(names, X):
            file.create_group(name)["global_descriptor"] = vector
    for path in (tmp_path / "v.npz", tmp_path / "v.h5"):
        assert sorted(read_vectors(path)) == names
        system = StoredVectors(path, query_expansion=1).fit([])
        results = [vector for _, vector in system.stream([*names, "e.jpg"])]
        assert (np.stack(results[:3]) == X).all()
        assert isinstance(results[3], PhotoError)
        assert (system.kind, system.query_expansion) == ("global", 1)
    np.savez(tmp_path / "bad.npz", names=np.array(names[:2]), vectors=X)
    with pytest.raises(ValueError, match="2 names for 3 vectors"):
        read_vectors(tmp_path / "bad.npz")
    np.savez(tmp_path / "bad.npz", vectors=X)
    with pytest.raises(ValueError, match="must hold names"):
        read_vectors(tmp_path / "bad.npz")
    with h5py.File(tmp_path / "v.h5", "a") as file:
        file.create_group("f.jpg")["global_descriptor"] = np.zeros(4)
    with pytest.raises(ValueError, match="one dimension"):
        read_vectors(tmp_path / "v.h5")


def write_lift(path, n=4, columns=13, seed=0):
    generator = np.random.default_rng(seed)
    keypoints = np.zeros((n, columns))
    keypoints[:, :2] = generator.uniform(0, 300, (n, 2))
    keypoints[:, 2] = [3.2, 1.6, 6.4, 4.8][:n]
    keypoints[:, 4] = [0.1, 0.9, 0.5, 0.9][:n]
    descriptors = generator.normal(size=(n, 128)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["keypoints"], file["descriptors"] = keypoints, descriptors
    return keypoints, descriptors


def test_lift_files(tmp_path):
    keypoints, descriptors = write_lift(tmp_path / "1_desc.h5")
    read = read_lift(tmp_path / "1_desc.h5")
    order = [1, 3, 2, 0]  # by response, ties in the file's order
    np.testing.assert_allclose(read.keypoints_xy, keypoints[order, :2], rtol=1e-6)
    assert (read.descriptors == descriptors[order]).all()
    np.testing.assert_allclose(read.scales, [1.0, 3.0, 4.0, 2.0])
    np.testing.assert_allclose(read.scores, [0.9, 0.9, 0.5, 0.1])
    system = LiftFeatures(tmp_path, max_features=2).fit([])
    (_, first), (_, second) = system.stream([tmp_path / "1.jpg", tmp_path / "2.jpg"])
    assert len(first) == 2 and isinstance(second, PhotoError)
    assert (system.name, system.kind, system.needs) == ("lift", "local", "nothing")
    nested = tmp_path / "sub" / "1.lift.h5"
    nested.parent.mkdir()
    write_lift(nested)
    by_path = LiftFeatures(tmp_path, pattern="{path}.lift.h5", root=tmp_path)
    assert len(next(by_path.stream([tmp_path / "sub" / "1.jpg"]))[1]) == 4


def test_malformed_lift_files(tmp_path):
    write_lift(tmp_path / "few.h5", columns=3 + 2)
    assert len(read_lift(tmp_path / "few.h5")) == 4
    with h5py.File(tmp_path / "no.h5", "w") as file:
        file["keypoints"], file["descriptors"] = np.zeros((2, 2)), np.zeros((2, 128))
    with pytest.raises(ValueError, match=r"\(n, 13\)"):
        read_lift(tmp_path / "no.h5")
    with h5py.File(tmp_path / "no.h5", "w") as file:
        file["keypoints"], file["descriptors"] = np.zeros((2, 13)), np.zeros((128, 2))
    with pytest.raises(ValueError, match=r"\(n, 128\)"):
        read_lift(tmp_path / "no.h5")
    with pytest.raises(ValueError, match="not there"):
        read_lift(tmp_path / "absent.h5")

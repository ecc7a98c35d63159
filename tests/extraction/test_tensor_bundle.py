"""The reader of TensorFlow's bundles: golden files of TensorFlow, damage, hostile numbers."""

from __future__ import annotations

import shutil
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensor_bundles import (
    GOLDEN,
    block,
    entry,
    finished,
    golden_tensors,
    header,
    message,
    partitioned,
    sealed,
    shape_message,
    table,
    varint,
    write_bundle,
)

from delfsearch import WeightsError
from delfsearch.extraction.weights_io import crc32c as crc32c_module
from delfsearch.extraction.weights_io.crc32c import crc32c, mask, unmask
from delfsearch.extraction.weights_io.graph_def import read_operations
from delfsearch.extraction.weights_io.object_graph import GRAPH_KEY, ObjectGraph
from delfsearch.extraction.weights_io.protobuf import Malformed
from delfsearch.extraction.weights_io.snappy import decompress
from delfsearch.extraction.weights_io.sstable import read_table
from delfsearch.extraction.weights_io.tensor_bundle import TensorBundle, slice_key

# -- checksums ---------------------------------------------------------------------------------


def slow_crc32c(data: bytes) -> int:
    """The definition, bit by bit."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def test_crc32c_is_the_published_one():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0 and crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    data = np.random.default_rng(0).integers(0, 256, 40_000, np.uint8).tobytes()
    for n in (*range(60, 140), 255, 1023, 4097, 40_000):
        assert crc32c(data[:n]) == slow_crc32c(data[:n]), n


def test_crc32c_in_many_rounds(monkeypatch):
    # 16 MiB are dealt with at a time, here 32 bytes; the next round continues the same register.
    monkeypatch.setattr(crc32c_module, "_MAX_LANES", 4)
    monkeypatch.setattr(crc32c_module, "_MAX_LENGTH", 8)
    data = np.random.default_rng(1).integers(0, 256, 1000, np.uint8).tobytes()
    for n in (65, 96, 97, 500, 1000):
        assert crc32c(data[:n]) == slow_crc32c(data[:n]), n


@given(st.integers(0, 2**32 - 1))
def test_masks_undo_each_other(checksum):
    assert unmask(mask(checksum)) == checksum


# -- what TensorFlow wrote ---------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["single", "sharded"])
def test_golden_checkpoints(prefix):
    bundle = TensorBundle(GOLDEN / prefix)
    expected = {**golden_tensors(), **partitioned()}
    assert set(bundle) == set(expected) and len(bundle) == len(expected)
    for name, values in expected.items():
        array = bundle.array(name)
        assert array.dtype == values.dtype and array.shape == values.shape, name
        assert array.tobytes() == np.asarray(values).tobytes(), name
    assert bundle["rows"].slices == (((0, 4), (0, 7)), ((4, 3), (0, 7)), ((7, 3), (0, 7)))
    assert len({bundle[name].shard for name in golden_tensors()}) == (
        2 if prefix != "single" else 1
    )


@pytest.mark.parametrize(
    ("prefix", "path"), [("objects", ("model",)), ("saved/variables/variables", ())]
)
def test_golden_object_graphs(prefix, path):
    bundle = TensorBundle(GOLDEN / prefix)
    graph = ObjectGraph(bundle.string(GRAPH_KEY))
    root = graph.follow(0, *path)
    by_name = ObjectGraph.from_names(list(bundle))
    for number, layer in ((1.0, "first"), (2.0, "second")):
        key = graph.tensor(root, "backbone", layer, "kernel")
        assert (bundle.array(key) == number).all() and bundle.array(key).shape == (1, 1, 2, 2)
        assert by_name.tensor(0, *path, "backbone", layer, "kernel") == key
    assert bundle.array(graph.tensor(root, "steps")) == 7
    assert graph.tensor(root, "backbone", "third", "kernel") is None
    assert set(graph.breadth_first()) == set(range(len(graph.nodes)))


def test_golden_graph():
    found = {op.kind: op for op in read_operations(GOLDEN / "saved/saved_model.pb")}
    assert found["Conv2D"].stride == 2 and found["Conv2D"].name == "conv"
    assert (found["MaxPool"].window, found["MaxPool"].stride) == (1, 2)
    assert found["FusedBatchNormV3"].epsilon == np.float32(0.003)


# -- what the writer of the tests writes -------------------------------------------------------

ARRAYS = {f"layer_{i:03d}/weights": np.full((3, i % 4), i, np.float32) for i in range(40)}


@pytest.mark.parametrize("snappy", [False, True])
@pytest.mark.parametrize("per_block", [1, 7, 1000])
def test_many_blocks_and_snappy(tmp_path, per_block, snappy):
    write_bundle(tmp_path / "b", ARRAYS, per_block=per_block, snappy=snappy)
    bundle = TensorBundle(tmp_path / "b")
    assert {name: bundle.array(name).tobytes() for name in bundle} == {
        name: array.tobytes() for name, array in ARRAYS.items()
    }


def test_strings(tmp_path):
    write_bundle(tmp_path / "b", ARRAYS, strings={"s": b"text", "long": b"x" * 1000})
    bundle = TensorBundle(tmp_path / "b")
    assert bundle.string("s") == b"text" and bundle.string("long") == b"x" * 1000
    with pytest.raises(WeightsError, match="dtype string is not supported"):
        bundle.array("s")
    with pytest.raises(WeightsError, match=r"a float32 of shape \(3, 1\), not a string"):
        bundle.string("layer_001/weights")
    with pytest.raises(KeyError):
        bundle.array("absent")


@given(
    st.dictionaries(st.binary(min_size=1, max_size=12), st.binary(max_size=20), max_size=30),
    st.integers(1, 8),
    st.booleans(),
)
def test_tables_round_trip(pairs, per_block, snappy):
    data = table(pairs, per_block=per_block, snappy=snappy)
    assert read_table(memoryview(data)) == pairs


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_slice_keys_keep_the_order_of_numbers(a, b):
    keys = [slice_key(b"name", ((value, 1),)) for value in (a, b)]
    assert (keys[0] < keys[1]) == (a < b)


def test_slice_keys_of_names_with_special_bytes():
    assert slice_key(b"a\0b\xff", ((0, None),)) == (
        b"\0a\0\xffb\xff\0\0\x01\x01\x01" + bytes([0x80, 0x7F])
    )


# -- refusals ----------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
    """Return a copy of the golden checkpoint that may be damaged."""
    for file in GOLDEN.glob("single.*"):
        shutil.copy(file, tmp_path)
    return tmp_path / "single"


def read_everything(prefix):
    bundle = TensorBundle(prefix)
    return {name: bundle.array(name) for name in bundle}


def test_every_cut_of_the_index_is_refused(copy):
    index = copy.with_name("single.index")
    whole = index.read_bytes()
    for n in range(0, len(whole), 13):
        index.write_bytes(whole[:n])
        with pytest.raises(
            WeightsError, match=r"single\.index is not a whole index .*Copy it again"
        ):
            read_everything(copy)


def test_every_flip_of_the_index_is_refused_or_harmless(copy):
    index = copy.with_name("single.index")
    whole = index.read_bytes()
    expected = {name: a.tobytes() for name, a in read_everything(copy).items()}
    n_refused = 0
    for at in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[at] ^= 0x10
        index.write_bytes(bytes(flipped))
        try:
            # Only the metaindex and the footer's padding are not looked at.
            assert {n: a.tobytes() for n, a in read_everything(copy).items()} == expected
        except WeightsError:
            n_refused += 1
    assert n_refused > 0.9 * len(range(0, len(whole), 7))


def test_damaged_and_missing_data(copy):
    data = copy.with_name("single.data-00000-of-00001")
    whole = data.read_bytes()
    at = TensorBundle(copy)["float32"].offset
    data.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    bundle = TensorBundle(copy)
    with pytest.raises(WeightsError, match=r"'float32' .*do not match their checksum: copy single"):
        bundle.array("float32")
    assert bundle.array("int64")[1] == 1 << 40  # what is not damaged can be had
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"which has \d+: it is cut off, copy it again"):
        read_everything(copy)
    data.unlink()
    with pytest.raises(WeightsError, match=r"cannot read .*single\.data-00000-of-00001"):
        read_everything(copy)
    with pytest.raises(WeightsError, match=r"cannot read .*absent\.index"):
        TensorBundle(copy.with_name("absent"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header(endianness=1), "big-endian machine, which is not supported"),
        (header(version=message((1, 2), (2, 2))), "newer format"),
        (header(version=message((1, 2), (3, 1))), "newer format"),
        (header(n_shards=0), "names 0 data files"),
        (header(n_shards=-1), "data files"),
        (b"\x0a", "past the end"),
        (b"\x0b", "wire type 3"),
        (b"\x00\x00", "number 0"),
    ],
)
def test_headers(tmp_path, content, words):
    write_bundle(tmp_path / "b", {}, extra={b"": content})
    with pytest.raises(WeightsError, match=words):
        TensorBundle(tmp_path / "b")


def test_no_header(tmp_path):
    (tmp_path / "b.index").write_bytes(table({b"name": entry(1, (2,), 0, 8, 0)}))
    with pytest.raises(WeightsError, match="no header entry"):
        TensorBundle(tmp_path / "b")


HUGE = 1 << 60


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (entry(1, (HUGE,), 0, 4 * HUGE, 0), "cut off"),
        (entry(1, (2, 2), 0, 12, 0), r"float32 of shape \(2, 2\) does not have 12 bytes"),
        (entry(1, (2,), 0, 8, 0), "checksum"),
        (entry(1, (2,), 1 << 62, 8, 0), "cut off"),
        (entry(1, (2,), 0, 8, 0, shard=3), "shard 3 of 1"),
        (entry(1, (HUGE, 0), 0, 0, 0), "it is empty, of shape"),
        (entry(21, (), 0, 8, 0), "dtype variant is not supported"),
        (entry(99, (), 0, 8, 0), "dtype number 99"),
        (entry(10, (2,), 0, 2, slow_crc32c(b"\0\2")), "neither 0 nor 1"),
    ],
)
def test_entries_are_not_believed(tmp_path, content, words):
    write_bundle(
        tmp_path / "b", {"a": np.frombuffer(b"\0\2" + bytes(6), "<i4")}, extra={b"t": content}
    )
    with pytest.raises(WeightsError, match=f"tensor 't' of the checkpoint .*{words}"):
        TensorBundle(tmp_path / "b").array("t")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (message((1, 1), (2, shape_message([1] * 40)), (5, 4)), "has the shape"),
        (message((1, 1), (2, shape_message([-1]))), "has the shape"),
        (message((1, 1), (2, message((3, 1)))), "unknown rank"),
        (message((1, 1), (4, -5)), "negative"),
        (b"\xff" * 12, "64 bits"),
    ],
)
def test_malformed_entries(tmp_path, content, words):
    write_bundle(tmp_path / "b", {}, extra={b"t": content})
    with pytest.raises(WeightsError, match=words):
        TensorBundle(tmp_path / "b")


WHOLE = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize(
    ("slices", "words"),
    [
        ([((0, 2), (0, None)), ((2, 2), (0, None))], None),
        ([((0, None), (0, 1)), ((0, None), (1, 2))], None),
        ([((0, 2), (0, None))], "do not tile"),
        ([((0, 2), (0, None)), ((1, 2), (0, None))], "overlap"),
        ([((0, 4), (0, 2)), ((0, 2), (1, 2))], "overlap"),
        ([((0, 4),), ((0, 4),)], "does not fit"),
    ],
)
def test_slices(tmp_path, slices, words):
    write_bundle(tmp_path / "b", {"p": WHOLE}, slices={"p": slices})
    bundle = TensorBundle(tmp_path / "b")
    assert list(bundle) == ["p"]
    if words is None:
        np.testing.assert_array_equal(bundle.array("p"), WHOLE)
    else:
        with pytest.raises(WeightsError, match=words):
            bundle.array("p")


def test_slices_of_a_huge_tensor(tmp_path):
    extent = message((1, message((1, 0), (2, HUGE))))
    whole = message((1, 1), (2, shape_message([HUGE])), (7, extent))
    part = entry(1, (HUGE,), 0, 4 * HUGE, 0)
    key = slice_key(b"p", ((0, HUGE),))
    write_bundle(tmp_path / "b", {"a": WHOLE}, extra={b"p": whole, key: part})
    with pytest.raises(WeightsError, match="larger than the data files"):
        TensorBundle(tmp_path / "b").array("p")
    write_bundle(tmp_path / "c", {"a": WHOLE}, extra={b"p": whole})
    with pytest.raises(WeightsError, match="one of its slices is missing"):
        TensorBundle(tmp_path / "c").array("p")


def refuse_table(data: bytes, words: str) -> None:
    with pytest.raises(Malformed, match=words):
        read_table(memoryview(data))


def test_tables_that_are_wrong_under_right_checksums():
    good = block([(b"a", b"1"), (b"b", b"2")])

    def of(*blocks: bytes, kind: int = 0) -> bytes:
        out, handles = b"", []
        for i, content in enumerate(blocks):
            handles.append((b"%d" % i, varint(len(out)) + varint(len(content))))
            out += sealed(content, kind)
        return finished(out, handles)

    assert read_table(memoryview(of(good))) == {b"a": b"1", b"b": b"2"}
    refuse_table(of(good, good), "out of order")
    again = [(key, varint(0) + varint(len(good))) for key in (b"0", b"1")]
    refuse_table(finished(sealed(good), again), "overlap")
    refuse_table(of(good, kind=7), "compression type 7")
    refuse_table(of(good[:3]), "too short")
    refuse_table(of(good[:-4] + struct.pack("<I", 99)), "more restart points")
    refuse_table(of(varint(5) + good[1:]), "past its block")
    refuse_table(b"x" * 48, "magic number")
    refuse_table(b"", "fewer than a footer")


def test_tables_that_unfold_without_end():
    # A long key, then entries of four bytes that share all of it.
    long_key = b"k" * 100_000
    entries = varint(0) + varint(len(long_key)) + varint(0) + long_key
    entries += b"".join(varint(len(long_key)) + b"\x01\x00" + b"z" for _ in range(2000))
    data = entries + struct.pack("<2I", 0, 1)
    refuse_table(finished(sealed(data), [(b"x", varint(0) + varint(len(data)))]), "64 MiB|order")
    claims = varint(1 << 40) + b"\x00a"
    refuse_table(finished(sealed(claims, 1), [(b"x", varint(0) + varint(len(claims)))]), "claims")


# -- snappy ------------------------------------------------------------------------------------


def unsnap(data: bytes) -> bytes:
    return decompress(memoryview(data), max_bytes=1 << 20)


def test_snappy_streams():
    # Literal "abcd", then copies with 1-, 2- and 4-byte offsets, one of which overlaps itself.
    stream = varint(4 + 4 + 6 + 10) + bytes([3 << 2]) + b"abcd" + bytes([0 << 2 | 1, 4])
    stream += bytes([5 << 2 | 2, 2, 0]) + bytes([9 << 2 | 3, 1, 0, 0, 0])
    assert unsnap(stream) == b"abcd" + b"abcd" + b"cdcdcd" + b"d" * 10
    long = bytes(range(256)) * 2
    assert unsnap(varint(512) + bytes([61 << 2]) + struct.pack("<H", 511) + long) == long
    assert unsnap(b"\0") == b""


@pytest.mark.parametrize(
    "stream",
    [
        varint(4) + bytes([3 << 2]) + b"abc",  # literal cut off
        varint(4) + bytes([61 << 2, 1]),  # its length cut off
        varint(3) + bytes([3 << 2]) + b"abcd",  # longer than said
        varint(9) + bytes([3 << 2]) + b"abcd",  # shorter than said
        varint(8) + bytes([3 << 2]) + b"abcd" + bytes([1, 5]),  # copy from before the start
        varint(8) + bytes([3 << 2]) + b"abcd" + bytes([1, 0]),  # copy of itself
        varint(1 << 30),
        b"",
    ],
)
def test_damaged_snappy_streams(stream):
    with pytest.raises(Malformed):
        unsnap(stream)


def test_damaged_graphs(tmp_path):
    whole = (GOLDEN / "saved/saved_model.pb").read_bytes()
    path = tmp_path / "saved_model.pb"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="not a whole TensorFlow graph"):
        read_operations(path)
    node = message((1, message((1, b"a"), (1, b"b"))), (2, message((1, b"x"), (2, b"Conv2D"))))
    (tmp_path / "b.meta").write_bytes(message((2, message((1, node)))))
    assert read_operations(tmp_path / "b.meta") == []
    with pytest.raises(WeightsError, match="cannot read"):
        read_operations(tmp_path / "absent.meta")
    with pytest.raises(Malformed, match="not there"):
        ObjectGraph(message((1, message((1, message((1, 5), (2, b"child")))))))

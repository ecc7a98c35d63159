"""Plain data comes out of a pickle as Python's own unpickler gives it; nothing else comes out.

Hostile pickles would write a file if run; the tests look that it is not there.
"""

from __future__ import annotations

import collections
import functools
import operator
import os
import pickle
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets import plain_pickle
from delfsearch.evaluation.datasets.plain_pickle import load_plain_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
keys = st.text() | st.integers() | st.binary()
plain = st.recursive(
    atoms | st.sets(keys, max_size=4) | st.frozensets(keys, max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=15,
)


@given(plain, st.sampled_from(PROTOCOLS))
def test_plain_data_is_read_as_pickle_reads_it(value, protocol):
    content = pickle.dumps(value, protocol=protocol)
    assert load_plain_pickle(content) == pickle.loads(content) == value


@given(plain, st.integers(1500, 5000), st.sampled_from(PROTOCOLS))
@settings(max_examples=10)
def test_long_lists_come_in_batches(value, count, protocol):
    long = [value] * count + list(range(count))
    assert load_plain_pickle(pickle.dumps(long, protocol=protocol)) == long


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.arange(5),
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
        np.zeros((0, 4), np.float32),
        np.array([True, False]),
        np.arange(256, dtype=np.uint8),
    ],
)
def test_arrays_of_numbers_come_out_as_lists(array, protocol):
    content = pickle.dumps({"a": array, "again": array}, protocol=protocol)
    read = load_plain_pickle(content)
    assert read == {"a": array.tolist(), "again": array.tolist()}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scalars_of_numpy_come_out_as_numbers(protocol):
    values = [np.int64(-3), np.float32(0.5), np.uint8(200), np.bool_(True)]
    assert load_plain_pickle(pickle.dumps(values, protocol=protocol)) == [-3, 0.5, 200, True]


def test_a_pickle_of_python_2():
    """As Python 2 and numpy 1 write {'imlist': ['a'], 'ids': array([1, 2])} in protocol 2."""
    content = (
        b"\x80\x02}q\x01(U\x06imlistq\x02]q\x03U\x01aaU\x03idsq\x04"
        b"cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02i8K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x10\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00tbu."
    )
    assert load_plain_pickle(content) == {"imlist": ["a"], "ids": [1, 2]}


class Calls:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments

    def __call__(self):  # pickle wants a callable where one Calls is the function of another
        raise AssertionError("called")


class WithState:
    def __setstate__(self, state):
        raise AssertionError("state was set")

    def __getstate__(self):
        return {"a": 1}


class Slotted:
    def __new__(cls, *arguments):
        return super().__new__(cls)

    def __getnewargs__(self):
        return (1, 2)


def hostile(target: Path) -> dict[str, object]:
    command = f"touch {target}"
    return {
        "os.system": Calls(os.system, command),
        "popen": Calls(subprocess.Popen, ("touch", str(target))),
        "eval": Calls(eval, f"open({str(target)!r}, 'w')"),
        "exec": Calls(exec, f"open({str(target)!r}, 'w')"),
        "open": Calls(open, str(target), "w"),
        "import": Calls(__import__, "antigravity"),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "getattr of plain data": Calls(getattr, [], "append"),
        "attrgetter": Calls(Calls(operator.attrgetter, "system"), Calls(__import__, "os")),
        "methodcaller": Calls(operator.methodcaller, "system", command),
        "partial": Calls(functools.partial, os.system, command),
        "nested": [{"a": (Calls(os.system, Calls(str, command)),)}],
        "as a key": {Calls(os.system, command): 1},
        "map": Calls(map, os.system, [command]),
        "numpy": Calls(np.load, str(target)),
        "fromfile": Calls(np.fromfile, str(target)),
        "defaultdict": collections.defaultdict(list, a=[1]),
        "counter": collections.Counter("abc"),
        "path": Path("/"),
        "state": WithState(),
        "new": Slotted(),
        "array of objects": np.array([Calls(os.system, command)], dtype=object),
        "array of text": np.array(["a"]),
        "array of records": np.zeros(1, [("a", int)]),
        "array of times": np.zeros(1, "M8[s]"),
        "class": int,
        "function": len,
        "complex": 1j,
        "bytearray": bytearray(b"x"),
        "range": range(3),
        "exception": ValueError("x"),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", hostile(Path()))
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path, name, protocol):
    target = tmp_path / "pwned"
    value = hostile(target)[name]
    content = pickle.dumps(value, protocol=protocol)
    if name == "bytearray" and protocol == 5:
        assert load_plain_pickle(content) == b"x"  # protocol 5 has an opcode for it: plain bytes
        return
    file = tmp_path / "hostile.pkl"
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=r"hostile\.pkl is refused, nothing of it was run"):
        load_plain_pickle(file)
    assert not target.exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        # Opcodes that make objects without REDUCE.
        (b"(S'touch x'\nios\nsystem\n.", "INST"),
        (b"(cos\nsystem\nS'touch x'\no.", "os.system"),
        (b"\x80\x02c__builtin__\nset\n)\x81.", "NEWOBJ"),
        (b"\x80\x04\x8c\x08builtins\x8c\x03set\x93)}\x92.", "NEWOBJ_EX"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02\x83\x01\x00.", "EXT2"),
        (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
        (b"Pname\n.", "PERSID"),
        (b"\x80\x02Nq\x00Q.", "BINPERSID"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"\x80\x05N\x98.", "READONLY_BUFFER"),
        # Names: dotted ways out of an allowed one, and of the wrong type.
        (b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.", "_reconstruct.__globals__"),
        (b"\x80\x04\x8c\x05numpy\x8c\x12ndarray.__reduce__\x93.", "numpy.ndarray.__reduce__"),
        (b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.", "builtins.getattr"),
        (b"\x80\x04]]\x93.", "a name that is no text"),
        (b"cos\nsystem\n.", "os.system"),
        # An allowed name is not data, and not to be called otherwise than meant.
        (b"cnumpy\nndarray\n.", "leaves a name"),
        (b"]cnumpy\nndarray\na.", "leaves a name"),
        (b"(.", "leaves a name"),
        (b"cnumpy\nndarray\n)R.", "makes an array by itself"),
        (b"cnumpy\ndtype\n(S'i8'\ntR.", "leaves a name"),
        (b"cnumpy\ndtype\n(S'O'\ntR.", "something else than numbers"),
        (b"cnumpy\ndtype\n)R.", "something else than numbers"),
        (b"c__builtin__\nset\n(S'abc'\ntR.", "malformed set"),
        (b"c__builtin__\nbytes\n(K\x05tR.", "malformed bytes"),
        (b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.", "malformed bytes"),
        (b"c_codecs\nencode\n(S'x'\ntR.", "malformed bytes"),
        (b"cnumpy.core.multiarray\nscalar\n(NNtR.", "malformed array"),
        (b"cnumpy.core.multiarray\nscalar\n)R.", "malformed number"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(NNNtR.", "malformed array"),
        (b"S'x'\n(tR.", "calls what is no function"),
        (b"]N.", None),
        # State of plain data, items of what takes none, keys that are containers.
        (b"]}b.", "sets the state"),
        (b"}(S'__class__'\nNub.", None),
        (b"](S'x'\nNu.", "no dict"),
        (b"}S'x'\na.", "no list"),
        (b"})s.", None),
        (b"}]Ns.", "as key of a dict"),
        (b"(])Nd.", None),
        (b"\x80\x04\x8f(]\x90.", "as member of a set"),
        (b"\x80\x04(]\x91.", "as member of a set"),
        # Damage.
        (b"", None),
        (b"N", None),
        (b".", None),
        (b"\xff.", None),
        (b"a.", None),
        (b"h\x05.", None),
        (b"t.", None),
        (b"\x80\x02U\xffab.", None),
        (b"(Nd.", None),
        (b"I12x\n.", None),
        (b"\x86.", None),
        (b"0.", None),
    ],
)
def test_programs_beyond_plain_data_are_refused(program, message):
    expected = "is no whole pickle" if message is None else f"refused, .*{message}"
    with pytest.raises(DatasetError, match=expected):
        load_plain_pickle(program)


def array_program(shape: bytes, raw: bytes) -> bytes:
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + shape
        + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R\x89U"
        + bytes([len(raw)])
        + raw
        + b"tb."
    )


def test_arrays_whose_shape_lies_are_refused():
    assert load_plain_pickle(array_program(b"K\x02\x85", b"ab")) == [97, 98]
    for shape in (b"K\x03\x85", b")", b"N", b"NN\x86", b"J\xff\xff\xff\xff\x85", b"K\x01K\x01\x86"):
        with pytest.raises(DatasetError, match="malformed array"):
            load_plain_pickle(array_program(shape, b"ab"))
    # No bytes, but as many empty lists as it likes.
    wide = struct.pack("<i", 1 << 26)
    with pytest.raises(DatasetError, match="unfolds to far more"):
        load_plain_pickle(array_program(b"J" + wide + b"K\x00\x86", b""))


def test_depth_exhausts_nothing():
    deep = b"]" * 200_000 + b"a" * 199_999 + b"."
    value = load_plain_pickle(deep)
    for _ in range(199_999):
        (value,) = value
    assert value == []
    # Hashing a deep tuple recurses in C: as a key it would end the process.
    with pytest.raises(DatasetError, match="as key of a dict"):
        load_plain_pickle(b"})" + b"\x85" * 200_000 + b"Ns.")
    with pytest.raises(DatasetError, match="calls what is no function"):
        load_plain_pickle(b"]" * 100_000 + b"a" * 99_999 + b")R.")
    with pytest.raises(DatasetError, match="a name that is no text"):
        load_plain_pickle(b"]" * 100_000 + b"a" * 99_999 + b"N\x93.")


def test_cycles_and_shared_values():
    cycle = load_plain_pickle(b"]q\x00h\x00a.")
    assert cycle[0] is cycle
    laughs = b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)) + b"."
    # Each list holds the one before twice: 2**60 leaves if unfolded.
    with pytest.raises(DatasetError, match="no whole pickle"):  # it leaves 61 values
        load_plain_pickle(laughs)
    value = load_plain_pickle(laughs[:-1] + b"q\x63" + b"0" * 61 + b"h\x63.")
    assert value[0] is value[1]


def test_memory_is_bounded(monkeypatch):
    # A memo index near 2**32 makes the C unpickler allocate a table of as many entries.
    assert load_plain_pickle(b"\x80\x02Nr\xff\xff\xff\xff.") is None
    for prefix in (
        b"B\xff\xff\xff\x7f",
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f",
        b"T\xff\xff\xff\x7f",
    ):
        with pytest.raises(DatasetError, match="no whole pickle"):
            load_plain_pickle(prefix + b"abc.")
    monkeypatch.setattr(plain_pickle, "MAX_BYTES", 1000)
    # The same long text encoded over and over.
    text = (
        b"X\x90\x01\x00\x00"
        + b"a" * 400
        + b"q\x000c_codecs\nencode\nq\x010X\x06\x00\x00\x00latin1q\x020"
    )
    program = b"\x80\x02" + text + b"](" + b"h\x01h\x00h\x02\x86R" * 30 + b"e."
    assert len(program) < 1000
    with pytest.raises(DatasetError, match="unfolds to far more"):
        load_plain_pickle(program)
    with pytest.raises(DatasetError, match="must be at most 1000 bytes; it has 1001"):
        load_plain_pickle(b"N" * 1001)


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_give_plain_data_or_a_dataset_error(content):
    try:
        load_plain_pickle(content)
    except DatasetError:
        pass


SAMPLE = {
    "imlist": ["a", "b"],
    "gnd": [{"bbx": [1.5, 2.0], "easy": np.arange(3), "junk": {1, 2}, "x": (None, True, b"y")}],
}


@given(
    st.sampled_from(PROTOCOLS),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 10_000),
)
@settings(max_examples=400)
def test_damaged_pickles_give_plain_data_or_a_dataset_error(protocol, flips, length):
    content = bytearray(pickle.dumps(SAMPLE, protocol=protocol))
    for place, value in flips:
        content[place % len(content)] = value
    content = content[: length if length < len(content) else None]
    try:
        load_plain_pickle(bytes(content))
    except DatasetError:
        pass

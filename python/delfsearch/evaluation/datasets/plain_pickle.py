"""Reading a pickle that holds plain data, and nothing else, whoever wrote it.

A pickle is a program, and Python's own unpickler runs it: it imports what it is told and calls it.
This one is a stack machine of its own over the opcodes (``pickletools.genops`` only splits the
bytes). It builds dict, list, tuple, set, frozenset, str, bytes, int, float, bool and None. It
imports nothing and calls nothing that a pickle names: the few names that plain data needs (sets of
old protocols, bytes of protocol 2, numpy arrays and scalars of numbers) are keys of a table of
functions of this module, which take their arguments apart and check them; any other name is
refused, and so is every opcode not listed here (INST, OBJ, NEWOBJ, EXT, PERSID, ...).

Numpy arrays come out as lists, numpy scalars as numbers. Text of Python 2 comes out as Latin-1.

No depth, reference or length in the file can exhaust stack or memory: nothing recurses, dict keys
and set members are atoms (hashing a deep tuple recurses in C), what is built is paid for from a
budget, and the file is limited. Complexity: linear in the file. Source: PEP 307, PEP 574 and the
documentation of pickletools.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from delfsearch.errors import DatasetError

MAX_BYTES = 64 << 20

_ATOMS = (str, bytes, int, float, bool, type(None))
_NUMBER_DTYPE = re.compile(r"b1|[iu][1248]|f[248]")
_MARK = object()

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
_VALUES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8".split()
)
_PUT = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GET = frozenset({"GET", "BINGET", "LONG_BINGET"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Refused(Exception):
    """What a pickle asks for is not plain data."""


class _Name:
    """A name that a pickle may use, with what this module does when it is called."""

    def __init__(self, call: Callable[[_Machine, tuple[Any, ...]], Any]) -> None:
        self.call = call


class _Dtype:
    """A number type under construction: kind and size such as f8, and the byte order."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "="

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _Array(list[Any]):
    """An array, as a list. Empty until its state comes."""


def load_plain_pickle(source: str | Path | bytes) -> Any:
    """Return the plain data in a pickle of any protocol.

    source : a file, or the bytes themselves; at most MAX_BYTES.
    Raises DatasetError where it holds anything but plain data, is damaged, or is too large.
    """
    label = "pickle" if isinstance(source, bytes) else str(source)
    if isinstance(source, bytes):
        size = len(source)
    else:
        size = Path(source).stat().st_size
    if size > MAX_BYTES:
        raise DatasetError(f"{label} must be at most {MAX_BYTES} bytes; it has {size}")
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        return _Machine(budget=4 * MAX_BYTES).run(content)
    except _Refused as refusal:
        raise DatasetError(
            f"{label} is refused, nothing of it was run: {refusal}. Only plain containers, text "
            "and numbers are read"
        ) from None
    # genops raises ValueError (and warns of wrong escapes, an error where warnings are); the others
    # come of stacks and memos that a damaged file does not fill.
    except (ValueError, IndexError, KeyError, TypeError, Warning) as error:
        raise DatasetError(
            f"{label} is no whole pickle: {type(error).__name__}: {error}"[:300]
        ) from None


class _Machine:
    def __init__(self, budget: int) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.budget = budget

    def spend(self, amount: int) -> None:
        """Pay for what an operation builds beyond what the file itself holds."""
        self.budget -= amount
        if self.budget < 0:
            raise _Refused("it unfolds to far more than its own size")

    def run(self, content: bytes) -> Any:
        """Return what is on top of the stack when the program stops."""
        stack = self.stack
        argument: Any
        for opcode, argument, _ in pickletools.genops(content):
            name = opcode.name
            if name in _VALUES:
                stack.append(bytes(argument) if name == "BYTEARRAY8" else argument)
            elif name in _PUT:
                self.memo[argument] = stack[-1]
            elif name == "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            elif name in _GET:
                stack.append(self.memo[argument])
            elif name == "MARK":
                stack.append(_MARK)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in _EMPTY:
                stack.append(_EMPTY[name]())
            elif name in _TUPLES:
                stack[-_TUPLES[name] :] = [tuple(self._top(_TUPLES[name]))]
            elif name == "STOP":
                return _finished(stack)
            elif (step := _STEPS.get(name)) is not None:
                step(self, argument)
            else:
                raise _Refused(f"it uses the opcode {name}")
        raise ValueError("it does not stop")

    def _top(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        return self.stack[-count:]

    def since_mark(self) -> list[Any]:
        """Take what was pushed since the last mark, and the mark."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                items = self.stack[place + 1 :]
                del self.stack[place:]
                return items
        raise IndexError("there is no mark")


def _finished(stack: list[Any]) -> Any:
    if len(stack) != 1:
        raise ValueError(f"it stops with {len(stack)} values")
    _refuse_unfinished(stack[0])
    return stack[0]


def _refuse_unfinished(value: Any) -> None:
    """Refuse marks, names and types that a program left among the data, without recursion."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, _ATOMS):
            continue
        if not isinstance(item, (dict, list, tuple, set, frozenset)):
            raise _Refused("it leaves a name where data should be")
        if id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)


def _atom(value: Any, what: str) -> Any:
    if not isinstance(value, _ATOMS):
        raise _Refused(f"it has a {type(value).__name__.lstrip('_')} as {what}")
    return value


def _container(machine: _Machine, kind: type) -> Any:
    target = machine.stack[-1]
    if type(target) is not kind:
        raise _Refused(f"it adds items to what is no {kind.__name__}")
    return target


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    if len(items) % 2:
        raise ValueError("a dict has a key without value")
    return [(_atom(key, "key of a dict"), value) for key, value in zip(items[::2], items[1::2])]


def _append(machine: _Machine, _: Any) -> None:
    value = machine.stack.pop()
    _container(machine, list).append(value)


def _appends(machine: _Machine, _: Any) -> None:
    items = machine.since_mark()
    _container(machine, list).extend(items)


def _set_item(machine: _Machine, _: Any) -> None:
    pair = [machine.stack.pop(), machine.stack.pop()][::-1]
    _container(machine, dict).update(_pairs(pair))


def _set_items(machine: _Machine, _: Any) -> None:
    items = machine.since_mark()
    _container(machine, dict).update(_pairs(items))


def _add_items(machine: _Machine, _: Any) -> None:
    items = machine.since_mark()
    _container(machine, set).update(_atom(item, "member of a set") for item in items)


def _build_from_mark(
    make: Callable[[list[Any]], Any],
) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: Any) -> None:
        machine.stack.append(make(machine.since_mark()))

    return step


def _pop(machine: _Machine, _: Any) -> None:
    machine.stack.pop()


def _pop_mark(machine: _Machine, _: Any) -> None:
    machine.since_mark()


def _duplicate(machine: _Machine, _: Any) -> None:
    machine.stack.append(machine.stack[-1])


def _passed_over(machine: _Machine, _: Any) -> None:
    """PROTO and FRAME say nothing about the data."""


def _global(machine: _Machine, argument: Any) -> None:
    # genops gives "module name", a space between; neither part of an allowed name has one.
    machine.stack.append(_named(*str(argument).split(" ", 1)))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(_named(module, name))


def _named(module: Any, name: Any = None) -> _Name:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise _Refused("it asks for a name that is no text")
    if (module, name) not in _NAMES:
        raise _Refused(f"it asks for {module[:80]}.{name[:80]}")
    return _NAMES[module, name]


def _reduce(machine: _Machine, _: Any) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise _Refused("it calls what is no function")
    machine.stack.append(function.call(machine, arguments))


def _build(machine: _Machine, _: Any) -> None:
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, _Dtype):
        _set_dtype(target, state)
    elif isinstance(target, _Array):
        _set_array(machine, target, state)
    else:
        raise _Refused("it sets the state of an object")


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _passed_over,
    "FRAME": _passed_over,
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "ADDITEMS": _add_items,
    "TUPLE": _build_from_mark(tuple),
    "LIST": _build_from_mark(list),
    "DICT": _build_from_mark(lambda items: dict(_pairs(items))),
    "FROZENSET": _build_from_mark(
        lambda items: frozenset(_atom(item, "member of a set") for item in items)
    ),
    "POP": _pop,
    "POP_MARK": _pop_mark,
    "DUP": _duplicate,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _build,
}


# What the allowed names do. Each takes its arguments apart by hand.


def _bad(what: str) -> NoReturn:
    raise _Refused(f"it has a malformed {what}")


def _make_set(kind: type) -> Callable[[_Machine, tuple[Any, ...]], Any]:
    def call(machine: _Machine, arguments: tuple[Any, ...]) -> Any:
        if len(arguments) > 1 or not all(isinstance(a, (list, tuple)) for a in arguments):
            _bad("set")
        items = arguments[0] if arguments else ()
        machine.spend(len(items) + 1)
        return kind(_atom(item, "member of a set") for item in items)

    return call


def _encode(machine: _Machine, arguments: tuple[Any, ...]) -> bytes:
    """Protocol 2 writes bytes as text to be encoded as Latin-1."""
    if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] != "latin1":
        _bad("bytes value")
    machine.spend(len(arguments[0]) + 1)
    return arguments[0].encode("latin-1")


def _no_bytes(_: _Machine, arguments: tuple[Any, ...]) -> bytes:
    if arguments:
        _bad("bytes value")
    return b""


def _make_dtype(_: _Machine, arguments: tuple[Any, ...]) -> _Dtype:
    code = arguments[0] if arguments else None
    if not isinstance(code, str) or not _NUMBER_DTYPE.fullmatch(code):
        raise _Refused("it has an array of something else than numbers")
    return _Dtype(code)


def _set_dtype(dtype: _Dtype, state: Any) -> None:
    if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
        _bad("number type")
    dtype.order = state[1]


def _raw_bytes(value: Any) -> bytes:
    if isinstance(value, str):  # bytes of Python 2
        return value.encode("latin-1")
    if not isinstance(value, bytes):
        _bad("array")
    return value


def _make_array(_: _Machine, arguments: tuple[Any, ...]) -> _Array:
    if len(arguments) != 3 or arguments[0] is not _NDARRAY:
        _bad("array")
    return _Array()


def _set_array(machine: _Machine, array: _Array, state: Any) -> None:
    if not isinstance(state, tuple) or len(state) != 5:
        _bad("array")
    _, shape, dtype, columns_first, raw = state
    array[:] = _values(machine, _raw_bytes(raw), dtype, shape, "F" if columns_first else "C")


def _array_from_buffer(machine: _Machine, arguments: tuple[Any, ...]) -> _Array:
    """Protocol 5: (buffer, dtype, shape, order)."""
    if len(arguments) != 4 or arguments[3] not in ("C", "F"):
        _bad("array")
    raw, dtype, shape, order = arguments
    return _Array(_values(machine, _raw_bytes(raw), dtype, shape, order))


def _values(machine: _Machine, raw: bytes, dtype: Any, shape: Any, order: Any) -> list[Any]:
    if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple) or not 1 <= len(shape) <= 8:
        _bad("array")
    if not all(type(side) is int and 0 <= side <= MAX_BYTES for side in shape):
        _bad("array")
    number_type = dtype.numpy()
    if math.prod(shape) * number_type.itemsize != len(raw):
        _bad("array")
    # An empty side lets the others be as long as they like: [[], [], ...].
    machine.spend(8 * (math.prod(max(side, 1) for side in shape) + 1))
    values: list[Any] = np.frombuffer(raw, number_type).reshape(shape, order=order).tolist()
    return values


def _make_scalar(machine: _Machine, arguments: tuple[Any, ...]) -> Any:
    if len(arguments) != 2:
        _bad("number")
    return _values(machine, _raw_bytes(arguments[1]), arguments[0], (1,), "C")[0]


def _no_call(_: _Machine, arguments: tuple[Any, ...]) -> NoReturn:
    raise _Refused("it makes an array by itself")


_NDARRAY = _Name(_no_call)
_NAMES: dict[tuple[str, str], _Name] = {
    ("_codecs", "encode"): _Name(_encode),
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Name(_make_dtype),
}
for _module in ("__builtin__", "builtins"):
    _NAMES[_module, "set"] = _Name(_make_set(set))
    _NAMES[_module, "frozenset"] = _Name(_make_set(frozenset))
    _NAMES[_module, "bytes"] = _Name(_no_bytes)
for _module in ("numpy.core", "numpy._core"):
    _NAMES[f"{_module}.multiarray", "_reconstruct"] = _Name(_make_array)
    _NAMES[f"{_module}.multiarray", "scalar"] = _Name(_make_scalar)
    _NAMES[f"{_module}.numeric", "_frombuffer"] = _Name(_array_from_buffer)

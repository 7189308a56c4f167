"""Takes a pickle of arrays, gives its dicts, lists and arrays; whatever else it asks for is refused.

The instructions of a pickle (pickletools.py describes each) are carried out here, by a table of those that
such a pickle needs. So nothing that it names is imported or called, dicts have plain keys, and memory goes
to what the file holds: an array is its own bytes in the file, whose number must be that of its shape.
"""

import dataclasses
import math
import pickletools
import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from headstart.data.array_names import is_text
from headstart.errors import InputError, ResourceError, one_line

__all__ = ["MAX_PICKLE_BYTES", "Unpickled", "read_pickle"]

MAX_PICKLE_BYTES = 2 * 2**30  # ten times all images of CIFAR-10
# Each makes an object of about 60 bytes, and takes about 2 µs; an array of its own takes about 25.
MAX_INSTRUCTIONS = 3_000_000

# dicts, lists, tuples, arrays, text, bytes, numbers.
Unpickled = Any

_PLAIN_KEYS = (str, bytes, int)
_KINDS = "biufSU"  # of NumPy's types, those without Python objects


@dataclasses.dataclass(eq=False)
class _Dtype:
    """A NumPy type as a pickle makes it: first its code, then its byte order."""

    code: str
    order: str = "|"

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise ValueError("a type of numbers that NumPy does not write")
        if len(state) > 2 and state[2:5] != (None, None, None):
            raise ValueError("an array of records; only plain numbers are read")
        self.order = state[1]

    def read(self) -> np.dtype[Any]:
        if self.code[:1] == "O":
            raise ValueError("an array of Python objects; save numbers, such as uint8")
        if self.code[:1] not in _KINDS:
            raise ValueError(f"an array of type {self.code[:8]!r}; only plain numbers are read")
        return np.dtype(self.order + self.code)


@dataclasses.dataclass(eq=False)
class _Array:
    """An array as a pickle makes it: first empty, then with its shape, type and bytes."""

    array: NDArray[Any] | None = None

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _make_array(data, dtype, shape, "F" if fortran else "C")


def _make_array(data: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    if not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise ValueError("an array of a kind that NumPy does not write")
    kind = dtype.read()
    data = data.encode("latin-1") if isinstance(data, str) else data
    if not isinstance(data, bytes | bytearray):
        raise ValueError("an array of Python objects; save numbers, such as uint8")
    if not isinstance(shape, tuple) or len(shape) > 8:
        raise ValueError("an array without a shape")
    if not all(type(n) is int and 0 <= n <= MAX_PICKLE_BYTES for n in shape):
        raise ValueError("an array without a shape")
    if math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f"an array of shape {shape} in {len(data):,} bytes")
    if not data:
        raise ValueError("an empty array")
    array = np.frombuffer(data, kind).reshape(shape, order=order)
    if not is_text(array):
        raise ValueError("text that is not valid Unicode")
    return array


def _begin_array(*arguments: Any) -> _Array:
    return _Array()


def _make_dtype(code: Any, *flags: Any) -> _Dtype:
    if not isinstance(code, str):
        raise ValueError("a type of numbers that NumPy does not write")
    return _Dtype(code)


def _make_number(dtype: Any, data: Any) -> Any:
    return _make_array(data, dtype, (1,), "C")[0].item()


def _make_buffered(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    return _Array(_make_array(data, dtype, shape, order))


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in an encoding that Python does not write")
    return text.encode("latin-1")


def _make_dict(*arguments: Any) -> dict[Any, Any]:
    return {}  # what it holds follows


def _make_list(*arguments: Any) -> list[Any]:
    return []


def _make_bytes(*arguments: Any) -> bytes:
    return _encode(*arguments) if arguments else b""


# What an array, a scalar, bytes in an old protocol, and the usual dicts are made with.
_NAMED: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _make_dtype,
    "numpy.ndarray": _begin_array,
    "_codecs.encode": _encode,
    "builtins.bytes": _make_bytes,
    "__builtin__.bytes": _make_bytes,
    "builtins.list": _make_list,
    "__builtin__.list": _make_list,
    "collections.OrderedDict": _make_dict,
    "collections.defaultdict": _make_dict,
    **{
        f"numpy.{core}.{name}": make
        for core in ("core", "_core")
        for name, make in (
            ("multiarray._reconstruct", _begin_array),
            ("multiarray.scalar", _make_number),
            ("numeric._frombuffer", _make_buffered),
        )
    },
}


def read_pickle(file: IO[bytes], size: int, where: str) -> Unpickled:
    """Read a pickle of plain values and NumPy arrays, of any protocol.

    Args:
        file: open at its start; text of Python 2 is read as Latin-1.
        size: bytes in it.
        where: what it is, for messages.

    Returns:
        dicts, lists, tuples, NumPy arrays (read-only), str, bytes, numbers, None.

    Raises:
        InputError: it asks for something else, which the message names; damaged; too large.
        ResourceError: out of memory.
    """
    if size > MAX_PICKLE_BYTES:
        raise InputError(
            f"{where}: larger than {MAX_PICKLE_BYTES >> 30} GiB; save the arrays as .npy"
        )
    try:
        # What it says of odd escapes in a hostile file is no news to the user.
        with warnings.catch_warnings(action="ignore"):
            # Which is asked for reads and lines, and for nothing else.
            return _carry_out(cast(IO[bytes], _Bounded(file, size)), where)
    except InputError:
        raise
    except MemoryError as exc:
        raise ResourceError(f"{where}: out of memory while reading") from exc
    except UnicodeDecodeError as exc:
        raise InputError(
            f"{where}: text that cannot be read, as of Python 2 with protocol 0; write it with protocol 2"
        ) from exc
    except _Refused as exc:
        raise InputError(
            f"{where}: asks for {exc}, which could run anything, and is not read; save plain NumPy arrays"
        ) from exc
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, EOFError) as exc:
        # TypeError and the like: a pickle that no program writes.
        raise InputError(f"{where}: no pickle of arrays, or damaged: {one_line(exc)}") from exc


class _Bounded:
    """A file that is never asked for more than it holds: Python makes room for as much as it asks for."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, self._size))


def _carry_out(file: IO[bytes], where: str) -> Unpickled:
    """What the instructions make; it raises nearly everything on hostile bytes."""
    machine = _Machine()
    for number, (instruction, argument, _) in enumerate(pickletools.genops(file)):
        if number > MAX_INSTRUCTIONS:
            raise InputError(f"{where}: more than {MAX_INSTRUCTIONS:,} objects; save arrays")
        if instruction.name == "STOP":
            return _finish(machine.stack[-1])
        machine.step(instruction.name, argument)
    raise EOFError("ends before its value")


class _Refused(Exception):
    """What a pickle must not have; the message is its name."""


class _Mark:
    """Where a tuple, list or dict begins on the stack."""


_MARK = _Mark()


class _Machine:
    """The stack and the memo of a pickle, and its instructions.

    Attributes:
        stack: the values so far, the last on top.
        memo: those that may be asked for again, by number.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise _Refused(f"the instruction {name}")

    def pop_marked(self) -> list[Any]:
        """Take what lies above the last mark, and the mark."""
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def put(self, number: int | None) -> None:
        """Remember the top."""
        self.memo[len(self.memo) if number is None else number] = self.stack[-1]

    def push_tuple(self, count: int) -> None:
        """Make a tuple of the last values."""
        if len(self.stack) < count:
            raise ValueError("nothing to take")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def extend(self, values: list[Any]) -> None:
        """Add to the list on top."""
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError("adds to what is no list")
        target.extend(values)

    def update(self, values: list[Any]) -> None:
        """Add keys and values to the dict on top."""
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise ValueError("adds to what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # The hash of a nested tuple could take forever.
            if not isinstance(key, _PLAIN_KEYS):
                raise ValueError(f"a key of type {type(key).__name__}")
            target[key] = value

    def push_named(self, name: Hashable) -> None:
        """Stand in for what the pickle names."""
        if not isinstance(name, str) or name not in _NAMED:
            raise _Refused(str(name)[:100])
        self.stack.append(_NAMED[name])

    def call(self, argument: Any) -> None:
        """Make what was named, of the tuple on top."""
        arguments, maker = self.stack.pop(), self.stack.pop()
        # Only these are ever called, and each looks at what it is given.
        if not callable(maker) or not isinstance(arguments, tuple):
            raise ValueError("calls what is nothing to call")
        self.stack.append(maker(*arguments))

    def build(self, argument: Any) -> None:
        """Complete the type or array below the top."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Dtype | _Array):
            raise _Refused("the state of an object")
        self.stack[-1].build(state)


# The argument itself is the value.
_VALUES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
}
_STEPS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "POP": lambda machine, _: machine.stack.__delitem__(-1),
    "POP_MARK": lambda machine, _: machine.stack.extend(machine.pop_marked()[:0]),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_marked())),
    "TUPLE1": lambda machine, _: machine.push_tuple(1),
    "TUPLE2": lambda machine, _: machine.push_tuple(2),
    "TUPLE3": lambda machine, _: machine.push_tuple(3),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_marked()),
    "DICT": lambda machine, _: _push_dict(machine),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_marked()),
    "SETITEM": lambda machine, _: machine.update([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.update(machine.pop_marked()),
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "GET": lambda machine, number: machine.stack.append(machine.memo[number]),
    "BINGET": lambda machine, number: machine.stack.append(machine.memo[number]),
    "LONG_BINGET": lambda machine, number: machine.stack.append(machine.memo[number]),
    "GLOBAL": lambda machine, name: machine.push_named(name.replace(" ", ".")),
    "STACK_GLOBAL": lambda machine, _: machine.push_named(
        ".".join([machine.stack.pop(-2), machine.stack.pop()])
    ),
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
}


def _push_dict(machine: _Machine) -> None:
    values = machine.pop_marked()
    machine.stack.append({})
    machine.update(values)


def _finish(value: Any) -> Unpickled:
    """The value with its arrays as arrays: those in it, in its dicts and lists, and in theirs."""
    if isinstance(value, dict):
        return {key: _finish_inner(inner) for key, inner in value.items()}
    return _finish_inner(value)


def _finish_inner(value: Any) -> Unpickled:
    if isinstance(value, _Array):
        if value.array is None:
            raise ValueError("an array without numbers")
        return value.array
    if isinstance(value, list | tuple) and any(isinstance(v, _Array) for v in value):
        return [v.array if isinstance(v, _Array) else v for v in value]
    return value

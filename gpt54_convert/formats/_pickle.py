"""A pickle reader that can only build what a torch checkpoint is made of, and never calls anything.

Python's own unpickler runs whatever the file names.  This one steps through the opcodes, keeps plain data on
a stack, and knows the few globals of `_GLOBALS` as words; any other global or opcode ends the reading.

Source: CPython's pickletools (the meaning of opcodes); torch.serialization (what a checkpoint holds).
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from gpt54_convert.core.dtypes import STORAGE

OPCODE_LIMIT = 3_000_000  # about 40 a tensor are needed: 75,000 tensors in one file
DIMENSION_LIMIT = 16


class PickleError(Exception):
    """The stream is not what a torch checkpoint holds; the message says where and why."""


@dataclass(frozen=True)
class Storage:
    """A range of elements, by the key of its zip member."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as its pickle describes it; sizes, strides and offset count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """A name that the stream mentions; `kind` says what may be done with it."""

    kind: str
    dtype: str = ""


_MARK = object()
_TORCH_DTYPES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}
_DTYPE_NAMES = {name: name for name in STORAGE} | {
    "float8_e4m3fn": "float8_e4m3",
    "float8_e5m2": "float8_e5m2",
    "double": "float64",
    "half": "float16",
    "float": "float32",
    "long": "int64",
    "int": "int32",
    "short": "int16",
}
_GLOBALS: dict[tuple[str, str], _Global] = {
    ("collections", "OrderedDict"): _Global("dict"),
    ("torch._utils", "_rebuild_tensor_v2"): _Global("tensor"),
    ("torch._utils", "_rebuild_tensor_v3"): _Global("tensor"),
    ("torch._utils", "_rebuild_parameter"): _Global("parameter"),
    ("torch", "Size"): _Global("size"),
    ("torch.storage", "UntypedStorage"): _Global("storage", "uint8"),
    ("torch", "UntypedStorage"): _Global("storage", "uint8"),
    **{("torch", f"{word}Storage"): _Global("storage", name) for word, name in _TORCH_DTYPES.items()},
    **{("torch", word): _Global("dtype", name) for word, name in _DTYPE_NAMES.items()},
}


def load(raw: bytes) -> Any:
    """The object that a checkpoint's data.pkl describes: dicts, lists, plain values and `StoredTensor`s.

    Raises PickleError for anything else; nothing is executed, imported or allocated on the file's word.
    """
    machine = _Machine()
    position = 0
    try:
        for count, (opcode, argument, at) in enumerate(pickletools.genops(raw)):
            position = at or 0
            if count > OPCODE_LIMIT:
                raise PickleError("it has more opcodes than any checkpoint needs")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except PickleError as error:
        raise PickleError(f"at byte {position}: {error}") from None
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise PickleError(f"at byte {position}: the stream is garbled ({type(error).__name__})") from error
    raise PickleError("the stream has no end")


class _Machine:
    """The stack and memo of one stream."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise PickleError("the stack is empty")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        items = []
        while self.stack and self.stack[-1] is not _MARK:
            items.append(self.stack.pop())
        if not self.stack:
            raise PickleError("a mark is missing")
        self.stack.pop()
        return items[::-1]

    def step(self, name: str, argument: Any) -> None:
        if name in _IGNORED:
            return
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise PickleError(f"opcode {name} has no place in a checkpoint")

    def put(self, argument: Any) -> None:
        self.memo[argument] = self.stack[-1]

    def memoize(self, argument: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, argument: Any) -> None:
        self.stack.append(self.memo[argument])

    def named(self, argument: Any) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(_named(module, name))

    def stack_named(self, argument: Any) -> None:
        name, module = self.pop(), self.pop()
        self.stack.append(_named(module, name))

    def small_tuple(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(items[::-1]))

    def append(self, items: Iterable[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise PickleError("items are appended to something that is no list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleError("items are set in something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int | float | None):  # hashing a deep tuple could overflow the stack
                raise PickleError("a dict has a key that is no plain value")
            target[key] = value

    def reduce(self, argument: Any) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise PickleError("it calls something that is no function")
        self.stack.append(_call(function, arguments))

    def build(self, argument: Any) -> None:
        self.pop()  # attributes of a dict or parameter (`_metadata`): no weights
        if not isinstance(self.stack[-1], dict | StoredTensor):
            raise PickleError("it sets the state of something that is no dict")

    def persistent(self, argument: Any) -> None:
        self.stack.append(_storage(self.pop()))


def _named(module: Any, name: Any) -> _Global:
    known = _GLOBALS.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
    if known is None:
        where = f"{str(module)[:80]}.{str(name)[:80]}"
        raise PickleError(f"it refers to {where}, which has no place in a checkpoint")
    return known


def _call(function: _Global, arguments: tuple[Any, ...]) -> Any:
    if function.kind == "dict" and not arguments:
        return {}
    if function.kind == "tensor" and len(arguments) >= 6:
        return _tensor(arguments)
    if function.kind == "parameter" and arguments and isinstance(arguments[0], StoredTensor):
        return arguments[0]
    if function.kind == "size" and len(arguments) == 1 and isinstance(arguments[0], tuple):
        return _naturals(arguments[0])
    raise PickleError(f"it calls a {function.kind} with arguments that do not fit")


def _tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    """v2: storage, offset, shape, strides, requires_grad, hooks[, metadata]; v3 adds a dtype after those."""
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise PickleError("a tensor's description is garbled")
    if len(arguments) > 6 and isinstance(arguments[6], _Global) and arguments[6].kind == "dtype":
        # v3 stores bytes under an untyped storage: counted in elements of the named type from here on.
        dtype = arguments[6].dtype
        storage = Storage(storage.key, dtype, storage.count // STORAGE[dtype].itemsize)
    return StoredTensor(storage, _naturals((offset,))[0], _naturals(shape), _naturals(strides))


def _storage(identity: Any) -> Storage:
    """The persistent id ("storage", type, key, device, number of elements)."""
    if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
        raise PickleError("it refers to something outside that is no storage")
    kind, key, count = identity[1], identity[2], identity[4]
    if not isinstance(kind, _Global) or kind.kind != "storage" or not isinstance(key, str):
        raise PickleError("a storage's description is garbled")
    return Storage(key, kind.dtype, _naturals((count,))[0])


def _naturals(values: tuple[Any, ...]) -> tuple[int, ...]:
    if len(values) > DIMENSION_LIMIT or not all(
        type(value) is int and 0 <= value < 1 << 63 for value in values
    ):
        raise PickleError("a size, stride or offset is no natural number, or there are too many of them")
    return values


_IGNORED = {"PROTO", "FRAME"}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING", "STRING"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}
_ACTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "PUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GET": _Machine.get,
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": _Machine.stack_named,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.small_tuple(1),
    "TUPLE2": lambda machine, _: machine.small_tuple(2),
    "TUPLE3": lambda machine, _: machine.small_tuple(3),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items([*reversed([machine.pop(), machine.pop()])]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "POP": lambda machine, _: machine.pop(),
}

"""A small machine for the pickles that torch.save writes. It calls nothing that a file names.

Only the opcodes, and only the names, that a checkpoint of tensors in dicts and lists needs are
known; everything else is refused. There is no retry with a more permissive reader.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sardine_gguf.errors import FormatError

from .arrays import DTYPES
from .pt_opcodes import operations
from .pt_tensor import MAX_DIMENSIONS, make_storage, rebuild
from .pt_zip import PtZip

MAX_PICKLE_BYTES = 16 << 20
# A tensor takes about 40 operations, and few tensors share a member.
OPERATIONS, OPERATIONS_PER_MEMBER, MAX_OPERATIONS = 200_000, 100, 1_500_000
# What the objects may take in memory: so much, and as much more as the file is long. About what an
# operation adds to it beside its argument; a list's or dict's items are counted as they are added.
MEMORY = 32 << 20
_EACH, _ITEM, _ENTRY = 10, 16, 100
_MORE = {
    **dict.fromkeys(("EMPTY_DICT", "EMPTY_LIST", "DICT", "LIST"), 80),
    **dict.fromkeys(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), 80),
    **dict.fromkeys(("PUT", "MEMOIZE", "GLOBAL", "STACK_GLOBAL"), 100),
    **dict.fromkeys(("BINPERSID", "REDUCE"), 300),
}

_STORAGES = {
    f"{name}Storage": DTYPES[dtype]
    for name, dtype in {
        "Float": "f32",
        "Double": "f64",
        "Half": "f16",
        "BFloat16": "bf16",
        "Long": "i64",
        "Int": "i32",
        "Short": "i16",
        "Char": "i8",
        "Byte": "u8",
        "Bool": "bool",
    }.items()
}
_DTYPE_NAMES = (
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
)


@dataclass(frozen=True)
class Name:
    """A global that a pickle may mention. It is never imported."""

    module: str
    name: str


_ALLOWED = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
    *(("torch", s) for s in _STORAGES),
    *(("torch", d) for d in _DTYPE_NAMES),
}

_MARK = object()


def load(archive: PtZip) -> Any:
    """Builds the object in data.pkl: dicts, lists, tuples, scalars, texts and PtTensor.

    Raises:
        FormatError: anything else is in it, or it is malformed.
    """
    data = archive.read("data.pkl", MAX_PICKLE_BYTES)
    machine = _Machine(archive)
    limit = min(MAX_OPERATIONS, OPERATIONS + OPERATIONS_PER_MEMBER * len(archive.members))
    try:
        for count, (name, argument, end) in enumerate(operations(data)):
            if count >= limit:
                raise ValueError(f"more than {limit} operations")
            machine.spend(_EACH + _MORE.get(name, 0))
            if name == "LITERAL":
                machine.spend(sys.getsizeof(argument))
            if name == "STOP":
                if end != len(data) or len(machine.stack) != 1:
                    raise ValueError("bytes or objects after its end")
                return machine.pop()
            _STEPS[name](machine, argument)
    except FormatError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
        raise archive.bad(
            f"data.pkl is malformed: {type(error).__name__}: {str(error)[:200]}", "data.pkl"
        ) from None
    raise archive.bad("data.pkl is malformed: it has no end", "data.pkl")


class _Machine:
    def __init__(self, archive: PtZip) -> None:
        self.archive = archive
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.memory = MEMORY + archive.size

    def spend(self, nbytes: int) -> None:
        self.memory -= nbytes
        if self.memory < 0:
            raise ValueError(f"too many objects for a file of {self.archive.size} bytes")

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value is expected")
        return value

    def pop_to_mark(self) -> list[Any]:
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                items = self.stack[i + 1 :]
                del self.stack[i:]
                return items
        raise ValueError("no mark")

    def pop_many(self, n: int) -> tuple[Any, ...]:
        if len(self.stack) < n or _MARK in (items := self.stack[-n:]):
            raise ValueError("too few values")
        del self.stack[-n:]
        return tuple(items)

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            found = type(self.stack[-1]).__name__ if self.stack else "nothing"
            raise ValueError(f"expected a {kind.__name__}, found {found}")
        return self.stack[-1]

    def name(self, module: Any, name: Any) -> None:
        if (module, name) not in _ALLOWED:
            raise self.archive.bad(
                f"data.pkl refers to {str(module)[:80]}.{str(name)[:80]}, which a checkpoint of "
                "tensors does not need and which is never loaded; save plain dicts of tensors",
                "data.pkl",
            )
        self.stack.append(Name(module, name))

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise ValueError("a key without a value")
        self.spend(len(items) // 2 * _ENTRY)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise ValueError(f"a {type(key).__name__} as a key, expected a text or integer")
            if key in target:
                raise ValueError(f"the key {str(key)[:80]!r} occurs twice")
            target[key] = value

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that cannot be called")
        if function.name == "OrderedDict" and arguments in ((), ([],)):
            self.stack.append({})
        elif function.name == "_rebuild_tensor_v2" and 6 <= len(arguments) <= 7:
            self.stack.append(rebuild(self.archive, *arguments[:4]))
        elif function.name == "_rebuild_parameter" and len(arguments) == 3:
            self.stack.append(arguments[0])
        elif function.name == "Size" and len(arguments) == 1:
            self.stack.append(_size(arguments[0]))
        else:
            raise ValueError(
                f"a call of {function.module}.{function.name} with {len(arguments)} arguments"
            )

    def build(self) -> None:
        # Attributes of an ordered dict (state_dict's _metadata): nothing here reads them.
        self.pop()
        self.top(dict)

    def remember(self, index: int) -> None:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("nothing to remember")
        self.memo[index] = self.stack[-1]


def _size(value: Any) -> tuple[int, ...]:
    """A torch.Size. Of anything longer, a file could ask for copies without end."""
    if not isinstance(value, (tuple, list)) or len(value) > MAX_DIMENSIONS:
        raise ValueError(f"a torch.Size of a {type(value).__name__}, expected a few integers")
    if any(type(n) is not int for n in value):
        raise ValueError("a torch.Size that holds other things than integers")
    return tuple(value)


_Step = Callable[[_Machine, Any], None]


def _push(value: Any) -> _Step:
    return lambda m, _: m.stack.append(value)


def _dict(m: _Machine, _: Any) -> None:
    items = m.pop_to_mark()
    m.stack.append({})
    m.set_items(items)


def _set_item(m: _Machine, _: Any) -> None:
    pair = m.pop_many(2)
    m.set_items(list(pair))


def _stack_global(m: _Machine, _: Any) -> None:
    m.name(*m.pop_many(2))


def _append(m: _Machine, items: list[Any]) -> None:
    m.spend(len(items) * _ITEM)
    m.top(list).extend(items)


_STEPS: dict[str, _Step] = {
    "PROTO": lambda m, v: None,
    "FRAME": lambda m, v: None,
    "MARK": _push(_MARK),
    "NONE": _push(None),
    "NEWTRUE": _push(True),
    "NEWFALSE": _push(False),
    "EMPTY_TUPLE": _push(()),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "LITERAL": lambda m, v: m.stack.append(v),
    "DICT": _dict,
    "LIST": lambda m, _: m.stack.append(m.pop_to_mark()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_to_mark())),
    "TUPLE1": lambda m, _: m.stack.append(m.pop_many(1)),
    "TUPLE2": lambda m, _: m.stack.append(m.pop_many(2)),
    "TUPLE3": lambda m, _: m.stack.append(m.pop_many(3)),
    "SETITEM": _set_item,
    "SETITEMS": lambda m, _: m.set_items(m.pop_to_mark()),
    "APPEND": lambda m, _: _append(m, [m.pop()]),
    "APPENDS": lambda m, _: _append(m, m.pop_to_mark()),
    "GLOBAL": lambda m, v: m.name(*v),
    "STACK_GLOBAL": _stack_global,
    "BINPERSID": lambda m, _: m.stack.append(make_storage(m.archive, m.pop(), _STORAGES)),
    "REDUCE": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
    "PUT": lambda m, v: m.remember(v),
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    "GET": lambda m, v: m.stack.append(m.memo[v]),
}

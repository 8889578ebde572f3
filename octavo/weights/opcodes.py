"""A weights-only interpreter of the opcode stream inside PyTorch's `.bin` and `.pt` files.

It builds lists, tuples, dicts, numbers, strings and tensor descriptions, and nothing else: no object of the
stream is ever imported or called. Names outside `_GLOBALS` are refused by name. The opcodes are those of
Python's `pickletools` documentation; only the ones that a state dict uses are known.

Of torchao's tensors the parts are read, and given the names that its safetensors have: a weight `X.weight`
becomes `X._weight_qdata`, `X._weight_scale` and so on. What else they hold stays a name without a meaning.

HQQ's own files hold a dict for each module. Its tensors become `X.W_q` and so on, and what it says in numbers
and words becomes the tensors that stand for these in HQQ's safetensors.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_MAX_OPCODES = 4_000_000
"""A state dict spends about 50 on a tensor."""
_MAX_COUNT = 1 << 60
_MAX_ENTRIES = 1 << 20
_LONGEST = 512
"""Characters of a name or a word, and numbers in a tuple, of HQQ's modules."""


class Refused(Exception):
    """The stream holds something that is not a state dict; the text says what."""


@dataclass(frozen=True)
class StorageKind:
    """A typed storage: its element type, by PyTorch's name."""

    dtype: str


@dataclass(frozen=True)
class Storage:
    """A flat run of `elements` elements, stored under `key`."""

    kind: StorageKind
    key: str
    elements: int


@dataclass(frozen=True)
class TensorView:
    """A tensor as the stream describes it: elements of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Constant:
    """A number or a word of the stream, as a tensor of its own; `dtype` by PyTorch's name."""

    dtype: str
    data: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)


@dataclass(frozen=True)
class _Callable:
    name: str


@dataclass(frozen=True)
class _Opaque:
    """Something that has a name and that nobody asks for more; also whatever is made of it."""

    name: str


@dataclass(frozen=True)
class _Parts:
    """A tensor that is made of others: what stands in it by name."""

    items: dict[Any, Any]


_STORAGES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_GLOBALS: dict[str, object] = {
    "collections OrderedDict": _Callable("dict"),
    "torch._utils _rebuild_tensor_v2": _Callable("tensor"),
    "torch._utils _rebuild_tensor": _Callable("tensor"),
    "torch._utils _rebuild_parameter": _Callable("parameter"),
    "torch._utils _rebuild_tensor_v3": _Callable("typed"),
    "torch Size": _Callable("tuple"),
    "torch.storage UntypedStorage": StorageKind("uint8"),
    "torch._tensor _rebuild_from_type_v2": _Callable("subclass"),
    "torch._utils _rebuild_wrapper_subclass": _Callable("wrapper"),
    **{f"torch {name}": StorageKind(dtype) for name, dtype in _STORAGES.items()},
}
_BYTES = ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "uint8", "int8")
_OPAQUE = re.compile(
    r"(torchao(\.\w+)* \w+|torch (u?int\d+|b?float\d+(_e\w+)?|device)|torch.serialization _get_layout)"
)
"""What stands in torchao's tensors beside their parts."""
_INNER = ("original_weight_tensor", "tensor_impl")
_CODES = ("int_data", "packed_weight", "float8_data")
_DEEPEST = 3
"""LinearActivationQuantizedTensor, AffineQuantizedTensor, and what that one is made of."""
_MARK = object()


def run(stream: IO[bytes]) -> Any:
    """The value that one opcode stream describes; reading stops after its STOP.

    Raises Refused. Time and memory are linear in the stream's length.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= _MAX_OPCODES:
                raise Refused(f"it has more than {_MAX_OPCODES} opcodes")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except Refused:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError, Warning) as error:
        # A damaged string is a warning of the decoder's, an error where warnings are.
        raise Refused(f"its opcode stream is broken ({type(error).__name__})") from None
    raise Refused("its opcode stream has no end")


def tensors(value: Any) -> Iterator[tuple[str, TensorView | Constant]]:
    """The named tensors of a state dict, also of one that stands under `state_dict` or `model`, or of HQQ's
    dict of modules.
    """
    if not isinstance(value, dict):
        raise Refused(f"it holds a {type(value).__name__}, not a dict of tensors")
    for wrapper in ("state_dict", "model"):
        inner = value.get(wrapper)
        if isinstance(inner, dict):
            value = inner
            break
    if any(isinstance(item, dict) and "W_q" in item for item in value.values()):
        yield from _of_modules(value)
        return
    for name, item in value.items():
        if isinstance(item, TensorView) and isinstance(name, str):
            yield name, item
        elif isinstance(item, _Parts) and isinstance(name, str):
            module, dot, weight = name.rpartition(".")
            for part, tensor in _leaves(item):
                yield f"{module}{dot}_{weight}_{part}", tensor


def _of_modules(modules: dict[Any, Any]) -> Iterator[tuple[str, TensorView | Constant]]:
    """Of a dict of modules: what each holds, behind its name. `meta` is a level that has no name.

    A stream may name one dict many times, each time in more dicts: what is looked at is counted.
    """
    looked_at = 0
    ahead = [("", modules, 0)]
    while ahead:
        prefix, module, depth = ahead.pop()
        for name, item in module.items():
            looked_at += 1
            if looked_at > _MAX_ENTRIES:
                raise Refused(f"it has more than {_MAX_ENTRIES} entries")
            if not isinstance(name, str) or len(name) > _LONGEST:
                continue
            if isinstance(item, dict) and depth < _DEEPEST:
                ahead.append((prefix if name == "meta" else f"{prefix}{name}.", item, depth + 1))
            elif isinstance(item, TensorView):
                yield prefix + name, item
            elif (said := _constant(item)) is not None:
                yield prefix + name, said


def _constant(item: object) -> Constant | None:
    """A truth value, a number, numbers, a word or a dtype, as HQQ's library puts it into safetensors."""
    if isinstance(item, bool):
        return Constant("uint8", np.array(item, np.uint8))
    if isinstance(item, _Opaque) and item.name.startswith("torch "):
        item = item.name.replace(" ", ".")
    if isinstance(item, str) and len(item) <= _LONGEST:
        return Constant("uint8", np.frombuffer(item.encode("latin-1", "replace"), np.uint8))
    if isinstance(item, float):
        return Constant("float64", np.array(item))
    whole = item if isinstance(item, tuple) else (item,)
    small = 0 < len(whole) <= _LONGEST
    if small and all(type(number) is int and abs(number) < _MAX_COUNT for number in whole):
        return Constant("int64", np.array(item, np.int64))
    return None


def _leaves(parts: _Parts) -> Iterator[tuple[str, TensorView]]:
    """The tensors in a tensor by torchao's present names; earlier releases put one tensor into another."""
    for _ in range(_DEEPEST):
        inner = next(
            (parts.items[name] for name in _INNER if isinstance(parts.items.get(name), _Parts)), None
        )
        if inner is None:
            break
        parts = inner
    for name, tensor in parts.items.items():
        if isinstance(tensor, TensorView) and isinstance(name, str):
            yield ("qdata" if name in _CODES else name), tensor


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _PUSH:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _PUT:
            self.memo[argument] = self.stack[-1]
        elif name in _GET:
            self.stack.append(self.memo[argument])
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"it uses the opcode {name}, which a state dict has no use for")

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise Refused("its opcode stream is broken (stray mark)")
        return value

    def pop_to_mark(self) -> list[Any]:
        start = len(self.stack) - 1
        while self.stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise Refused("its opcode stream is broken (no mark)")
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    def mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def tuple_to_mark(self, _: Any) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def append(self, _: Any) -> None:
        items = [self.pop()]
        self._list().extend(items)

    def appends(self, _: Any) -> None:
        items = self.pop_to_mark()
        self._list().extend(items)

    def _list(self) -> list[Any]:
        if not isinstance(self.stack[-1], list):
            raise Refused("it appends to something that is not a list")
        return self.stack[-1]

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._set([key, value])

    def set_items(self, _: Any) -> None:
        self._set(self.pop_to_mark())

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise Refused("it sets items of something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only plain keys: hashing a nest of shared tuples can take exponential time.
            if not isinstance(key, str | int):
                raise Refused(f"it has a dict key of type {type(key).__name__}")
            target[key] = value

    def build(self, _: Any) -> None:
        """Attributes of an ordered dict (`_metadata`) or of what has no meaning: of no use here."""
        self.pop()
        if not isinstance(self.stack[-1], dict | _Opaque):
            raise Refused("it sets the state of an object")

    def find_global(self, name: str) -> None:
        if name not in _GLOBALS and _OPAQUE.fullmatch(name):
            self.stack.append(_Opaque(name))
            return
        if name not in _GLOBALS:
            raise Refused(f"it asks for {name[:120].replace(' ', '.', 1)!r}, which weights have no use for")
        self.stack.append(_GLOBALS[name])

    def stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self.find_global(
            f"{module if isinstance(module, str) else '?'} {name if isinstance(name, str) else '?'}"
        )

    def persistent(self, _: Any) -> None:
        """('storage', kind, key, location, elements); the legacy form adds view metadata."""
        value = self.pop()
        if not isinstance(value, tuple) or len(value) not in (5, 6) or value[0] != "storage":
            raise Refused("it has a persistent id that is not a storage")
        _, kind, key, _, elements = value[:5]
        if not isinstance(kind, StorageKind) or not isinstance(key, str) or not _is_count(elements):
            raise Refused("it describes a storage that makes no sense")
        if len(value) == 6 and value[5] is not None:
            raise Refused("it has a storage that is a view of another one")
        self.stack.append(Storage(kind, key, elements))

    def reduce(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        if isinstance(function, _Opaque):
            self.stack.append(function)
            return
        if not isinstance(function, _Callable) or not isinstance(arguments, tuple):
            raise Refused("it calls something that is not a tensor")
        self.stack.append(_CALLS[function.name](arguments))

    def new_object(self, _: Any) -> None:
        """An object of a class that has no meaning here: the class itself stands for it."""
        _, kind = self.pop(), self.pop()
        if not isinstance(kind, _Opaque):
            raise Refused("it makes an object")
        self.stack.append(kind)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _MAX_COUNT


def _call_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        raise Refused("it makes an ordered dict from arguments")
    return {}


def _call_tuple(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(arguments) != 1 or not isinstance(arguments[0], tuple | list):
        raise Refused("it makes a size from something that is not a tuple")
    return tuple(arguments[0])


def _call_parameter(arguments: tuple[Any, ...]) -> TensorView | _Parts:
    if not arguments or not isinstance(arguments[0], TensorView | _Parts):
        raise Refused("it makes a parameter from something that is not a tensor")
    return arguments[0]


def _call_subclass(arguments: tuple[Any, ...]) -> _Parts:
    """(how, class, its arguments, what stands in it)."""
    if len(arguments) != 4 or arguments[0] != _Callable("wrapper") or not isinstance(arguments[1], _Opaque):
        raise Refused("it makes a tensor of a class that is not known")
    if not isinstance(arguments[3], dict):
        raise Refused("it makes a tensor of parts that are no dict")
    return _Parts(arguments[3])


def _call_wrapper(arguments: tuple[Any, ...]) -> Any:
    raise Refused("it makes a tensor without parts")


def _call_tensor(arguments: tuple[Any, ...]) -> TensorView:
    """(storage, offset, shape, strides, ...): checked to lie inside the storage and not to enlarge it."""
    if len(arguments) < 4:
        raise Refused("it describes a tensor with too few arguments")
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, Storage) or not _is_count(offset):
        raise Refused("it describes a tensor that makes no sense")
    for numbers in (shape, strides):
        if not isinstance(numbers, tuple) or len(numbers) > 16 or not all(_is_count(n) for n in numbers):
            raise Refused("it describes a tensor whose shape or strides make no sense")
    if len(shape) != len(strides):
        raise Refused(f"it has a tensor with {len(shape)} sizes and {len(strides)} strides")
    count = math.prod(shape)
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    within = max(count, offset) <= storage.elements and (not count or last < storage.elements)
    if not within or math.prod(max(size, 1) for size in shape) >= _MAX_COUNT:
        raise Refused(
            f"it has a tensor of shape {list(shape)}, beyond its storage of {storage.elements} elements"
        )
    return TensorView(storage, offset, shape, strides)


def _call_typed(arguments: tuple[Any, ...]) -> TensorView:
    """Like a tensor, but its dtype stands beside a storage of bytes: 8-bit floats do so."""
    if len(arguments) < 7 or not isinstance(arguments[6], _Opaque):
        raise Refused("it describes a tensor with too few arguments")
    view, dtype = _call_tensor(arguments), arguments[6].name.removeprefix("torch ")
    if dtype not in _BYTES or view.storage.kind.dtype != "uint8":
        raise Refused(f"it has a tensor of {dtype[:60]}, which is not known")
    return replace(view, storage=replace(view.storage, kind=StorageKind(dtype)))


_CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "dict": _call_dict,
    "tuple": _call_tuple,
    "parameter": _call_parameter,
    "tensor": _call_tensor,
    "typed": _call_typed,
    "subclass": _call_subclass,
    "wrapper": _call_wrapper,
}
_NUMBERS = frozenset(("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT"))
_STRINGS = frozenset(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"))
_PUSH = _NUMBERS | _STRINGS
_PUT = frozenset(("BINPUT", "LONG_BINPUT", "PUT"))
_GET = frozenset(("BINGET", "LONG_BINGET", "GET"))
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "MEMOIZE": _Machine.memoize,
    "TUPLE": _Machine.tuple_to_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "BUILD": _Machine.build,
    "GLOBAL": _Machine.find_global,
    "STACK_GLOBAL": _Machine.stack_global,
    "BINPERSID": _Machine.persistent,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new_object,
}

"""Objects as bytes: cloudpickle at protocol 5, large buffers beside the pickle and not in it.

Functions and classes of the caller's `__main__` travel by value (a task's own `__main__` is
another module). Their names travel too: what runs inside the task, a `multiprocessing.Pool` for
one, finds them in the task's `__main__`, and an outcome that refers to them is pickled by name
again, so that the caller gets an instance of its own class and not of a copy.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import sys
from collections import ChainMap
from functools import partial
from operator import attrgetter
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import cloudpickle

from pynisher_exec.kernel import memory_copy
from pynisher_exec.protocol import arrays

if TYPE_CHECKING:
    import mmap
    from collections.abc import Mapping, Sequence

__all__ = [
    "ATOMS",
    "MAINS",
    "beside",
    "dump_call",
    "dump_outcome",
    "is_being_imported",
    "load_call",
    "load_outcome",
    "looks_plain",
    "takes_time",
    "try_outcome",
]

PROTOCOL = 5
OUT_OF_BAND = 1 << 16
"""Bytes: smaller buffers stay in the pickle, where they cost less than a segment of their own."""

MOST_ASIDE = 1 << 15
"""Buffers beside one pickle; the others stay in it, since a frame has a bound on its segments."""

MAINS = ("__main__", "__mp_main__")
"""What a caller's main module calls itself: the second in a child that multiprocessing spawned."""

ATOMS = (type(None), bool, int, float, str, bytes, bytearray)
"""What pickles and loads without any code but the interpreter's."""

_NO_FILE = "<dynamic-code>"
"""What stands for the file of every function in a pickle of cloudpickle's, since 3.1."""

_NAMED_GLOBALS = frozenset(b"\x82\x83\x84\x93")
"""Opcodes by which a pickle names a module's attribute: GLOBAL, EXT1, EXT2, EXT4, STACK_GLOBAL."""


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's, with large buffers set aside in `buffers`."""

    def __init__(self, stream: io.BytesIO) -> None:
        self.buffers: list[memoryview] = []
        # The callback is no method: what it has pickled would stay until the next full collection.
        super().__init__(stream, PROTOCOL, buffer_callback=partial(_set_aside, self.buffers))

    def reducer_override(self, obj: Any) -> Any:
        found = arrays.reduce(obj, OUT_OF_BAND)
        return super().reducer_override(obj) if found is NotImplemented else found


def _set_aside(kept: list[memoryview], buffer: pickle.PickleBuffer) -> bool:
    """Keep a large contiguous buffer out of the pickle; True leaves it in."""
    try:
        view = buffer.raw()
    except BufferError:  # not contiguous
        return True
    if view.nbytes < OUT_OF_BAND or len(kept) == MOST_ASIDE:
        return True
    if not memory_copy.is_there(view):  # others will read it, and could not say what it is
        msg = "not all of its memory can be read: does it map a file that has been cut?"
        raise EOFError(msg)
    kept.append(view)
    return False


def _in_main(thing: object) -> str | None:
    """Tell under which name a function or class stands in this process's `__main__`, if any."""
    if not isinstance(thing, (type, FunctionType)) or thing.__module__ not in MAINS:
        return None
    name = thing.__qualname__
    return name if getattr(sys.modules["__main__"], name, None) is thing else None


def is_being_imported(name: str) -> bool:
    """Whether the module's own code is still running."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _wrapper_of(function: FunctionType) -> object | None:
    """What a decorator has put in the place of a function, if it leads back to it.

    Such a function is not found by its name, so cloudpickle would send it by value, with all the
    globals that it refers to; its wrapper is found.
    """
    if function.__module__ in MAINS:
        return None
    found: Any = sys.modules.get(function.__module__)
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found if getattr(found, "__wrapped__", None) is function else None


def _refuse_file(file: io.TextIOWrapper) -> NoReturn:
    msg = f"{file!r} is open, and another process cannot have it by value"
    raise pickle.PicklingError(msg)


class _Beside:
    """Bytes that lie beside the pickle, as those of an array do: in it they would be copied."""

    def __init__(self, value: bytes | bytearray) -> None:
        self._value = value

    def __reduce__(self) -> tuple[type[bytes | bytearray], tuple[pickle.PickleBuffer]]:
        return type(self._value), (pickle.PickleBuffer(self._value),)


def beside(values: list[Any]) -> list[Any]:
    """Give arguments as they should be pickled: many bytes beside the pickle, all else as it is.

    What occurs twice among them stays one object. Not bytearrays: one may lie in another argument,
    too, and what changes it here has to be seen there.
    """
    apart = {id(each): _Beside(each) for each in values if type(each) is bytes and takes_time(each)}
    return [apart.get(id(each), each) for each in values] if apart else values


class _CallPickler(_Pickler):
    """Notes which names of `__main__` travel by value.

    So does what belongs to a module that is still being imported: a task that imported it would
    make the same call again, and so on for ever.
    """

    def __init__(
        self, stream: io.BytesIO, reducers: Mapping[type, Any] | None, *, files: bool
    ) -> None:
        if reducers or not files:  # before the C pickler takes the table that it finds
            first = {} if files else {io.TextIOWrapper: _refuse_file}
            known = cloudpickle.Pickler.dispatch_table
            self.dispatch_table = ChainMap(first, known, dict(reducers or {}))
        super().__init__(stream)
        self.main_names: dict[str, Any] = {}
        self.by_value: list[ModuleType] = []

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is CodeType:
            return _code_with_its_file(obj, self.dispatch_table)
        name = _in_main(obj)
        if name is not None:
            self.main_names[name] = obj
        elif isinstance(obj, (type, FunctionType)) and is_being_imported(obj.__module__):
            module = sys.modules[obj.__module__]
            cloudpickle.register_pickle_by_value(module)
            self.by_value.append(module)
        elif isinstance(obj, FunctionType) and (wrapper := _wrapper_of(obj)) is not None:
            return attrgetter("__wrapped__"), (wrapper,)
        return super().reducer_override(obj)


def _code_with_its_file(code: CodeType, reducers: Mapping[type, Any]) -> Any:
    """As cloudpickle does, but with the file: a traceback in the task then shows the lines.

    cloudpickle leaves it out, so that its pickles are the same wherever a function stands.
    """
    kind, args = reducers[CodeType](code)
    return kind, tuple(code.co_filename if each == _NO_FILE else each for each in args)


class _OutcomePickler(_Pickler):
    """Pickles by name what the call brought into this task's `__main__`: the caller has it."""

    def __init__(self, stream: io.BytesIO, main_names: frozenset[str] | None) -> None:
        super().__init__(stream)
        self._main_names = main_names

    def reducer_override(self, obj: Any) -> Any:
        name = _in_main(obj)
        if name is not None and (self._main_names is None or name in self._main_names):
            return name
        return super().reducer_override(obj)


def dump_call(
    call: object,
    reducers: Mapping[type, Any] | None = None,
    *,
    files: bool = True,
    names: bool = True,
) -> list[bytes | memoryview]:
    """Pickle what a task shall load: the pickle, then its buffers. Raises what pickling does.

    `reducers` are ways to reduce a type beyond those that are registered (`copyreg`). Without
    `files`, an open text file is refused, where cloudpickle sends what is left to be read of it.
    Without `names` those of this `__main__` do not go along: who loads it is another one's task.
    """
    main = sys.modules.get("__mp_main__")
    if main is not None and main.__name__ == "__mp_main__":  # cloudpickle knows the other alone
        cloudpickle.register_pickle_by_value(main)
    stream = io.BytesIO()
    pickler = _CallPickler(stream, reducers, files=files)
    try:
        pickler.dump(call)
        # After the call: only now are the names known.
        pickler.dump(dict(pickler.main_names) if names else {})
    finally:
        for module in pickler.by_value:
            with contextlib.suppress(ValueError):  # another thread's pickler has done so
                cloudpickle.unregister_pickle_by_value(module)
    return [stream.getvalue(), *pickler.buffers]


def load_call(
    segments: Sequence[bytes | bytearray | memoryview | mmap.mmap],
) -> tuple[Any, dict[str, Any]]:
    """Load a call and the names of the caller's `__main__` that came with it."""
    buffers = [each if isinstance(each, bytearray) else memoryview(each) for each in segments[1:]]
    unpickler = pickle.Unpickler(io.BytesIO(segments[0]), buffers=iter(buffers))
    return unpickler.load(), unpickler.load()


def dump_outcome(value: object, main_names: frozenset[str] | None) -> list[bytes | memoryview]:
    """Pickle a value or exception on its way to the caller. Raises what pickling raises.

    `main_names` are those that the caller's `__main__` is known to have; None: this process has
    been forked from the caller, so all of them.
    """
    if type(value) in (bytes, bytearray) and takes_time(value):
        value = _Beside(value)  # type: ignore[arg-type]
    elif type(value) in ATOMS:
        return [pickle.dumps(value, PROTOCOL)]
    stream = io.BytesIO()
    pickler = _OutcomePickler(stream, main_names)
    pickler.dump(value)
    return [stream.getvalue(), *pickler.buffers]


def load_outcome(segments: Sequence[bytes | bytearray | memoryview | mmap.mmap]) -> Any:
    """Load a value or exception. Raises whatever the objects in it raise."""
    return pickle.loads(segments[0], buffers=segments[1:])


def try_outcome(segments: Sequence[bytes | memoryview]) -> Any:
    """Load an outcome as its receiver will, and leave its bytes as they are; give what comes of it.

    What works in place on its buffers when it is loaded must not do so before they are sent. So
    they are lent for reading only; where that is not enough, copies are.
    """
    pickled, *buffers = segments
    try:
        return load_outcome([pickled, *(memoryview(each).toreadonly() for each in buffers)])
    except Exception:  # whatever foreign code makes of that
        if not buffers:
            raise
        return load_outcome([pickled, *map(bytearray, buffers)])


def takes_time(value: object) -> bool:
    """Whether to pickle it may take a while, or run code of others: all but small atoms."""
    kind = type(value)
    if kind is bytes or kind is bytearray or kind is str:
        return len(value) >= OUT_OF_BAND  # type: ignore[arg-type]
    if kind is int:
        return value.bit_length() >= 8 * OUT_OF_BAND  # type: ignore[attr-defined,no-any-return]
    return kind not in ATOMS


def looks_plain(pickled: bytes | memoryview) -> bool:
    """Whether a pickle surely loads: it names no class or function, so it holds builtins only.

    Looks for the opcodes anywhere in the bytes: data that holds the same bytes makes the answer
    False needlessly, never True wrongly.
    """
    return len(pickled) <= OUT_OF_BAND and _NAMED_GLOBALS.isdisjoint(bytes(pickled))

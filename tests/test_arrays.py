"""Large arrays of all kinds travel beside their pickle, and are the same when they are loaded."""

from __future__ import annotations

import sys
import tempfile
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pynisher_exec import LimitedProcessExecutor
from pynisher_exec.protocol import arrays, payload

PATIENCE = 40
MIB = 1 << 20
NUMBERS = np.arange(300_000.0).reshape(300, 1000)
MOMENTS: Any = np.arange(300_000).astype("M8[s]")


def memory_map(content: Any = NUMBERS) -> Any:
    """Make a map of a file, which no name leads to any more; for reading, as data is opened."""
    with tempfile.NamedTemporaryFile() as file:
        content.tofile(file)
        file.flush()
        return np.memmap(file.name, content.dtype, "r", shape=content.shape)


def masked() -> Any:
    """Make one of which some are masked, for good."""
    made: Any = np.ma.masked_array(NUMBERS, NUMBERS % 7 == 0, fill_value=-1, hard_mask=True)
    return made


KINDS: dict[str, Any] = {
    "whole": NUMBERS,
    "by columns": np.asfortranarray(NUMBERS),
    "columns": NUMBERS[:, :500],
    "rows": NUMBERS[::2],
    "backwards": NUMBERS[::-1],
    "other axes": NUMBERS.reshape(30, 100, 100).transpose(1, 2, 0),
    "repeated": np.broadcast_to(NUMBERS[0], (90, 1000)),
    "map": memory_map(),
    "part of a map": memory_map()[:, :500],
    "matrix": NUMBERS.view(np.matrix),
    "records": np.rec.fromarrays([NUMBERS[0], NUMBERS[1], NUMBERS[:8].reshape(-1)[:1000]] * 3),
    "moments": MOMENTS,
    "spans": MOMENTS - MOMENTS[5],
    "fields with moments": np.zeros(9000, [("at", "M8[s]"), ("pair", "m8[h]", 2), ("x", "f4")]),
    "fields out of order": np.zeros(
        9000, {"names": ["x", "y"], "formats": ["i8", "i4"], "offsets": [8, 0]}
    ),
    "foreign order": np.ones(9000, ">g"),
    "without any": np.zeros((1000, 0)),
    "one": np.zeros((), "V100000"),
}


PARTS = ("columns", "rows", "backwards", "repeated", "part of a map")
"""Of other arrays; their copies lie row by row, as numpy's own way has them."""


def reduced(thing: Any) -> Any:
    """As each pickler asks for it."""
    return arrays.reduce(thing, payload.OUT_OF_BAND)


def copied(thing: Any) -> tuple[Any, list[int]]:
    """Send it and load it; and the sizes of the pickle and of what lies beside it."""
    segments = payload.dump_call(thing)
    loaded, _ = payload.load_call([bytearray(each) for each in segments])
    return loaded, [len(each) for each in segments]


@pytest.mark.parametrize("name", KINDS)
def test_large_array_is_no_part_of_its_pickle(name: str) -> None:
    """It comes out with the same values, type and layout, and to be written to."""
    array = KINDS[name]
    loaded, (pickled, *beside) = copied(array)
    assert pickled < 1000
    assert sum(beside) == array.nbytes
    assert type(loaded) is type(array)
    assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape)
    assert loaded.tobytes() == array.tobytes()
    assert loaded.flags.writeable
    whole = array.copy() if name in PARTS else array
    assert loaded.strides == whole.strides or not array.size
    assert not np.shares_memory(loaded, array)


def test_masked_array_is_no_part_of_its_pickle() -> None:
    """Nor its mask, which stays hard or soft, or none at all."""
    loaded, (pickled, *beside) = copied(masked())
    assert pickled < 1000
    assert sum(beside) == masked().nbytes + masked().mask.nbytes
    assert np.ma.allequal(loaded, masked())
    assert (loaded.mask == masked().mask).all()
    assert loaded.fill_value == -1
    assert loaded.hardmask
    loaded, _ = copied(np.ma.masked_array(NUMBERS))
    assert loaded.mask is np.ma.nomask
    assert not loaded.hardmask


@pytest.mark.parametrize("kind", ["f2", "i1", "M8[25s]", "S3"])
def test_default_of_what_stands_for_the_masked_is_left_to_numpy(kind: str) -> None:
    """It is made when it is asked for, here as there, and not all that it makes can be given."""
    array: Any = np.ma.masked_array(np.zeros(100_000, kind), mask=False)
    loaded, _ = copied(array)
    assert array._fill_value is None
    assert loaded._fill_value is None
    assert str(loaded.fill_value) == str(array.fill_value)


class Vague(type):
    """A metaclass whose classes are like any other one."""

    def __eq__(cls, other: object) -> bool:
        """Say so."""
        return True

    __hash__ = type.__hash__


def test_class_is_known_by_what_it_is() -> None:
    """Not by what its metaclass says."""
    kind: Any = Vague("Kind", (np.ndarray,), {})
    assert reduced(np.zeros((1000, 1000)).view(kind)) is NotImplemented


class Named(np.ndarray[Any, Any]):
    """An array with a name, which only its own way of pickling knows of."""

    name = ""

    def __reduce__(self) -> Any:
        """Say both."""
        return _named, (np.asarray(self), self.name)


def _named(array: Any, name: str) -> Named:
    made: Named = array.view(Named)
    made.name = name
    return made


def test_array_of_a_class_of_its_own_is_pickled_by_that() -> None:
    """What it holds besides is not lost."""
    array = _named(NUMBERS, "some numbers")
    loaded, _ = copied(array)
    assert loaded.name == array.name
    assert (loaded == array).all()


def test_small_arrays_and_those_of_objects_are_numpys_matter() -> None:
    """As all that is no array, of which there may be thousands in a call."""
    for thing in (NUMBERS[:2, :2], np.array([{}] * 20_000), np.ones(3, "M8[s]"), object(), 1.5):
        assert reduced(thing) is NotImplemented


def test_without_numpy_nothing_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor while another thread imports it, and its module has no arrays yet."""
    monkeypatch.setitem(sys.modules, "numpy", type(sys)("numpy"))
    assert reduced(NUMBERS[:, :500]) is NotImplemented
    monkeypatch.setitem(sys.modules, "numpy", MagicMock())  # as documentation is made
    assert reduced(NUMBERS[:, :500]) is NotImplemented
    monkeypatch.delitem(sys.modules, "numpy")
    assert reduced(NUMBERS[:, :500]) is NotImplemented


@given(
    axes=st.permutations(range(3)),
    steps=st.lists(st.sampled_from([-3, -1, 1, 2]), min_size=3, max_size=3),
    starts=st.lists(st.integers(0, 5), min_size=3, max_size=3),
)
def test_any_part_of_an_array_arrives(axes: list[int], steps: list[int], starts: list[int]) -> None:
    """Whatever its axes, steps and beginnings."""
    whole = np.arange(90_000, dtype="m8[s]").reshape(30, 50, 60).transpose(axes)
    lengths = zip(starts, steps, strict=True)
    part = whole[tuple(slice(start if step > 0 else None, None, step) for start, step in lengths)]
    loaded, _ = copied([part, part])
    assert (loaded[0] == part).all()
    assert loaded[0] is loaded[1]


# What is shared -----------------------------------------------------------------------------------


def anonymous(_thing: Any) -> int:
    """Bytes that this process has for itself."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        lines = dict(line.split(":") for line in file.read().splitlines()[1:])
    return int(lines["Anonymous"].split()[0]) << 10


def frame(count: int) -> pd.DataFrame:
    """Make one with dates in it."""
    index = pd.date_range("2000", periods=count, freq="s", tz="UTC")
    return pd.DataFrame({"x": np.ones(count), "at": index.tz_localize(None)}, index=index)


def test_tasks_have_no_copies_of_any_kind() -> None:
    """A gigabyte of a file's map, shared, would be one in each task, which no limit would see."""
    large = np.tile(NUMBERS, 10)
    masked = np.ma.masked_array(large, mask=large > 1)
    things = [large[:, ::2], large.view(np.matrix), masked, memory_map(large), large.view("M8[s]")]
    with LimitedProcessExecutor(1, preload=["numpy", "pandas"]) as executor:
        alone = max(executor.map(anonymous, [None] * 3, timeout=PATIENCE))
        for thing in [*things, frame(large.size)]:
            handle = executor.share(thing)
            assert handle.nbytes > 10 * MIB
            used = executor.submit(anonymous, handle).result(PATIENCE)
            assert used - alone < handle.nbytes / 3, type(thing)  # some MiB vary by themselves

"""The spool: what is put in comes back, in memory or not, and nothing is left on disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcompile.errors import InputError
from qcompile.execution.spool import Spool


def array_of(number: int, size: int = 10) -> np.ndarray:
    return np.full(size, number, np.float32)


def files_of(spool: Spool) -> list[Path]:
    return list(Path(spool._folder.name).iterdir())


@pytest.mark.parametrize("memory", [0, 100, 1 << 20])
def test_arrays_come_back(memory: int) -> None:
    random = np.random.default_rng(0)
    arrays: dict[tuple[str, int], NDArray[Any]] = {
        ("floats", 0): random.normal(size=(3, 4)).astype(np.float32),
        ("floats", 1): random.normal(size=(2, 4)).astype(np.float32)[:, ::2],  # not contiguous
        ("codes", 0): random.integers(0, 256, (5, 2, 2)).astype(np.uint8),
        ("whole", 7): np.array(3, np.int64),
        ("texts", 0): np.array(["a", "é"], object),
        ("empty", 0): np.zeros((0, 3), np.float32),
        ("truth/with:odd*name", 0): np.array([True, False]),
    }
    with Spool(memory) as spool:
        for (name, batch), array in arrays.items():
            spool.put(name, batch, array)
        for (name, batch), array in arrays.items():
            found = spool.get(name, batch)
            assert found.dtype == array.dtype and found.shape == array.shape
            np.testing.assert_array_equal(found, array)


def test_the_first_bytes_stay_in_memory() -> None:
    with Spool(80) as spool:
        for batch in range(3):
            spool.put("a", batch, array_of(batch))  # 40 bytes each
        assert len(files_of(spool)) == 1
        kept = array_of(5)
        spool.put("empty", 0, kept[:0])
        assert [spool.get("a", batch)[0] for batch in range(3)] == [0, 1, 2]


def test_dropping_makes_room_and_deletes_files() -> None:
    with Spool(40) as spool:
        spool.put("a", 0, array_of(0))
        spool.put("b", 0, array_of(1))
        assert len(files_of(spool)) == 1
        spool.drop("b")
        assert files_of(spool) == []
        spool.drop("a")
        spool.put("c", 0, array_of(2))
        assert files_of(spool) == [] and spool.get("c", 0)[0] == 2


@pytest.mark.parametrize("memory", [0, 60, 1 << 20])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.bool_])
def test_rows_are_counted_through_the_batches(memory: int, dtype: type) -> None:
    whole = np.random.default_rng(0).integers(0, 2, (11, 3, 2)).astype(dtype)
    with Spool(memory) as spool:
        for batch, start in enumerate(range(0, 11, 4)):
            spool.put("a", batch, whole[start : start + 4])
        for places in (range(11), range(2, 9), [0, 3, 4, 10], np.array([7]), []):
            found = spool.rows("a", places)
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, whole[list(places)])
        spool.rows("a", [5])[:] = 1  # a copy
        np.testing.assert_array_equal(spool.rows("a", range(11)), whole)


def test_files_lie_where_they_are_told_to(tmp_path: Path) -> None:
    with Spool(0, tmp_path) as spool:
        spool.put("a", 0, array_of(0))
        assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Spool(0) as spool:
        monkeypatch.setattr(Path, "write_bytes", refuse)
        with pytest.raises(InputError, match=r"cannot keep values on disk: No space left"):
            spool.put("a", 0, array_of(0))


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot keep values on disk: No such file or directory \(.*absent\)"):
        Spool(0, tmp_path / "absent")


def test_names() -> None:
    with Spool() as spool:
        assert not spool.has("a") and spool.names() == []
        spool.put("a", 0, array_of(0))
        spool.put("b", 0, array_of(0))
        assert spool.has("a") and spool.names() == ["a", "b"]
        spool.drop("a")
        spool.drop("never there")
        assert spool.names() == ["b"]
        with pytest.raises(KeyError):
            spool.get("a", 0)


@pytest.mark.parametrize("error", [False, True])
def test_the_folder_goes_with_it(error: bool) -> None:
    with pytest.raises(ZeroDivisionError) if error else Spool(0), Spool(0) as spool:
        spool.put("a", 0, array_of(0))
        folder = Path(spool._folder.name)
        assert folder.is_dir()
        if error:
            raise ZeroDivisionError
    assert not folder.exists()


@settings(max_examples=50)
@given(
    st.integers(0, 200),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.integers(0, 30), st.booleans()), max_size=20),
)
def test_it_is_a_dictionary_of_bounded_memory(memory: int, actions: list[tuple[str, int, int, bool]]) -> None:
    expected: dict[str, dict[int, np.ndarray]] = {}
    with Spool(memory) as spool:
        for name, batch, size, drop in actions:
            if drop:
                spool.drop(name)
                expected.pop(name, None)
            elif batch not in expected.get(name, {}):
                array = array_of(size, size)
                spool.put(name, batch, array)
                expected.setdefault(name, {})[batch] = array
            arrays = [(name, batch, array) for name, parts in expected.items() for batch, array in parts.items()]
            assert all(np.array_equal(spool.get(name, batch), array) for name, batch, array in arrays)
            in_memory = sum(array.nbytes for name, batch, array in arrays if spool.get(name, batch) is array)
            assert in_memory <= memory
            on_disk = sum(spool.get(name, batch) is not array for name, batch, array in arrays)
            assert len(files_of(spool)) == on_disk

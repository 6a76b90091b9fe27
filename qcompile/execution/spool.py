"""Arrays of many batches in bounded memory: what does not fit goes to disk."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from qcompile.errors import InputError
from qcompile.files import OURS

MEMORY = 48 << 20  # bytes kept in memory
Array = NDArray[Any]


@dataclass(frozen=True)
class _Stored:
    """An array in a file. It is read, not mapped: pages of a mapping would count as memory of the process."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @classmethod
    def write(cls, path: Path, array: Array) -> _Stored:
        path.write_bytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return cls(path, array.dtype, array.shape)

    def read(self) -> Array:
        return np.fromfile(self.path, self.dtype, count=int(np.prod(self.shape))).reshape(self.shape)

    def __getitem__(self, row: int) -> Array:
        size = int(np.prod(self.shape[1:]))
        offset = row * size * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, count=size, offset=offset).reshape(self.shape[1:])


class Spool:
    """Keeps arrays by (name, batch): the first `memory` bytes in memory, the rest in a temporary folder.

    The folder lies in `folder`, by default where the system keeps such things. Use as a context manager; the temporary
    folder goes with it.
    """

    def __init__(self, memory: int = MEMORY, folder: Path | None = None) -> None:
        try:
            self._folder = tempfile.TemporaryDirectory(prefix=OURS, dir=folder)
        except OSError as error:
            where, remedy = str(folder or tempfile.gettempdir()), "make room there, and allow writing"
            raise InputError(
                f"cannot keep values on disk: {error.strerror or error}", where=where, remedy=remedy
            ) from error
        self._held: dict[str, dict[int, Array | _Stored]] = {}
        self._free = memory
        self._files = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.clear()
        self._folder.cleanup()

    def put(self, name: str, batch: int, array: Array) -> None:
        """Keep `array`; the caller no longer changes it. Raises InputError where the disk is full."""
        if array.nbytes <= self._free or array.dtype == object:  # texts are references, which no file can hold
            self._free -= array.nbytes
            self._held.setdefault(name, {})[batch] = array
            return
        path = Path(self._folder.name) / str(self._files)
        self._files += 1
        try:
            self._held.setdefault(name, {})[batch] = _Stored.write(path, array)
        except OSError as error:
            what, remedy = f"cannot keep values on disk: {error.strerror or error}", "make room there"
            raise InputError(what, where=self._folder.name, remedy=remedy) from error

    def get(self, name: str, batch: int) -> Array:
        """Return the array kept under (name, batch)."""
        kept = self._held[name][batch]
        return kept.read() if isinstance(kept, _Stored) else kept

    def rows(self, name: str, places: Sequence[int] | NDArray[np.int64]) -> Array:
        """Return rows of `name` as one new array; `places` count them through its batches, in the order of `put`."""
        batches = list(self._held[name].values())
        starts = np.cumsum([0, *(batch.shape[0] for batch in batches)])
        found = np.empty((len(places), *batches[0].shape[1:]), batches[0].dtype)
        for number, (place, batch) in enumerate(zip(places, np.searchsorted(starts, places, side="right") - 1)):
            found[number] = batches[batch][place - starts[batch]]
        return found

    def has(self, name: str) -> bool:
        """Say whether anything is kept under `name`."""
        return name in self._held

    def names(self) -> list[str]:
        """Return every name under which something is kept."""
        return list(self._held)

    def drop(self, name: str) -> None:
        """Forget every batch of `name`."""
        for kept in self._held.pop(name, {}).values():
            if isinstance(kept, _Stored):
                kept.path.unlink()
            else:
                self._free += kept.nbytes

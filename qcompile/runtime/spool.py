"""Arrays of many batches in bounded memory: what does not fit goes to disk."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

MEMORY = 192 << 20  # bytes kept in memory


class Spool:
    """Keeps arrays by (name, batch): the first `memory` bytes in memory, the rest in a temporary folder.

    Use as a context manager; the folder goes with it.
    """

    def __init__(self, memory: int = MEMORY) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="qcompile-")
        self._held: dict[str, dict[int, NDArray[Any] | Path]] = {}
        self._free = memory
        self._files = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.clear()
        self._folder.cleanup()

    def put(self, name: str, batch: int, array: NDArray[Any]) -> None:
        """Keep `array`; the caller no longer changes it."""
        if array.nbytes <= self._free:
            self._free -= array.nbytes
            self._held.setdefault(name, {})[batch] = array
            return
        path = Path(self._folder.name) / f"{self._files}.npy"
        self._files += 1
        np.save(path, array)
        self._held.setdefault(name, {})[batch] = path

    def get(self, name: str, batch: int) -> NDArray[Any]:
        """Return the array kept under (name, batch)."""
        kept = self._held[name][batch]
        return np.load(kept) if isinstance(kept, Path) else kept

    def has(self, name: str) -> bool:
        """Say whether anything is kept under `name`."""
        return name in self._held

    def names(self) -> list[str]:
        """Return every name under which something is kept."""
        return list(self._held)

    def drop(self, name: str) -> None:
        """Forget every batch of `name`."""
        for kept in self._held.pop(name, {}).values():
            if isinstance(kept, Path):
                kept.unlink()
            else:
                self._free += kept.nbytes

"""The initializers of an emitted file: equal ones are stored once, under short readable names."""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b
from typing import Any

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import numpy_helper

from qcompile.ir import unique_name
from qcompile.ir.store import Store


class Constants:
    """Initializers by content, large ones in `store` if there is one.

    `add` returns the name under which an equal array stands in the file.
    """

    def __init__(self, taken: set[str], store: Store | None = None) -> None:
        self.protos: list[onnx.TensorProto] = []
        self._taken = taken
        self._store = store
        self._names: dict[tuple[Any, ...], str] = {}

    def add(self, value: NDArray[Any] | np.generic, stem: str) -> str:
        """Store `value` and return its name: `stem`, or that of an equal array stored before."""
        array = np.asarray(value)
        key = content_key(array)
        if key not in self._names:
            self._names[key] = self.put(array, self.unique(stem))
        return self._names[key]

    def scalar(self, value: int, dtype: DTypeLike) -> str:
        """Store a scalar under a name made of its type and value."""
        return self.add(np.array(value, dtype), f"{np.dtype(dtype).name}_{value}".replace("-", "m"))

    def own(self, value: NDArray[Any], stem: str) -> str:
        """Store `value` for one reader alone, whether or not an equal array is there; return its name."""
        return self.put(value, self.unique(stem))

    def put(self, value: NDArray[Any], name: str) -> str:
        """Store `value` under exactly `name`, which was reserved as taken."""
        store = self._store
        self.protos.append(numpy_helper.from_array(value, name) if store is None else store.put(value, name))
        return name

    def proto(self, proto: onnx.TensorProto) -> str:
        """Store a tensor that numpy cannot hold; return its name."""
        proto.name = self.unique(proto.name)
        self.protos.append(proto)
        return str(proto.name)

    def keep(self, read: Collection[str]) -> None:
        """Drop what is not among the names that are read."""
        self.protos = [proto for proto in self.protos if proto.name in read]

    def unique(self, stem: str) -> str:
        """Return `stem`, or `stem_2`, `stem_3` ...: a name not yet taken, which is taken now."""
        return unique_name(stem, self._taken)


def content_key(array: NDArray[Any]) -> tuple[Any, ...]:
    """Return what equal arrays have in common: no copy of their values, but of texts, which are references."""
    if array.dtype == object:
        return array.dtype.str, array.shape, repr(array.tolist())
    return array.dtype.str, array.shape, blake2b(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).digest()

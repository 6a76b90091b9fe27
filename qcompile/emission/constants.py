"""The initializers of an emitted file: equal ones are stored once, under short readable names."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from qcompile.ir import unique_name


class Constants:
    """Initializers by content. `add` returns the name under which an equal array stands in the file."""

    def __init__(self, taken: set[str]) -> None:
        self.protos: list[onnx.TensorProto] = []
        self._taken = taken
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def add(self, value: NDArray[Any] | np.generic, stem: str) -> str:
        """Store `value` and return its name: `stem`, or that of an equal array stored before."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._names:
            self._names[key] = name = self.unique(stem)
            self.protos.append(numpy_helper.from_array(array, name))
        return self._names[key]

    def scalar(self, value: int, dtype: type[np.generic]) -> str:
        """Store a scalar under a name made of its type and value."""
        return self.add(dtype(value), f"{np.dtype(dtype).name}_{value}".replace("-", "m"))

    def own(self, value: NDArray[Any], stem: str) -> str:
        """Store `value` for one reader alone, whether or not an equal array is there; return its name."""
        return self.put(value, self.unique(stem))

    def put(self, value: NDArray[Any], name: str) -> str:
        """Store `value` under exactly `name`, which was reserved as taken."""
        self.protos.append(numpy_helper.from_array(value, name))
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

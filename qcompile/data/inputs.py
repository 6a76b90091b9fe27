"""The inputs of a model, and the checks that data passes before the model sees it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.errors import InputError
from qcompile.ir import Graph

Arrays = dict[str, NDArray[Any]]
Indices = NDArray[np.int64]
TEXT = "OUS"  # kinds of arrays that hold texts
NOT_STACKED = "axis 0 of its inputs does not count samples"


@dataclass(frozen=True)
class InputInfo:
    """One input of the model. In `shape`, int is a fixed size, name or None a dynamic one.

    Where `ranked` is False the model does not even say how many dimensions there are; the data does (`with_ranks`).
    """

    name: str
    shape: tuple[int | str | None, ...]
    dtype: np.dtype[Any]
    ranked: bool = True


class RaggedError(InputError):
    """Arrays that belong together do not have the same number of rows."""


def input_infos(graph: Graph) -> list[InputInfo]:
    """Return name, shape and dtype of every input of `graph`; bfloat16, which numpy lacks, is float32."""
    return [
        InputInfo(
            item.name,
            tuple(item.shape or ()),
            np.dtype(np.float32 if unknown(item.dtype) else item.dtype),
            item.shape is not None,
        )
        for item in graph.inputs
    ]


def with_ranks(inputs: Sequence[InputInfo], ranks: Mapping[str, int]) -> list[InputInfo]:
    """Return inputs in which those without a shape have as many open dimensions as their data."""
    return [
        info if info.ranked else replace(info, shape=(None,) * ranks.get(info.name, 0), ranked=True) for info in inputs
    ]


def unknown(dtype: Any) -> bool:
    """Say whether a tensor's type is open, or one that numpy lacks: the graph then has ONNX's number for it."""
    return dtype is None or isinstance(dtype, int)


def show_shape(shape: Sequence[int | str | None]) -> str:
    """Return a shape as text, `?` for a dynamic dimension without a name."""
    return f"[{', '.join('?' if dim is None else str(dim) for dim in shape)}]"


def stackable(inputs: Sequence[InputInfo]) -> bool:
    """Say whether, as far as the shapes tell, samples may stand one behind the other along axis 0 of every input.

    Not so for numbers without an axis, for a state [2, N, 128] beside [N, 512], and where what is the first axis of one
    input is an inner one of another.
    """
    first = {info.shape[0] if info.shape else 0 for info in inputs}
    inner = {dim for info in inputs for dim in info.shape[1:]}
    fixed = {size for size in first if isinstance(size, int)}
    return 0 not in first and len(fixed) < 2 and not any(isinstance(dim, str) and dim in inner - {""} for dim in first)


def fixed_batch(inputs: Sequence[InputInfo]) -> int | None:
    """Return the number of samples that a model whose inputs are `stackable` insists on; None: any number will do."""
    return next((size for info in inputs if isinstance(size := info.shape[0], int)), None)


def as_array(value: Any, where: str) -> NDArray[Any]:
    """Return an array, a tensor of another library or nested lists as an array; InputError if they are none."""
    try:
        if hasattr(value, "detach"):  # torch's, with a gradient or on a device
            value = value.detach().cpu()
        array = np.asarray(value)
    except Exception as error:  # whatever the other library raises
        reason = str(error).partition("\n")[0]
        what = f"the data holds a {type(value).__name__} that is no array: {reason}"
        raise InputError(what, where=where, remedy="give numpy arrays") from error
    if np.ma.is_masked(value):
        raise InputError("the data has masked values", where=where, remedy="give numbers for them, as .filled(0) does")
    objects = array.flat if array.dtype == object else ()
    if name := next((type(item).__name__ for item in objects if not isinstance(item, str | bytes)), ""):
        what = f"the data holds an array of objects ({name}), not of numbers or texts"
        raise InputError(what, where=where, remedy="give it a type, such as .astype(np.float32)")
    return array


def bind(names: Collection[str], inputs: Sequence[InputInfo], where: str) -> dict[str, str]:
    """Return {input name: array name}: the same name, or for the one input left `images` or the only array there is."""
    bound = {info.name: info.name for info in inputs if info.name in names}
    missing = [info.name for info in inputs if info.name not in bound]
    spare = [name for name in names if name not in bound and name != "labels"]
    if len(missing) == 1 and "images" in spare:
        bound[missing[0]] = "images"
    elif len(missing) == len(inputs) == len(spare) == 1:
        bound[missing[0]] = spare[0]
    elif missing:
        has = ", ".join(map(repr, sorted(names))) or "none"
        raise InputError(
            f"the data has no array for the model's input {missing[0]!r}; its arrays: {has}",
            where=where,
            remedy=f"name the arrays like the inputs: {', '.join(repr(info.name) for info in inputs)}",
        )
    return bound


def common_rows(arrays: Arrays, where: str) -> int:
    """Return the number of samples, which has to be the same in every array, and at least 1."""
    if scalars := [name for name, array in arrays.items() if not array.ndim]:
        what = f"the data for {scalars[0]!r} is a single value, not an array of samples"
        raise InputError(what, where=where, remedy="put the samples along a first axis")
    rows = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        has = ", ".join(f"{name!r} {count}" for name, count in rows.items())
        what = f"the arrays do not have the same number of samples: {has}"
        raise RaggedError(what, where=where, remedy="give as many for every input")
    count = next(iter(rows.values()), 0)
    if count == 0:
        raise InputError("the data is empty: it has no sample", where=where, remedy="give at least one sample")
    return count


def fit(array: NDArray[Any], info: InputInfo, samples: Indices, where: str, *, whole: bool = False) -> NDArray[Any]:
    """Return a fresh array of the input's dtype.

    `samples` [N] are the numbers of the rows in the source, for messages. A wrong rank, shape (of the first axis only
    if `whole`) or dtype, NaN and Inf are InputErrors; but -Inf in an array of nothing above 0, a mask that is added, is
    none. Floats are cast to the input's float type, integers to a wider integer type.
    """
    check_shape(array.shape, info, where, start=0 if whole else 1)
    both_float = array.dtype.kind == info.dtype.kind == "f"
    both_whole = array.dtype.kind in "iub" and info.dtype.kind in "iub" and np.can_cast(array.dtype, info.dtype)
    both_text = array.dtype.kind in TEXT and info.dtype.kind in TEXT
    if not (both_float or both_whole or both_text):
        raise InputError(
            f"the model's input {info.name!r} takes {type_name(info.dtype)}, the data is {type_name(array.dtype)}",
            where=where,
            remedy="convert the data (uint8 images named `images` are converted by --preprocess)",
        )
    with np.errstate(over="ignore"):  # what overflows becomes Inf, which the next lines report
        result = array.astype(info.dtype, order="C")
    if both_float and not (np.isfinite(result).all() or (result <= 0).all()):
        rows = np.isfinite(result).reshape(len(samples), -1).all(axis=1)
        what = f"a value beyond {info.dtype}" if np.isfinite(array).all() else "NaN or Inf"
        raise InputError(
            f"the data for {info.name!r} has {what} in sample {samples[np.argmin(rows)]}",
            where=where,
            remedy="remove the sample, or repair what made it",
        )
    return result


def type_name(dtype: np.dtype[Any]) -> str:
    """Return what an array holds, in words that a user knows."""
    return "text" if dtype.kind in TEXT else str(dtype)


def check_shape(shape: tuple[int, ...], info: InputInfo, where: str, *, start: int = 1) -> None:
    """Raise InputError unless `shape` fits the input in every dimension from `start` on; the first counts samples."""
    pairs = list(zip(shape, info.shape))[start:]
    if len(shape) == len(info.shape) and all(have == want or not isinstance(want, int) for have, want in pairs):
        return
    shown: Sequence[int | str] = ("N", *shape[1:]) if start else shape  # perhaps a part of the samples was looked at
    raise InputError(
        f"the model's input {info.name!r} takes {show_shape(info.shape)}, the data is {show_shape(shown)}",
        where=where,
        remedy=shape_remedy(shape, info),
    )


def shape_remedy(shape: tuple[int, ...], info: InputInfo) -> str:
    """Return what to do about a wrong shape."""
    if len(shape) + 1 == len(info.shape):
        return "put the samples along a first axis"
    want = info.shape
    if len(shape) == len(want) == 4:
        for order, advice in (((0, 3, 1, 2), "NHWC to NCHW"), ((0, 2, 3, 1), "NCHW to NHWC")):
            moved = [shape[axis] for axis in order]
            if all(have == dim or not isinstance(dim, int) for have, dim in list(zip(moved, want))[1:]):
                return f"transpose the data from {advice}"
    return "give data of the model's shape"

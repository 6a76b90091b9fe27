"""Operators that the ONNX reference has in float32 only, or not in every form, written down in numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

Array = NDArray[Any]


class Erf(OpRun):
    """In the type of its input."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


class Gelu(OpRun):
    """By its definition, and by the tanh approximation."""

    op_domain = ""

    def _run(self, x: Array, approximate: str = "none") -> tuple[Array]:
        if approximate == "tanh":
            return (x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return (x / 2 * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))),)


class ConvTranspose(OpRun):
    """Groups too: every element of x adds the kernel of its channel, times itself, to its place in the result."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, auto_pad: str = "NOTSET",
             dilations: Sequence[int] | None = None, group: int = 1, kernel_shape: Any = None,
             output_padding: Sequence[int] | None = None, output_shape: Any = None,
             pads: Sequence[int] | None = None, strides: Sequence[int] | None = None) -> tuple[Array]:  # fmt: skip
        rank, kernel = x.ndim - 2, w.shape[2:]
        steps, gaps, extra = strides or [1] * rank, dilations or [1] * rank, output_padding or [0] * rank
        cut = pads or [0] * 2 * rank
        inner, outer = w.shape[0] // group, w.shape[1]
        full = [(i - 1) * s + d * (k - 1) + 1 + e for i, s, d, k, e in zip(x.shape[2:], steps, gaps, kernel, extra)]
        y = np.zeros((len(x), group, outer, *full), x.dtype)
        grouped, weights = x.reshape(len(x), group, inner, *x.shape[2:]), w.reshape(group, inner, *w.shape[1:])
        for tap in product(*map(range, kernel)):
            places = tuple(slice(t * d, t * d + (i - 1) * s + 1, s)
                           for t, d, i, s in zip(tap, gaps, x.shape[2:], steps))  # fmt: skip
            y[(..., *places)] += np.einsum("ngi...,gio->ngo...", grouped, weights[(..., *tap)])
        kept = tuple(slice(cut[i], full[i] - cut[i + rank]) for i in range(rank))
        y = y.reshape(len(x), -1, *full)[(..., *kept)]
        return (y if b is None else y + b.reshape(-1, *[1] * rank),)


class MaxPool(OpRun):
    """With pads in one dimension too: the largest of the shifted, strided views."""

    op_domain = ""

    def _run(self, x: Array, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Sequence[int] | None = None,
             kernel_shape: Sequence[int] = (), pads: Sequence[int] | None = None, storage_order: int = 0,
             strides: Sequence[int] | None = None) -> tuple[Array]:  # fmt: skip
        rank = len(kernel_shape)
        steps, gaps, edges = strides or [1] * rank, dilations or [1] * rank, pads or [0] * 2 * rank
        padded = np.pad(x, [(0, 0), (0, 0), *zip(edges[:rank], edges[rank:])], constant_values=-np.inf)
        reach = [size - d * (k - 1) for size, d, k in zip(padded.shape[2:], gaps, kernel_shape)]
        views = [padded[(..., *(slice(t * d, t * d + r, s) for t, d, r, s in zip(tap, gaps, reach, steps)))]
                 for tap in product(*map(range, kernel_shape))]  # fmt: skip
        return (np.max(views, axis=0),)


EXACT = [Erf, Gelu, ConvTranspose, MaxPool]

"""Sums of products of codes, exact: what an integer kernel of any runtime has in its accumulators."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from qcompile.quant.params import Quantizer

Array = NDArray[Any]


def centred(codes: Array, quantizer: Quantizer) -> NDArray[np.float64]:
    """Return codes minus zero point, as float64: sums of products stay exact below 2**53."""
    return codes.astype(np.float64) - quantizer.zero_point


def convolve(x: NDArray[np.float64], weight: Array, attributes: dict[str, Any]) -> NDArray[np.float64]:
    """Convolve [N, C, spatial...] with [O, C/group, kernel...] in float64; pads are zeros."""
    rank = x.ndim - 2
    group = attributes.get("group", 1)
    strides = attributes.get("strides", [1] * rank)
    dilations = attributes.get("dilations", [1] * rank)
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(weight.shape[2:], dilations)]
    pads = explicit_pads(x.shape[2:], spans, strides, attributes)
    x = np.pad(x, [(0, 0), (0, 0), *pads])
    windows = sliding_window_view(x, spans, axis=tuple(range(2, 2 + rank)))
    steps = [slice(None, None, stride) for stride in strides]
    taps = [slice(None, None, dilation) for dilation in dilations]
    windows = windows[(slice(None), slice(None), *steps, *taps)]  # [N, C, out..., kernel...]
    weight = weight.astype(np.float64)
    if weight.shape[1] == 1 and group == x.shape[1] == weight.shape[0]:
        kernel = "xyz"[:rank]
        space = "hwd"[:rank]
        depthwise: Array = np.einsum(f"nc{space}{kernel},c{kernel}->nc{space}", windows, weight[:, 0], optimize=False)
        return depthwise
    parts = []
    for part, filters in zip(np.split(windows, group, axis=1), np.split(weight, group, axis=0)):
        inner = (1, *range(2 + rank, 2 + 2 * rank))
        parts.append(np.moveaxis(np.tensordot(part, filters, axes=(inner, tuple(range(1, 2 + rank)))), -1, 1))
    return np.concatenate(parts, axis=1)


def explicit_pads(
    sizes: tuple[int, ...], spans: list[int], strides: list[int], attributes: dict[str, Any]
) -> list[tuple[int, int]]:
    """Return (begin, end) pads per spatial axis, from `pads` or `auto_pad`."""
    mode, rank = attributes.get("auto_pad", "NOTSET"), len(sizes)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, spans, strides)]
        small = [total // 2 for total in totals]
        large = [total - part for total, part in zip(totals, small)]
        return list(zip(small, large)) if mode == "SAME_UPPER" else list(zip(large, small))
    pads = [0] * (2 * rank) if mode == "VALID" else attributes.get("pads", [0] * (2 * rank))
    return list(zip(pads[:rank], pads[rank:]))

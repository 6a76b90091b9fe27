"""Codes of long filters: less error of what the layer computes, never more on samples that judge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcompile.quant.compensation import RIDGE, compensate
from qcompile.quant.params import largest_code
from qcompile.quant.scales import quantize_weight

Array = NDArray[Any]


def covariance(rng: np.random.Generator, length: int, rank: int = 8) -> Array:
    """Return the covariance of inputs most of which follow a few others."""
    mixed = rng.standard_normal((rank, length))
    return mixed.T @ mixed / rank + 0.05 * np.eye(length)


def errors(weight: Array, form: Array, quantized: Any) -> Array:
    """Return the error of each filter with the slope that correction would give it."""
    form = form + RIDGE * np.trace(form) / len(form) * np.eye(len(form))
    rows, lattice = (
        np.moveaxis(values, quantized.axis, 0).reshape(len(quantized.scale), -1).astype(np.float64)
        for values in (weight, quantized.integers())
    )
    power, match, own = (
        np.einsum("ri,ij,rj->r", a, form, b) for a, b in ((lattice,) * 2, (lattice, rows), (rows,) * 2)
    )
    return own - np.where(power > 0, np.maximum(match, 0) ** 2 / np.maximum(power, 1e-30), 0)


@settings(max_examples=30)
@example(500, 3, ((30, 5), 1))  # the same codes are no better ones, whatever the last place of their error says
@given(st.integers(0, 1000), st.integers(2, 4), st.sampled_from([((6, 10, 3, 1), 0), ((30, 5), 1), ((70, 9), 1)]))
def test_never_worse_on_samples_that_judge(seed: int, bits: int, layer: tuple[tuple[int, ...], int]) -> None:
    rng, (shape, axis) = np.random.default_rng(seed), layer
    weight = rng.standard_normal(shape).astype(np.float32)
    length = weight.size // shape[axis]
    seen, judge = covariance(rng, length), covariance(rng, length)
    before = quantize_weight(weight, bits=bits, axis=axis)
    after, better = compensate(weight, seen, judge, before)
    old, new = errors(weight, judge, before), errors(weight, judge, after)
    assert (new <= old * (1 + 1e-9)).all() and better == (new < old).sum()
    assert after.codes.shape == shape and after.codes.dtype == np.uint8 and after.codes.max() <= largest_code(bits)
    assert (after.step == before.step).all() and (after.offset == before.offset).all() and (after.scale > 0).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_inputs_that_follow_each_other_make_errors_good(bits: int) -> None:
    rng = np.random.default_rng(bits)
    weight, form = rng.standard_normal((16, 80, 1, 1)).astype(np.float32), covariance(rng, 80)
    before = quantize_weight(weight, bits=bits, axis=0)
    after, better = compensate(weight, form, form, before)
    assert better == 16
    assert errors(weight, form, after).sum() < 0.5 * errors(weight, form, before).sum()


def test_independent_inputs_leave_nothing_to_gain() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 40)).astype(np.float32).T
    before = quantize_weight(weight, bits=3, axis=1)
    after, _ = compensate(weight, np.eye(40), np.eye(40), before)
    np.testing.assert_array_equal(after.codes, before.codes)


def test_dead_inputs_and_filters() -> None:
    rng = np.random.default_rng(0)
    weight, form = rng.standard_normal((4, 12)).astype(np.float32), covariance(rng, 12)
    weight[1] = 0
    form[:, :3] = form[:3] = 0
    before = replace(quantize_weight(weight, bits=4, axis=0))
    after, _ = compensate(weight, form, form, before)
    assert np.isfinite(after.dequantize()).all() and (after.integers()[1] == 0).all()

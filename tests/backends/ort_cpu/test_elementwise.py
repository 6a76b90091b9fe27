"""Sums and products on three kinds of processors: the codes that ONNX Runtime 1.32 (web: 1.30) gave on each of them."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.backends.ort_cpu.elementwise import (
    Operation,
    SigmoidTable,
    add,
    add_in_integers,
    add_in_steps,
    add_swapped,
    multiply,
    multiply_fused,
    multiply_in_steps,
    near_halves,
)
from qcompile.emission.doubts import TRIES, scales_from
from qcompile.quant.grid import unsigned
from qcompile.quant.params import Quantizer

GRID = np.arange(256, dtype=np.uint8)
# (scale, zero point) of the operands and the output; then pairs of codes with the codes on x86-64, arm64 and wasm
SUMS = {
    "an arm multiplier": (
        ((0.020769499242305756, 78), (0.016049062833189964, 10), (0.038682177662849426, 18)),
        [(218, 247, (192, 191, 192))],
    ),
    "a division": (
        ((0.06747487932443619, 4), (0.04722088202834129, 161), (0.13167737424373627, 138)),
        [(112, 220, (215, 215, 214))],
    ),
    "halves": (
        ((0.022701123729348183, 108), (0.03405168652534485, 124), (0.0681033730506897, 184)),
        [(0, 1, (86, 87, 87)), (0, 5, (88, 89, 88)), (0, 7, (90, 90, 89))],
    ),
}
PRODUCTS = {
    "a fused multiply-add": (
        ((0.0050284368917346, 69), (0.0100568737834692, 22), (0.005057035479694605, 80)),
        [(3, 97, (30, 31, 30)), (4, 92, (34, 34, 35)), (4, 132, (8, 9, 9))],
    ),
    "a division": (
        ((0.05124456807971001, 144), (0.07686685025691986, 36), (0.0157560333609581, 26)),
        [(1, 30, (240, 240, 241)), (5, 30, (234, 234, 235))],
    ),
}
Case = tuple[tuple[tuple[float, int], ...], list[tuple[int, int, tuple[int, ...]]]]


def quantizers(parameters: tuple[tuple[float, int], ...]) -> list[Quantizer]:
    return [Quantizer(unsigned(8), float(np.float32(scale)), zero_point) for scale, zero_point in parameters]


@pytest.mark.parametrize("case", SUMS.values(), ids=SUMS)
def test_sums_as_measured(case: Case) -> None:
    qa, qb, output = quantizers(case[0])
    for a, b, codes in case[1]:
        one, other = np.uint8([a]), np.uint8([b])
        assert tuple(int(rule(one, qa, other, qb, output)[0]) for rule in (add, add_in_integers, add_in_steps)) == codes


@pytest.mark.parametrize("case", PRODUCTS.values(), ids=PRODUCTS)
def test_products_as_measured(case: Case) -> None:
    qa, qb, output = quantizers(case[0])
    rules = (multiply, multiply_fused, multiply_in_steps)
    for a, b, codes in case[1]:
        one, other = np.uint8([a]), np.uint8([b])
        assert tuple(int(rule(one, qa, other, qb, output)[0]) for rule in rules) == codes


def test_a_sum_may_depend_on_the_order_of_its_operands() -> None:
    """Which one is added first depends on which one broadcasts."""
    qa, qb, output = quantizers(((0.01439233310520649, 201), (0.024709267541766167, 98), (0.018683042377233505, 103)))
    a, b = GRID[:, None], GRID[None]
    swapped = add_swapped(a, qa, b, qb, output)
    np.testing.assert_array_equal(swapped.T, add(b.T, qb, a.T, qa, output))
    assert np.argwhere(swapped != add(a, qa, b, qb, output)).tolist() == [[54, 153], [154, 218]]


def test_scales_too_far_apart_for_integers() -> None:
    """Arm's kernel computes in float where a multiplier would lose all its bits."""
    qa, qb, output = Quantizer(unsigned(8), 1e-7, 3), Quantizer(unsigned(8), 0.02, 0), Quantizer(unsigned(8), 0.02, 0)
    a, b = GRID[:, None], GRID[None]
    np.testing.assert_array_equal(add_in_integers(a, qa, b, qb, output), add_in_steps(a, qa, b, qb, output))


@pytest.mark.parametrize("op, case", [("Add", case) for case in SUMS.values()] + [("Mul", PRODUCTS["a division"])])
def test_the_pairs_in_doubt_are_all_that_differ_nearby(op: str, case: Case) -> None:
    qa, qb, output = quantizers(case[0])
    every = Operation.of_all_pairs(op, GRID, GRID)
    few = every.doubtful((qa, qb, output))
    assert len(every.a) == 65536 > 2 * len(few.a)
    scales = list(scales_from(output.scale))
    for scale in (scales[0], scales[7], scales[100], scales[-1]):
        moved = (qa, qb, Quantizer(unsigned(8), scale, output.zero_point))
        assert few.is_settled(moved) == every.is_settled(moved)
    assert not every.is_settled((qa, qb, output))


def test_scales_are_neighbours() -> None:
    up, down = list(scales_from(0.5)), list(scales_from(0.5, towards=0))
    assert len(up) == len(down) == TRIES and up[0] == down[0] == 0.5
    assert up[1] == float(np.nextafter(np.float32(0.5), np.float32(1))) and down[1] < 0.5


def test_a_sigmoid_next_to_a_half_is_in_doubt() -> None:
    """The code of 0 stands for 1/2: on a grid of 1/255 that is 127.5 steps."""
    given = Quantizer(unsigned(8), 0.1, 128)
    assert not SigmoidTable().is_settled((given, Quantizer(unsigned(8), 1 / 255, 0)))
    assert SigmoidTable().is_settled((given, Quantizer(unsigned(8), 1 / 256, 0)))
    assert near_halves(np.array([0.5, 1.4999, 2.51, 3.0]), 1e-3).tolist() == [True, True, False, False]

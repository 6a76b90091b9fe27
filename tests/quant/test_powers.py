"""Powers of two, and what is quantized with them as scales."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.quant.bias import LARGEST, with_room_for_bias
from qcompile.quant.compensation import compensate
from qcompile.quant.filters import better_filters, fit_filters
from qcompile.quant.params import WeightSpec
from qcompile.quant.powers import is_power, nearest_power, power_above
from qcompile.quant.scales import least_error, quantize_weight

POWERS, ONE, BOTH = WeightSpec(power_of_two=True), WeightSpec(per_tensor=True), WeightSpec(True, True)
FOUND = [POWERS, ONE, BOTH]


@given(st.floats(1e-30, 1e30))
def test_powers_beside_a_number(value: float) -> None:
    above, nearest = float(power_above(value)), float(nearest_power(value))
    assert is_power([above, nearest]) and above / 2 < value <= above
    assert abs(nearest - value) <= min(abs(above - value), abs(above / 2 - value))


def test_a_power_is_its_own_neighbour() -> None:
    powers = 2.0 ** np.arange(-40, 40)
    np.testing.assert_array_equal(power_above(powers), powers)
    np.testing.assert_array_equal(nearest_power(powers), powers)
    assert not is_power(3.0) and not is_power(np.nextafter(np.float32(0.25), np.float32(1)))


@pytest.mark.parametrize("spec", FOUND, ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("search", [True, False])
def test_weights_obey_their_spec(spec: WeightSpec, bits: int, search: bool) -> None:
    weight = np.random.default_rng(0).normal(0, [[1], [0.1], [3], [0]], (4, 50)).astype(np.float32)
    for axis, values in enumerate((weight, weight.T)):
        found = quantize_weight(values, bits=bits, axis=axis, search=search, spec=spec)
        assert found.spec == spec and spec.obeyed_by(found.scale)
        far = np.abs(found.dequantize() - values).max()
        assert far <= 2 * np.abs(values).max() / (1 << bits - 1)
    assert not POWERS.obeyed_by(np.array([0.3], np.float32)) and not ONE.obeyed_by(np.array([1, 2], np.float32))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_power_is_the_one_of_least_error(bits: int) -> None:
    rows = np.random.default_rng(1).laplace(size=(20, 64)).astype(np.float32)
    found = quantize_weight(rows, bits=bits, axis=0, spec=POWERS)
    error = np.square(found.dequantize() - rows).sum(1)
    for factor in (0.5, 2.0):
        other = replace(found, scale=(found.scale * factor).astype(np.float32))
        lattice = (rows / other.scale[:, None] - other.offset[:, None]) / other.step[:, None]
        codes = np.clip(np.rint(lattice), 0, max(2, (1 << bits) - 1 - (bits == 8))).astype(np.uint8)
        assert (error <= 1.0001 * np.square(replace(other, codes=codes).dequantize() - rows).sum(1)).all()
    assert (error >= np.square(quantize_weight(rows, bits=bits, axis=0).dequantize() - rows).sum(1) / 1.0001).all()


def test_huge_weights_have_powers_too() -> None:
    scale, _, _ = least_error(np.full((1, 4), 1e30, np.float32), 8, powers=True)
    assert is_power(scale)


@pytest.mark.parametrize("bits", [2, 4])
def test_short_filters_are_fitted_with_powers(bits: int) -> None:
    random = np.random.default_rng(2)
    weight = random.normal(0, 1, (16, 1, 3, 3)).astype(np.float32)
    mixed = random.standard_normal((16, 3, 9)) + 2
    form = np.einsum("cpi,cpj->cij", mixed, mixed)
    plain = quantize_weight(weight, bits=bits, axis=0, spec=POWERS)
    chosen, better = better_filters(weight, form, plain, fit_filters(weight, form, plain))
    assert better > 8 and POWERS.obeyed_by(chosen.scale) and chosen.spec == POWERS
    rows = weight.reshape(16, -1)

    def errors(item: np.ndarray) -> np.ndarray:
        return np.einsum("ci,cij,cj->c", item.reshape(16, -1) - rows, form, item.reshape(16, -1) - rows)

    assert errors(chosen.dequantize()).sum() < 0.7 * errors(plain.dequantize()).sum()


@pytest.mark.parametrize("spec", FOUND, ids=str)
def test_long_filters_keep_their_scales(spec: WeightSpec) -> None:
    random = np.random.default_rng(3)
    weight = random.normal(0, 1, (8, 64)).astype(np.float32)
    mixed = random.standard_normal((8, 64))
    form = mixed.T @ mixed / 8 + 0.05 * np.eye(64)
    plain = quantize_weight(weight, bits=4, axis=0, spec=spec)
    found, better = compensate(weight, form, form, plain)
    np.testing.assert_array_equal(found.scale, plain.scale)
    missing = [item.dequantize() - weight for item in (found, plain)]
    after, before = (np.einsum("ri,ij,rj->r", item, form, item).sum() for item in missing)
    assert better > 4 and after < 0.7 * before


@pytest.mark.parametrize("spec", FOUND, ids=str)
def test_room_for_a_bias_obeys_the_spec(spec: WeightSpec) -> None:
    weight = quantize_weight(np.array([[1e-3, 1e-3], [1, 1]], np.float32), bits=8, axis=0, spec=spec)
    bias = np.array([3e3, 0], np.float32)
    found = with_room_for_bias(weight, bias, 2.0**-7)
    assert spec.obeyed_by(found.scale) and (np.abs(bias) <= found.scale * 2.0**-7 * LARGEST).all()
    if found.scale is not weight.scale:
        np.testing.assert_allclose(found.dequantize()[1], 1, atol=float(found.scale[1]) / 2)

"""Scales are settled: no pair of codes is rounded in two ways, whatever made the plan, and hardly anything moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from networks import CALIBRATE, ELEMENTWISE, HARD_SWISH, PRELU, RELU6, RESIDUAL, SQUEEZE_EXCITE, compiled

from qcompile import QModel
from qcompile.backends.ort_cpu.doubts import doubtful_nodes
from qcompile.backends.ort_cpu.elementwise import Operation
from qcompile.backends.ort_cpu.slopes import SHIFTED_SIGMOID, slope_quantizer
from qcompile.emission.doubts import Doubt
from qcompile.passes.settle_scales import SettleScales
from qcompile.program.lower import lower
from qcompile.quant.grid import unsigned
from qcompile.quant.params import Quantizer
from qcompile.targets.ort_cpu.forms import HARD_SIGMOID

SILU = """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B) => (float[N,4,P,Q] y) {
  [first] a = Conv(x, A)  [gate] s = Sigmoid(a)  [silu] b = Mul(a, s)  [inner] c = Conv(b, B)
  [sum] d = Add(c, b)  [last] y = Conv(d, B)
}"""
SHARED = """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B, float[4,8,1,1] C) => (float[N,4,P,Q] y) {
  [first] a = Conv(x, A)  [inner] b = Conv(a, B)  [one] c = Add(a, b)  [two] d = Add(b, c)
  [join] e = Concat<axis = 1>(c, d)  [last] y = Conv(e, C)
}"""
BOUNDED = """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B) => (float[N,4,P,Q] y)
  <float lo = {0}, float hi = {0.5}> {
    [first] a = Conv(x, A)  [inner] b = Conv(a, B)  [sum] c = Add(a, b)  [clip] d = Clip(c, lo, hi)
    [last] y = Conv(d, B)
}"""
GRAPHS = {
    "residual": RESIDUAL,
    "elementwise": ELEMENTWISE,
    "silu": SILU,
    "shared": SHARED,
    "bounded": BOUNDED,
    "prelu": PRELU,
}


def found(model: QModel) -> list[Doubt]:
    """Return the nodes that processors could round differently."""
    return list(doubtful_nodes(lower(model.graph, model.plan)))


def in_doubt(model: QModel) -> list[str]:
    """Return the nodes some of whose codes, of all, are rounded in two ways."""
    return [doubt.node for doubt in found(model) if not doubt.is_settled(model.plan.quantizers)]


def simple_ratios(model: QModel) -> None:
    """Give the quantizers scales of simple ratios, so that every other sum and many products end in a half."""
    quantizers = model.plan.quantizers
    quantizers.update({key: replace(quantizer, scale=1 / 64) for key, quantizer in quantizers.items()})
    for doubt in found(model):
        *given, output = (quantizers.get(key, HARD_SIGMOID) for key in doubt.keys)
        adds = isinstance(doubt.operation, Operation) and doubt.operation.op == "Add"
        scale = 2 * given[0].scale if adds else 24 * given[0].scale * given[-1].scale
        quantizers[doubt.output] = replace(output, scale=scale)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", GRAPHS)
def test_no_pair_of_codes_is_rounded_in_two_ways(name: str, bits: int) -> None:
    model = compiled(GRAPHS[name], CALIBRATE, w=bits, a=bits)
    simple_ratios(model)
    before = dict(model.plan.quantizers)
    assert bits < 8 or in_doubt(model)
    moved = SettleScales().run(model)
    assert in_doubt(model) == [] and list(model.journal.by("settle-scales")) == []
    after = model.plan.quantizers
    assert list(after) == list(before) and moved == sum(after[key] != before[key] for key in after)
    for key, quantizer in before.items():
        assert after[key].scale == float(np.float32(after[key].scale))
        assert abs(after[key].scale / quantizer.scale - 1) < 1e-4  # a hundredth of a step at the end of the grid
        assert replace(after[key], scale=quantizer.scale) == quantizer


def test_a_settled_plan_stays() -> None:
    model = compiled(RESIDUAL, CALIBRATE)
    SettleScales().run(model)
    before = dict(model.plan.quantizers)
    assert SettleScales().run(model) == 0 and model.plan.quantizers == before


def test_powers_of_two_stay_with_a_note() -> None:
    model = compiled(RESIDUAL, CALIBRATE)
    model.plan.specs = {key: replace(spec, power_of_two=True) for key, spec in model.plan.specs.items()}
    simple_ratios(model)
    in_doubt_before, before = in_doubt(model), dict(model.plan.quantizers)
    assert in_doubt_before and SettleScales().run(model) == 0 and model.plan.quantizers == before
    assert [entry["node"] for entry in model.journal.by("settle-scales")] == in_doubt_before


def test_a_grid_stays_within_its_bounds() -> None:
    model = compiled(BOUNDED, CALIBRATE, w=8, a=8)
    key = model.plan.key("d")
    quantizer = model.plan.quantizers[key]
    assert quantizer.high == pytest.approx(0.5, rel=1e-6)
    for other in ("a", "b"):  # halves in every fourth sum
        root = model.plan.key(other)
        model.plan.quantizers[root] = replace(model.plan.quantizers[root], scale=quantizer.scale / 2)
    assert in_doubt(model) == ["sum"]
    assert SettleScales().run(model) == 1
    assert in_doubt(model) == [] and model.plan.quantizers[key].high <= 0.5


def test_what_cannot_be_settled_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = compiled(RESIDUAL, CALIBRATE)
    simple_ratios(model)
    monkeypatch.setattr("qcompile.emission.doubts.TRIES", 1)
    before = dict(model.plan.quantizers)
    assert SettleScales().run(model) == 0 and model.plan.quantizers == before
    assert [entry["node"] for entry in model.journal.by("settle-scales")] == in_doubt(model)


def test_a_constant_takes_part_with_its_own_codes() -> None:
    model = compiled(ELEMENTWISE, CALIBRATE)
    sizes = {doubt.node: len(doubt.operation.a) for doubt in found(model) if isinstance(doubt.operation, Operation)}
    assert min(sizes.values()) < 65536


@pytest.mark.parametrize("source", [HARD_SWISH, SQUEEZE_EXCITE])
def test_the_slope_of_a_hard_sigmoid_is_settled_too(source: str) -> None:
    model = compiled(source, CALIBRATE)
    node = next(node for node in model.graph.nodes if node.op in ("HardSwish", "HardSigmoid"))
    codes = np.arange(256, dtype=np.uint8)
    for scale in (1.5 / 256, 3 / 256, 0.75 / 256):  # a sixth of it is half a step of the gate
        given = Quantizer(unsigned(8), scale, 120)
        factor = slope_quantizer(node, given)
        assert Operation("Mul", codes, np.ones_like(codes)).is_settled((given, factor, SHIFTED_SIGMOID))
        assert factor.scale == pytest.approx(1 / 6 if node.op == "HardSwish" else 0.2, rel=1e-5)
    assert HARD_SIGMOID.scale == SHIFTED_SIGMOID.scale


def test_relu6_behind_a_sum_is_untouched_without_doubt() -> None:
    model = compiled(RELU6, CALIBRATE)
    before = dict(model.plan.quantizers)
    SettleScales().run(model)
    assert model.plan.quantizers == before  # no sum, no product

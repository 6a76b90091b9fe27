"""Fitting short filters: which layers, what it brings, and that the rest of the plan stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from networks import CALIBRATE, CHAIN, RELU6, compiled, samples

from qcompile import Config, QModel, pipeline
from qcompile.passes import fit_filters
from qcompile.passes.correct_bias import CorrectBias
from qcompile.passes.fit_filters import FitFilters
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.quant.plan import Plan
from qcompile.runtime.session import Session

FIT = (*CALIBRATE, FitFilters())
SIBLINGS = """net (float[N,8,9,9] x, float[8,1,3,3] A, float[8,2,1,3] B, float[4,16,1,1] C) => (float[N,4,9,9] y) {
  [stem] s = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]>(x)  [relu] r = Relu(s)
  [depthwise] a = Conv<group = 8, pads = [1,1,1,1]>(r, A)  [grouped] b = Conv<group = 4, pads = [0,1,0,1]>(r, B)
  [join] j = Concat<axis = 1>(a, b)  [last] y = Conv(j, C)
}"""


def changed(before: Plan, after: Plan) -> set[str]:
    return {
        name
        for name, weight in after.weights.items()
        if not np.array_equal(weight.dequantize(), before.weights[name].dequantize())
    }


def error(model: QModel) -> float:
    """Squared error of the emitted file, after correction, beside the power of the outputs."""
    CorrectBias().run(model)
    InsertQDQ().run(model)
    assert model.emitted is not None
    feeds = samples(model.source, 32, seed=9)
    exact, found = (Session(source, threads=1).run(feeds) for source in (model.source, model.emitted))
    return float(sum(np.square(found[name] - exact[name]).sum() / np.square(exact[name]).sum() for name in exact))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_depthwise_filters_at_low_bits(bits: int) -> None:
    facts: dict[str, Any] = {"w": bits, "a": 8}
    before, after = compiled(RELU6, CALIBRATE, **facts), compiled(RELU6, FIT, **facts)
    assert "depthwise" in changed(before.plan, after.plan)
    assert after.plan.weights["depthwise"].bits == bits
    assert error(after) < error(before)


def test_layers_that_read_one_tensor_and_groups() -> None:
    before, after = (
        compiled(SIBLINGS, CALIBRATE, w=3, a=8, first_last_bits=3),
        compiled(SIBLINGS, FIT, w=3, a=8, first_last_bits=3),
    )
    assert changed(before.plan, after.plan) >= {"depthwise", "grouped"}
    assert error(after) < error(before)


@pytest.mark.parametrize(("text", "bits"), [(RELU6, 5), (RELU6, 8), (CHAIN, 4)])
def test_the_rest_is_left_alone(text: str, bits: int) -> None:
    """More bits, and filters of 144 weights: nearest codes do as well, or the search would take too long."""
    before, after = compiled(text, CALIBRATE, w=bits, a=8), compiled(text, FIT, w=bits, a=8)
    assert changed(before.plan, after.plan) == set()
    assert list(after.journal.by("fit-filters")) == []


def test_it_is_the_same_in_every_run() -> None:
    one, two = (compiled(RELU6, FIT, w=2, a=8, batch=batch).plan for batch in (3, 16))
    assert changed(one, two) == set()


def test_filters_that_are_not_better_on_other_samples_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a fit makes worse on purpose is not taken; the journal counts what is."""
    before = compiled(RELU6, CALIBRATE, w=3, a=8)

    def spoiled(weight: Any, covariance: Any, quantized: Any) -> Any:
        codes = quantized.codes.copy()
        codes[0] = 0  # one filter becomes a constant
        return replace(quantized, codes=codes)

    monkeypatch.setattr(fit_filters, "fit_filters", spoiled)
    after = compiled(RELU6, FIT, w=3, a=8)
    assert changed(before.plan, after.plan) == set()
    (note,) = after.journal.by("fit-filters")
    assert (note["filters"], note["better"]) == (8, 0)


LONG = (*CALIBRATE, FitFilters(long=True))
MATRICES = """net (float[N,30,40] x, float[40,24] W1, float[24] B1, float[24,20] W2,
  float[20,4] W3) => (float[N,30,4] y) {
  [gemm] m = MatMul(x, W1)  a = Add(m, B1)  [relu] b = Relu(a)
  [matmul] c = MatMul(b, W2)  [last] y = MatMul(c, W3)
}"""


@pytest.mark.parametrize(("text", "layers"), [(CHAIN, {"conv2"}), (MATRICES, {"gemm", "matmul", "last"})])
@pytest.mark.parametrize("bits", [2, 4])
def test_long_filters_where_nothing_is_trained(text: str, layers: set[str], bits: int) -> None:
    facts: dict[str, Any] = {"w": bits, "a": 8, "first_last_bits": bits}
    before, after = compiled(text, CALIBRATE, **facts), compiled(text, LONG, **facts)
    assert changed(before.plan, after.plan) >= layers
    assert error(after) < error(before)


def test_the_mean_is_left_to_the_bias() -> None:
    """Before any correction: the outputs have the mean that they have in float."""
    model = compiled(CHAIN, LONG, w=2, a=8)
    InsertQDQ().run(model)
    assert model.emitted is not None
    feeds = samples(model.source, 16)
    exact, found = (Session(source, threads=1).run(feeds)["y"] for source in (model.source, model.emitted))
    assert np.abs((found - exact).mean((0, 2, 3))).max() < 0.1 * np.abs(exact).mean()


@pytest.mark.parametrize(("method", "long"), [("rtn", True), ("mrecg", False)])
def test_training_chooses_long_ones_itself(method: Any, long: bool) -> None:
    assert FitFilters(long=long) in pipeline.numbers(Config(w=4, a=4, method=method))


def test_few_windows_change_nothing() -> None:
    """12 rows to fit to, for the 40 weights of a filter."""
    few = MATRICES.replace("N,30", "N,1")
    assert "gemm" not in changed(*(compiled(few, passes, w=3, a=8).plan for passes in (CALIBRATE, LONG)))


def test_covariances_are_taken_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = compiled(MATRICES, LONG, w=3, a=8, first_last_bits=3).plan
    monkeypatch.setattr(fit_filters, "COVARIANCES", 1)
    assert changed(at_once, compiled(MATRICES, LONG, w=3, a=8, first_last_bits=3).plan) == set()

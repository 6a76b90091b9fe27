"""Both models on the same samples: which samples judge, agreement, and the layers that err most."""

from __future__ import annotations

import numpy as np
import pytest
from audited import EMITTED, audit, dataset, qmodel
from onnx import numpy_helper, parser

from qcompile.audit import compare
from qcompile.audit.compare import BATCH_ELEMENTS, ELEMENTS, SAMPLES, compared, some, worst_layers
from qcompile.data.dataset import Dataset
from qcompile.errors import EmissionError, InputError
from qcompile.ir.prepare import prepare
from qcompile.outcomes import LayerError
from qcompile.passes.validate import Validate
from qcompile.runtime.outputs import describe_outputs


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans made up by hand cannot be run: the layers' own errors are given."""
    errors = {"conv": 12.0, "gemm": 30.0, "mean": float("inf")}
    monkeypatch.setattr(compare, "layer_errors", lambda *_, **__: errors)


@pytest.mark.parametrize("held_back, judging", [(1, 12), (7, 12), (8, 8)])
def test_few_held_back_samples_do_not_judge_alone(held_back: int, judging: int) -> None:
    whole = dataset(12)
    spared = whole.spread(held_back)
    rest = whole.select(np.flatnonzero(~np.isin(whole.numbers, spared.numbers)))
    agreement = audit(qmodel(data=rest, held_back=spared)).agreement
    assert agreement is not None and (agreement.samples, agreement.held_back) == (judging, held_back)
    alone = audit(qmodel(held_back=whole if judging == 12 else spared))
    assert agreement.outputs == alone.outputs


def test_agreement_is_with_the_float_model() -> None:
    """A wrong weight scale keeps every rule and every kernel; only the numbers show it."""
    found = audit(qmodel(EMITTED.replace("float[2] ws = {0.25, 0.25}", "float[2] ws = {0.25, 0.125}")))
    assert found.fused.missing == []
    assert found.outputs["logits"]["sqnr_db"] < 10


def test_sequences_and_texts_are_compared_too() -> None:
    text = """<ir_version: 8, opset_import: ["": 18]> g (float[N,2,4,4] x) => (seq(float) parts, string[4] label)
      <float by = {BY}, string[2] names = {"cat", "NAME"}, int64[4] classes = {0, 1, 0, 0}> {
      less = Mul(x, by)  parts = SequenceConstruct(x, less)  label = Gather(names, classes) }"""
    source, emitted = (
        parser.parse_model(text.replace("BY", by).replace("NAME", name)) for by, name in (("1", "dog"), ("0.9", "ant"))
    )
    found = compared(source, emitted, dataset(8), describe_outputs(prepare(source, 18)), on_integers=False)
    assert found.agreement.outputs["label"]["same"] == 0.75 and found.agreement.outputs["label"]["sqnr_db"] is None
    assert found.agreement.outputs["parts"]["sqnr_db"] == pytest.approx(10 * np.log10(2 / 0.1**2), abs=1e-4)


def test_layers_are_measured_where_an_output_differs_much() -> None:
    far = {"kind": "values", "same": None, "foreground": None, "sqnr_db": 9.0, "cosine": 0.9}
    near, model = far | {"sqnr_db": 30.0, "cosine": 1.0}, qmodel()

    def worst(data: Dataset | None, *outputs: dict[str, object]) -> list[LayerError]:
        return worst_layers(model.graph, model.plan, data, outputs, threads=1)

    assert worst(model.held_back, near, far) == [LayerError("conv", 12.0), LayerError("gemm", 30.0)]
    assert worst(model.held_back, near) == []
    assert worst(None, far) == []


def test_nan_names_the_output_and_the_model() -> None:
    model = qmodel(
        EMITTED.replace("[gemm] logits =", "[gemm] l =").replace("(fd, vd)", "(fd, vd)  [log] logits = Log(l)")
    )
    with pytest.raises(EmissionError, match="output 'logits' of the emitted model holds NaN"):
        Validate().run(model)
    weight = model.source.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(np.full((2, 2, 1, 1), np.nan, np.float32), weight.name))
    with pytest.raises(InputError, match="output 'logits' of the float model holds NaN"):
        Validate().run(model)


def test_without_samples_it_is_loaded_only() -> None:
    found = audit(qmodel(held_back=None))
    assert found.agreement is None and found.speed is None and found.unoptimized is None


@pytest.mark.parametrize(
    "count, fixed, shape",
    [
        (100, None, (2, 4, 4)),
        (5, None, (2, 4, 4)),
        (64, 4, (2, 4, 4)),
        (40, None, (3, 300, 300)),
        (2, 2, (3, 700, 1000)),
    ],
)
def test_batches_are_bounded(count: int, fixed: int | None, shape: tuple[int, ...]) -> None:
    data, size = some(dataset(count, fixed=fixed, shape=shape))
    sizes = [feeds["x"].shape[0] for feeds in data.batches(size)]
    elements = int(np.prod(shape))
    step = fixed or 1
    assert sum(sizes) == max(min(count, SAMPLES, ELEMENTS // elements) // step * step, step)
    assert all(size == step or size * elements <= BATCH_ELEMENTS for size in sizes)

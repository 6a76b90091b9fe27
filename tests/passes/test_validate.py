"""Validation of an emitted model: what it finds out, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace

import numpy as np
import pytest
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from qcompile.audit import compare
from qcompile.audit.compare import BATCH_ELEMENTS, ELEMENTS, SAMPLES, some, worst_layers
from qcompile.config import Config
from qcompile.data.dataset import Dataset
from qcompile.data.inputs import Arrays, Indices
from qcompile.errors import EmissionError, InputError, QCompileError
from qcompile.ir.prepare import prepare
from qcompile.outcomes import Audit, FloatNode, Fused, LayerError, MissingKernel
from qcompile.passes.validate import Validate
from qcompile.qmodel import QModel
from qcompile.quant.params import Quantizer
from qcompile.quant.plan import Form, NodePlan, Plan
from qcompile.targets.schema import Target

FLOAT = """<ir_version: 8, opset_import: ["": 18]>
net (float[N,2,4,4] x) => (float[N,3] logits) <
  float[2,2,1,1] w = {0.5, -1.0, 0.75, 1.0}, float[3,2] v = {1, -2, 3, 4, -5, 6}
> {
  [conv] a = Conv(x, w)  [mean] p = GlobalAveragePool(a)
  [flatten] f = Flatten(p)  [gemm] logits = Gemm<transB = 1>(f, v)
}"""
EMITTED = """<ir_version: 8, opset_import: ["": 18]>
net (float[N,2,4,4] x) => (float[N,3] logits) <
  float s = {0.03125}, uint8 z = {128}, int8[2,2,1,1] w = {2, -4, 3, 4}, float[2] ws = {0.25, 0.25},
  int8[3,2] v = {1, -2, 3, 4, -5, 6}, float[3] vs = {1.0, 1.0, 1.0}, int8[3] vz = {0, 0, 0}
> {
  [q_x] xq = QuantizeLinear(x, s, z)  [dq_x] xd = DequantizeLinear(xq, s, z)
  [dq_w] wd = DequantizeLinear<axis = 0>(w, ws)
  [conv] a = Conv(xd, wd)  [q_a] aq = QuantizeLinear(a, s, z)  [dq_a] ad = DequantizeLinear(aq, s, z)
  [mean] p = GlobalAveragePool(ad)  [q_p] pq = QuantizeLinear(p, s, z)  [flatten] fq = Flatten(pq)
  [dq_f] fd = DequantizeLinear(fq, s, z)
  [dq_v] vd = DequantizeLinear<axis = 0>(v, vs, vz)
  [gemm] logits = Gemm<transB = 1>(fd, vd)
}"""
FORMS = {"conv": Form.COMPUTE, "mean": Form.ARITHMETIC, "flatten": Form.CODES, "gemm": Form.COMPUTE}


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans made up by hand cannot be run: the layers' own errors are given."""
    errors = {"conv": 12.0, "gemm": 30.0, "mean": float("inf")}
    monkeypatch.setattr(compare, "layer_errors", lambda *_, **__: errors)


def dataset(
    count: int, labels: np.ndarray | None = None, fixed: int | None = None, shape: tuple[int, ...] = (2, 4, 4)
) -> Dataset:
    """Return `count` samples whose values depend on their number alone."""

    def read(numbers: Indices, size: int) -> Iterator[Arrays]:
        for number in numbers:
            yield {"x": np.random.default_rng(int(number)).uniform(-1, 1, (1, *shape)).astype(np.float32)}

    return Dataset.over("made up", read, count, fixed, labels)


def qmodel(emitted: str = EMITTED, **changes: object) -> QModel:
    """Return a model as it comes out of insert-qdq."""
    source = parser.parse_model(FLOAT)
    plan = Plan(
        nodes={name: NodePlan(form) for name, form in FORMS.items()},
        quantizers={"x": Quantizer(8, 0.03125, 128), "a": Quantizer(8, 0.03125, 128), "p": Quantizer(4, 0.03125, 8)},
    )
    model = QModel(
        prepare(source, 18), source, Target.load("ort-cpu"), Config(threads=1), plan=plan, held_back=dataset(5)
    )
    return replace(model, emitted=parser.parse_model(emitted), **changes)  # type: ignore[arg-type]


def audit(model: QModel) -> Audit:
    """Validate and return what was found."""
    assert Validate().run(model) == 0 and model.audit is not None
    facts = asdict(model.audit)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts  # plain JSON
    return model.audit


def test_audit_of_a_good_file() -> None:
    found = audit(qmodel())
    assert found.fused == Fused(planned=3, integer=3)
    assert found.kernels["QLinearConv"] == 1 and found.kernels["QGemm"] == 1
    assert found.bits == {"weights": {}, "activations": {"4": 1, "8": 2}}
    assert found.float_nodes == [] and found.top1 is None and found.worst_layers == []
    agreement, unoptimized = found.agreement, found.unoptimized
    assert agreement is not None and unoptimized is not None and found.speed is not None
    assert agreement.samples == 5 and unoptimized.samples == 5
    # Weights are exact; a step of 1/32 on values around 0.6 leaves about 30 dB after the mean over 16 pixels.
    assert agreement.outputs["logits"]["sqnr_db"] > 15
    # The scales are powers of two and the zero points even, so integer and float arithmetic round alike.
    assert unoptimized.outputs["logits"]["largest_difference"] < 1e-5  # float32 sums
    assert found.speed.rounds >= 1 and found.speed.speedup > 0
    assert found.size.float == parser.parse_model(FLOAT).ByteSize()


def test_models_that_do_not_fit_side_by_side_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    together = audit(qmodel())
    monkeypatch.setattr(compare, "SIDE_BY_SIDE", 0)
    apart = audit(qmodel())
    assert replace(apart, speed=None) == replace(together, speed=None)
    assert apart.speed is not None and apart.speed.low <= apart.speed.speedup <= apart.speed.high


@pytest.mark.parametrize("held_back, compared", [(1, 12), (7, 12), (8, 8)])
def test_few_held_back_samples_do_not_judge_alone(held_back: int, compared: int) -> None:
    whole = dataset(12)
    spared = whole.spread(held_back)
    rest = whole.select(np.flatnonzero(~np.isin(whole.numbers, spared.numbers)))
    agreement = audit(qmodel(data=rest, held_back=spared)).agreement
    assert agreement is not None and (agreement.samples, agreement.held_back) == (compared, held_back)
    alone = audit(qmodel(held_back=whole if compared == 12 else spared))
    assert agreement.outputs == alone.outputs


def test_agreement_is_with_the_float_model() -> None:
    """A wrong weight scale keeps every rule and every kernel; only the numbers show it."""
    found = audit(qmodel(EMITTED.replace("float[2] ws = {0.25, 0.25}", "float[2] ws = {0.25, 0.125}")))
    assert found.fused.missing == []
    assert found.outputs["logits"]["sqnr_db"] < 10


def test_layers_are_measured_where_an_output_differs_much() -> None:
    far = {"kind": "values", "same": None, "foreground": None, "sqnr_db": 9.0, "cosine": 0.9}
    near, model = far | {"sqnr_db": 30.0, "cosine": 1.0}, qmodel()

    def worst(data: Dataset | None, *outputs: dict[str, object]) -> list[LayerError]:
        return worst_layers(model.graph, model.plan, data, outputs, threads=1)

    assert worst(model.held_back, near, far) == [LayerError("conv", 12.0), LayerError("gemm", 30.0)]
    assert worst(model.held_back, near) == []
    assert worst(None, far) == []


def test_node_on_no_integer_kernel_is_named_with_its_rule() -> None:
    text = EMITTED.replace("[mean] p = GlobalAveragePool(ad)", "[mean] p = ReduceMean<keepdims = 1>(ad, axes)")
    text = text.replace("float s =", "int64[2] axes = {2, 3}, float s =")
    unknown = "no rule of the emitted file explains it"
    assert audit(qmodel(text)).fused == Fused(3, 2, [MissingKernel("mean", "ReduceMean", unknown)])
    text = EMITTED.replace("GlobalAveragePool(ad)", "GlobalAveragePool(x)")
    (missing,) = audit(qmodel(text)).fused.missing
    assert (missing.node, missing.kernel) == ("mean", "GlobalAveragePool")
    assert missing.rule.endswith("[dequantized-inputs]")


def test_broken_rule_is_an_error() -> None:
    text = EMITTED.replace("int8[2,2,1,1] w = {2, -4, 3, 4}", "uint8[2,2,1,1] w = {2, 4, 3, 4}")
    with pytest.raises(EmissionError, match=r"conv: its weight is uint8, not int8 \[signed-weights\]"):
        Validate().run(qmodel(text))


def test_float_nodes_have_reasons() -> None:
    model = qmodel()
    model.plan.nodes["gemm"] = NodePlan(Form.FLOAT, "asked for")
    del model.plan.nodes["flatten"]
    assert audit(model).float_nodes == [
        FloatNode("flatten", "Flatten", "no pass has placed it"),
        FloatNode("gemm", "Gemm", "asked for"),
    ]


def test_float_node_that_runs_on_integers_is_warned_about() -> None:
    """Whatever the plan says, ONNX Runtime makes an integer kernel of a pool between two quantized tensors."""
    model = qmodel()
    model.plan.nodes["mean"] = NodePlan(Form.FLOAT, "asked for")
    audit(model)
    (text,) = model.journal.warnings
    assert text.startswith("kept float, yet on integer kernels") and text.endswith(": mean")


def test_top1_of_both() -> None:
    model = qmodel()
    assert model.emitted is not None
    answers = ReferenceEvaluator(model.source)
    labels = np.array([answers.run(None, feeds)[0].argmax() for feeds in dataset(20).batches(1)])  # type: ignore[union-attr]
    labels[:5] = (labels[:5] + 1) % 3  # five of twenty wrong on purpose
    found = audit(replace(model, evaluation=dataset(20, labels))).top1
    assert found is not None and found.samples == 20 and found.float == 75.0
    assert abs(found.emitted - 75.0) <= 10  # two samples may be close calls


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


def test_nothing_emitted() -> None:
    with pytest.raises(QCompileError, match="no emitted model"):
        Validate().run(replace(qmodel(), emitted=None))


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

"""A float model, a file that is its quantized form, and what validation finds out about the two."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace

import numpy as np
from onnx import parser

from qcompile.config import Config
from qcompile.data.dataset import Dataset
from qcompile.data.inputs import Arrays, Indices
from qcompile.ir.prepare import prepare
from qcompile.outcomes import Audit
from qcompile.passes.validate import Validate
from qcompile.qmodel import QModel
from qcompile.quant.grid import unsigned
from qcompile.quant.params import Quantizer
from qcompile.quant.plan import Edge, Form, NodePlan, Plan
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
        quantizers={
            Edge("x"): Quantizer(unsigned(8), 0.03125, 128),
            Edge("a"): Quantizer(unsigned(8), 0.03125, 128),
            Edge("p"): Quantizer(unsigned(4), 0.03125, 8),
        },
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

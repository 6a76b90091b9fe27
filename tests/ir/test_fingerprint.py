from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from qcompile.ir.fingerprint import fingerprint
from qcompile.ir.load import load_model

TEXT = """<ir_version: 8, opset_import: ["": 18, "local": 1]>
net (float[N,4] x, float[4,3] W, bool c) => (float[N,3] y) {
  a = MatMul(x, W)
  k = Constant<value = float[3] {1, 2, 3}>()
  b = Add(a, k)
  d = local.twice(b)
  y = If(c) <
    then_branch = then () => (float[N,3] t) { t = LeakyRelu<alpha = 0.1>(d) },
    else_branch = other () => (float[N,3] e) { e = Neg(d) }
  >
}
<domain: "local", opset_import: ["": 18]> twice (v) => (w) { w = Add(v, v) }"""


@pytest.fixture
def model() -> ModelProto:
    made = onnx.parser.parse_model(TEXT)
    made.graph.input.remove(made.graph.input[1])
    made.graph.initializer.append(helper.make_tensor("W", onnx.TensorProto.FLOAT, [4, 3], range(12)))
    indices = helper.make_tensor("at", onnx.TensorProto.INT64, [1], [2])
    made.graph.sparse_initializer.append(
        helper.make_sparse_tensor(helper.make_tensor("S", onnx.TensorProto.FLOAT, [1], [5]), indices, [4])
    )
    return made


def then_branch(model: ModelProto) -> onnx.GraphProto:
    return next(item.g for item in model.graph.node[-1].attribute if item.name == "then_branch")


CHANGES: dict[str, Callable[[ModelProto], object]] = {
    "a weight": lambda m: m.graph.initializer[0].float_data.__setitem__(3, 7.0),
    "its type": lambda m: setattr(m.graph.initializer[0], "data_type", 11),
    "its shape": lambda m: m.graph.initializer[0].dims.__setitem__(slice(0, 2), [3, 4]),
    "its name": lambda m: setattr(m.graph.initializer[0], "name", "V"),
    "a constant": lambda m: m.graph.node[1].attribute[0].t.CopyFrom(numpy_helper.from_array(np.ones(3, np.float32))),
    "a sparse value": lambda m: m.graph.sparse_initializer[0].values.float_data.__setitem__(0, 6),
    "a sparse place": lambda m: m.graph.sparse_initializer[0].indices.int64_data.__setitem__(0, 1),
    "an operator": lambda m: setattr(m.graph.node[2], "op_type", "Mul"),
    "the order of inputs": lambda m: m.graph.node[2].input.__setitem__(slice(0, 2), ["k", "a"]),
    "the name of a node": lambda m: setattr(m.graph.node[2], "name", "sum"),
    "its domain": lambda m: setattr(m.graph.node[2], "domain", "other"),
    "an attribute inside": lambda m: setattr(then_branch(m).node[0].attribute[0], "f", 0.2),
    "a function": lambda m: setattr(m.functions[0].node[0], "op_type", "Mul"),
    "an opset": lambda m: setattr(m.opset_import[0], "version", 19),
    "an input": lambda m: m.graph.input[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", 5),
    "an output": lambda m: setattr(m.graph.output[0], "name", "z"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_model_has_another_fingerprint(model: ModelProto, change: str) -> None:
    before = fingerprint(model)
    CHANGES[change](model)
    assert fingerprint(model) != before


def test_the_same_model_told_otherwise_has_the_same(model: ModelProto, tmp_path: Path) -> None:
    expected = fingerprint(model)
    other = ModelProto.FromString(model.SerializeToString())
    weight = numpy_helper.to_array(other.graph.initializer[0])
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "W"))  # raw bytes
    constant = numpy_helper.to_array(other.graph.node[1].attribute[0].t)
    other.graph.node[1].attribute[0].t.CopyFrom(
        numpy_helper.from_array(constant, model.graph.node[1].attribute[0].t.name)
    )
    other.producer_name, other.doc_string, other.graph.name = "somebody", "a note", "other"
    other.graph.node[0].doc_string = "a note"
    helper.set_model_props(other, {"names": "cat, dog"})
    other.graph.value_info.append(helper.make_tensor_value_info("a", 1, ["N", 3]))
    assert fingerprint(other) == expected
    onnx.save(other, tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0)
    assert fingerprint(load_model(tmp_path / "m.onnx")) == expected

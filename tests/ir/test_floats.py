"""Models in other floats, from samples to file: the file has their interface and the accuracy of their float32 form."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from networks import network
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from qcompile.api import compile, plan_only
from qcompile.config import Config
from qcompile.runtime.session import Session, to_bfloat16

TEXT = """net (float[N,3,6,6] x, float[6,3,3,3] A, float[6] B, float[6,6,1,1] C, float[4,6,1,1] D)
    => (float[N,4,4,4] y) {
    [first] a = Conv(x, A, B)  [r] r = Relu(a)  [second] b = Conv(r, C)  [c] c = Relu(b)  [last] y = Conv(c, D) }"""
KINDS = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "float64": TensorProto.DOUBLE}
X = np.random.default_rng(0).standard_normal((64, 3, 6, 6)).astype(np.float32)


def converted(model: ModelProto, kind: int) -> ModelProto:
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.elem_type = kind
    for tensor in model.graph.initializer:
        values: NDArray[Any] = numpy_helper.to_array(tensor)
        if kind == TensorProto.BFLOAT16:
            raw = to_bfloat16(values).tobytes()
            tensor.CopyFrom(helper.make_tensor(tensor.name, kind, values.shape, raw, raw=True))
        else:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(kind)), tensor.name))
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings", [{"w": 8, "a": 8, "method": "rtn"}, {"w": 4, "a": 4, "method": "qdrop", "steps": 5}]
)
def test_from_samples_to_file(kind: str, settings: dict[str, Any]) -> None:
    model = converted(network(TEXT), KINDS[kind])
    result = compile(model, Config(threads=1, **settings), {"x": X})
    ports = [*result.model.graph.input, *result.model.graph.output]
    assert [port.type.tensor_type.elem_type for port in ports] == [KINDS[kind]] * 2
    onnx.checker.check_model(result.model, full_check=True)
    feed = X if kind == "bfloat16" else X.astype(kind)
    expected, made = (
        Session(network(TEXT), threads=1).run({"x": X})["y"],
        Session(result.model, threads=1).run({"x": feed})["y"],
    )
    assert np.linalg.norm(made - expected) < (0.03 if settings["w"] == 8 else 0.3) * np.linalg.norm(expected)
    assert not [text for text in result.report["warnings"] if "not trained" in text]


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_says_so(kind: str) -> None:
    result = plan_only(converted(network(TEXT), KINDS[kind]), Config(threads=1))
    texts = [entry["text"] for entry in result.report["journal"] if entry["pass"] == "open-model"]
    assert texts[0] == f"what it computes in {kind} is compiled as float32, its interface is kept"

"""What the file says of its source, and of what was done."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import qcompile
from qcompile import Config

Data = dict[str, NDArray[Any]]


@pytest.fixture
def described(residual_model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as an exporter describes it."""
    model = residual_model
    helper.set_model_props(model, {"names": "{0: 'cat', 1: 'dog'}", "stride": "32", "qcompile.bits": "of before"})
    model.producer_name, model.producer_version, model.domain = "exporter", "1.2", "org.example"
    model.doc_string, model.model_version = "finds cats", 7
    model.graph.name, model.graph.doc_string = "cats", "trained in spring"
    model.graph.input[0].doc_string = "RGB"
    model.graph.output[0].metadata_props.add(key="unit", value="logit")
    for node in model.graph.node:
        node.doc_string = f"made at line {len(node.name)}"
        node.metadata_props.add(key="scope", value=f"/net/{node.name}")
    return model


def properties(message: Any) -> dict[str, str]:
    return {item.key: item.value for item in message.metadata_props}


def test_all_that_the_source_says_is_kept(described: onnx.ModelProto, residual_data: Data) -> None:
    made = qcompile.compile(described, Config(w=4, a=4, method="rtn", threads=1), residual_data).model
    for field in ("producer_name", "producer_version", "domain", "doc_string", "model_version"):
        assert getattr(made, field) == getattr(described, field)
    assert (made.graph.name, made.graph.doc_string) == ("cats", "trained in spring")
    assert made.graph.input[0].doc_string == "RGB" and properties(made.graph.output[0]) == {"unit": "logit"}
    assert properties(made).items() >= {"names": "{0: 'cat', 1: 'dog'}", "stride": "32"}.items()
    nodes = {node.name: node for node in made.graph.node}
    for name in ("stem", "branch", "logits", "scores"):
        assert nodes[name].doc_string == f"made at line {len(name)}"
        assert properties(nodes[name]) == {"scope": f"/net/{name}"}
    onnx.checker.check_model(made)


def test_ours_are_added(described: onnx.ModelProto, residual_data: Data) -> None:
    results = [
        qcompile.compile(described, Config(w=w, a=4, method="rtn", threads=threads), residual_data)
        for w, threads in ((4, 1), (4, 2), (5, 1))
    ]
    one, again, other = (properties(result.model) for result in results)
    assert (one["qcompile.bits"], other["qcompile.bits"]) == ("w4a4", "w5a4")
    assert one["qcompile.target"] == "ort-cpu" and one["qcompile.version"]
    assert one["qcompile.source"] == results[0].qmodel.fingerprint
    assert one["qcompile.recipe"] == again["qcompile.recipe"] != other["qcompile.recipe"]
    assert len(one) == len(results[0].model.metadata_props) == 7  # our key that was there before is there once
    assert results[0].model.SerializeToString() == results[1].model.SerializeToString()


def test_a_source_that_says_nothing(residual_model: onnx.ModelProto, residual_data: Data) -> None:
    made = qcompile.compile(residual_model, Config(threads=1), residual_data).model
    assert made.producer_name == "qcompile" and made.doc_string == ""
    assert set(properties(made)) == {f"qcompile.{key}" for key in ("version", "bits", "target", "recipe", "source")}
    assert not any(properties(node) for node in made.graph.node)


@pytest.mark.parametrize("sizes", ["?,?,?,?", "N,C,H,W", "2,8,6,6"])
def test_inputs_and_outputs_are_declared_as_in_the_source(sizes: str) -> None:
    source = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[{sizes.replace("8", "3")}] x) => (float[{sizes}] y, float z) {{
        a = Conv <kernel_shape = [1,1]> (x, w)   r = Relu(a)   y = Conv(r, v)   z = ReduceMax <keepdims = 0> (y)
    }}""")
    rng = np.random.default_rng(0)
    for name, shape in (("w", (8, 3, 1, 1)), ("v", (8, 8, 1, 1))):
        source.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    data = {"x": rng.standard_normal((8, 3, 6, 6)).astype(np.float32)}
    made = qcompile.compile(source, Config(threads=1), data).model
    assert list(made.graph.input) == list(source.graph.input)
    assert list(made.graph.output) == list(source.graph.output)

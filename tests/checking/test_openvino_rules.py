"""What OpenVINO does with files that break its rules, and those that keep them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from rule_examples import EXAMPLES, Example

from qcompile.checking.rules import RULES
from qcompile.runtime.session import Session

pytest.importorskip("openvino", reason="needs OpenVINO: make test-openvino, or pip install '.[openvino]'")
from openvino_runs import openvino_model, outputs

OWN = [example for example in EXAMPLES if "openvino" in RULES[example.code].runtimes]
MISSED = [example for example in OWN if RULES[example.code].kernels == "missed"]
REFUSED = [
    example for example in OWN if example.code in ("QC205", "QC407") or example.name == "more outputs than inputs"
]


def integer_layers(compiled: Any) -> int:
    """Return how many layers run in kernels whose names say int8."""
    facts = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    kinds = {"Convolution", "FullyConnected", "MatMul", "Deconvolution"}
    return sum("i8" in item["primitiveType"].value.lower() for item in facts if item["layerType"].value in kinds)


def of_two_samples(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return it with the size written in that the file leaves open."""
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    batch.dim_value = batch.dim_value or 2
    return model


@pytest.mark.parametrize("example", MISSED, ids=str)
def test_a_missed_kernel_is_missed(example: Example) -> None:
    kept, broken = (openvino_model(of_two_samples(model)) for model in (example.kept(), example.broken()))
    assert integer_layers(broken) < integer_layers(kept)


@pytest.mark.parametrize("example", REFUSED, ids=str)
def test_what_is_refused_is_refused(example: Example) -> None:
    openvino_model(of_two_samples(example.kept()))
    with pytest.raises(RuntimeError):
        openvino_model(of_two_samples(example.broken()))


@pytest.mark.parametrize("example", [item for item in OWN if item.name == "as many outputs as inputs"], ids=str)
def test_scales_of_other_channels_give_other_numbers(example: Example) -> None:
    feeds = {"x": np.random.default_rng(0).uniform(-2, 2, (2, 2, 4, 4)).astype(np.float32)}
    differences = []
    for model in map(of_two_samples, (example.kept(), example.broken())):
        expected = Session(model, level="off").run(feeds)["y"]
        differences.append(float(np.abs(outputs(openvino_model(model), feeds)["y"] - expected).max()))
    assert differences[0] < 0.1 and differences[1] > 1

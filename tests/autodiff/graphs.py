"""Models around one node, and what a gradient is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from autodiff.cases import Array, Case
from autodiff.reference import EXACT
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from qcompile.autodiff import differentiate
from qcompile.runtime.session import Session

OPSET = 20  # the first with Gelu
STEP = 1e-5  # of central differences in float64: truncation and rounding are then both below 1e-8


def input_name(index: int) -> str:
    return f"x{index}"


def trainable(case: Case) -> list[str]:
    return [input_name(i) for i, value in enumerate(case.inputs) if value is not None and value.dtype == np.float32
            and not _is_structural(case, i)]  # fmt: skip


def _is_structural(case: Case, index: int) -> bool:
    return case.op == "Resize" and index > 0


def feeds_of(case: Case, dtype: type = np.float32) -> dict[str, Array]:
    return {name: np.asarray(case.inputs[int(name[1:])], dtype) for name in trainable(case)}


def model_of(case: Case, weights: Sequence[Array], *, dtype: type = np.float32, symbolic: str = "") -> onnx.ModelProto:
    """loss = sum of outputs times `weights`. `symbolic` names the unknown sizes.

    They are "batch", the first of the data; "image", all but the channels; "all", of all inputs; or none.
    """
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    names = ["" if value is None else input_name(i) for i, value in enumerate(case.inputs)]
    trained = trainable(case)
    inputs, initializers = [], []
    for index, (name, value) in enumerate(zip(names, case.inputs)):
        if name in trained and value is not None:
            inputs.append(helper.make_tensor_value_info(name, kind, _dims(value.shape, index, symbolic)))
        elif value is not None:
            initializers.append(numpy_helper.from_array(value, name))
    outputs = [f"y{i}" for i in range(case.outputs)]
    attributes = dict(case.attributes)
    if case.op == "Cast":
        attributes["to"] = kind
    nodes = [helper.make_node(case.op, names, outputs, name="tested", **attributes)]
    for i, weight in enumerate(weights):
        initializers.append(numpy_helper.from_array(weight.astype(dtype), f"weight{i}"))
        nodes.append(helper.make_node("Mul", [f"y{i}", f"weight{i}"], [f"product{i}"]))
        nodes.append(helper.make_node("ReduceSum", [f"product{i}"], [f"sum{i}"], keepdims=0))
    nodes.append(helper.make_node("Sum", [f"sum{i}" for i in range(len(weights))], ["loss"]))
    loss = helper.make_tensor_value_info("loss", kind, [])
    graph = helper.make_graph(nodes, case.op, inputs, [loss], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


def _dims(shape: Sequence[int], index: int, symbolic: str) -> list[int | str]:
    if symbolic == "all":
        return [f"d{index}_{axis}" for axis in range(len(shape))]
    if symbolic and index == 0 and shape:
        return (
            ["N", *shape[1:]]
            if symbolic == "batch"
            else ["N", shape[1], *(f"s{axis}" for axis in range(2, len(shape)))]
        )
    return list(shape)


def results(case: Case) -> list[Array]:
    """Return the node's outputs by the ONNX reference in float64."""
    model = model_of(case, [], dtype=np.float64)
    del model.graph.node[1:], model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=f"y{i}") for i in range(case.outputs))
    return list(ReferenceEvaluator(model, new_ops=EXACT).run(None, feeds_of(case, np.float64)))


def random_weights(case: Case) -> list[Array]:
    random = np.random.default_rng(len(case.inputs))
    return [random.normal(size=np.shape(value)).astype(np.float32) for value in results(case)]


def gradients_of(case: Case, weights: Sequence[Array], symbolic: str = "") -> dict[str, Array]:
    """Return the gradients as ONNX Runtime computes them in float32."""
    names = trainable(case)
    made = differentiate(model_of(case, weights, symbolic=symbolic), "loss", names)
    run = Session(made.model, level="basic", threads=1).run(feeds_of(case))
    return {name: run[made.gradients[name]] for name in names}


def slope(case: Case, weights: Sequence[Array], directions: Mapping[str, Array]) -> float:
    """Return the derivative of the loss along `directions` by central differences in float64."""
    evaluator = ReferenceEvaluator(model_of(case, weights, dtype=np.float64), new_ops=EXACT)
    feeds = feeds_of(case, np.float64)

    def loss(step: float) -> float:
        moved = {name: value + step * directions[name] for name, value in feeds.items()}
        return float(evaluator.run(None, moved)[0])

    return (loss(STEP) - loss(-STEP)) / (2 * STEP)


def relative_error(found: Array, expected: Array) -> float:
    """Return the largest error relative to the largest value, or to 0.1 where all are smaller: sums of ones cancel."""
    assert found.shape == expected.shape
    scale: Any = max(np.abs(expected).max(initial=0), 0.1)
    return float(np.abs(found - expected).max(initial=0) / scale)

"""Einsum that is a product of matrices becomes MatMul: numpy.einsum is the judge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from layer_graphs import AsQModel
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qcompile.ir.einsum import letters
from qcompile.ir.load import to_model
from qcompile.passes.normalize_graph import NormalizeGraph
from qcompile.qmodel import QModel
from qcompile.runtime.session import Session

SIZES = dict(zip("btsdkhefij", (2, 5, 4, 6, 7, 3, 2, 3, 4, 5)))

# equation, operators in its place where both operands are tensors
PRODUCTS = {
    "bd,dk->bk": "MatMul",
    "btd,kd->btk": "Transpose MatMul",
    "btd,dhk->bhtk": "Flatten MatMul Reshape Transpose",
    "bthk,hkd->btd": "Reshape Flatten Transpose Transpose MatMul",
    "bhtk,bhsk->bhts": "Transpose MatMul",
    "bhts,bhsk->bthk": "MatMul Transpose",
    "bts,bsk->bkt": "Transpose Transpose MatMul",
    "bd,d->b": "Unsqueeze MatMul Squeeze",
    "btd,d->bt": "Unsqueeze MatMul Squeeze",
    "bd,bdk->bk": "Unsqueeze MatMul Squeeze",
    "bd,bd->b": "Unsqueeze Unsqueeze MatMul Squeeze Squeeze",
    "b t d, d k -> b t k": "MatMul",
    "btd,dk": "MatMul Transpose",
    "...td,dk->...tk": "MatMul",
    "...d,...dk->...k": "Unsqueeze MatMul Squeeze",
    "ibtd,bdk->ibtk": "MatMul",
    "btd,dk->bk": "ReduceSum MatMul",
    "bd,tkd->bk": "ReduceSum Transpose MatMul",
}
OTHERS = ("btd,d->bd", "bd,k->bdk", "btt,tk->bk")
RANKS = {"...td,dk->...tk": (4, 2), "...d,...dk->...k": (3, 4)}


def shapes_of(equation: str) -> list[list[int]]:
    """Return the shapes of the operands; an ellipsis stands for dimensions of 2 and 3."""
    ranks = RANKS.get(equation) or [len(part) for part in equation.replace(" ", "").split("->")[0].split(",")]
    found = letters(equation, ranks)
    assert found is not None
    hidden = dict(zip("acglmnopq", (2, 3, 2, 3)))
    return [[SIZES.get(c) or hidden[c] for c in part] for part in found[0]]


def model_of(equation: str, operands: Sequence[NDArray[np.float32]], constants: Sequence[int]) -> onnx.ModelProto:
    """Return Einsum of these operands; the first dimension of a tensor input is open."""
    names = ["l", "r"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"N_{name}", *array.shape[1:]])
        for place, (name, array) in enumerate(zip(names, operands))
        if place not in constants
    ]
    weights = [numpy_helper.from_array(operands[place], names[place]) for place in constants]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("Einsum", names[: len(operands)], ["y"], "node", equation=equation)
    graph = helper.make_graph([node], "g", inputs, [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def normalised(equation: str, constants: Sequence[int], as_qmodel: AsQModel) -> QModel:
    """Normalise the equation, and compare what it computes with numpy, on two batches where both operands have one."""
    random = np.random.default_rng(0)
    operands = [random.normal(size=shape).astype(np.float32) for shape in shapes_of(equation)]
    model = as_qmodel(model_of(equation, operands, constants))
    NormalizeGraph().run(model)
    session = Session(to_model(model.graph), level="off", threads=1)
    batched = not constants and equation[0] == "b" and all(part[0] == "b" for part in equation.split(",")[:2])
    for arrays in [operands, [np.concatenate([array] * 2) for array in operands]][: 1 + batched]:
        feeds = {name: array for place, (name, array) in enumerate(zip("lr", arrays)) if place not in constants}
        expected = np.einsum(equation, *arrays)
        np.testing.assert_allclose(session.run(feeds)["y"], expected, rtol=1e-4, atol=1e-5)  # the order of sums
    return model


@pytest.mark.parametrize("equation", PRODUCTS)
def test_products(equation: str, as_qmodel: AsQModel) -> None:
    model = normalised(equation, [], as_qmodel)
    assert sorted(node.op for node in model.graph.nodes) == sorted(PRODUCTS[equation].split())
    assert NormalizeGraph().run(model) == 0
    for constant in (0, 1):
        model = normalised(equation, [constant], as_qmodel)
        assert "Einsum" not in {node.op for node in model.graph.nodes}
        assert NormalizeGraph().run(model) == 0


@pytest.mark.parametrize("equation", OTHERS)
def test_others_stay(equation: str, as_qmodel: AsQModel) -> None:
    for constants in ([], [0], [1]):
        assert [node.op for node in normalised(equation, constants, as_qmodel).graph.nodes] == ["Einsum"]


def test_one_operand(as_qmodel: AsQModel) -> None:
    assert [node.op for node in normalised("btd->dtb", [], as_qmodel).graph.nodes] == ["Transpose"]
    assert [node.op for node in normalised("btd->bd", [], as_qmodel).graph.nodes] == ["Einsum"]


def test_a_number(as_qmodel: AsQModel) -> None:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in "xy"]
    nodes = [helper.make_node("Einsum", ["x"], ["a"], equation="->"), helper.make_node("Neg", ["a"], ["y"])]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    model = as_qmodel(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))
    NormalizeGraph().run(model)
    assert [node.op for node in model.graph.nodes] == ["Neg"]
    assert Session(to_model(model.graph), level="off", threads=1).run({"x": np.array(3, np.float32)})["y"] == -3


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_equation(as_qmodel: AsQModel, data: st.DataObject) -> None:
    """Letters drawn for batches, rows, columns and sums over both operands or one, in any order."""
    groups = [data.draw(st.integers(least, 2)) for least in (0, 0, 0, 1, 0)]
    assume(sum(groups) <= 6)
    pool = iter("bhtsdkefij")
    batch, rows, columns, inner, alone = ([next(pool) for _ in range(count)] for count in groups)
    left, right, output = (
        "".join(data.draw(st.permutations(part)))
        for part in (batch + rows + inner + alone, batch + inner + columns, batch + rows + columns)
    )
    assume(left and right)
    constants = data.draw(st.sampled_from([[], [0], [1]]))
    normalised(f"{left},{right}->{output}", constants, as_qmodel)

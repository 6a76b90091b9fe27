"""Targets whose scales are powers of two, and whose weights have one scale per tensor: all scales of their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import CORRECT, NETWORKS, RELU6, RESIDUAL, Arrays, compiled, network, samples
from onnx import numpy_helper

import qcompile
from qcompile import Config, PassManager, QModel, open_model
from qcompile.backends import check
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.pipeline import build
from qcompile.quant.powers import is_power
from qcompile.runtime.session import Session
from qcompile.simulation import simulate
from qcompile.targets.plan_fit import plan_misfit

SHIFTS = """like = "tensorrt"
bias = "int32"
unrounded_sums = false
arithmetic = ["Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"]
power_of_two = ["activations", "weights"]
per_tensor_weights = ["depthwise", "MatMul"]
"""
READ = "_dq/DequantizeLinear"  # behind the name of a weight or a bias
PRECISIONS = [{"w": 8, "a": 8}, {"w": 4, "a": 4}, {"w": 2, "a": 4}]


@pytest.fixture
def target(tmp_path: Path) -> str:
    path = tmp_path / "shifts.toml"
    path.write_text(SHIFTS, encoding="utf-8")
    return str(path)


def scales(model: onnx.ModelProto) -> Arrays:
    """Return the scale of every QuantizeLinear and DequantizeLinear, by the name of the node."""
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    return {node.name: stored[node.input[1]] for node in nodes}


def file_of(model: QModel) -> onnx.ModelProto:
    assert model.emitted is not None
    return model.emitted


def assert_equals_simulation(model: QModel) -> None:
    feeds = samples(model.source)
    file = Session(file_of(model), level="off", fuse_qdq=False).run(feeds)
    fake = Session(simulate(model.graph, model.plan, "float"), level="off", fuse_qdq=False).run(feeds)
    for output, expected in fake.items():
        np.testing.assert_array_equal(file[output], expected)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_every_scale_of_the_file_is_a_power_of_two(target: str, name: str, precision: dict[str, int]) -> None:
    model = compiled(NETWORKS[name], (*CORRECT, InsertQDQ()), target=target, **precision)
    found = scales(file_of(model))
    assert found and all(map(is_power, found.values()))
    assert not check(file_of(model), model.target) and not plan_misfit(model.plan, model.graph, model.target)
    assert_equals_simulation(model)


def test_depthwise_weights_have_one_scale_and_others_one_by_channel(target: str) -> None:
    model = compiled(RELU6, (*CORRECT, InsertQDQ()), target=target)
    assert {name: item.spec.per_tensor for name, item in model.plan.weights.items()} == {
        "expand": False,
        "depthwise": True,
        "project": False,
    }
    found = scales(file_of(model))
    assert found[f"W2{READ}"].shape == found[f"B2{READ}"].shape == () and found[f"W1{READ}"].shape == (8,)


def test_a_clip_in_front_of_a_quantizer_is_enough(target: str) -> None:
    """6 is the code 96 of the scale 1/16: what the Clip gives never is another one, so no codes are clipped."""
    source = network(RELU6)
    for item in source.graph.initializer:
        if item.name in ("W1", "W2"):
            item.CopyFrom(numpy_helper.from_array(8 * numpy_helper.to_array(item), item.name))
    model = compiled(source, (*CORRECT, InsertQDQ()), target=target)
    ends = {quantizer.grid.high for quantizer in model.plan.quantizers.values() if quantizer.high == 6}
    assert ends == {96}
    stored = {item.name: item.data_type for item in file_of(model).graph.initializer}
    clips = [node for node in file_of(model).graph.node if node.op_type == "Clip"]
    assert [stored[node.input[1]] for node in clips] == [onnx.TensorProto.FLOAT] * 2


@pytest.mark.parametrize(("facts", "free"), [('["weights"]', "activations"), ('["activations"]', "weights")])
def test_powers_of_one_kind_leave_the_other_free(target: str, facts: str, free: str) -> None:
    Path(target).write_text(SHIFTS.replace('["activations", "weights"]', facts), encoding="utf-8")
    model = compiled(RESIDUAL, (*CORRECT, InsertQDQ()), target=target)
    assert check(file_of(model), model.target) == []
    found = {"weights": [item.scale for item in model.plan.weights.values()]}
    found["activations"] = [item.scale for item in model.plan.quantizers.values()]
    assert {kind: all(map(is_power, items)) for kind, items in found.items()} == {kind: kind != free for kind in found}
    assert_equals_simulation(model)


def changed(model: onnx.ModelProto, name: str, values: Any) -> onnx.ModelProto:
    """Return a copy in which the node `name` has another scale, and zero points of its shape."""
    other = onnx.ModelProto.FromString(model.SerializeToString())
    node = next(node for node in other.graph.node if node.name == name)
    scale = np.asarray(values, np.float32)
    other.graph.initializer.append(numpy_helper.from_array(scale, "other"))
    other.graph.initializer.append(numpy_helper.from_array(np.zeros(scale.shape, np.int8), "zeros"))
    node.input[1], node.input[2] = "other", "zeros"
    return other


@pytest.mark.parametrize(
    ("node", "values", "rule"),
    [
        ("image_q8/Q", 0.3, "powers-of-two"),
        (f"W1{READ}", [0.5] * 7 + [0.3], "powers-of-two"),
        (f"W2{READ}", [0.5] * 8, "one-scale-per-tensor"),
    ],
)
def test_rules_find_other_scales(target: str, node: str, values: Any, rule: str) -> None:
    model = compiled(RELU6, (*CORRECT, InsertQDQ()), target=target)
    assert rule in {item.rule for item in check(changed(file_of(model), node, values), model.target)}


def test_a_plan_with_other_scales_does_not_fit(target: str) -> None:
    model = compiled(RELU6, CORRECT, target=target)
    free = replace(model.target, power_of_two=())
    assert "have a power of two" in plan_misfit(model.plan, model.graph, free)
    whole = replace(model.target, per_tensor_weights=frozenset())
    assert "the scales of the weight of 'depthwise'" in plan_misfit(model.plan, model.graph, whole)


def test_what_is_trained_is_what_is_emitted(target: str, tmp_path: Path) -> None:
    """Training moves codes and biases; scales stay, and the plan says of which kind they are when it is read again."""
    source = network(RELU6)
    config = Config(w=4, a=4, target=target, steps=6, threads=1, placement="auto")
    data = samples(source, count=40)
    model = open_model(source, config, data)
    PassManager(build(config)).run(model)
    assert any(outcome.trained for outcome in model.outcomes)
    assert all(map(is_power, scales(file_of(model)).values()))
    assert_equals_simulation(model)
    result = qcompile.Result.of(model)
    result.save(tmp_path / "out.onnx", plan=tmp_path / "p.npz")
    again = qcompile.compile(source, config, data, plan=tmp_path / "p.npz")
    assert again.model.SerializeToString() == result.model.SerializeToString()


def test_a_float_graph_has_powers_too(target: str) -> None:
    text = 'like = "academic"\npower_of_two = ["activations"]\n'
    Path(target).write_text(text, encoding="utf-8")
    model = compiled(RESIDUAL, (*CORRECT, InsertQDQ()), target=target)
    assert check(file_of(model), model.target) == []
    assert all(is_power(item.scale) for item in model.plan.quantizers.values())
    div = next(node for node in file_of(model).graph.node if node.op_type == "Div")
    stored = {item.name: item for item in file_of(model).graph.initializer}
    stored[div.input[1]].CopyFrom(numpy_helper.from_array(np.float32(0.3), div.input[1]))
    assert any("no power of two" in item.detail for item in check(file_of(model), model.target))

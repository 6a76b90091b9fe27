"""The blocked forms against the plain ones: the same graph, rewritten, has the same loss and the same gradients."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from autodiff.graphs import relative_error
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from qcompile.autodiff import differentiate
from qcompile.autodiff.blocked import to_blocked
from qcompile.quant.grid import unsigned
from qcompile.runtime.blocked import block_size
from qcompile.runtime.session import Session

BLOCK = block_size()
pytestmark = pytest.mark.skipif(BLOCK == 1, reason="this ONNX Runtime has no blocked layout on this machine")
TRAINED = ["x", "w", "b"]


@dataclass(frozen=True)
class Layer:
    """One convolution and what stands behind it."""

    count: int
    inner: int
    outer: int
    kernel: tuple[int, int]
    image: tuple[int, int]
    stride: int = 1
    pad: int = 0
    dilation: int = 1
    group: int = 1
    activation: str = ""

    @property
    def result(self) -> tuple[int, ...]:
        reach = [self.dilation * (taps - 1) + 1 for taps in self.kernel]
        return tuple((s + 2 * self.pad - r) // self.stride + 1 for s, r in zip(self.image, reach))

    def feeds(self) -> dict[str, np.ndarray]:
        random = np.random.default_rng(0)
        shapes = {
            "x": (self.count, self.inner, *self.image),
            "w": (self.outer, self.inner // self.group, *self.kernel),
            "b": (self.outer,),
            "t": (self.count, self.outer, *self.result),
        }
        means = {"x": 1.0, "t": -3.0}  # so that sums, such as the bias's gradient, do not cancel out
        return {n: random.normal(means.get(n, 0), 0.5, shape).astype(np.float32) for n, shape in shapes.items()}

    def model(self) -> onnx.ModelProto:
        """Square error of activation(conv(2x)) against t."""
        pads, strides, dilations = [self.pad] * 4, [self.stride] * 2, [self.dilation] * 2
        nodes = [
            helper.make_node("Mul", ["x", "two"], ["doubled"]),
            helper.make_node("Conv", ["doubled", "w", "b"], ["y"], kernel_shape=self.kernel, pads=pads,
                             strides=strides, dilations=dilations, group=self.group),
        ]  # fmt: skip
        last = "y"
        if self.activation:
            bounds = ["zero", "one"] if self.activation == "Clip" else []
            nodes.append(helper.make_node(self.activation, ["y", *bounds], ["active"]))
            last = "active"
        nodes.append(helper.make_node("SquaredError", [last, "t"], ["loss"], domain="qcompile"))
        infos = [helper.make_tensor_value_info(name, 1, array.shape) for name, array in self.feeds().items()]
        numbers = {"two": 2.0, "zero": 0.0, "one": 1.0}
        constants = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in numbers.items()]
        graph = helper.make_graph(nodes, "g", infos, [helper.make_tensor_value_info("loss", 1, [])], constants)
        imports = [helper.make_opsetid("", 20), helper.make_opsetid("qcompile", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], set[str]]:
    made = differentiate(model, "loss", TRAINED)
    found = Session(made.model, threads=1, level="extended").run(feeds)
    operators = {f"{node.domain}.{node.op_type}" for node in made.model.graph.node}
    return {"loss": found["loss"]} | {name: found[output] for name, output in made.gradients.items()}, operators


def compare(layer: Layer) -> set[str]:
    """Check loss and gradients; return the operators of the blocked graph."""
    expected, _ = run(layer.model(), layer.feeds())
    found, operators = run(to_blocked(layer.model(), BLOCK), layer.feeds())
    for name, array in expected.items():
        assert relative_error(found[name], array) <= 1e-5, name  # float32 sums in another order
    return operators


LAYERS = {
    "rows": Layer(4, 16, 16, (3, 3), (32, 32), pad=1, activation="Relu"),
    "rows of many channels": Layer(2, 40, 24, (5, 5), (6, 16), pad=2),
    "samples": Layer(16, 64, 48, (3, 3), (8, 8), pad=1, activation="Relu"),
    "samples, odd size": Layer(32, 24, 40, (3, 3), (7, 5), pad=1, activation="Clip"),
    "products": Layer(3, 32, 64, (3, 3), (10, 10), pad=1),
    "kernel 1": Layer(8, 40, 24, (1, 1), (28, 28), activation="Clip"),
    "kernel 1, more outputs": Layer(4, 20, 36, (1, 1), (8, 8)),
    "kernel 1, samples together": Layer(16, 32, 64, (1, 1), (7, 7)),
    "kernel 1, batch too small for it": Layer(4, 32, 64, (1, 1), (7, 7)),
    "depthwise": Layer(4, 48, 48, (3, 3), (14, 14), pad=1, group=48, activation="Clip"),
    "depthwise, filled up": Layer(3, 20, 20, (5, 3), (9, 11), pad=1, group=20),
    "depthwise, stride": Layer(2, 32, 32, (3, 3), (15, 13), pad=1, stride=2, group=32),
    "depthwise, stride, rest": Layer(2, 32, 32, (2, 2), (15, 15), stride=2, group=32),
    "depthwise, dilation": Layer(2, 32, 32, (3, 3), (12, 12), pad=2, dilation=2, group=32),
    "stride": Layer(8, 16, 32, (3, 3), (32, 32), pad=1, stride=2, activation="Relu"),
    "stride, odd": Layer(16, 32, 48, (3, 3), (15, 15), pad=1, stride=2),
    "stride, kernel 1": Layer(8, 16, 32, (1, 1), (32, 32), stride=2),
    "dilation": Layer(4, 32, 32, (3, 3), (16, 16), pad=2, dilation=2),
    "no pads": Layer(4, 32, 32, (3, 3), (9, 9)),
    "stem": Layer(4, 3, 32, (3, 3), (32, 32), pad=1, stride=2, activation="Relu"),
    "channels no multiple of 4": Layer(4, 18, 22, (3, 3), (16, 16), pad=1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_loss_and_gradients_are_those_of_the_plain_graph(name: str) -> None:
    operators = compare(LAYERS[name])
    assert "com.microsoft.nchwc.Conv" in operators
    assert "com.microsoft.nchwc.ReorderOutput" in operators or LAYERS[name].group > 1


@given(st.data())
@settings(max_examples=40)
def test_any_convolution(data: st.DataObject) -> None:
    kernel = data.draw(st.sampled_from([(1, 1), (2, 2), (3, 3), (5, 5), (3, 1)]))
    stride, dilation = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (3, 1)]))
    inner = data.draw(st.sampled_from([1, 3, 8, 16, 24, 34]))
    depthwise = data.draw(st.booleans()) and inner > 1
    outer = inner if depthwise else data.draw(st.sampled_from([1, 5, 16, 40]))
    image = data.draw(st.tuples(st.integers(5, 18), st.integers(5, 18)))
    pad = data.draw(st.integers(0, min(kernel) - 1))
    count = data.draw(st.sampled_from([1, 2, 3, 8, 16]))
    activation = data.draw(st.sampled_from(["", "Relu", "Clip"]))
    layer = Layer(count, inner, outer, kernel, image, stride, pad, dilation, inner if depthwise else 1, activation)
    assume(min(layer.result) >= 1)
    compare(layer)


def region(nodes: list[onnx.NodeProto], channels: int = 24, **inputs: int) -> onnx.ModelProto:
    """Return a graph over images x and targets t with two weights and more inputs of the given element types."""
    image = [4, channels, 8, 8]
    infos = [helper.make_tensor_value_info(name, 1, image) for name in ("x", "t")]
    infos += [helper.make_tensor_value_info(name, 1, [channels, channels, 1, 1]) for name in ("w", "b")]
    infos += [helper.make_tensor_value_info(name, kind, image if kind == 9 else []) for name, kind in inputs.items()]
    graph = helper.make_graph(nodes, "g", infos, [helper.make_tensor_value_info("loss", 1, [])])
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("qcompile", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def node(op: str, *inputs: str, to: str, **attributes: Any) -> onnx.NodeProto:
    domain = "qcompile" if op in ("SquaredError", "FakeQuantActivation") else ""
    return helper.make_node(op, inputs, [to], domain=domain, **attributes)


def test_what_lies_between_convolutions_stays_blocked_and_masks_with_it() -> None:
    nodes = [
        node("Conv", "x", "w", to="a"),
        node("FakeQuantActivation", "a", "s", "m", to="q", **asdict(unsigned(4))),
        node("Conv", "q", "b", to="c"),
        node("Add", "c", "x", to="sum"),
        node("SquaredError", "sum", "t", to="loss"),
    ]
    model = region(nodes, s=1, m=9)
    rewritten = to_blocked(model, BLOCK)
    assert [item.op_type for item in rewritten.graph.node] == [
        "Pack", "BlockedConv", "FakeQuantActivation", "BlockedConv", "Add", "Pack", "SquaredError",
    ]  # fmt: skip
    wide = -(-24 // BLOCK) * BLOCK
    mask = next(item for item in rewritten.graph.input if item.name == "m")
    assert [dim.dim_value for dim in mask.type.tensor_type.shape.dim] == [4, wide, 8, 8]

    random = np.random.default_rng(0)
    feeds = {name: random.normal(size=(4, 24, 8, 8)).astype(np.float32) for name in ("x", "t")}
    feeds |= {name: random.normal(0, 0.3, (24, 24, 1, 1)).astype(np.float32) for name in ("w", "b")}
    feeds["s"] = np.array(0.3, np.float32)
    chosen = random.random((4, 24, 8, 8)) < 0.5
    filled = np.concatenate([chosen, np.ones((4, wide - 24, 8, 8), bool)], axis=1)
    packed = filled.reshape(4, wide // BLOCK, BLOCK, 64).transpose(0, 1, 3, 2).reshape(4, wide, 8, 8)
    expected, _ = run(model, feeds | {"m": chosen})
    found, _ = run(rewritten, feeds | {"m": packed})
    for name, array in expected.items():
        assert relative_error(found[name], array) <= 1e-5, name


@pytest.mark.parametrize(
    "behind",
    [
        [node("Sigmoid", "a", to="y")],  # makes something of the zeros that fill a block
        [node("Transpose", "a", to="y", perm=[0, 1, 3, 2])],
        [node("ReduceMean", "a", "axes", to="mean"), node("Mul", "a", "mean", to="y")],
        [node("Add", "a", "half", to="y")],
        [node("Sub", "half", "a", to="y")],
    ],
    ids=["not zero at zero", "moves", "broadcasts", "adds a number", "subtracts from a number"],
)
def test_other_operators_get_plain_values(behind: list[onnx.NodeProto]) -> None:
    model = region([node("Conv", "x", "w", to="a"), *behind, node("SquaredError", "y", "t", to="loss")])
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    feeds = {name: np.random.default_rng(1).normal(size=(4, 24, 8, 8)).astype(np.float32) for name in ("x", "t")}
    feeds |= {name: np.full((24, 24, 1, 1), 0.1, np.float32) for name in ("w", "b")}
    expected, _ = run(model, feeds)
    found, operators = run(to_blocked(model, BLOCK), feeds)
    assert "com.microsoft.nchwc.Conv" in operators
    for name, array in expected.items():
        assert relative_error(found[name], array) <= 1e-5, name


def test_operators_of_other_domains_get_plain_values() -> None:
    """Gelu of ONNX works element by element; what has its name elsewhere may do anything, and its shape is unknown."""
    other = helper.make_node("Gelu", ["a"], ["y"], domain="com.microsoft")
    model = to_blocked(
        region([node("Conv", "x", "w", to="a"), other, node("SquaredError", "y", "t", to="loss")]), BLOCK
    )
    assert [item.op_type for item in model.graph.node] == ["Pack", "BlockedConv", "Unpack", "Gelu", "SquaredError"]


def test_a_convolution_may_make_a_single_number() -> None:
    """One sample, one channel, one position: its blocked form has more channels, and must not be taken for a scalar."""
    nodes = [
        node("Conv", "x", "w", to="a"), node("Conv", "x", "b", to="gate"),
        node("Mul", "a", "gate", to="y"), node("SquaredError", "y", "t", to="loss"),
    ]  # fmt: skip
    model = region(nodes)
    shapes = {"x": (1, 24, 1, 1), "t": (1, 24, 1, 1), "w": (24, 24, 1, 1), "b": (1, 24, 1, 1)}
    for item in model.graph.input:
        for dim, size in zip(item.type.tensor_type.shape.dim, shapes[item.name]):
            dim.dim_value = size
    random = np.random.default_rng(0)
    feeds = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    expected, _ = run(model, feeds)
    found, _ = run(to_blocked(model, BLOCK), feeds)
    for name, array in expected.items():
        assert relative_error(found[name], array) <= 1e-5, name


def test_a_grouped_convolution_stays_plain() -> None:
    nodes = [node("Conv", "x", "w", to="y", group=2), node("SquaredError", "y", "t", to="loss")]
    model = region(nodes)
    for item in model.graph.input:
        if item.name in TRAINED[1:]:
            item.type.tensor_type.shape.dim[1].dim_value = 12
    assert [item.op_type for item in to_blocked(model, BLOCK).graph.node] == ["Conv", "SquaredError"]

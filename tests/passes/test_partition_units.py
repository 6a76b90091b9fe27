"""Units of known networks, and of graphs without bottlenecks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from classic_networks import Net, classifier, mobilenet_v2, regnetx_600m, residual, resnet18, resnet50
from unit_checks import checked, compute_names, groups, ops

from qcompile.ir import Graph, Node, Variable
from qcompile.ir.load import load_model
from qcompile.ir.prepare import prepare
from qcompile.passes.normalize_graph import NormalizeGraph
from qcompile.passes.partition_units import PartitionUnits
from qcompile.passmanager import PassManager
from qcompile.qmodel import QModel
from qcompile.targets.schema import Target

# --- networks with published unit counts


def squeeze_excite(net: Net, x: Variable) -> Variable:
    width = net.channels[x.name]
    squeezed = net.conv(net.op("GlobalAveragePool", x), max(width // 4, 1), 1, act="Relu")
    return net.op("Mul", x, net.op("Sigmoid", net.conv(squeezed, width, 1)))


@pytest.mark.parametrize(
    ("graph", "alone", "stack"),
    [
        (resnet18(), 10, 10),
        (resnet50(), 18, 18),
        (regnetx_600m(), 18, 18),
        (mobilenet_v2(), 20, 18),
        (mobilenet_v2(squeeze_excite), 20, 19),  # the gate in features.1 makes stem and block four compute nodes
    ],
    ids=["resnet18", "resnet50", "regnetx_600m", "mobilenet_v2", "mobilenet_v2 with gates"],
)
def test_published_unit_counts(graph: Graph, alone: int, stack: int) -> None:
    assert len(checked(graph)) == alone
    assert len(checked(graph, PartitionUnits(ends="stack"))) == stack


def test_mobilenet_v2_stacks_what_mrecg_stacks() -> None:
    graph = mobilenet_v2()
    assert [unit.name for unit in checked(graph)] == [*(f"features.{index}" for index in range(19)), "fc"]
    first, *_, last = checked(graph, PartitionUnits(ends="stack"))
    assert [name for name in first.nodes if "/" in name] == [
        "/features/features.0/Conv", "/features/features.1/depthwise/Conv", "/features/features.1/project/Conv",
    ]  # fmt: skip
    assert compute_names(graph, last) == ["/features/features.18/Conv", "fc"]


def test_pooling_behind_the_stem_and_before_the_classifier() -> None:
    graph = resnet18()
    stem, *_, block, fc = checked(graph)
    assert ops(graph, stem) == ["Conv", "Relu", "MaxPool"]
    assert ops(graph, block)[-2:] == ["GlobalAveragePool", "Flatten"]
    assert ops(graph, fc) == ["Gemm"]


@pytest.mark.parametrize(("name", "expected"), [("resnet20", 11), ("efficientnet_lite0", 19), ("ppocr_v4_det", 31)])
def test_exported_models(shared_assets: Path, name: str, expected: int) -> None:
    source = load_model(shared_assets / "models" / f"{name}.onnx")
    model = QModel(graph=prepare(source, 18), source=source, target=Target.load("ort-cpu"))
    runs = PassManager((NormalizeGraph(), PartitionUnits())).run(model)
    assert runs[-1].changed == len(model.plan.units) == expected
    units = checked(model.graph)
    assert units == model.plan.units
    assert all(not unit.note for unit in units)
    if name == "resnet20":
        blocks = [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in range(3)]
        assert [unit.name for unit in units] == ["conv1", *blocks, "linear"]


# --- rules, one by one


def test_plain_convolutions_stack_up_to_three_and_not_across_a_stride() -> None:
    net = Net()
    x = net.conv(net.input(), name="stem", act="Relu")
    for index in range(4):
        x = net.conv(x, name=f"a{index}", act="Relu")
    for index in range(2):
        x = net.conv(x, name=f"b{index}", stride=2 - index, act="Relu")
    x = net.op("MaxPool", x, strides=[2, 2])
    for index in range(2):
        x = net.conv(x, name=f"c{index}", act="Relu")
    graph = net.finish(net.conv(x, name="last"))
    assert groups(graph) == [["stem"], ["a0", "a1", "a2"], ["a3"], ["b0", "b1"], ["c0", "c1"], ["last"]]
    stacked = groups(graph, PartitionUnits(ends="stack"))
    assert stacked == [["stem", "a0", "a1"], ["a2", "a3"], ["b0", "b1"], ["c0", "c1", "last"]]
    assert groups(graph, PartitionUnits(max_stack=1)) == [[name] for unit in groups(graph) for name in unit]


def test_depthwise_separable_pairs_stay_together() -> None:
    net = Net()
    x = net.conv(net.input(), 8, 3, name="stem", act="Relu")
    for index in range(3):
        x = net.conv(x, 8, 3, group=8, name=f"dw{index}", act="Relu")
        x = net.conv(x, 8, 1, name=f"pw{index}", act="Relu")
    graph = net.finish(net.linear(x, name="fc"))
    assert groups(graph) == [["stem"], ["dw0", "pw0"], ["dw1", "pw1"], ["dw2", "pw2"], ["fc"]]


def test_a_chain_does_not_reach_over_an_opaque_node() -> None:
    net = Net()
    x = net.conv(net.conv(net.input(), name="stem"), 8, 3, group=8, name="dw")
    graph = net.finish(net.linear(net.conv(net.op("GRU", x), name="pw"), name="fc"))
    assert [unit.nodes for unit in checked(graph)] == [("stem",), ("dw",), ("GRU_2",), ("pw",), ("fc",)]


def test_squeeze_excite_is_a_block() -> None:
    net = Net()
    x = net.conv(net.input(), name="stem", act="Relu")
    x = squeeze_excite(net, net.conv(x, kernel=3, name="body", act="Relu"))
    graph = net.finish(net.linear(x, name="fc"))
    units = checked(graph)
    assert [len(compute_names(graph, unit)) for unit in units] == [1, 1, 2, 1]
    assert ops(graph, units[2]) == ["GlobalAveragePool", "Conv", "Relu", "Conv", "Sigmoid", "Mul"]


def u_net(levels: int) -> Graph:
    net, skips = Net(), []
    x = net.conv(net.input(), 8, 3, name="stem", act="Relu")
    for level in range(levels):
        for index in range(2):
            x = net.conv(x, 8, 3, name=f"/down{level}/conv{index}/Conv", act="Relu")
        skips.append(x)
        x = net.op("MaxPool", x, strides=[2, 2])
    x = net.conv(x, 8, 3, name="/middle/conv0/Conv", act="Relu")
    for level in reversed(range(levels)):
        up = net.op("ConvTranspose", x, net.weight(8, 8, 2, 2), name=f"/up{level}/up/ConvTranspose", strides=[2, 2])
        x = net.op("Concat", up, skips[level], axis=1)
        for index in range(2):
            x = net.conv(x, 8, 3, name=f"/up{level}/conv{index}/Conv", act="Relu")
    return net.finish(net.conv(x, 1, name="last"))


def test_u_net_has_small_units_although_its_skips_span_it() -> None:
    graph = u_net(5)
    units = checked(graph)
    assert all(len(unit.outputs) == 1 for unit in units)
    assert max(len(compute_names(graph, unit)) for unit in units) <= 12
    found = groups(graph)
    for level in (0, 1, 2):  # the levels whose skips jump over more than twelve compute nodes
        assert [f"/down{level}/conv0/Conv", f"/down{level}/conv1/Conv"] in found
        assert [f"/up{level}/conv0/Conv", f"/up{level}/conv1/Conv"] in found
    joined = next(unit for unit in units if "/up0/up/ConvTranspose" in unit.nodes)
    assert len(joined.inputs) == 2 and ops(graph, joined) == ["ConvTranspose", "Concat"]


def dense_block(layers: int) -> Graph:
    net = Net()
    features = [net.op("MaxPool", net.conv(net.input(), 8, 3, name="stem", act="Relu"), strides=[2, 2])]
    for index in range(layers):
        x = net.op("Concat", *features, axis=1) if index else features[0]
        x = net.conv(net.op("Relu", x), 32, 1, name=f"/layer{index}/conv1/Conv", act="Relu")
        features.append(net.conv(x, 8, 3, name=f"/layer{index}/conv2/Conv"))
    x = net.conv(net.op("Relu", net.op("Concat", *features, axis=1)), 8, 1, name="transition", act="Relu")
    return classifier(net, x)


def test_each_composite_layer_of_a_dense_block_is_a_unit() -> None:
    layers = [[f"/layer{index}/conv{conv}/Conv" for conv in (1, 2)] for index in range(16)]
    assert groups(dense_block(16)) == [["stem"], *layers, ["transition"], ["fc"]]
    assert [unit.name for unit in checked(dense_block(16))][1:4] == ["layer0", "layer1", "layer2"]


def test_a_small_dense_block_is_one_unit() -> None:
    assert [len(names) for names in groups(dense_block(6))] == [1, 12, 1, 1]


def test_two_headed_detector() -> None:
    net = Net()
    x = net.conv(net.input(), 8, 3, stride=2, name="stem", act="Relu")
    for _ in range(2):
        x = residual(net, x, [(8, 3, 1), (8, 3, 1)], 1)
    outputs = []
    for head in ("boxes", "classes"):
        y = net.conv(net.conv(x, name=f"/{head}/a/Conv", act="Relu"), name=f"/{head}/b/Conv", act="Relu")
        y = residual(net, y, [(8, 3, 1), (8, 3, 1)], 1)
        outputs.append(net.op("Sigmoid", net.conv(y, name=f"/{head}/out/Conv")))
    graph = net.finish(*outputs)
    units = checked(graph)
    assert [len(compute_names(graph, unit)) for unit in units] == [1, 2, 2, 2, 2, 1, 2, 2, 1]
    assert all(len(unit.outputs) == 1 and not unit.note for unit in units)


def test_feature_pyramid_joins_each_lateral_with_its_sum() -> None:
    net = Net()
    x, levels = net.conv(net.input(), 8, 3, name="stem", act="Relu"), []
    for _ in range(3):
        for _ in range(4):
            x = residual(net, x, [(8, 3, 1), (8, 3, 1)], 1)
        levels.append(x)
    laterals = [net.conv(level, name=f"lateral{index}") for index, level in enumerate(levels)]
    outputs = [merged := laterals[2]]
    for index in (1, 0):
        merged = net.op("Add", laterals[index], net.op("Resize", merged))
        outputs.append(merged)
    graph = net.finish(*(net.conv(y, kernel=3, name=f"out{index}") for index, y in enumerate(outputs)))
    units = checked(graph)
    assert [sorted(ops(graph, unit)) for unit in units if "lateral1" in unit.nodes] == [["Add", "Conv", "Resize"]]
    assert sum(ops(graph, unit).count("Add") == 1 and len(compute_names(graph, unit)) == 2 for unit in units) == 12


def encoder_layer(net: Net, x: Variable, number: int, mask: Variable | None = None) -> Variable:
    """Pre-norm attention with residual, then pre-norm MLP with residual."""
    scope = f"/layer{number}"
    y = net.op("LayerNormalization", x)
    q, k, v = (net.op("Reshape", net.linear(y, op="MatMul", name=f"{scope}/attention/{n}/MatMul")) for n in "qkv")
    scores = net.op("MatMul", q, net.op("Transpose", k), name=f"{scope}/attention/scores/MatMul")
    if mask is not None:
        scores = net.op("Add", scores, mask)
    mixed = net.op("MatMul", net.op("Softmax", scores), v, name=f"{scope}/attention/mix/MatMul")
    x = net.op("Add", x, net.linear(mixed, op="MatMul", name=f"{scope}/attention/out/MatMul"))
    y = net.linear(net.op("LayerNormalization", x), 32, op="MatMul", name=f"{scope}/mlp/up/MatMul")
    y = net.op("Mul", y, net.op("Erf", y))
    return net.op("Add", x, net.linear(y, op="MatMul", name=f"{scope}/mlp/down/MatMul"))


@pytest.mark.parametrize("masked", [False, True])
def test_transformer_layers_are_an_attention_and_an_mlp_block(masked: bool) -> None:
    net = Net()
    mask = net.op("Mul", net.op("Cast", net.input("mask", 8))) if masked else None
    x = net.op("Add", net.op("Gather", net.input("ids", 8)), net.op("Gather", net.input("types", 8)))
    x = net.op("LayerNormalization", x)
    for number in range(4):
        x = encoder_layer(net, x, number, mask)
    graph = net.finish(net.linear(x, name="pooler"))
    units = [unit for unit in checked(graph) if compute_names(graph, unit)]
    blocks = [f"layer{number}/{part}" for number in range(4) for part in ("attention", "mlp")]
    assert [unit.name for unit in units] == [*blocks, "pooler"]
    assert [len(compute_names(graph, unit)) for unit in units] == [6, 2] * 4 + [1]


def test_cross_attention_is_one_block_although_all_layers_read_the_encoder() -> None:
    net = Net()
    memory = net.linear(net.input("memory", 8), op="MatMul", name="encoder")
    x = net.linear(net.input("target", 8), op="MatMul", name="decoder")
    for number in range(4):
        x = encoder_layer(net, x, number)
        q, k, v = (
            net.linear(side, op="MatMul", name=f"/cross{number}/{n}/MatMul")
            for n, side in zip("qkv", (x, memory, memory))
        )
        scores = net.op("Softmax", net.op("MatMul", q, k, name=f"/cross{number}/scores/MatMul"))
        mixed = net.op("MatMul", scores, v, name=f"/cross{number}/mix/MatMul")
        x = net.op("Add", x, net.linear(mixed, op="MatMul", name=f"/cross{number}/out/MatMul"))
    units = {unit.name: unit for unit in checked(net.finish(x))}
    assert {"cross1", "cross2", "cross3", "layer1/attention", "layer3/mlp"} <= units.keys()
    assert "encoder:" in units["cross2"].inputs and len(units["cross2"].inputs) == 2


def test_a_global_skip_of_the_input_does_not_hide_the_blocks() -> None:
    net = Net()
    image = net.input()
    x = net.conv(image, 8, 3, name="head")
    for _ in range(8):
        x = residual(net, x, [(8, 3, 1), (8, 3, 1)], 1)
    graph = net.finish(net.op("Add", net.conv(x, 3, 3, name="tail"), net.op("Mul", image)))
    assert [len(names) for names in groups(graph)] == [1, *[2] * 8, 1]


def test_features_given_out_between_blocks_cost_no_unit_and_inside_a_block_are_noted() -> None:
    net = Net()
    x = net.conv(net.input(), 8, 3, name="stem", act="Relu")
    x = between = residual(net, x, [(8, 3, 1), (8, 3, 1)], 1)
    inside = net.conv(x, name="inner", act="Relu")
    x = net.op("Add", net.conv(inside), x)
    graph = net.finish(net.linear(x, name="fc"), between, inside)
    units = checked(graph)
    assert len(units) == 4
    assert [unit.note for unit in units] == ["", "", f"the graph gives out {inside.name} from its inside", ""]
    assert units[2].outputs == (inside.name, x.name)


def test_a_light_node_behind_an_output_of_the_graph_stays_alone() -> None:
    net = Net()
    logits = net.linear(net.input(), name="fc")
    units = checked(net.finish(logits, net.op("Softmax", logits)))
    assert [unit.note for unit in units] == ["", "no compute node"]


def test_control_flow_is_opaque_and_what_it_captures_is_an_input() -> None:
    net = Net()
    captured = net.conv(net.input(), name="a", act="Relu")
    inner = Variable("inner", np.float32, None)
    branch = Graph([Node("Relu", "captures", {}, [captured], [inner])], outputs=[inner])
    condition = net.op("ReduceMax", net.conv(captured, name="b"))
    chosen = net.op("If", condition, then_branch=branch, else_branch=branch)
    graph = net.finish(net.conv(net.op("Relu", chosen), name="c"))
    units = PartitionUnits().units(graph)
    assert [unit.nodes for unit in units][2:] == [("If_4",), ("Relu_5", "c")]
    assert units[2].inputs == (condition.name, captured.name) and units[2].note == "If is opaque"
    assert captured.name in units[0].outputs


def test_shared_weights_are_noted_in_the_later_unit() -> None:
    net = Net()
    weight = net.weight(3, 3, 1, 1)
    x = net.op("Conv", net.input(), weight, name="a")
    x = net.op("Conv", net.conv(x, 3, stride=2, name="b"), weight, name="c")
    assert [unit.note for unit in checked(net.finish(x))][-1] == f"shares the weight {weight.name} with a"


def test_shape_arithmetic_is_in_no_unit() -> None:
    net = Net()
    x = net.conv(net.input(), name="a")
    size = net.op("Gather", net.op("Shape", x))
    graph = net.finish(net.op("Reshape", x, size, name="reshape"))
    assert [unit.nodes for unit in checked(graph)] == [("a", "reshape")]


def test_a_unit_stands_behind_those_whose_shapes_it_needs() -> None:
    """The embeddings belong to the first layer, but for the mask of all layers, which has their size."""
    net = Net()
    ids, padding = net.input("ids", 8), net.input("padding", 8)
    x = net.op("LayerNormalization", net.op("Gather", ids, name="embed"), name="norm")
    mask = net.op("Expand", net.op("Not", padding, name="not"), net.op("Gather", net.op("Shape", x)), name="expand")
    for number in range(4):
        x = encoder_layer(net, x, number, mask)
    units = checked(net.finish(net.linear(x, name="pooler")))
    assert [unit.nodes for unit in units[:2]] == [("embed", "norm"), ("not", "expand")]
    assert units[1].inputs == ("padding", "norm:")
    blocks = [f"layer{number}/{part}" for number in range(4) for part in ("attention", "mlp")]
    assert [unit.name for unit in units[2:]] == [*blocks, "pooler"]


def test_ties_of_names_are_numbered_and_foreign_scopes_are_not_used() -> None:
    net = Net()
    x = net.conv(net.input(), name="/m/a/Conv", act="Relu")
    x = net.conv(net.conv(x, name="/m/b/Conv", act="Relu"), name="/m/c/Conv", act="Relu")
    x = net.conv(x, stride=2, name="/m/a/Conv_1", act="Relu")
    units = checked(net.finish(net.conv(x, name="Conv_9")))
    assert [unit.name for unit in units] == ["m/a", "unit_01", "m/a_2", "Conv_9"]


@pytest.mark.parametrize("kind", ["chain", "ladder", "light"])
def test_large_graphs_take_seconds(kind: str) -> None:
    net = Net()
    x = net.conv(net.input(), 8, 3, name="stem")
    if kind == "chain":
        for _ in range(1250):
            x = residual(net, x, [(8, 3, 1), (8, 3, 1)], 1)
    else:
        op: Callable[[Variable], Variable] = (
            (lambda y: net.conv(y)) if kind == "ladder" else lambda y: net.op("Relu", y)
        )
        skips = [x := op(x) for _ in range(2500)]
        for skip in reversed(skips):
            x = net.op("Add", x, skip)
    graph = net.finish(net.linear(x, name="fc"))
    started = time.process_time()
    PartitionUnits().units(graph)
    assert time.process_time() - started < 10  # 0.3 s on a slow core; sweeping all nodes for each takes minutes

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import networkx as nx
import numpy as np
import onnx
import pytest
from classic_networks import fused, resnet18
from graph_strategies import graphs
from hypothesis import assume, given
from hypothesis import strategies as st
from networks import PLACEMENT, RESIDUAL, network, run, samples

import qcompile
from qcompile import Config, InputError, QModel, open_model
from qcompile.capacity.boundaries import chains
from qcompile.ir import Graph
from qcompile.ir.prepare import prepare
from qcompile.passes.fuse_regions import FuseRegions
from qcompile.passes.normalize_graph import NormalizeGraph
from qcompile.passes.partition_units import PartitionUnits
from qcompile.passes.score_capacity import ScoreCapacity
from qcompile.pipeline import fuse
from qcompile.quant.plan import Plan
from qcompile.targets.schema import Target

EMBEDDED = Path(__file__).parents[2] / "models" / "resnet20_cifar10.onnx"

LOSSES = {"layer1.1": 0.1, "layer2.0": 0.12, "layer2.1": 0.5, "layer3.0": 0.1, "layer3.1": 0.3}


def joined(plan: Plan) -> list[tuple[str, ...]]:
    return [region for region in plan.regions if len(region) > 1]


def with_losses(losses: dict[str, float], **settings: object) -> Plan:
    model = fused(resnet18(), fuse_top_k=0)
    model.plan.losses = losses
    model.config = Config(w=4, a=4, method="mrecg", **settings)  # type: ignore[arg-type]
    fuse(model.config).run(model)
    return model.plan


def test_first_and_last_layer_are_left_out() -> None:
    """The largest change is that in front of the classifier, and all others are fused before those of the ends."""
    plan = fused(resnet18(), fuse_top_k=99, max_fused=99).plan
    assert plan.regions == [("conv1",), tuple(unit.name for unit in plan.units[1:-1]), ("fc",)]


def test_none_are_fused_where_none_are_wanted() -> None:
    for settings in ({"fuse_top_k": 0}, {"max_fused": 1}):
        plan = fused(resnet18(), **settings).plan
        assert plan.regions == [(unit.name,) for unit in plan.units]


def test_measured_losses_decide() -> None:
    by_change = with_losses(LOSSES, fuse_by="data-dependent", fuse_top_k=2, max_fused=2)
    # layer2.1|layer3.0 changes by 0.4; its neighbours, by 0.38 and 0.2, would make three units
    assert joined(by_change) == [("layer1.1", "layer2.0"), ("layer2.1", "layer3.0")]
    by_rise = with_losses(LOSSES, fuse_by="loss", fuse_top_k=2)
    assert joined(by_rise) == [("layer2.0", "layer2.1"), ("layer3.0", "layer3.1")]


def test_units_without_weights_or_without_a_loss_are_left_out() -> None:
    model = fused(resnet18(), fuse_top_k=99, max_fused=99)
    model.plan.capacities["layer2.0"] = 0
    fuse(model.config).run(model)
    assert ("layer2.0",) in model.plan.regions
    assert max(len(region) for region in model.plan.regions) == 5
    losses = with_losses({"layer1.0": 0.1, "layer1.1": 0.2}, fuse_by="loss", fuse_top_k=99)
    assert joined(losses) == [("layer1.0", "layer1.1")]


def test_without_losses_nothing_is_fused_by_them() -> None:
    assert joined(with_losses({}, fuse_by="loss", fuse_top_k=99)) == []


def test_a_scheme_may_join_the_ends() -> None:
    plan = fused(resnet18(), fuse=(("conv1", "1"), ("layer4.1", "fc"))).plan
    assert joined(plan) == [("conv1", "layer1.0"), ("layer4.1", "fc")]


def test_what_is_fused_is_noted_and_twice_is_once() -> None:
    model = fused(resnet18(), fuse_top_k=2)
    before = list(model.plan.regions)
    assert [entry["units"] for entry in model.journal.by("fuse-regions")] == [list(item) for item in joined(model.plan)]
    assert fuse(model.config).run(model) == 2
    assert model.plan.regions == before


def by_samples(count: int, source: onnx.ModelProto | Path = EMBEDDED, **settings: object) -> QModel:
    """Let `auto` choose the regions of the embedded ResNet-20 for so many samples."""
    config = Config(w=4, a=4, **settings)  # type: ignore[arg-type]
    data = {"image": np.zeros((count, 3, 32, 32), np.float32)}
    model = open_model(source, config, data)
    run(model, (NormalizeGraph(), PartitionUnits(), *PLACEMENT, ScoreCapacity(), FuseRegions()))
    return model


def test_auto_fuses_what_the_samples_determine() -> None:
    model = by_samples(1000)
    assert joined(model.plan) and max(map(len, model.plan.regions)) == 3
    units, nodes = {unit.name: unit for unit in model.plan.units}, {node.name: node for node in model.graph.nodes}
    for region in joined(model.plan):
        weights = [
            nodes[name].inputs[1].shape
            for unit in region
            for name in units[unit].nodes
            if model.plan.nodes[name].weight_bits
        ]
        ends = [model.graph.tensors()[name].shape for name in units[region[-1]].outputs]
        assert model.data is not None
        assert 10 * sum(map(math.prod, weights)) <= model.data.count * sum(math.prod(shape[1:]) for shape in ends)
    assert not any(model.plan.units[-1].name in region for region in joined(model.plan)), "more weights than values"


def test_auto_fuses_the_less_the_fewer_samples_there_are() -> None:
    counts = [sum(len(region) - 1 for region in by_samples(count).plan.regions) for count in (5, 50, 1000)]
    assert counts[0] < counts[1] < counts[2]
    assert joined(by_samples(1000, max_fused=2).plan) and max(map(len, by_samples(1000, max_fused=2).plan.regions)) == 2


def test_auto_takes_open_sizes_from_the_samples() -> None:
    source = onnx.load(EMBEDDED)
    dims = source.graph.input[0].type.tensor_type.shape.dim
    dims[2].dim_param, dims[3].dim_param = "height", "width"
    del source.graph.value_info[:]
    model = by_samples(1000, source)
    assert model.graph.tensors()[model.plan.units[0].outputs[0]].shape[2:] != [32, 32], "the sizes are known"
    assert model.plan.regions == by_samples(1000).plan.regions


# --- any graph


def scored(source: onnx.ModelProto, config: Config) -> QModel:
    """Score a drawn graph; one with nothing to quantize is not counted."""
    target = Target.load("ort-cpu")
    model = QModel(prepare(source, target.opset), source, target, config)
    passes = (NormalizeGraph(), PartitionUnits(max_stack=1, max_compute=2), *PLACEMENT, ScoreCapacity())
    try:
        run(model, passes)
    except InputError:
        assume(False)
    return model


def flow(graph: Graph) -> nx.DiGraph[str]:
    """Which node reads from which, by name."""
    maker = {tensor.name: node.name for node in graph.nodes for tensor in node.outputs}
    found: nx.DiGraph[str] = nx.DiGraph()
    found.add_nodes_from(node.name for node in graph.nodes)
    found.add_edges_from(
        (maker[tensor.name], node.name) for node in graph.nodes for tensor in node.inputs if tensor.name in maker
    )
    return found


def check_regions(model: QModel, regions: list[tuple[str, ...]]) -> None:
    """Assert that regions are a partition of the units into convex pieces, which can be run in this order."""
    members = {unit.name: unit.nodes for unit in model.plan.units}
    assert sorted(name for region in regions for name in region) == sorted(members)
    connections = flow(model.graph)
    place = {node: number for number, region in enumerate(regions) for name in region for node in members[name]}
    for number, region in enumerate(regions):
        inside = {node for name in region for node in members[name]}
        behind = set().union(*(nx.descendants(connections, node) for node in inside))
        before = set().union(*(nx.ancestors(connections, node) for node in inside))
        assert behind & before <= inside, region
        assert all(place.get(node, number) >= number for node in behind)
        for first, second in pairwise(region):
            assert any(connections.has_edge(a, b) for a in members[first] for b in members[second])


@given(
    graphs(), st.sampled_from([None, 0, 1, 2, 99]), st.sampled_from(["data-free", "data-dependent", "loss"]),
    st.integers(1, 4), st.randoms(use_true_random=False),
)  # fmt: skip
def test_regions_are_a_convex_ordered_partition(
    source: onnx.ModelProto, count: int | None, by: str, largest: int, random: st.DataObject
) -> None:
    config = Config(w=4, a=4, method="mrecg", fuse_top_k=count, fuse_by=by, max_fused=largest)  # type: ignore[arg-type]
    model = scored(source, config)
    model.plan.losses = {unit.name: random.random() for unit in model.plan.units}  # type: ignore[attr-defined]
    changed = fuse(model.config).run(model)
    check_regions(model, model.plan.regions)
    assert max(map(len, model.plan.regions)) <= largest
    assert len(model.plan.regions) == len(model.plan.units) - changed
    assert count is None or changed <= count


@given(graphs(), st.data())
def test_any_boundaries_may_be_fused_together(source: onnx.ModelProto, data: st.DataObject) -> None:
    model = scored(source, Config(w=4, a=4))
    pairs = [(item.first, item.second) for item in model.plan.boundaries]
    subset = data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    check_regions(model, chains([unit.name for unit in model.plan.units], subset))


# --- from file to file


@pytest.mark.parametrize("method", ["mrecg", "mrecg-brecq"])
def test_fused_units_are_trained_together(method: str) -> None:
    source = network(RESIDUAL)
    config = Config(w=3, a=8, method=method, fuse=(("stem", "1"),), steps=2, threads=1)  # type: ignore[arg-type]
    result = qcompile.compile(source, config, samples(source, 40))
    stem, block, head = (unit.name for unit in result.plan.units)
    assert {entry["unit"] for entry in result.qmodel.journal.by("reconstruct")} == {f"{stem} + {block}", head}
    first, second = result.report["regions"]
    assert (first["units"], second["units"]) == ([stem, block], [head])
    assert first["before"] > 0 and first["after"] > 0
    assert [(row["first"], row["fused"]) for row in result.report["boundaries"]] == [(stem, True), (block, False)]

"""InsertQDQ: the pass around lowering and emission."""

from __future__ import annotations

import pytest
from networks import CALIBRATE, CHAIN, EMIT, RESIDUAL, compiled, initializers

from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.program.lower import lower


def test_it_writes_the_file_and_counts_the_steps() -> None:
    model = compiled(RESIDUAL, CALIBRATE, w=4, a=4)
    assert model.emitted is None
    assert InsertQDQ().run(model) == len(lower(model.graph, model.plan).steps) == 8
    assert model.emitted is not None
    assert [item.name for item in model.emitted.graph.output] == ["y"]


FORMS = {"auto": "W2_p0", "planes": "W2_p0", "none": "W2_int8", "int4": "W2_int4"}


@pytest.mark.parametrize("pack, form", FORMS.items())
def test_packing(pack: str, form: str) -> None:
    model = compiled(CHAIN, EMIT, w=4, a=4, pack=pack)
    assert model.emitted is not None
    assert form in {tensor.name for tensor in model.emitted.graph.initializer}


@pytest.mark.parametrize(("pack", "told"), [("auto", 0), ("none", 0), ("planes", 1), ("int4", 1)])
def test_packing_that_has_no_effect_is_told(pack: str, told: int) -> None:
    model = compiled(CHAIN, EMIT, pack=pack)
    texts = [entry["text"] for entry in model.journal.by("insert-qdq") if entry["what"] == "warning"]
    assert texts == [f"--pack {pack} has no effect: all weights have 8 bits"] * told


def test_running_it_again_writes_the_plan_as_it_is_then() -> None:
    """A pass of the user's may change the plan behind the first run."""
    model = compiled(CHAIN, EMIT)
    assert model.emitted is not None
    before = initializers(model.emitted)["B1_int32"]
    model.plan.biases["conv1"] = model.plan.biases["conv1"] * 2
    InsertQDQ().run(model)
    after = initializers(model.emitted)["B1_int32"]
    assert abs(after - 2 * before).max() <= 1


def test_the_float_graph_is_not_changed() -> None:
    model = compiled(CHAIN, CALIBRATE, w=4, a=4)
    before = [(node.name, node.op, [t.name for t in node.inputs]) for node in model.graph.nodes]
    InsertQDQ().run(model)
    assert [(node.name, node.op, [t.name for t in node.inputs]) for node in model.graph.nodes] == before

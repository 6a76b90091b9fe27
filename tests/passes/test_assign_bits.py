"""Bits of layers: what is asked for, of which layers, and passes that decide otherwise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from networks import (
    ATTENTION,
    CALIBRATE,
    CHAIN,
    EMIT,
    PLACE,
    RESIDUAL,
    compiled,
)
from placed import W4A4, bits, forms, placed

from qcompile import InputError, QModel
from qcompile.passes.assign_bits import AssignBits
from qcompile.passes.calibrate import Calibrate
from qcompile.passes.place_quantizers import PlaceQuantizers
from qcompile.quant.grid import unsigned
from qcompile.quant.params import ActivationSpec
from qcompile.quant.plan import Edge

# bits


def test_chain_has_asked_bits_inside_and_8_at_both_ends() -> None:
    plan = placed(CHAIN, **W4A4)
    assert forms(plan) == {
        "conv1": "compute", "relu1": "absorbed", "conv2": "compute", "relu2": "absorbed", "conv3": "compute",
    }  # fmt: skip
    assert {name: (node.weight_bits, node.input_bits) for name, node in plan.nodes.items() if node.weight_bits} == {
        "conv1": (8, 8), "conv2": (4, 4), "conv3": (8, 8),
    }  # fmt: skip
    assert plan.specs == {
        Edge("image"): ActivationSpec(unsigned(8)),
        Edge("b"): ActivationSpec(unsigned(4), 0.0, np.inf),
        Edge("d"): ActivationSpec(unsigned(8), 0.0, np.inf),
        Edge("y"): ActivationSpec(unsigned(8)),
    }
    assert plan.nodes["conv1"].reason == "first or last" == plan.nodes["conv3"].reason


def test_first_and_last_bits() -> None:
    plan = placed(CHAIN, **W4A4, first_last_bits=5)
    assert (plan.nodes["conv1"].weight_bits, plan.nodes["conv3"].input_bits) == (5, 5)
    assert bits(plan) == {"image": 5, "b": 4, "d": 5, "y": 8}


def test_all_that_see_no_compute_node_before_or_behind_are_first_or_last() -> None:
    """Two stems and two heads: every end counts, whatever the order of the nodes."""
    plan = placed(
        """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,3,1,1] B, float[4,4,1,1] C, float[4,4,1,1] D)
        => (float[N,4,P,Q] y, float[N,4,P,Q] z) {
          [stem1] a = Conv(x, A)  [stem2] b = Conv(x, B)  [add] c = Add(a, b)  [inner] d = Conv(c, C)
          [head1] y = Conv(d, D)  [head2] z = Conv(c, D)
        }""",
        **W4A4,
    )
    edges = {name for name, node in plan.nodes.items() if node.reason == "first or last"}
    assert edges == {"stem1", "stem2", "head1", "head2"}
    assert bits(plan)["c"] == 8 and bits(plan)["c@4"] == 4  # head2 asks for 8, inner for 4


def test_bits_of_named_nodes_the_last_match_wins() -> None:
    plan = placed(CHAIN, bits=(("conv", 3, 5), ("conv2$", 2, 6)))
    assert {name: (node.weight_bits, node.input_bits) for name, node in plan.nodes.items() if node.weight_bits} == {
        "conv1": (3, 5), "conv2": (2, 6), "conv3": (3, 5),
    }  # fmt: skip
    assert plan.nodes["conv2"].reason == "--bits conv2$"
    assert bits(plan) == {"image": 5, "b": 6, "d": 5, "y": 8}


def test_products_of_activations_have_8_bits_unless_they_are_named() -> None:
    plan = placed(ATTENTION, **W4A4, bits=(("scores", 3, 5),))
    assert (plan.nodes["scores"].weight_bits, plan.nodes["scores"].input_bits) == (0, 5)
    assert (plan.nodes["mix"].weight_bits, plan.nodes["mix"].input_bits) == (0, 8)
    assert (bits(plan)["q"], bits(plan)["v"]) == (5, 8)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"bits": (("conv9", 4, 4),)}, r"--bits 'conv9' matches no node; did you mean 'conv\d'\?"),
        ({"bits": (("relu1", 4, 4),)}, "--bits 'relu1' matches no node"),  # it has no bits of its own
        ({"keep_float": ("conv1", "nothing")}, "--keep-float 'nothing' matches no node"),
        (
            {"keep_float": ("conv2",), "bits": (("conv2$", 4, 4),)},
            r"--bits 'conv2\$' has no effect: 'conv2' stays float \(--keep-float conv2\)",
        ),
    ],
)
def test_pattern_that_matches_nothing_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        placed(CHAIN, **settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"w": 4, "a": 4}, []),
        ({"w": 4, "keep_float": ("conv2",)}, ["--w 4 has no effect"]),
        ({"w": 4, "a": 2, "keep_float": ("conv2",)}, ["--w 4 has no effect", "--a 2 has no effect"]),
        ({"w": 4, "a": 4, "bits": (("conv2", 3, 3),)}, ["--w 4 has no effect", "--a 4 has no effect"]),
        ({"keep_float": ("conv2",)}, []),
    ],
)
def test_bits_that_no_layer_has_are_told(settings: dict[str, Any], told: list[str]) -> None:
    journal = compiled(CHAIN, PLACE, method="rtn", **settings).journal
    texts = [entry["text"] for entry in journal.by("assign-bits") if entry["what"] == "warning"]
    assert [text.partition(":")[0] for text in texts] == told


# passes that decide otherwise


@dataclass(frozen=True)
class Narrowed:
    """A user's pass: some layers have other bits."""

    bits: dict[str, tuple[int, int]]

    name: ClassVar[str] = "narrowed"
    requires: ClassVar[tuple[str, ...]] = ("assign-bits",)

    def run(self, model: QModel) -> int:
        for name, (weight, data) in self.bits.items():
            model.plan.nodes[name] = replace(model.plan.nodes[name], weight_bits=weight, input_bits=data)
        return len(self.bits)


BITS = {"first": (3, 2), "second": (5, 6)}
ASKED = (("first", 3, 2), ("second", 5, 6))


def test_bits_that_a_pass_changes_behind_assign_bits_are_those_of_the_file() -> None:
    passes = [item for item in EMIT if item.name != "validate"]
    passes.insert(1 + [item.name for item in passes].index("assign-bits"), Narrowed(BITS))
    changed, asked = compiled(RESIDUAL, tuple(passes), **W4A4), compiled(RESIDUAL, EMIT, **W4A4, bits=ASKED)
    assert bits(changed.plan)["trunk@2"] == 2 and bits(changed.plan)["c"] == 6
    assert changed.plan.weights["first"].bits == 3
    assert changed.plan.precision() == asked.plan.precision() == "mixed (1 w3a2, 1 w5a6)"
    assert changed.emitted is not None and asked.emitted is not None
    assert changed.emitted.graph == asked.emitted.graph


def test_bits_may_be_assigned_behind_calibration_where_placement_and_calibration_run_again() -> None:
    again = (Narrowed(BITS), PlaceQuantizers(), Calibrate())
    changed = compiled(RESIDUAL, (*CALIBRATE, *again), **W4A4)
    asked = compiled(RESIDUAL, CALIBRATE, **W4A4, bits=ASKED)
    assert changed.plan.specs == asked.plan.specs and changed.plan.quantizers == asked.plan.quantizers
    for name, weight in asked.plan.weights.items():
        np.testing.assert_array_equal(changed.plan.weights[name].integers(), weight.integers())


def test_assigning_twice_is_assigning_once() -> None:
    model = compiled(RESIDUAL, PLACE, **W4A4)
    before = dict(model.plan.nodes)
    assert AssignBits(4, 4).run(model) == 0 and model.plan.nodes == before

"""Operators without an integer kernel, written as products and sums that have one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
from onnx import helper

from qcompile.ir import Node
from qcompile.program.forms import HARD_SIGMOID, SHIFTED_SIGMOID, slope_codes, slope_quantizer
from qcompile.program.lower import Step, Value
from qcompile.quant.params import Quantizer

if TYPE_CHECKING:
    from qcompile.emission.qdq import Emitter


def hard_sigmoid(emitter: Emitter, step: Step) -> None:
    """Write a product with the slope."""
    assert step.node is not None
    _gate(emitter, step.node, step.inputs[0], step.outputs[0].name, step.node.name)


def hard_swish(emitter: Emitter, step: Step) -> None:
    """Write x times its HardSigmoid."""
    node, source, target = step.node, step.inputs[0], step.outputs[0]
    assert node is not None
    gate = Value(emitter.constants.unique(f"{target.name}_gate"), HARD_SIGMOID)
    _gate(emitter, node, source, gate.name, emitter.name(f"{node.name}/HardSigmoid"))
    product = emitter.constants.unique(f"{target.name}_f")
    factors = [emitter.float_of(source), emitter.float_of(gate)]
    emitter.nodes.append(helper.make_node("Mul", factors, [product], node.name))
    emitter.codes_of(product, target)


def _gate(emitter: Emitter, node: Node, source: Value, codes: str, name: str) -> None:
    """Write codes of clip(slope*x + 1/2, 0, 1): a product with the slope whose zero point is the half."""
    assert source.quantizer is not None
    factor = emitter.constants.unique(f"{codes}_slope")
    emitter.reading(emitter.constants.scalar(1, np.uint8), slope_quantizer(node, source.quantizer), factor)
    _product(emitter, [emitter.float_of(source), factor], codes, SHIFTED_SIGMOID, name)


def prelu(emitter: Emitter, step: Step) -> None:
    """Write max(x, 0) + slopes * min(x, 0), the product on the grid of the output.

    One of the two is always 0, so that every value is rounded once.
    """
    node, source, target = step.node, step.inputs[0], step.outputs[0]
    assert node is not None and source.quantizer is not None and target.quantizer is not None
    parts = {}
    for side, low, high in (
        ("above", source.quantizer.zero_point, source.quantizer.levels),
        ("below", 0, source.quantizer.zero_point),
    ):
        codes = emitter.constants.unique(f"{target.name}_{side}")
        emitter.nodes.append(emitter.clip(source.name, low, high, codes, emitter.name(f"{node.name}/{side}")))
        parts[side] = emitter.float_of(Value(codes, source.quantizer))
    slopes, quantizer = slope_codes(node)
    name = emitter.constants.add(slopes, f"{node.inputs[1].name}_codes")
    factor = emitter.reading(name, quantizer, emitter.constants.unique(f"{target.name}_slopes"))
    grid = replace(target.quantizer, bits=8)
    scaled = Value(emitter.constants.unique(f"{target.name}_scaled"), grid)
    _product(emitter, [parts["below"], factor], scaled.name, grid, emitter.name(f"{node.name}/Mul"))
    total = emitter.constants.unique(f"{target.name}_f")
    emitter.nodes.append(helper.make_node("Add", [parts["above"], emitter.float_of(scaled)], [total], node.name))
    emitter.codes_of(total, target)


def _product(emitter: Emitter, factors: list[str], codes: str, quantizer: Quantizer, name: str) -> None:
    product = emitter.constants.unique(f"{codes}_f")
    emitter.nodes.append(helper.make_node("Mul", factors, [product], name))
    parameters = emitter.parameters(quantizer, codes)
    emitter.nodes.append(
        helper.make_node("QuantizeLinear", [product, *parameters], [codes], emitter.name(f"{codes}/Q"))
    )


COMPOSITES: Final[dict[str, Callable[[Emitter, Step], None]]] = {
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "PRelu": prelu,
}

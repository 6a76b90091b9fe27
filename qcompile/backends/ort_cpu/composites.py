"""Operators without an integer kernel, written as products and sums that have one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from onnx import helper

from qcompile.backends.ort_cpu.slopes import SHIFTED_SIGMOID, slope_codes, slope_quantizer
from qcompile.emission.writer import Writer
from qcompile.ir import Node
from qcompile.program.lower import Step, Value
from qcompile.quant.params import Quantizer
from qcompile.targets.ort_cpu.forms import BYTES, HARD_SIGMOID


def hard_sigmoid(writer: Writer, step: Step) -> None:
    """Write a product with the slope."""
    assert step.node is not None
    _gate(writer, step.node, step.inputs[0], step.outputs[0].name, step.node.name)


def hard_swish(writer: Writer, step: Step) -> None:
    """Write x times its HardSigmoid."""
    node, source, target = step.node, step.inputs[0], step.outputs[0]
    assert node is not None
    gate = Value(writer.constants.unique(f"{target.name}_gate"), HARD_SIGMOID)
    _gate(writer, node, source, gate.name, writer.name(f"{node.name}/HardSigmoid"))
    product = writer.constants.unique(f"{target.name}_f")
    factors = [writer.float_of(source), writer.float_of(gate)]
    writer.nodes.append(helper.make_node("Mul", factors, [product], node.name))
    writer.codes_of(product, target)


def _gate(writer: Writer, node: Node, source: Value, codes: str, name: str) -> None:
    """Write codes of clip(slope*x + 1/2, 0, 1): a product with the slope whose zero point is the half."""
    assert source.quantizer is not None
    factor = writer.constants.unique(f"{codes}_slope")
    writer.reading(writer.constants.scalar(1, BYTES.dtype), slope_quantizer(node, source.quantizer), factor)
    _product(writer, [writer.float_of(source), factor], codes, SHIFTED_SIGMOID, name)


def prelu(writer: Writer, step: Step) -> None:
    """Write max(x, 0) + slopes * min(x, 0), the product on the grid of the output.

    One of the two is always 0, so that every value is rounded once.
    """
    node, source, target = step.node, step.inputs[0], step.outputs[0]
    assert node is not None and source.quantizer is not None and target.quantizer is not None
    parts = {}
    for side, low, high in (
        ("above", source.quantizer.zero_point, source.quantizer.grid.high),
        ("below", source.quantizer.grid.low, source.quantizer.zero_point),
    ):
        codes = writer.constants.unique(f"{target.name}_{side}")
        part = replace(source.quantizer.grid, low=low, high=high)
        writer.nodes.append(writer.clip(source.name, part, codes, writer.name(f"{node.name}/{side}")))
        parts[side] = writer.float_of(Value(codes, source.quantizer))
    slopes, quantizer = slope_codes(node)
    name = writer.constants.add(slopes, f"{node.inputs[1].name}_codes")
    factor = writer.reading(name, quantizer, writer.constants.unique(f"{target.name}_slopes"))
    grid = replace(target.quantizer, grid=BYTES)
    scaled = Value(writer.constants.unique(f"{target.name}_scaled"), grid)
    _product(writer, [parts["below"], factor], scaled.name, grid, writer.name(f"{node.name}/Mul"))
    total = writer.constants.unique(f"{target.name}_f")
    writer.nodes.append(helper.make_node("Add", [parts["above"], writer.float_of(scaled)], [total], node.name))
    writer.codes_of(total, target)


def _product(writer: Writer, factors: list[str], codes: str, quantizer: Quantizer, name: str) -> None:
    product = writer.constants.unique(f"{codes}_f")
    writer.nodes.append(helper.make_node("Mul", factors, [product], name))
    parameters = writer.parameters(quantizer, codes)
    writer.nodes.append(helper.make_node("QuantizeLinear", [product, *parameters], [codes], writer.name(f"{codes}/Q")))


COMPOSITES: Final[dict[str, Callable[[Writer, Step], None]]] = {
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "PRelu": prelu,
}

"""Decide how many bits weights and inputs of every layer have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from qcompile.errors import InputError, nearest
from qcompile.flags import FLOAT_BITS
from qcompile.ir import Node, constant_value, topological
from qcompile.ir.protos import WEIGHT_READERS
from qcompile.program.operands import weight_axis
from qcompile.program.readers import Readers
from qcompile.qmodel import QModel
from qcompile.quant.plan import ENDS, WIDE, Form


@dataclass(frozen=True)
class AssignBits:
    """Write weight and input bits of compute nodes into their plans.

    They are `w` and `a`, at the first and the last of them `first_last_bits`. `bits` holds (regular expression, weight
    bits, input bits) for nodes of that name; the last match wins. Products of two activations (attention) have 8 bits:
    fewer make neither the file smaller nor the kernel faster. With `a` 32 no input has a quantizer; `block_size` is
    that of matrices which fall into such blocks.
    A pass behind this one may change them: quantizers are placed by what the plan says then.
    """

    w: int = WIDE
    a: int = WIDE
    first_last_bits: int = WIDE
    bits: Sequence[tuple[str, int, int]] = ()
    block_size: int | None = None
    name: ClassVar[str] = "assign-bits"
    requires: ClassVar[tuple[str, ...]] = ("choose-forms",)

    def run(self, model: QModel) -> int:
        """Change `plan.nodes`; return the number of nodes that have other bits now."""
        plan = model.plan
        nodes = topological(model.graph)
        compute = [node for node in nodes if plan.form(node.name) is Form.COMPUTE]
        before = dict(plan.nodes)
        ends = _first_and_last(nodes, Readers(model.graph), {node.name for node in compute})
        for node in compute:
            edge = self.first_last_bits if node.name in ends else None
            weight_bits = (edge or self.w) if constant_value(node.inputs[1]) is not None else 0
            input_bits = self.a if self.a == FLOAT_BITS else edge or (self.a if weight_bits else WIDE)
            reason, block = ENDS if edge else "", self._block(model, node)
            plan.nodes[node.name] = replace(
                before[node.name], reason=reason, weight_bits=weight_bits, input_bits=input_bits, block=block
            )
        for pattern, weight_bits, input_bits in self.bits:
            matching = [node.name for node in compute if re.search(pattern, node.name)]
            if not matching:
                raise _no_bits(model, pattern, nodes, compute)
            for name in matching:
                old, reason = plan.nodes[name], f"--bits {pattern}"
                bits = weight_bits if old.weight_bits else 0
                plan.nodes[name] = replace(old, reason=reason, weight_bits=bits, input_bits=input_bits)
        self._tell_unused(model, compute)
        return sum(plan.nodes[name] != node for name, node in before.items())

    def _block(self, model: QModel, node: Node) -> int:
        """Return the block of the weight: as asked for, where it is a matrix of whole blocks."""
        weight = constant_value(node.inputs[1])
        if self.block_size is None or weight is None or weight.ndim != 2 or model.target.weight_spec(node).per_tensor:
            return 0
        return 0 if weight.shape[1 - weight_axis(node)] % self.block_size else self.block_size

    def _tell_unused(self, model: QModel, compute: Sequence[Node]) -> None:
        """Warn where the bits that were asked for are those of no layer."""
        placed = [model.plan.nodes[node.name] for node in compute]
        if not all(item.reason for item in placed):  # neither an end nor named by --bits
            return
        for flag, found in (("w", "weight_bits"), ("a", "input_bits")):
            bits = getattr(self, flag)
            if bits < WIDE and all(getattr(item, found) != bits for item in placed):
                text = f"--{flag} {bits} has no effect: every layer is the first, the last, float or named by --bits"
                model.journal.warn(self.name, text)


def _no_bits(model: QModel, pattern: str, nodes: Sequence[Node], compute: Sequence[Node]) -> InputError:
    """Return the error for --bits that name no layer on integers: the reason why a layer they name is float."""
    for node in nodes:
        if node.op in WEIGHT_READERS and re.search(pattern, node.name):
            reason = model.plan.nodes[node.name].reason
            what = f"--bits {pattern!r} has no effect: {node.name!r} stays float ({reason})"
            return InputError(what, remedy="leave it out")
    remedy = nearest(pattern, [node.name for node in compute])
    return InputError(f"--bits {pattern!r} matches no node", remedy=remedy)


def _first_and_last(nodes: Sequence[Node], readers: Readers, compute: set[str]) -> set[str]:
    """Return the compute nodes with no compute node before them, or none behind."""
    following = {node.name: [r.name for t in node.outputs for r in readers.of(t)] for node in nodes}
    before, behind = set[str](), set[str]()
    for node in nodes:
        if node.name in compute or node.name in before:
            before.update(following[node.name])
    for node in reversed(nodes):
        if any(name in compute or name in behind for name in following[node.name]):
            behind.add(node.name)
    return compute - (before & behind)

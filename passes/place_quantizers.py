"""Decide where quantizers stand, and what is asked of each; no numbers yet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from qcompile.ir import Node, Tensor, is_output, producer, topological
from qcompile.program.lower import absorbed_bounds, absorbed_end
from qcompile.program.operands import data_inputs, operands
from qcompile.program.readers import Readers, reads
from qcompile.program.sums import unrounded_operand
from qcompile.qmodel import QModel
from qcompile.quant.params import ActivationSpec
from qcompile.quant.plan import WIDE, Edge, Form

CENTRED, ALWAYS = 1.125, 2.0  # times as large a scale: 1 dB, and what a range on one side of 0 takes


@dataclass(frozen=True)
class PlaceQuantizers:
    """Give every tensor on integers a quantizer without numbers, by the forms and the bits that the plan has.

    1. Movers share the quantizer of their input; every other tensor on integers has its own.
    2. A tensor has the bits its compute readers ask for; one that others read too is wide (`residual_bits` at least)
       and gets a second, narrow quantizer in front of the compute nodes.
    """

    residual_bits: int = WIDE
    name: ClassVar[str] = "place-quantizers"
    requires: ClassVar[tuple[str, ...]] = ("assign-bits",)

    def run(self, model: QModel) -> int:
        """Fill `plan.groups` and `plan.specs`; numbers of before are gone. Return how many specs there are."""
        plan = model.plan
        plan.groups, plan.reads, plan.unrounded, plan.specs = {}, {}, [], {}
        plan.quantizers, plan.weights, plan.biases = {}, {}, {}
        placement = _Placement(model, self.residual_bits)
        placement.group_tensors()
        placement.specify()
        return len(plan.specs)


class _Placement:
    def __init__(self, model: QModel, residual_bits: int) -> None:
        self.model, self.graph, self.plan, self.residual_bits = model, model.graph, model.plan, residual_bits
        self.nodes, self.readers = topological(model.graph), Readers(model.graph)

    def group_tensors(self) -> None:
        """Map every tensor on integers to the tensor whose quantizer it shares; clips in between share their end's."""
        groups = self.plan.groups
        for node in self.nodes:
            form = self.plan.form(node.name)
            if not self.plan.nodes[node.name].reads_codes:
                continue
            if form in (Form.COMPUTE, Form.ARITHMETIC, Form.CODES):
                unrounded = self._unrounded(node)
                for tensor in operands(node) if form is Form.ARITHMETIC else data_inputs(node):
                    if tensor is not unrounded:
                        groups.setdefault(tensor.name, tensor.name)
            if form is Form.CODES:
                (source,) = data_inputs(node)
                groups.update({tensor.name: groups[source.name] for tensor in node.outputs})
            elif form in (Form.COMPUTE, Form.ARITHMETIC) and not self._float_output(node):
                end = absorbed_end(self.graph, self.plan, node.outputs[0])
                groups.setdefault(end.name, end.name)
                if self._stays_unrounded(node, end):
                    self.plan.unrounded.append(end.name)

    def _float_output(self, node: Node) -> bool:
        """Say whether a node on integers gives float32 at once: its kernel can, and no integer node reads codes."""
        made = node.outputs[0]
        readers = [reader for reader in self.readers.of(made) if self._unrounded(reader) is not made]
        on_integers = any(self.plan.form(reader.name) is not Form.FLOAT for reader in readers)
        return node.op in self.model.target.float_output and not on_integers

    def _stays_unrounded(self, node: Node, end: Tensor) -> bool:
        """Say whether a node on integers gives float32 because float nodes read it too, and the target has it so."""
        target = self.model.target
        forms = [self.plan.form(reader.name) for reader in self.readers.of(end)]
        read_as_float = Form.FLOAT in forms or is_output(self.graph, end)
        return target.unrounded_floats and node.op in target.float_output and read_as_float

    def _unrounded(self, node: Node) -> Tensor | None:
        """Return the operand of a sum on integers that is added before it is rounded, or None."""
        placed = self.plan.form(node.name) is Form.ARITHMETIC and self.model.target.unrounded_sums
        return unrounded_operand(self.graph, self.plan, node) if placed else None

    def specify(self) -> None:
        """Write one spec per group, and one per narrow quantizer in front of compute nodes."""
        tensors = self.graph.tensors()
        asked, shared = self._asked(tensors)
        for root, edges in asked.items():
            wide = max(edges, default=WIDE)
            if root in shared:
                wide = max(wide, self.residual_bits) if edges else WIDE
            spec = self._centred(self._spec(tensors[root], wide), [edge for group in edges.values() for edge in group])
            self.plan.specs[Edge(root)] = spec
            for bits in sorted(edges):
                key = Edge(root) if spec.serves(bits) else edges[bits][0]
                if key.reader:
                    grid = self.model.target.grid(bits, spec.lower)
                    self.plan.specs[key] = replace(spec, grid=grid, even_zero_point=False, fixed=None, centred=1.0)
                self.plan.reads.update(dict.fromkeys(edges[bits], key))

    def _asked(self, tensors: dict[str, Tensor]) -> tuple[dict[str, dict[int, list[Edge]]], set[str]]:
        """Return the edges to compute nodes by group and the bits they ask for, and the groups that others read too."""
        asked: dict[str, dict[int, list[Edge]]] = {}
        shared: set[str] = set()
        for name, root in self.plan.groups.items():
            tensor = tensors[name]
            edges = asked.setdefault(root, {})
            read_as_float = set() if self._is_float(tensor) else {root}
            for reader in self.readers.of(tensor):
                form = self.plan.form(reader.name)
                if form is Form.COMPUTE and reads(reader, tensor):
                    edges.setdefault(self.plan.nodes[reader.name].input_bits, []).append(Edge(name, reader.name))
                elif form is Form.FLOAT:
                    shared |= read_as_float
                elif form is not Form.CODES:
                    shared.add(root)
            if is_output(self.graph, tensor):
                shared |= read_as_float
        return asked, shared

    def _centred(self, spec: ActivationSpec, edges: list[Edge]) -> ActivationSpec:
        """Say how much larger the scale may be for a zero point in the middle, which a product of activations needs."""
        if not self.model.target.costly_zero_points or spec.bits != WIDE or spec.lower >= 0:
            return spec
        product = any(not self.plan.nodes[edge.reader].weight_bits for edge in edges)
        return replace(spec, centred=ALWAYS if product else CENTRED)

    def _is_float(self, tensor: Tensor) -> bool:
        """Say whether the float value of a tensor is there before it is rounded: float nodes read that."""
        made_by = producer(tensor)
        return tensor.name in self.plan.unrounded or made_by is None or self.plan.form(made_by.name) is Form.FLOAT

    def _spec(self, tensor: Tensor, bits: int) -> ActivationSpec:
        target = self.model.target
        lower, upper, node = absorbed_bounds(self.plan, tensor)
        grid, powers = target.grid(bits, lower), target.power_activations
        spec = ActivationSpec(grid, lower, upper, symmetric=target.symmetric, power_of_two=powers)
        if node is None or self.plan.form(node.name) is not Form.ARITHMETIC:
            return spec
        fixed = target.dictated.get(node.op)
        grid = fixed.grid if fixed else spec.grid
        return replace(spec, grid=grid, even_zero_point=node.op in target.even_zero_point, fixed=fixed)

"""Decide which nodes run on integers and where quantizers stand; no numbers yet."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from qcompile.config import recipe_hash
from qcompile.errors import InputError, nearest
from qcompile.ir import (
    Node,
    Tensor,
    captured_names,
    constant_value,
    consumers,
    is_inner,
    is_output,
    producer,
    topological,
)
from qcompile.ir.branches import deciding_inputs
from qcompile.ir.protos import WEIGHT_READERS, nodes_of
from qcompile.program.dag import activation_dag
from qcompile.program.forms import clip_bounds, data_inputs, dictated, integer_form, operands
from qcompile.qmodel import QModel
from qcompile.quant.params import ActivationSpec
from qcompile.quant.plan import ENDS, Form, NodePlan, narrow_key

WIDE = 8  # the container of every activation code is uint8


@dataclass(frozen=True)
class PlaceQuantizers:
    """Give every node a form and every tensor on integers a quantizer without numbers.

    1. Compute nodes run on integers where the target has a kernel for their form.
    2. Light nodes (arithmetic, movers, clips) do where their inputs are codes and codes are wanted behind them.
    3. A clip whose input nobody else reads is absorbed by the quantizer in its place.
    4. Movers share the quantizer of their input; every other tensor on integers has its own.
    5. A tensor has the bits its compute readers ask for; one that others read too is wide and gets a second, narrow
       quantizer in front of the compute nodes.
    """

    name: ClassVar[str] = "place-quantizers"
    requires: ClassVar[tuple[str, ...]] = ("normalize-graph",)

    def run(self, model: QModel) -> int:
        """Fill `plan.nodes`, `plan.groups` and `plan.specs`; return the number of compute nodes on integers."""
        model.plan.recipe = recipe_hash(model.config)
        placement = _Placement(model)
        placement.decide_forms()
        placement.absorb_clips()
        placement.decide_bits()
        placement.group_tensors()
        placement.specify()
        for name, node in model.plan.nodes.items():
            if node.form is Form.FLOAT:
                model.journal.note(self.name, "kept float", node=name, reason=node.reason)
        placed = sum(node.form is Form.COMPUTE for node in model.plan.nodes.values())
        if not placed:
            if not any(node.op_type in WEIGHT_READERS for node in nodes_of(model.source)):
                raise InputError("nothing to quantize: the model has no Conv, Gemm or MatMul")
            reasons = sorted({n.reason for n in model.plan.nodes.values() if n.reason})
            raise InputError(
                "nothing to quantize: no Conv, Gemm or MatMul can run on integers",
                where="; ".join(reasons[:3]),
                remedy="check --keep-float, or whether the model has float32 weights",
            )
        return placed


@dataclass
class _Placement:
    """The work in progress of one run: forms by node name, shared by the five steps."""

    model: QModel
    forms: dict[str, Form] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph = self.model.graph
        self.nodes = topological(self.graph)
        self.candidates = {node.name: integer_form(node, self.model.target) for node in self.nodes}
        self.capturing: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in captured_names(node):
                self.capturing.setdefault(name, []).append(node)
        self.wanted: dict[str, bool] = {}  # whether codes of a node's output are wanted behind it
        self._keep_float()
        self._keep_bias_float()
        self._keep_computed_weights_float()
        self._name_what_decides()

    def _keep_bias_float(self) -> None:
        """Add the bias behind a MatMul in float: its kernel gives float32, and 8 bits of the sum cost accuracy."""
        for node in self.nodes:
            data = data_inputs(node)
            if node.op != "Add" or len(data) != 1 or len(node.inputs) != 2:
                continue
            made_by = data[0].inputs[0] if data[0].inputs else None
            alone = len(self.readers(data[0])) == 1 and not is_output(self.graph, data[0])
            if made_by is not None and made_by.op == "MatMul" and alone and self._is_compute(made_by):
                self.candidates[node.name] = (Form.FLOAT, "the bias of a MatMul is added to its float32 output")

    def _keep_computed_weights_float(self) -> None:
        """A second operand that is computed from constants, too large to be stored or by an operator nobody knows."""
        flowing = {node.name for node in activation_dag(self.graph).nodes}
        for node in self.nodes:
            made_by = producer(node.inputs[1]) if self._is_compute(node) else None
            if made_by is not None and made_by.name not in flowing:
                self.candidates[node.name] = (Form.FLOAT, "its weight is computed from constants in every run")

    def _name_what_decides(self) -> None:
        """Say of an If which inputs have to be fixed so that its branch is compiled."""
        for node in self.nodes:
            if names := deciding_inputs(self.graph, node):
                options = " ".join(f"--fix {name}=VALUE" for name in names)
                form, reason = self.candidates[node.name]
                self.candidates[node.name] = (form, f"{reason}; {options} takes one branch and compiles it")

    def _is_compute(self, node: Node) -> bool:
        return self.candidates[node.name][0] is Form.COMPUTE

    def _keep_float(self) -> None:
        for pattern in self.model.config.keep_float:
            matching = [node.name for node in self.nodes if re.search(pattern, node.name)]
            if not matching:
                raise no_match("--keep-float", pattern, self.nodes)
            for name in matching:
                self.candidates[name] = (Form.FLOAT, f"--keep-float {pattern}")
        for name, reason in self.model.kept_float.items():
            if self.candidates[name][0] is not Form.FLOAT:
                self.candidates[name] = (Form.FLOAT, reason)

    def readers(self, tensor: Tensor) -> list[Node]:
        """Return the nodes that read `tensor`; for a subgraph that does, the control-flow node it belongs to."""
        own = [node for node in consumers(tensor) if not is_inner(node)]
        return own + [node for node in self.capturing.get(tensor.name, []) if not any(node is item for item in own)]

    def decide_forms(self) -> None:
        """Backward: which light nodes lead to integers. Forward: which have codes to work on."""
        wanted = self.wanted
        for node in reversed(self.nodes):
            form, _ = self.candidates[node.name]
            readers = [reader for tensor in node.outputs for reader in self.readers(tensor)]
            ahead = any(wanted[reader.name] and _reads_data(reader, node) for reader in readers)
            wanted[node.name] = form is Form.COMPUTE or (form is not Form.FLOAT and ahead)
        for node in self.nodes:
            form, reason = self.candidates[node.name]
            if form not in (Form.FLOAT, Form.COMPUTE):
                coded = [self._is_coded(tensor) for tensor in data_inputs(node)]
                leads = any(wanted[reader.name] for tensor in node.outputs for reader in self.readers(tensor))
                if form is Form.ARITHMETIC and not (leads and any(coded)):
                    form, reason = Form.FLOAT, "its neighbours are float: quantizing it alone costs time and accuracy"
                elif form is Form.CODES and not (all(coded) or self._only_integer_readers(node)):
                    form, reason = Form.FLOAT, "moves float values"
            self.forms[node.name], self.reasons[node.name] = form, reason

    def _is_coded(self, tensor: Tensor) -> bool:
        """Say whether `tensor` has codes anyway: an integer node makes it, or a compute node reads it."""
        made_by = tensor.inputs[0] if tensor.inputs else None
        if made_by is not None and self.forms[made_by.name] is not Form.FLOAT and not self._float_output(made_by):
            return True
        return any(self._is_compute(reader) and _reads(reader, tensor) for reader in self.readers(tensor))

    def _only_integer_readers(self, node: Node) -> bool:
        tensors = node.outputs
        readers = [reader for tensor in tensors for reader in self.readers(tensor)]
        return (
            bool(readers)
            and all(self.wanted[reader.name] for reader in readers)
            and not any(is_output(self.graph, tensor) for tensor in tensors)
        )

    def _float_output(self, node: Node) -> bool:
        """Say whether a compute node gives float32 at once: its kernel can, and no integer node reads it."""
        if not self._is_compute(node) or node.op not in self.model.target.float_output:
            return False
        return not any(self.wanted[reader.name] for reader in self.readers(node.outputs[0]))

    def absorb_clips(self) -> None:
        """Absorb a clip that is the only reader of its input: its bounds become those of the quantizer."""
        for node in self.nodes:
            if self.forms[node.name] is not Form.CODES or node.op not in self.model.target.clips:
                continue
            (source,) = data_inputs(node)
            made_by = source.inputs[0] if source.inputs else None
            alone = len(self.readers(source)) == 1 and not is_output(self.graph, source)
            # Behind a mover the clip stays: the codes it clips belong to a tensor that others may read. So it does
            # behind an operator that dictates its quantizer.
            if made_by is None or not alone or self.forms[made_by.name] is Form.CODES or dictated(made_by):
                continue
            self.forms[node.name] = Form.ABSORBED

    def decide_bits(self) -> None:
        """Write the node plans: weight and input bits of compute nodes, by --w, --a, first, last and --bits.

        Products of two activations (attention) have 8 bits: fewer make neither the file smaller nor the kernel faster.
        """
        config, plan = self.model.config, self.model.plan
        compute = [node for node in self.nodes if self.forms[node.name] is Form.COMPUTE]
        ends = self._first_and_last({node.name for node in compute})
        for node in self.nodes:
            plan.nodes[node.name] = NodePlan(self.forms[node.name], self.reasons[node.name])
        for node in compute:
            edge = config.first_last_bits if node.name in ends else None
            weight_bits = (edge or config.w) if constant_value(node.inputs[1]) is not None else 0
            input_bits = edge or (config.a if weight_bits else WIDE)
            plan.nodes[node.name] = NodePlan(Form.COMPUTE, ENDS if edge else "", weight_bits, input_bits)
        for pattern, weight_bits, input_bits in config.bits:
            matching = [node.name for node in compute if re.search(pattern, node.name)]
            if not matching:
                raise self._no_bits(pattern, compute)
            for name in matching:
                old = plan.nodes[name]
                plan.nodes[name] = replace(
                    old,
                    reason=f"--bits {pattern}",
                    weight_bits=weight_bits if old.weight_bits else 0,
                    input_bits=input_bits,
                )
        self._tell_unused(compute)

    def _no_bits(self, pattern: str, compute: list[Node]) -> InputError:
        """Return the error for --bits that name no layer on integers: the reason why a layer they name is float."""
        for node in self.nodes:
            if node.op in WEIGHT_READERS and re.search(pattern, node.name):
                what = f"--bits {pattern!r} has no effect: {node.name!r} stays float ({self.reasons[node.name]})"
                return InputError(what, remedy="leave it out")
        return no_match("--bits", pattern, compute)

    def _tell_unused(self, compute: list[Node]) -> None:
        """Warn where the bits that were asked for are those of no layer."""
        placed = [self.model.plan.nodes[node.name] for node in compute]
        if not all(item.reason for item in placed):  # neither an end nor named by --bits
            return
        for flag, found in (("w", "weight_bits"), ("a", "input_bits")):
            bits = getattr(self.model.config, flag)
            if bits < WIDE and all(getattr(item, found) != bits for item in placed):
                text = f"--{flag} {bits} has no effect: every layer is the first, the last, float or named by --bits"
                self.model.journal.note(PlaceQuantizers.name, "warning", text=text)

    def _first_and_last(self, compute: set[str]) -> set[str]:
        """Return the compute nodes with no compute node before them, or none behind."""
        following = {node.name: [r.name for t in node.outputs for r in self.readers(t)] for node in self.nodes}
        before, behind = set[str](), set[str]()
        for node in self.nodes:
            if node.name in compute or node.name in before:
                before.update(following[node.name])
        for node in reversed(self.nodes):
            if any(name in compute or name in behind for name in following[node.name]):
                behind.add(node.name)
        return compute - (before & behind)

    def group_tensors(self) -> None:
        """Map every tensor on integers to the tensor whose quantizer it shares; clips in between share their end's."""
        groups = self.model.plan.groups
        for node in self.nodes:
            form = self.forms[node.name]
            if form in (Form.COMPUTE, Form.ARITHMETIC, Form.CODES):
                for tensor in operands(node) if form is Form.ARITHMETIC else data_inputs(node):
                    groups.setdefault(tensor.name, tensor.name)
            if form is Form.CODES:
                (source,) = data_inputs(node)
                groups.update({tensor.name: groups[source.name] for tensor in node.outputs})
            elif form is Form.ARITHMETIC or (form is Form.COMPUTE and not self._float_output(node)):
                end = self.absorbed_end(node.outputs[0])
                groups.setdefault(end.name, end.name)

    def absorbed_end(self, tensor: Tensor) -> Tensor:
        """Follow absorbed clips from the tensor a node makes to the one whose quantizer stands in its place."""
        while len(readers := self.readers(tensor)) == 1 and self.forms[readers[0].name] is Form.ABSORBED:
            tensor = readers[0].outputs[0]
        return tensor

    def specify(self) -> None:
        """Write one spec per group, and one per narrow quantizer in front of compute nodes."""
        plan, config = self.model.plan, self.model.config
        tensors = self.graph.tensors()
        asked: dict[str, set[int]] = {}
        shared: set[str] = set()
        for name, root in plan.groups.items():
            tensor = tensors[name]
            bits = asked.setdefault(root, set())
            for reader in self.readers(tensor):
                form = self.forms[reader.name]
                if form is Form.COMPUTE and _reads(reader, tensor):
                    bits.add(plan.nodes[reader.name].input_bits)
                elif form is not Form.CODES:
                    shared.add(root)
            if is_output(self.graph, tensor):
                shared.add(root)
        for root, bits in asked.items():
            wide = max(bits, default=WIDE)
            if root in shared:
                wide = max(wide, config.residual_bits) if bits else WIDE
            plan.specs[root] = spec = self._spec(tensors[root], wide)
            if spec.fixed:
                wide = spec.fixed.bits
                plan.specs[root] = replace(spec, bits=wide)
            for narrow in sorted(bits - {wide}):
                if narrow_key(root, narrow) in tensors:
                    name = narrow_key(root, narrow)
                    raise InputError(f"a tensor is named {name!r}, as a quantizer of {root!r} is", remedy="rename it")
                plan.specs[narrow_key(root, narrow)] = replace(
                    plan.specs[root], bits=narrow, even_zero_point=False, fixed=None
                )

    def _spec(self, tensor: Tensor, bits: int) -> ActivationSpec:
        lower, upper = -np.inf, np.inf
        node = tensor.inputs[0] if tensor.inputs else None
        while node is not None and self.forms[node.name] is Form.ABSORBED:
            bounds = clip_bounds(node)
            assert bounds is not None
            lower, upper = max(lower, bounds[0]), min(upper, bounds[1])
            source = data_inputs(node)[0]
            node = source.inputs[0] if source.inputs else None
        even = (
            node is not None
            and node.op in self.model.target.even_zero_point
            and self.forms[node.name] is Form.ARITHMETIC
        )
        fixed = dictated(node) if node is not None and self.forms[node.name] is Form.ARITHMETIC else None
        return ActivationSpec(bits, lower, upper, even, fixed)


def _reads(node: Node, tensor: Tensor) -> bool:
    return any(tensor is item for item in data_inputs(node))


def _reads_data(reader: Node, node: Node) -> bool:
    return any(_reads(reader, tensor) for tensor in node.outputs)


def no_match(flag: str, pattern: str, nodes: list[Node]) -> InputError:
    """Return the error for a regular expression that no node name matches."""
    return InputError(f"{flag} {pattern!r} matches no node", remedy=nearest(pattern, [node.name for node in nodes]))

"""Decide which nodes run on integers, and in which form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from qcompile.errors import InputError, nearest
from qcompile.ir import Node, Tensor, constant_value, is_output, producer, topological
from qcompile.ir.branches import deciding_inputs
from qcompile.ir.protos import LAYERS, nodes_of
from qcompile.program.dag import activation_dag
from qcompile.program.operands import data_inputs
from qcompile.program.readers import Readers, reads
from qcompile.qmodel import QModel
from qcompile.quant.plan import Form, NodePlan
from qcompile.targets.forms import integer_form


@dataclass(frozen=True)
class ChooseForms:
    """Give every node a form.

    1. Compute nodes run on integers where the target has a kernel for their form.
    2. Light nodes (arithmetic, movers, clips) do where their inputs are codes and codes are wanted behind them.
    3. A clip whose input nobody else reads is absorbed by the quantizer in its place.

    Nodes whose names match a regular expression of `keep_float` stay float. `weights_alone`: everything does, but for
    the weights of compute nodes.
    """

    keep_float: Sequence[str] = ()
    weights_alone: bool = False
    name: ClassVar[str] = "choose-forms"
    requires: ClassVar[tuple[str, ...]] = ("normalize-graph",)

    def run(self, model: QModel) -> int:
        """Fill `plan.nodes`; return the number of compute nodes on integers."""
        choice = _Choice(model, self.keep_float, self.weights_alone)
        choice.decide_forms()
        choice.absorb_clips()
        model.plan.nodes = {
            node.name: NodePlan(choice.forms[node.name], choice.reasons[node.name]) for node in choice.nodes
        }
        for name, node in model.plan.nodes.items():
            if node.form is Form.FLOAT:
                model.journal.note(self.name, "kept float", node=name, reason=node.reason)
        placed = sum(node.form is Form.COMPUTE for node in model.plan.nodes.values())
        if not placed:
            raise _nothing(model)
        return placed


def _nothing(model: QModel) -> InputError:
    """Return the error for a model of which nothing can run on integers."""
    if not any(node.op_type in LAYERS for node in nodes_of(model.source)):
        what = "nothing to quantize: the model has no Conv, Gemm or MatMul"
        return InputError(what, remedy="run it as it is")
    reasons = sorted({node.reason for node in model.plan.nodes.values() if node.reason})
    return InputError(
        "nothing to quantize: no Conv, Gemm or MatMul can run on integers",
        where="; ".join(reasons[:3]),
        remedy="check --keep-float, or whether the model has float32 weights",
    )


@dataclass
class _Choice:
    """The work in progress of one run: forms by node name."""

    model: QModel
    keep_float: Sequence[str]
    weights_alone: bool
    forms: dict[str, Form] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph = self.model.graph
        self.nodes = topological(self.graph)
        self.readers = Readers(self.graph)
        self.candidates = {node.name: integer_form(node, self.model.target) for node in self.nodes}
        self.wanted: dict[str, bool] = {}  # whether codes of a node's output are wanted behind it
        self._keep_float()
        self._keep_bias_float()
        self._keep_computed_weights_float()
        if self.weights_alone:
            self._keep_activations_float()
        self._name_what_decides()

    def _keep_bias_float(self) -> None:
        """Add the bias behind a MatMul in float: its kernel gives float32, and 8 bits of the sum cost accuracy."""
        for node in self.nodes:
            data = data_inputs(node)
            if node.op != "Add" or len(data) != 1 or len(node.inputs) != 2:
                continue
            made_by = producer(data[0])
            alone = len(self.readers.of(data[0])) == 1 and not is_output(self.graph, data[0])
            if made_by is not None and made_by.op == "MatMul" and alone and self._is_compute(made_by):
                self.candidates[node.name] = (Form.FLOAT, "the bias of a MatMul is added to its float32 output")

    def _keep_computed_weights_float(self) -> None:
        """A second operand that is computed from constants, too large to be stored or by an operator nobody knows."""
        flowing = {node.name for node in activation_dag(self.graph).nodes}
        for node in self.nodes:
            made_by = producer(node.inputs[1]) if self._is_compute(node) else None
            if made_by is not None and made_by.name not in flowing:
                self.candidates[node.name] = (Form.FLOAT, "its weight is computed from constants in every run")

    def _keep_activations_float(self) -> None:
        """Leave codes to nothing but constant weights."""
        for node in self.nodes:
            form, _ = self.candidates[node.name]
            if form is not Form.FLOAT and not (form is Form.COMPUTE and constant_value(node.inputs[1]) is not None):
                self.candidates[node.name] = (Form.FLOAT, "weights alone are quantized")

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
        for pattern in self.keep_float:
            matching = [node.name for node in self.nodes if re.search(pattern, node.name)]
            if not matching:
                remedy = nearest(pattern, [node.name for node in self.nodes])
                raise InputError(f"--keep-float {pattern!r} matches no node", remedy=remedy)
            for name in matching:
                self.candidates[name] = (Form.FLOAT, f"--keep-float {pattern}")
        for name, reason in self.model.kept_float.items():
            if self.candidates[name][0] is not Form.FLOAT:
                self.candidates[name] = (Form.FLOAT, reason)

    def decide_forms(self) -> None:
        """Backward: which light nodes lead to integers. Forward: which have codes to work on."""
        wanted, rounds_all = self.wanted, not self.model.target.unrounded_floats
        for node in reversed(self.nodes):
            form, _ = self.candidates[node.name]
            readers = [reader for tensor in node.outputs for reader in self.readers.of(tensor)]
            ahead = any(wanted[reader.name] and _reads_data(reader, node) for reader in readers)
            wanted[node.name] = form is Form.COMPUTE or (form is not Form.FLOAT and ahead)
        for node in self.nodes:
            form, reason = self.candidates[node.name]
            if form not in (Form.FLOAT, Form.COMPUTE):
                coded = [self._is_coded(tensor) for tensor in data_inputs(node)]
                leads = any(wanted[reader.name] for tensor in node.outputs for reader in self.readers.of(tensor))
                if form is Form.ARITHMETIC and not (leads and any(coded)):
                    form, reason = Form.FLOAT, "its neighbours are float: quantizing it alone costs time and accuracy"
                elif form is Form.CODES and not (self._only_integer_readers(node) or (all(coded) and rounds_all)):
                    form, reason = Form.FLOAT, "moves float values"
            self.forms[node.name], self.reasons[node.name] = form, reason

    def _is_coded(self, tensor: Tensor) -> bool:
        """Say whether `tensor` has codes anyway: an integer node makes it, or a compute node reads it."""
        made_by = producer(tensor)
        if made_by is not None and self.forms[made_by.name] is not Form.FLOAT and not self._float_output(made_by):
            return True
        return any(self._is_compute(reader) and reads(reader, tensor) for reader in self.readers.of(tensor))

    def _only_integer_readers(self, node: Node) -> bool:
        tensors = node.outputs
        readers = [reader for tensor in tensors for reader in self.readers.of(tensor)]
        return (
            bool(readers)
            and all(self.wanted[reader.name] for reader in readers)
            and not any(is_output(self.graph, tensor) for tensor in tensors)
        )

    def _float_output(self, node: Node) -> bool:
        """Say whether a compute node gives float32 at once: its kernel can, and no integer node reads it."""
        if not self._is_compute(node) or node.op not in self.model.target.float_output:
            return False
        return not any(self.wanted[reader.name] for reader in self.readers.of(node.outputs[0]))

    def absorb_clips(self) -> None:
        """Absorb a clip that is the only reader of its input: its bounds become those of the quantizer."""
        for node in self.nodes:
            if self.forms[node.name] is not Form.CODES or node.op not in self.model.target.clips:
                continue
            (source,) = data_inputs(node)
            made_by = producer(source)
            alone = len(self.readers.of(source)) == 1 and not is_output(self.graph, source)
            # Behind a mover the clip stays: the codes it clips belong to a tensor that others may read. So it does
            # behind an operator that dictates its quantizer.
            if made_by is None or not alone or self.forms[made_by.name] is Form.CODES:
                continue
            if made_by.op in self.model.target.dictated:
                continue
            self.forms[node.name] = Form.ABSORBED


def _reads_data(reader: Node, node: Node) -> bool:
    return any(reads(reader, tensor) for tensor in node.outputs)

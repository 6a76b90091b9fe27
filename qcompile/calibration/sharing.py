"""One quantizer for all inputs of a Concat, where their ranges are alike: joining codes is then a copy."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace

from qcompile.calibration.observers import Histogram, MinMax
from qcompile.ir import Node
from qcompile.program.operands import operands
from qcompile.quant.plan import Edge, Form, Plan

ALIKE = 0.8  # least share of the common range that each input takes: at most a third of a bit is lost


def share_concats(nodes: Iterable[Node], plan: Plan, observers: Mapping[str, MinMax]) -> list[str]:
    """Unite the quantizers of every Concat whose inputs are alike with that of its output; return the nodes' names.

    `nodes` are in topological order; `observers` hold the range of each group of tensors. The output has seen every
    value of its inputs, so its observer is that of the union.
    """
    shared = []
    for node in nodes:
        output = plan.groups.get(node.outputs[0].name)  # None: a clip behind it stands in its place
        if node.op != "Concat" or plan.form(node.name) is not Form.ARITHMETIC or output is None:
            continue
        inputs = {plan.groups[tensor.name]: tensor for tensor in operands(node)}
        alone = {root for root, tensor in inputs.items() if root == tensor.name and len(tensor.outputs) == 1}
        if output not in inputs and _alike(plan, observers, output, inputs, alone):
            _unite(plan, output, inputs)
            plan.nodes[node.name] = replace(plan.nodes[node.name], form=Form.CODES)
            shared.append(node.name)
    return shared


def _alike(
    plan: Plan, observers: Mapping[str, MinMax], output: str, inputs: Iterable[str], alone: Container[str]
) -> bool:
    """Say whether the inputs can have the output's bits, have the same bounds, and nearly its range.

    An input that only the Concat reads (`alone`) takes whatever bits its readers ask of the output. One without any
    value, as an empty cache is, has nothing against the output's range.
    """
    specs = {root: plan.specs[Edge(root)] for root in inputs}
    grid, stacked = plan.specs[Edge(output)].grid, plan.stacked()
    if any(spec.fixed or (spec.grid != grid and root not in alone) for root, spec in specs.items()):
        return False
    if len({(spec.lower, spec.upper) for spec in specs.values()}) > 1:
        return False
    if any(stacked[root][1:] for root in specs) and not isinstance(observers[output], Histogram):
        return False  # the narrow quantizers would search in values that nobody has kept
    low, high = min(observers[output].lo, 0.0), max(observers[output].hi, 0.0)
    seen = [observers[root] for root in inputs if observers[root].count]
    widths = [max(observer.hi, 0.0) - min(observer.lo, 0.0) for observer in seen]
    return min(widths, default=0.0) >= ALIKE * (high - low)


def _unite(plan: Plan, output: str, inputs: Iterable[str]) -> None:
    """Move the groups `inputs` into the group `output`, with the narrow quantizers in front of their readers."""
    members, stacked = list(inputs), plan.stacked()
    specs = [plan.specs[Edge(root)] for root in members]
    even = any(spec.even_zero_point for spec in specs)
    plan.specs[Edge(output)] = replace(specs[0], grid=plan.specs[Edge(output)].grid, even_zero_point=even)
    kept = {plan.specs[key].grid: key for key in stacked[output]}
    for key in (key for root in members for key in stacked[root]):
        spec = plan.specs.pop(key)
        same = kept.setdefault(spec.grid, key) if key.reader else Edge(output)
        if key.reader:
            plan.specs[same] = spec
        plan.reads.update({edge: same for edge, seen in plan.reads.items() if seen == key})
    plan.groups.update({tensor: output for tensor, root in plan.groups.items() if root in members})

"""Numbers for a placed plan: activation ranges from samples, weights by rounding to nearest."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from qcompile.calibration.collect import observe
from qcompile.calibration.observers import Histogram, Largest, MinMax
from qcompile.calibration.ranges import ANY, Range, Ranges, choose
from qcompile.calibration.sharing import share_concats
from qcompile.data.dataset import Dataset
from qcompile.errors import InputError, pattern
from qcompile.ir import (
    Constant,
    Graph,
    Node,
    Tensor,
    constant_value,
    part_before,
    producer,
    to_model,
    topological,
)
from qcompile.program.lower import absorbed_end
from qcompile.program.operands import CLIPS, data_inputs, float_bias, told_apart, weight_axis
from qcompile.program.readers import Readers
from qcompile.quant.bias import with_room_for_bias
from qcompile.quant.params import ActivationSpec, Quantizer
from qcompile.quant.plan import Edge, Form, Plan
from qcompile.quant.scales import quantize_weight
from qcompile.targets.schema import Target

LEAST_BIAS = np.float32(1e-30)  # it rounds to nothing beside any sum


def choose_numbers(
    graph: Graph,
    plan: Plan,
    ranges: Ranges,
    data: Dataset,
    *,
    target: Target,
    batch: int | None = None,
    threads: int = 0,
    only: Collection[str] | None = None,
    all_values: bool = False,
    label: str = "calibrate",
) -> list[str]:
    """Fill `plan.quantizers`, `plan.weights` and `plan.biases`; return the Concats whose inputs share a quantizer.

    With `only`, a set of node names, everything else gets quantizers that mean nothing, and no weights. With
    `all_values` ranges hold those too that no reader tells apart: for a comparison with what they are.
    """
    nodes = [node for node in topological(graph) if only is None or node.name in only]
    roots = set(plan.groups.values()) if only is None else _roots(graph, plan, nodes)
    stacked = plan.stacked()
    observers = {root: _observer(ranges, root, [plan.specs[key] for key in stacked[root]]) for root in sorted(roots)}
    live = _see_constants(graph, observers)
    if live:
        part = to_model(part_before(graph, live))
        observe(part, live.items(), data, batch=batch, threads=threads, label=label)
    shared = share_concats(nodes, plan, observers)
    check_seen(graph, plan, nodes, observers)
    apart = {} if all_values else _told_apart(graph, plan)
    for key, spec in plan.specs.items():
        root = plan.stands_on(key)
        if root in observers:
            method = ranges.method_for(spec)
            plan.quantizers[key] = choose(observers[root], spec, method, ranges.percentile, apart.get(root, ANY))
        else:
            plan.quantizers[key] = Quantizer(spec.grid, 1.0, spec.grid.low)
    _widen_for_kernels(nodes, plan, target)
    for node in nodes:
        if plan.form(node.name) is Form.COMPUTE and (bits := plan.nodes[node.name].weight_bits):
            # at 8 bits the search gains a tenth: a trial can do without
            _round_weight(plan, node, target, search=only is None or bits < 8)
    return shared


def _round_weight(plan: Plan, node: Node, target: Target, *, search: bool) -> None:
    """Fill `plan.weights` and `plan.biases` for a layer."""
    weight, bias, placed = constant_value(node.inputs[1]), float_bias(node), plan.nodes[node.name]
    assert weight is not None
    spec = replace(target.weight_spec(node), block=placed.block)
    quantized = quantize_weight(weight, bits=placed.weight_bits, axis=weight_axis(node), search=search, spec=spec)
    if not target.zero_biases and node.op != "MatMul" and (bias is None or not bias.any()):
        bias = np.full(quantized.channels, LEAST_BIAS)
    if bias is not None:
        plan.biases[node.name] = bias
        quantized = with_room_for_bias(quantized, bias, plan.scale_in_front(node.name, node.inputs[0].name))
    plan.weights[node.name] = quantized


def check_seen(graph: Graph, plan: Plan, nodes: Iterable[Node], observers: Mapping[str, MinMax]) -> None:
    """Raise InputError where quantizers have to be chosen for tensors of which the samples gave no value."""
    roots = {plan.stands_on(key) for key, spec in plan.specs.items() if spec.fixed is None}
    unseen = [root for root in observers if root in roots and not observers[root].count]
    if not unseen:
        return
    quantized = [node for node in nodes if plan.form(node.name) is not Form.FLOAT]
    around = [node.name for node in quantized if not _roots(graph, plan, [node]).isdisjoint(unseen)]
    more = f" and {len(unseen) - 1} more" if unseen[1:] else ""
    raise InputError(
        f"calibration saw no value of tensor {unseen[0]!r}{more}",
        remedy=f"give samples that have some, or --keep-float {shlex.quote(pattern(around))}",
    )


def _roots(graph: Graph, plan: Plan, nodes: Iterable[Node]) -> set[str]:
    """Return the tensors whose quantizers some nodes read or make."""
    around = {tensor.name for node in nodes for tensor in node.inputs}
    around |= {absorbed_end(graph, plan, tensor).name for node in nodes for tensor in node.outputs}
    return {plan.groups[name] for name in around if name in plan.groups}


def _told_apart(graph: Graph, plan: Plan) -> dict[str, Range]:
    """Return, per quantizer, the interval of values that those who read its tensors tell apart.

    Where HardSwish alone reads a tensor, no levels are spent on what lies below -3. Movers look at no value: what they
    make has the same quantizer, and readers of its own. What stands behind a clip is no further than the clip lets it.
    """
    tensors, readers, found = graph.tensors(), Readers(graph), dict[str, Range]()
    outputs = {tensor.name for tensor in graph.outputs}
    for name, root in plan.groups.items():
        ends = [] if _is_clipped(plan, tensors[name]) else _ends(plan, readers.of(tensors[name]), name in outputs)
        low, high = zip(*ends, found.get(root, (np.inf, -np.inf)))
        found[root] = min(low), max(high)
    return {root: ends if ends[0] < ends[1] else ANY for root, ends in found.items()}


def _ends(plan: Plan, readers: Iterable[Node], is_output: bool) -> list[Range]:
    """Return the intervals that the readers of a tensor tell apart; one who reads a graph's output tells all."""
    moved = (node for node in readers if plan.form(node.name) is not Form.CODES or node.op in CLIPS)
    return [*map(told_apart, moved), *[ANY] * is_output]


def _is_clipped(plan: Plan, tensor: Tensor) -> bool:
    """Say whether a clip on codes stands between `tensor` and the one that its quantizer was made for."""
    while (node := producer(tensor)) is not None and plan.form(node.name) is Form.CODES:
        if node.op in CLIPS:
            return True
        tensor = data_inputs(node)[0]
    return False


def _widen_for_kernels(nodes: Iterable[Node], plan: Plan, target: Target) -> None:
    """Raise an output scale that the kernel of its operator would refuse."""
    for node in nodes:
        output = plan.groups.get(node.outputs[0].name) if node.outputs else None
        share = target.least_output_scale.get(node.op)
        if share is not None and plan.form(node.name) is Form.ARITHMETIC and output is not None:
            given, made = plan.quantizers[plan.key(node.inputs[0].name)], plan.quantizers[Edge(output)]
            least = float(np.float32(share * given.scale))
            plan.quantizers[Edge(output)] = replace(made, scale=max(made.scale, least))


def _observer(ranges: Ranges, root: str, specs: Sequence[ActivationSpec]) -> MinMax:
    """Return the observer of what the quantizers of a group ask for: all values, the range, or where it ends."""
    if any(ranges.method_for(spec) != "max" for spec in specs):
        return Histogram(root)
    return Largest(root) if all(spec.lower >= 0 for spec in specs) else MinMax(root)


def _see_constants(graph: Graph, observers: dict[str, MinMax]) -> dict[str, MinMax]:
    """Show their values to the observers of constants; return the others."""
    tensors = graph.tensors()
    constants = {name for name in observers if isinstance(tensors[name], Constant)}
    for name in constants:
        observers[name].update(np.asarray(tensors[name].values, np.float32))
    return {name: observer for name, observer in observers.items() if name not in constants}

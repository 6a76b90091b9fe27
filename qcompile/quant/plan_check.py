"""Rules that the numbers of a plan obey, whatever model it is for. A loaded plan is held against all of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from qcompile.flags import BITS, FLOAT_BITS
from qcompile.quant.grid import WEIGHTS
from qcompile.quant.params import ActivationSpec, Quantizer, WeightQuantizer, largest_code
from qcompile.quant.plan import Edge, Form, Plan
from qcompile.quant.powers import is_power

Problems = Iterator[str]
LEAST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
ROUNDING = 1e-6  # relative, of float32: by so much a grid may seem to leave its bounds


def plan_problem(plan: Plan) -> str:
    """Return the first thing that is wrong with the numbers of `plan`, in one line, or ""."""
    return next((text for rule in RULES for text in rule(plan)), "")


def _bits(plan: Plan) -> Problems:
    """Compute nodes have bits for their data, and for a weight that is constant; nothing else has any."""
    for name, node in plan.nodes.items():
        compute = node.form is Form.COMPUTE
        if not (_is_width(node.input_bits) or node.input_bits == FLOAT_BITS if compute else node.input_bits == 0):
            yield f"node {name!r} of the form {node.form} has {node.input_bits} input bits"
        if not (node.weight_bits == 0 or (compute and _is_width(node.weight_bits))):
            yield f"node {name!r} of the form {node.form} has {node.weight_bits} weight bits"
        if (node.weight_bits > 0) != (name in plan.weights):
            yield f"node {name!r} has {node.weight_bits} weight bits and {'a' if name in plan.weights else 'no'} weight"


def _groups(plan: Plan) -> Problems:
    """A tensor that gives its quantizer to others has it itself."""
    for tensor, root in plan.groups.items():
        if plan.groups.get(root) != root:
            yield f"tensor {tensor!r} shares the quantizer of {root!r}, which has none of its own"


def _keys(plan: Plan) -> Problems:
    """Every group has a spec and a quantizer; others are those that compute nodes read."""
    own = {Edge(root) for root in plan.groups.values()}
    for key in sorted(own | plan.specs.keys() | plan.quantizers.keys()):
        if key not in plan.specs or key not in plan.quantizers:
            yield f"it has no {'spec' if key in plan.quantizers else 'quantizer'} for {key}"
        elif key not in own and plan.reads.get(key) != key:
            yield f"quantizer {key} belongs to no tensor on integers"


def _reads(plan: Plan) -> Problems:
    """A compute node sees a tensor through a quantizer that stands on it, with as many bits as it asks for."""
    for edge, key in plan.reads.items():
        node = plan.nodes.get(edge.reader)
        if node is None or node.form is not Form.COMPUTE or edge.tensor not in plan.groups:
            yield f"there is no place for a quantizer on {edge}"
        elif key not in plan.specs or plan.groups.get(key.tensor) != plan.groups[edge.tensor]:
            yield f"there is the quantizer {key} on {edge}, which is none of this tensor"
        elif not plan.specs[key].serves(node.input_bits):
            bits = plan.specs[key].bits
            yield f"{edge.reader!r} wants inputs of {node.input_bits} bits, the quantizer of {edge.tensor!r} has {bits}"


def _specs(plan: Plan) -> Problems:
    """A spec has a grid of so many bits that its container holds, and bounds with 0 between them."""
    for key, spec in plan.specs.items():
        if not _is_width(spec.bits):
            yield f"quantizer {key} is to have {spec.bits} bits"
        if not spec.grid.is_held:
            yield f"quantizer {key} is to have the codes {spec.grid}"
        if not (spec.lower <= 0 <= spec.upper and spec.lower < spec.upper):
            yield f"the bounds of quantizer {key}, {spec.lower} and {spec.upper}, do not hold 0"
        if spec.fixed and spec.fixed.grid != spec.grid:
            yield f"quantizer {key} is to have the codes {spec.grid} and fixed ones {spec.fixed.grid}"


def _quantizers(plan: Plan) -> Problems:
    for key, found in plan.quantizers.items():
        if text := _quantizer_problem(found, plan.specs[key]):
            yield f"quantizer {key} {text}"


def _quantizer_problem(found: Quantizer, spec: ActivationSpec) -> str:
    """Say in which way a quantizer is none, or not one of its spec."""
    if found.grid != spec.grid and not (spec.power_of_two and found.grid.is_within(spec.grid)):
        return f"has the codes {found.grid}, its spec {spec.grid}"
    if not LEAST <= found.scale <= LARGEST / found.grid.steps:
        return f"has the scale {found.scale}: not a positive float32 number"
    if not found.grid.low <= found.zero_point <= found.grid.high:
        return f"has the zero point {found.zero_point}: not one of {found.grid}"
    if spec.fixed is not None:
        return "" if found == spec.fixed else "differs from the one that the operator dictates"
    if spec.even_zero_point and found.zero_point % 2:
        return f"has the zero point {found.zero_point}: its kernel wants an even one"
    if spec.power_of_two and not is_power(found.scale):
        return f"has the scale {found.scale}: its target wants a power of two"
    if spec.symmetric and found.zero_point:
        return f"has the zero point {found.zero_point}: its target wants 0"
    if found.low < spec.lower * (1 + ROUNDING) or found.high > spec.upper * (1 + ROUNDING):
        return f"reaches from {found.low:g} to {found.high:g}: beyond its bounds, {spec.lower:g} and {spec.upper:g}"
    return ""


def _weights(plan: Plan) -> Problems:
    for name, weight in plan.weights.items():
        node = plan.nodes.get(name)
        if node is None:
            yield f"weight {name!r} belongs to no node"
        elif weight.spec.block != node.block:
            yield f"weight {name!r} has blocks of {weight.spec.block}, its node of {node.block}"
        elif weight.bits != node.weight_bits:
            yield f"weight {name!r} has {weight.bits} bits, its node {node.weight_bits}"
        elif text := _weight_problem(weight):
            yield f"weight {name!r} {text}"


def _weight_problem(weight: WeightQuantizer) -> str:
    """Say in which way a weight is none."""
    if weight.axis >= weight.codes.ndim:
        return f"has no axis {weight.axis}"
    if weight.spec.block and (weight.codes.ndim != 2 or weight.codes.shape[1 - weight.axis] % weight.spec.block):
        return f"has blocks of {weight.spec.block}, which do not divide it"
    count = math.prod(weight.shared_shape)
    for part, kind in (("codes", np.uint8), ("scale", np.float32), ("step", np.int8), ("offset", np.int8)):
        array = getattr(weight, part)
        if array.dtype != kind or (part != "codes" and array.shape != (count,)):
            shape = "" if part == "codes" else f" [{count}]"
            return f"has {part} {array.dtype} {list(array.shape)}, not {np.dtype(kind).name}{shape}"
    if not ((weight.scale >= LEAST) & (weight.scale <= LARGEST / WEIGHTS.high)).all():
        return "has a scale that is not a positive float32 number"
    if not weight.spec.obeyed_by(weight.scale):
        return "has scales that its target does not take: one for all channels, or powers of two"
    if not (weight.step > 0).all():
        return "has a step that is not above 0"
    if weight.codes.max(initial=0) > largest_code(weight.bits):
        return f"has the code {weight.codes.max()}: not one of 0 .. {largest_code(weight.bits)}"
    lattice = weight.lattice()
    if lattice.size and (lattice.min() < WEIGHTS.low or lattice.max() > WEIGHTS.high):
        return f"has integers beyond {WEIGHTS.low} .. {WEIGHTS.high}"
    return ""


def _biases(plan: Plan) -> Problems:
    for name, bias in plan.biases.items():
        weight = plan.weights.get(name)
        if weight is None:
            yield f"bias {name!r} belongs to no weight"
        elif bias.dtype != np.float32 or bias.shape != (weight.channels,):
            yield f"bias {name!r} is {bias.dtype} {list(bias.shape)}, not float32 [{weight.channels}]"
        elif not np.isfinite(bias).all():
            yield f"bias {name!r} holds NaN or infinity"


def _units(plan: Plan) -> Problems:
    """Units have names and nodes of their own; whatever is said of units names some that exist."""
    units = {unit.name for unit in plan.units}
    for what, names in (
        ("unit", [unit.name for unit in plan.units]),
        ("node", [node for unit in plan.units for node in unit.nodes]),
        ("unit of a region", [name for region in plan.regions for name in region]),
    ):
        yield from (f"{what} {name!r} is there {times} times" for name, times in Counter(names).items() if times > 1)
    named = [name for region in plan.regions for name in region] + [*plan.capacities, *plan.losses]
    named += [name for pair in plan.boundaries for name in (pair.first, pair.second)]
    yield from (f"there is no unit {name!r}" for name in named if name not in units)
    yield from ("a region has no unit" for region in plan.regions if not region)
    unknown = (node for unit in plan.units for node in unit.nodes if node not in plan.nodes)
    yield from (f"a unit has a node {name!r}, which does not exist" for name in unknown)


def _is_width(bits: int) -> bool:
    return BITS[0] <= bits <= BITS[1]


# In this order: a rule may take for granted what those before it have found right.
RULES: tuple[Callable[[Plan], Problems], ...] = (
    _bits, _groups, _keys, _reads, _specs, _quantizers, _weights, _biases, _units,
)  # fmt: skip

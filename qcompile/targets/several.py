"""One plan for several targets: fact by fact what all of them take."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from qcompile.errors import InputError
from qcompile.ir import Node
from qcompile.targets.own import DIGITS, FORMS
from qcompile.targets.schema import Target, release

Rule = Callable[[Sequence[Any]], Any]
ROUND_MOST: Final = ("ort-cpu", "qdq", "academic")  # backends: simulations round as the first that is there


def _common(sets: Sequence[frozenset[str]]) -> frozenset[str]:
    return frozenset.intersection(*sets)


def _joined(sets: Sequence[Iterable[str]]) -> frozenset[str]:
    return frozenset().union(*sets)


# What becomes of a fact of which targets have different values; what is not named here is that of the first.
RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(("compute", "arithmetic", "codes", "clips", "float_output"), _common),
    **dict.fromkeys(("even_zero_point", "per_tensor_weights"), _joined),
    "power_of_two": lambda items: tuple(sorted(_joined(items))),
    "symmetric": any,
    "costly_zero_points": any,
    "zero_biases": all,
    "unrounded_sums": all,  # who would add what is not rounded takes what is
    "unrounded_floats": all,
    "bias": lambda items: "int32" if "int32" in items else "float32",
    "backend": lambda items: min(items, key=ROUND_MOST.index),
    "kernels": lambda items: items[0] if len({*items}) == 1 else "others",
    "opset": max,
    "runtime": lambda items: max(items, key=release),
    "least_output_scale": lambda items: {op: max(item.get(op, 0.0) for item in items) for op in _joined(items)},
}


def merged(targets: Sequence[Target]) -> Target:
    """Return the target whose plans all of these take, its `parts`. Raises InputError where there is none."""
    names = ",".join(target.name for target in targets)
    if len({target.name for target in targets}) < len(targets):
        raise InputError(f"--target {names} names one twice", remedy="leave one of them out")
    facts = {fact: rule([getattr(target, fact) for target in targets]) for fact, rule in RULES.items()}
    facts |= {"name": names, "like": "", "digest": _digest(targets), "codes_since": {}, "packing_since": {}}
    facts |= {"activations": _activations(targets), "checks": _checks(targets), "dictated": _dictated(targets)}
    facts |= {"float_reasons": _float_reasons(targets, facts)}
    parts = tuple(replace(target, opset=facts["opset"], runtime=facts["runtime"]) for target in targets)
    found = replace(targets[0], **facts, parts=parts)
    if found.symmetric and found.activations == "uint8":
        around_0 = next(target.name for target in targets if target.symmetric)
        raise _no_plan(targets, f"zero points are 0 on {around_0}, and uint8 has no code below it")
    if not found.compute:
        raise _no_plan(targets, "no operator with a weight is in the facts of all")
    return found


def _no_plan(targets: Sequence[Target], why: str) -> InputError:
    names, them = ",".join(target.name for target in targets), "both" if len(targets) == 2 else "all"
    return InputError(f"--target {names}: no plan serves {them}: {why}", remedy="compile for one after the other")


def _digest(targets: Sequence[Target]) -> str:
    """Return a hash of the facts that only files have, or "" where there are none."""
    digests = "".join(target.digest for target in targets)
    return hashlib.sha256(digests.encode()).hexdigest()[:DIGITS] if digests else ""


def _activations(targets: Sequence[Target]) -> str:
    """Return the type of codes, which a target without integers leaves to the others."""
    kinds = {target.activations: target.name for target in targets if target.kernels != "none"}
    if len(kinds) > 1:
        types = ", ".join(f"{kind} on {name}" for kind, name in kinds.items())
        raise _no_plan(targets, f"codes of activations are {types}")
    return next(iter(kinds), targets[0].activations)


def _checks(targets: Sequence[Target]) -> dict[str, Callable[[Node], str]]:
    """Return, by operator, what gives the first reason that any target has against a node."""

    def first(op: str) -> Callable[[Node], str]:
        own = [target.checks[op] for target in targets if op in target.checks]
        return lambda node: next((text for check in own if (text := check(node))), "")

    return {op: first(op) for op in _joined([target.checks for target in targets])}


def _dictated(targets: Sequence[Target]) -> dict[str, Any]:
    """Return the quantizers that operators dictate on any target."""
    found: dict[str, Any] = {}
    for target in targets:
        for op, quantizer in target.dictated.items():
            if found.setdefault(op, quantizer) != quantizer:
                raise _no_plan(targets, f"{op} has another quantizer on {target.name}")
    return found


def _float_reasons(targets: Sequence[Target], facts: Mapping[str, Any]) -> dict[str, str]:
    """Return why operators stay float: those too that some of the targets have, or have in another form."""
    reasons = {op: text for target in reversed(targets) for op, text in target.float_reasons.items()}
    common = _joined([facts[form] for form in FORMS])
    for target in targets:
        lost = _joined([getattr(target, form) for form in FORMS]) - common
        reasons |= dict.fromkeys(lost, "not in the same form on all targets")
    return reasons

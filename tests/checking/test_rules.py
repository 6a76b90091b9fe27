"""Every rule: a file that keeps it, one that breaks it, and what ONNX Runtime does with both."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from rule_examples import BASES, EXAMPLES, MEASURED, Example, parsed

from qcompile.checking.graph import QuantizedFile
from qcompile.checking.kernels import Kernels
from qcompile.checking.rules import FUNCTIONS, RULES, Rule
from qcompile.checking.rules.text import document, explained
from qcompile.errors import QCompileError
from qcompile.runtime.session import Session

DOCS = Path(__file__).parents[2] / "docs" / "rules.md"
FAMILIES = {"ort": ("QC1", "QC2", "QC4"), "matmul": ("QC1", "QC2", "QC4"), "tensorrt": ("QC2", "QC3", "QC4")}
ASKED = {"QC100", "QC110"}  # that the runtime answers
named = pytest.mark.parametrize("example", EXAMPLES, ids=str)


@pytest.mark.parametrize("base", BASES)
def test_good_files_keep_all_rules_of_their_runtime(base: str) -> None:
    model = parsed(BASES[base])
    onnx.checker.check_model(model, full_check=True)
    file = QuantizedFile(model)
    found = {code: rule.find(file) for code, rule in RULES.items() if code.startswith(FAMILIES[base])}
    assert {code: findings for code, findings in found.items() if findings} == {}


@named
def test_a_broken_rule_is_found_where_it_is_broken(example: Example) -> None:
    assert RULES[example.code].find(QuantizedFile(example.kept())) == []
    assert example.node in dict(RULES[example.code].find(QuantizedFile(example.broken())))


def test_every_rule_has_an_example_and_a_function() -> None:
    assert {example.code for example in EXAMPLES} == RULES.keys() - ASKED == FUNCTIONS.keys()


HERE = [example for example in EXAMPLES if "ort-cpu" in RULES[example.code].runtimes]
MISSED = [example for example in HERE if RULES[example.code].kernels == "missed"]
USED = [example for example in HERE if RULES[example.code].kernels == "used"]


@MEASURED
@pytest.mark.parametrize("example", MISSED, ids=str)
def test_a_missed_kernel_is_missed_by_the_runtime(example: Example) -> None:
    kept, broken = (Kernels(QuantizedFile(model)) for model in (example.kept(), example.broken()))
    assert kept.verdict.floating == [] and kept.verdict.refused == broken.verdict.refused == ""
    assert broken.integer[example.node] is False


@pytest.mark.parametrize("example", USED, ids=str)
def test_what_a_kernel_does_is_found_in_front_of_one(example: Example) -> None:
    assert Kernels(QuantizedFile(example.broken())).integer[example.node] is True


@pytest.mark.parametrize("example", [item for item in EXAMPLES if item.effect == "differs"], ids=str)
def test_silently_wrong_numbers_are_wrong(example: Example) -> None:
    """Optimized and not, the good file computes the same up to a step of a code; the broken one does not."""
    assert most_different(example.kept()) < 0.1 and most_different(example.broken()) > 0.5


def most_different(model: onnx.ModelProto) -> float:
    """Return by how much outputs differ at most with and without optimizations, for inputs at the ends of the grid."""
    (feed,) = model.graph.input
    shape = [size.dim_value or 2 for size in feed.type.tensor_type.shape.dim]
    random = np.random.default_rng(0)
    inputs = [np.full(shape, 9), np.full(shape, -9), random.uniform(-2, 2, shape), random.choice([-9, 9], shape)]
    found = []
    for values in inputs:
        runs = [Session(model, level=level, threads=1).run({feed.name: values.astype("f")}) for level in ("off", "all")]
        found += [float(np.abs(runs[0][name] - runs[1][name]).max()) for name in runs[0]]
    return max(found)


@pytest.mark.parametrize("example", [item for item in EXAMPLES if item.effect == "refuses"], ids=str)
def test_what_kernels_refuse_loads_and_does_not_run(example: Example) -> None:
    session = Session(example.broken())
    with pytest.raises(QCompileError, match="QLinearConv"):
        session.run({"x": np.zeros((1, 2, 4, 4), np.float32)})


def test_documents_say_what_the_catalogue_says(request: pytest.FixtureRequest) -> None:
    head, mark, text = DOCS.read_text(encoding="utf-8").partition("## The rules\n\n")
    if request.config.getoption("--update-golden"):
        DOCS.write_text(head + mark + (text := document(RULES.values())), encoding="utf-8")
    assert text == document(RULES.values())


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_rules_say_what_why_and_how_to_mend(rule: Rule) -> None:
    text = explained(rule)
    assert text.startswith(f"{rule.code}: {rule.title}") and f"Mend: {rule.mend[:20]}" in text
    assert rule.severity in ("wrong", "slow", "note") and rule.runtimes and rule.why.endswith(".")
    assert not rule.title.endswith(".")


def test_codes_that_rules_name_exist() -> None:
    texts = [text for rule in RULES.values() for text in (rule.why, rule.mend)]
    assert set(re.findall(r"QC\d+", " ".join(texts))) <= RULES.keys()

"""What the parser and the builder of TensorRT-RTX say of files that break its rules, and of those that keep them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from rule_examples import BASES, EXAMPLES, Example, parsed

from qcompile.checking.rules import RULES

pytest.importorskip(
    "tensorrt_rtx_bindings", reason="needs TensorRT-RTX: make test-tensorrt, or pip install '.[tensorrt]'"
)
from tensorrt_rtx import complaints

WRONG = [example for example in EXAMPLES if example.code.startswith("QC3") and RULES[example.code].severity == "wrong"]


def said(path: Path, model: onnx.ModelProto) -> list[str]:
    onnx.save(model, path)
    return complaints(path)


def test_a_file_that_keeps_the_rules_is_taken(tmp_path: Path) -> None:
    assert said(tmp_path / "kept.onnx", parsed(BASES["tensorrt"])) == []


@pytest.mark.parametrize("example", WRONG, ids=str)
def test_a_file_that_breaks_one_is_not_taken_without_a_word(example: Example, tmp_path: Path) -> None:
    assert said(tmp_path / "broken.onnx", example.broken()) != []

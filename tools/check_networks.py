"""Which networks of the library timm come through the compiler whole: W4A4, a few steps of training per unit.

    pip install torch torchvision timm
    python tools/check_networks.py resnet18 mobilevit_xxs mixer_s16_224
    python tools/check_networks.py convnext_atto --exporter dynamo

Weights and images are random, so accuracies say nothing. What is looked for: errors, and units that stay untrained.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import assets  # noqa: F401  (puts the checkout on the path)
import numpy as np
import timm
import torch
from rich.console import Console
from rich.table import Table

import qcompile

SIZE, SAMPLES, STEPS = 96, 24, 5
COLUMNS = ("network", "regions", "untrained", "the first reason")


def network(name: str) -> torch.nn.Module:
    """Return a network with random weights whose activations neither die nor explode."""
    torch.manual_seed(0)
    try:
        made = timm.create_model(name, img_size=SIZE)
    except TypeError:  # only those that count tokens want the size of the images
        made = timm.create_model(name)
    for layer in made.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            layer.weight.data.uniform_(0.5, 1.2)
            layer.bias.data.normal_(0, 0.2)
    return made.eval()


def export(name: str, path: Path, exporter: str) -> None:
    """Write the network to `path`, as the new or the old exporter of torch does."""
    image = (torch.randn(2, 3, SIZE, SIZE),)
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    if exporter == "dynamo":
        torch.onnx.export(network(name), image, path, dynamic_shapes=({0: "N"},), dynamo=True, **names)
    else:
        axes = {"x": {0: "N"}, "y": {0: "N"}}
        torch.onnx.export(network(name), image, path, dynamic_axes=axes, opset_version=17, dynamo=False, **names)


def images() -> dict[str, np.ndarray]:
    """Return random images with some structure."""
    random = np.random.default_rng(0)
    coarse = random.normal(size=(SAMPLES, 3, SIZE // 8, SIZE // 8)).repeat(8, 2).repeat(8, 3)
    return {"x": (coarse + random.normal(size=(SAMPLES, 3, SIZE, SIZE))).astype(np.float32)}


def row(name: str, exporter: str) -> list[str]:
    """Return the line of one network."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        try:
            export(name, path, exporter)
        except Exception as error:  # of the library, of any kind
            return [name, "", "", f"not exported: {error}"[:200]]
        try:
            result = qcompile.compile(path, qcompile.Config(w=4, a=4, steps=STEPS, threads=1), images())
        except qcompile.QCompileError as error:
            return [name, "", "", f"ERROR {error}"]
    tried = result.qmodel.outcomes
    left = [outcome for outcome in tried if outcome.reason]
    reason = f"{left[0].piece}: {left[0].reason}" if left else ""
    return [name, str(len(tried)), str(len(left)), reason]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="NAME", help="as timm names them")
    parser.add_argument("--exporter", choices=("dynamo", "torchscript"), default="torchscript")
    arguments = parser.parse_args()
    table = Table(*COLUMNS, title=f"W4A4, {SAMPLES} random images of {SIZE}x{SIZE}, {STEPS} steps per unit")
    for name in arguments.networks:
        cells = row(name, arguments.exporter)
        print(*cells, file=sys.stderr)
        table.add_row(*cells)
    Console().print(table)


if __name__ == "__main__":
    main()

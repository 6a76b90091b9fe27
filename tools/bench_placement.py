"""Speed of W8A8 files whose networks gain little from integer kernels: all on integers, and float where that is faster.

    python tools/bench_placement.py                          a face detector and a face embedding, random weights
    python tools/bench_placement.py --model cls.onnx --shape 3,48,192

Processor time of one thread, files in turn in one run with the float model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from placement_models import MODELS
from rich.console import Console
from rich.table import Table

from qcompile import Config, compile
from qcompile.runtime.session import Session
from qcompile.runtime.timing import take_turns

PLACEMENTS = ("all", "auto", "fast")


def cases(paths: list[Path], shapes: list[str]) -> Iterator[tuple[str, onnx.ModelProto, tuple[int, ...]]]:
    """Yield name, model and the shape of its image."""
    for path, shape in zip(paths, shapes, strict=True):
        yield path.stem, onnx.load(path), tuple(int(size) for size in shape.split(","))
    for name, (build, size) in MODELS.items() if not paths else ():
        yield name, build(), size


def rows(name: str, model: onnx.ModelProto, shape: tuple[int, ...], seconds: float) -> Iterator[list[str]]:
    """Compile in every way, and yield the cells of a row for each."""
    images = {model.graph.input[0].name: np.random.default_rng(0).standard_normal((16, *shape)).astype(np.float32)}
    made, taken = {}, {}
    for placement in PLACEMENTS:
        start = time.process_time()
        made[placement] = compile(model, Config(placement=placement, threads=1), images)
        taken[placement] = time.process_time() - start
    sessions = [Session(model, threads=1), *(Session(result.model, threads=1) for result in made.values())]
    one = {key: array[:1] for key, array in images.items()}
    times = take_turns(sessions, one, seconds=seconds)
    for place, (placement, result) in enumerate(made.items(), start=1):
        kernels = result.report["audit"]["kernels"]
        integer = sum(count for op, count in kernels.items() if op in ("QLinearConv", "QGemm", "MatMulIntegerToFloat"))
        kept = sum(node.reason == "faster in float" for node in result.plan.nodes.values())
        speed = np.median(times[:, 0] / times[:, place])
        yield [
            name, placement, f"{np.median(times[:, 0]) * 1e3:.2f}", f"{np.median(times[:, place]) * 1e3:.2f}",
            f"{speed:.2f}", str(integer), str(kept), f"{taken[placement]:.0f}",
        ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", default=[])
    parser.add_argument("--shape", action="append", default=[], help="of its image, as 3,224,224")
    parser.add_argument("--seconds", type=float, default=5.0, help="to time the files of a model")
    given = parser.parse_args()
    columns = ("model", "placement", "float ms", "ms", "x float", "integer layers", "kept float", "compile s")
    table = Table(*columns, title="W8A8, batch 1, one thread, processor time")
    for name, model, shape in cases(given.model, given.shape):
        for cells in rows(name, model, shape, given.seconds):
            table.add_row(*cells)
    Console().print(table)


if __name__ == "__main__":
    main()

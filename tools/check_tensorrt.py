"""Files of target tensorrt: what parser and builder of TensorRT-RTX say of them, and how well they answer.

    python tools/check_tensorrt.py
    python tools/check_tensorrt.py resnet20 minilm

Each model is compiled by rounding, without training: at W8A8, and MiniLM also with 4-bit weights alone. Answers are
those of ONNX Runtime in float between quantizers, beside those of the file for ort-cpu on integers. Models without
labels are compared with the float model: SQNR on held-back samples. MobileNetV2 and the vision transformer have random
weights; `python tools/export_minilm.py` makes MiniLM. Needs tensorrt-rtx-cu12-bindings and -libs, no GPU.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from assets import CASES, ROOT, Case
from placement_models import mobilenet_v2
from rich.console import Console
from rich.table import Table
from scoring import score, top1
from tensorrt_rtx import complaints
from transformer_models import vision_transformer

from qcompile import Config, Result, compile

W8A8: dict[str, Any] = {"w": 8, "a": 8}
ALONE: dict[str, Any] = {"w": 4, "a": 32}
TOKENS = ROOT / "build" / "minilm_calib.npz"
BINDING = "has Int64 binding"  # said of inputs that are int64, whoever wrote the file
COLUMNS = ("model", "bits", "complaints", "float", "for ort-cpu", "for tensorrt", "measure")


@dataclass(frozen=True)
class Job:
    """One model, how it is compiled, and its case where it has labels; `size` is that of what its inputs leave open."""

    model: Callable[[], Path | onnx.ModelProto]
    data: Callable[[], Any]
    settings: tuple[dict[str, Any], ...] = (W8A8,)
    case: str = ""
    size: int = 1


def labelled(name: str, samples: int) -> Job:
    """Return the job of a case of the benchmarks."""
    case: Case = CASES[name]
    settings = W8A8 | {"preprocess": case.preprocess, "samples": samples}
    return Job(lambda: case.model, lambda: case.calibration, (settings,), name)


def noise(*shape: int) -> Callable[[], dict[str, Any]]:
    """Return images of noise with some structure."""
    return lambda: {"image": np.random.default_rng(0).standard_normal((64, *shape)).cumsum(-1).astype(np.float32) / 8}


DETECTOR = labelled("ppocr", 32)
JOBS = {
    "resnet20": labelled("resnet20", 256),
    "lite0": labelled("lite0", 128),
    "mobilenetv2": Job(mobilenet_v2, noise(3, 224, 224)),
    "detector": Job(DETECTOR.model, DETECTOR.data, DETECTOR.settings, size=320),
    "vit": Job(vision_transformer, noise(3, 224, 224)),
    "minilm": Job(
        lambda: ROOT / "build" / "minilm.onnx", lambda: TOKENS, (W8A8, ALONE, ALONE | {"block_size": 32}), size=32
    ),
}


def rows(name: str, job: Job, folder: Path) -> Iterator[list[str]]:
    """Compile a model with all its settings, and yield the cells of a row for each."""
    for settings in job.settings:
        path = folder / "tensorrt.onnx"
        made = compiled(job, settings, "tensorrt")
        made.save(path)
        said = [line for line in complaints(path, job.size) if BINDING not in line]
        others = "-"
        if settings["a"] == W8A8["a"]:
            beside = compiled(job, settings, "ort-cpu")
            beside.save(folder / "ort-cpu.onnx")
            others = measure(job, folder / "ort-cpu.onnx", beside, fuse_qdq=True)
        bits = made.plan.precision() + (f", blocks of {settings['block_size']}" if "block_size" in settings else "")
        exact = f"{top1(job.case):.2f}" if job.case else "-"
        what = "top-1" if job.case else "SQNR, dB"
        yield [name, bits, "; ".join(said) or "none", exact, others, measure(job, path, made, fuse_qdq=False), what]


def compiled(job: Job, settings: dict[str, Any], target: str) -> Result:
    """Compile by rounding alone."""
    return compile(job.model(), Config(**settings, target=target, method="rtn", threads=1), job.data())


def measure(job: Job, path: Path, made: Result, *, fuse_qdq: bool) -> str:
    """Return top-1 on labels, else the least SQNR of an output."""
    if job.case:
        return f"{score(job.case, path, fuse_qdq=fuse_qdq).top1:.2f}"
    return f"{min(output['sqnr_db'] for output in made.report['audit']['agreement']['outputs'].values()):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=f"default: {', '.join(JOBS)}")
    given = parser.parse_args()
    table = Table(*COLUMNS, title="target tensorrt, rounded")
    with tempfile.TemporaryDirectory() as folder:
        for name in given.models or JOBS:
            for cells in rows(name, JOBS[name], Path(folder)):
                table.add_row(*cells)
    Console(soft_wrap=True).print(table)


if __name__ == "__main__":
    main()

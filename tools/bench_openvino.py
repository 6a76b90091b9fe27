"""Files of target openvino in OpenVINO against the float model and NNCF's file: speed, kernels, accuracy.

    python tools/bench_openvino.py embedded lite0 ppocr vit --folder build/openvino

Needs openvino and nncf beside qcompile (pip install '.[openvino]' nncf); vit needs no assets. One thread, float32 where
there are no integers; every file runs once in each round, in CPU time. "low" compares the fastest tenth of the rounds,
which other processes disturb least. NNCF makes its file of the ONNX model with its defaults, from the same images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from assets import CASES, Case
from measure import measured
from numpy.typing import NDArray
from openvino_runs import INTEGERS, layer_types
from rich.console import Console
from rich.table import Table

PEER = "NNCF"
OURS = {"W8A8": ("--precision", "w8a8"), "W4A4": ("--precision", "w4a4", "--method", "rtn")}
BATCH = {"embedded": 16, "resnet20": 16}  # images in one run; 1 elsewhere
VERSION = openvino.__version__.partition("-")[0]
OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}


def vit(folder: Path) -> Case:
    """Return a transformer with random weights on noise: for speed and kernels alone."""
    import onnx
    from transformer_models import vision_transformer

    model, data = folder / "vit.onnx", folder / "vit.npz"
    if not data.exists():
        onnx.save(vision_transformer(), model)
        images = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3), dtype=np.uint8)
        np.savez(data, images=images)
    preprocess = "mean=0.485/0.456/0.406,std=0.229/0.224/0.225"
    case = CASES["embedded"]
    return replace(case, model=model, input="image", calibration=data, evaluation=data, preprocess=preprocess)


def quantize(case: Case, out: Path, images: int, *, transformer: bool) -> None:
    """Write NNCF's file of a model."""
    import nncf

    batches = nncf.Dataset(list(case.batches(case.calibration, images)))
    kind = nncf.ModelType.TRANSFORMER if transformer else None
    model = openvino.Core().read_model(case.model)
    made = nncf.quantize(model, batches, subset_size=images, model_type=kind)
    openvino.save_model(made, out, compress_to_fp16=False)


def files(name: str, case: Case, folder: Path, images: int) -> dict[str, Path]:
    """Return {what: file}, making those that are not in `folder` yet."""
    found = {"float": case.model, PEER: folder / f"{name}_nncf.xml"}
    found |= {what: folder / f"{name}_{what.lower()}.onnx" for what in OURS}
    if not found[PEER].exists():
        quantize(case, found[PEER], images, transformer=name == "vit")
    for what, flags in OURS.items():
        if not found[what].exists():
            measured(case.command(found[what], images, ("--target", "openvino", *flags)))
    return found


def seconds_of(models: list[Any], feeds: dict[str, NDArray[Any]], seconds: float) -> NDArray[np.float64]:
    """Return the CPU seconds of each model [rounds, models], taking turns."""
    requests, rounds = [model.create_infer_request() for model in models], []
    for request in requests:
        request.infer(feeds)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        row = []
        for request in requests:
            start = time.process_time()
            request.infer(feeds)
            row.append(time.process_time() - start)
        rounds.append(row)
    return np.array(rounds)


def classes(run: Any, batches: Iterator[dict[str, NDArray[Any]]]) -> NDArray[np.int64]:
    """Return the class that a model says of each image."""
    return np.concatenate([np.argmax(next(iter(run(feeds).values())), -1) for feeds in batches])


def top1(case: Case, path: Path, model: Any, images: int) -> list[str]:
    """Return top-1 in OpenVINO, and in ONNX Runtime where it reads the file."""
    from qcompile.runtime.session import Session

    labels = case.labels(case.evaluation)[:images]
    runs = [model] + ([Session(path, threads=1, fuse_qdq=False).run] if path.suffix == ".onnx" else [])
    scores = [100 * np.mean(classes(run, case.batches(case.evaluation, images, 16)) == labels) for run in runs]
    return [f"{score:.2f}" for score in scores] + [""] * (2 - len(scores))


def table(name: str, case: Case, folder: Path, given: argparse.Namespace) -> Table:
    """Measure all files of one model."""
    paths = files(name, case, folder, given.images)
    models = {what: openvino.Core().compile_model(path, "CPU", OPTIONS) for what, path in paths.items()}
    feeds = next(case.batches(case.evaluation, BATCH.get(name, 1), BATCH.get(name, 1)))
    times = seconds_of(list(models.values()), feeds, given.seconds)
    low = np.quantile(times, 0.1, axis=0)
    scored = name not in ("ppocr", "vit")
    title = f"{name}, batch {len(feeds[case.input])}, one thread, {len(times)} rounds, OpenVINO {VERSION}"
    columns = ("top-1", "in ONNX Runtime") if scored else ()
    result = Table("file", "MB", "ms", "x float", "low", "layers on integers", *columns, title=title)
    for place, (what, path) in enumerate(paths.items()):
        types = layer_types(models[what])
        size = sum(item.stat().st_size for item in path.parent.glob(f"{path.stem}.*") if item.suffix != ".npz") / 1e6
        ratios = [np.median(times[:, 0] / times[:, place]), low[0] / low[place]]
        integers = f"{sum(types[kind] for kind in INTEGERS)} of {types.total()}"
        cells = [what, f"{size:.2f}", f"{np.median(times[:, place]) * 1e3:.2f}", *(f"{ratio:.2f}" for ratio in ratios)]
        result.add_row(*cells, integers, *(top1(case, path, models[what], given.evaluate) if scored else ()))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="+", choices=[*sorted(CASES), "vit"])
    parser.add_argument("--images", type=int, default=64, help="to calibrate with")
    parser.add_argument("--evaluate", type=int, default=1000, help="images for top-1")
    parser.add_argument("--seconds", type=float, default=20.0, help="to time each model")
    parser.add_argument("--folder", type=Path, help="where files are kept and found again")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in given.case:
            Console().print(table(name, vit(folder) if name == "vit" else CASES[name], folder, given))


if __name__ == "__main__":
    main()

"""What onnxruntime.quantization reaches on the same images: accuracy, CPU time and memory of quantize_static.

    python tools/peer_onnxruntime.py score lite0 --images 256        top-1 with each calibrator, and the cost
    python tools/peer_onnxruntime.py cost lite0 --images 128         the cost alone
    python tools/peer_onnxruntime.py quantize lite0 OUT --method MinMax --images 128        one file

Used as its documentation asks: quant_pre_process first, then QDQ format, uint8 activations, int8 weights per channel.
Each file is made in a process of its own on one thread; the time holds everything, from starting Python to writing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import measured
from rich.console import Console
from rich.table import Table

METHODS = ("MinMax", "Percentile", "Entropy")


def quantize(case_name: str, out: Path, method: str, images: int) -> None:
    """Write the file that quantize_static makes."""
    import onnx.version_converter
    import onnxruntime as ort
    from assets import CASES
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class OneThread(ort.SessionOptions):  # type: ignore[misc]
        """Calibration has no option for it; more threads would be billed for waiting for each other."""

        def __init__(self) -> None:
            super().__init__()
            self.intra_op_num_threads = 1

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[dict[str, Any]] = case.batches(case.calibration, images)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    case = CASES[case_name]
    ort.SessionOptions = OneThread
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        source, model = case.model, onnx.load(case.model)
        if model.opset_import[0].version < 13:  # the first whose DequantizeLinear knows channels
            source = Path(folder) / "converted.onnx"
            onnx.save(onnx.version_converter.convert_version(model, 17), source)
        try:
            quant_pre_process(source, prepared)
        except Exception:  # symbolic shape inference does not know every model
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            out,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod[method],
        )


def quantize_command(case: str, out: Path, method: str, images: int) -> list[str]:
    """Return the command line that writes one file."""
    return [sys.executable, __file__, "quantize", case, str(out), "--method", method, "--images", str(images)]


def table(case: str, images: int, methods: list[str], scored: bool) -> Table:
    """Measure each calibrator in a child process and, if `scored`, the top-1 of its file."""
    title = f"quantize_static (u8s8, per channel), {case}, {images} images, one thread"
    scores = ["float", "top-1", "difference"] if scored else []
    result = Table("calibrator", "CPU s", "wall s", "peak MB", "file MB", *scores, title=title)
    with tempfile.TemporaryDirectory() as folder:
        for method in methods:
            out = Path(folder) / f"{method}.onnx"
            usage = measured(quantize_command(case, out, method, images))
            row = [method, *usage.columns(), f"{out.stat().st_size / 1e6:.2f}"]
            if scored:
                from scoring import top1  # after measuring: it loads onnxruntime

                reference, score = top1(case), top1(case, out)
                row += [f"{reference:.2f}", f"{score:.2f}", f"{score - reference:+.2f}"]
            result.add_row(*row)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["score", "cost", "quantize"])
    parser.add_argument("case", choices=["resnet20", "lite0", "ppocr"])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--images", type=int, default=128)
    given = parser.parse_args()
    if given.action == "quantize":
        if given.out is None:
            parser.error("quantize needs OUT, the file to write")
        quantize(given.case, given.out, (given.method or ["MinMax"])[0], given.images)
    else:
        Console().print(table(given.case, given.images, given.method or list(METHODS), given.action == "score"))


if __name__ == "__main__":
    main()

"""Cost of a whole compilation in a process of its own: CPU time and peak memory.

python tools/bench_compile.py lite0 --images 128       against quantize_static, MinMax and Percentile, same images
python tools/bench_compile.py memory                   with 64 and with 1000 images of 224x224
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from assets import CASES
from measure import measured
from peer_onnxruntime import quantize_command
from rich.console import Console
from rich.table import Table

FLAGS = ("--precision", "w8a8", "--threads", "1")


def against_peer(case_name: str, images: int) -> Table:
    """Compile with qcompile and with quantize_static; ratios are ours over theirs."""
    title = f"{case_name}, W8A8, {images} images, one thread"
    table = Table("command", "CPU s", "wall s", "peak MB", "CPU ratio", "memory ratio", title=title)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        ours = measured(CASES[case_name].command(out, images, FLAGS))
        table.add_row("qcompile --method rtn", *ours.columns())
        for method in ("MinMax", "Percentile"):
            peer = measured(quantize_command(case_name, out, method, images))
            ratios = [ours.cpu_seconds / peer.cpu_seconds, ours.peak_bytes / peer.peak_bytes]
            table.add_row(f"quantize_static {method}", *peer.columns(), *(f"{ratio:.2f}" for ratio in ratios))
    return table


def memory() -> Table:
    """Compile Lite0 with few and with many images: what is held must not grow with their number."""
    case = CASES["lite0"]
    table = Table("images", "CPU s", "wall s", "peak MB", title="lite0, W8A8: memory against the number of images")
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "images"
        pictures.mkdir()
        for path in [*case.calibration.glob("*.jpg"), *case.evaluation.glob("*.jpg")]:
            (pictures / path.name).symlink_to(path)
        for images in (64, 1000):
            usage = measured(case.command(Path(folder) / "out.onnx", images, FLAGS, data=pictures))
            peaks.append(usage.peak_bytes)
            table.add_row(str(images), *usage.columns())
    table.caption = f"1000 images take {peaks[1] / peaks[0]:.2f} times the memory of 64"
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*sorted(CASES), "memory"])
    parser.add_argument("--images", type=int, default=128)
    given = parser.parse_args()
    Console().print(memory() if given.what == "memory" else against_peer(given.what, given.images))


if __name__ == "__main__":
    main()

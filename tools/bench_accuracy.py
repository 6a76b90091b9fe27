"""Compile at several bit-widths and score each emitted file on the labelled images against the float model.

    python tools/bench_accuracy.py resnet20 --images 1024 --bits w8a8 --bits w4a8 --bits w4a4
    python tools/bench_accuracy.py lite0 --images 256 --bits w8a8 -- --calibration-method percentile

What stands behind -- goes to every compile command.
"""

from __future__ import annotations

import argparse
import shlex
import tempfile
from pathlib import Path

from assets import CASES
from measure import measured
from rich.console import Console
from rich.table import Table
from scoring import top1


def table(case_name: str, images: int, precisions: list[str], flags: tuple[str, ...]) -> Table:
    """Compile, score and compare; one row per precision."""
    case = CASES[case_name]
    title = f"{case_name}, {images} calibration images, {len(case.labels(case.evaluation))} evaluation images"
    result = Table("bits", "float", "quantized", "difference", "file / float", "CPU s", title=title)
    commands = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in precisions:
            out = Path(folder) / f"{case_name}_{precision}.onnx"
            command = case.command(out, images, ("--precision", precision, *flags))
            usage = measured(command)
            reference, score = top1(case_name), top1(case_name, out)
            size = out.stat().st_size / case.model.stat().st_size
            cells = [f"{reference:.2f}", f"{score:.2f}", f"{score - reference:+.2f}", f"{size:.3f}"]
            result.add_row(precision, *cells, f"{usage.cpu_seconds:.1f}")
            commands.append(shlex.join(["qcompile", *command[3:]]))
    result.caption = "\n".join(commands)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=["resnet20", "embedded", "lite0"])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--bits", action="append")
    given, flags = parser.parse_known_args()  # other flags are the compiler's
    precisions = given.bits or ["w8a8", "w4a8", "w4a4"]
    Console(soft_wrap=True).print(table(given.case, given.images, precisions, tuple(flags)))


if __name__ == "__main__":
    main()

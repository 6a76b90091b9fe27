"""Compile at several bit-widths and score each emitted file on the labelled images against the float model.

    python tools/bench_accuracy.py resnet20 --images 1024 --bits w8a8 --bits w4a8 --bits w4a4
    python tools/bench_accuracy.py resnet20 --images 1024 --bits w4a4 --method qdrop --seed 0 --seed 1
    python tools/bench_accuracy.py lite0 --images 256 --bits w8a8 --calibration-method percentile

Flags that it does not know go to every compile command. KL is that of the float model's answers and the file's.
"""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from statistics import mean

from assets import CASES
from measure import measured
from rich.console import Console
from rich.table import Table
from scoring import classifier_parser, score, top1


def table(case_name: str, images: int, precisions: list[str], seeds: list[int], flags: tuple[str, ...]) -> Table:
    """Compile, score and compare; one row per precision and seed, one with the means of several seeds."""
    case = CASES[case_name]
    reference = top1(case_name)
    title = f"{case_name}, {images} calibration images, {len(case.labels(case.evaluation))} evaluation images"
    columns = ("bits", "seed", "float", "quantized", "difference", "KL", "file / float", "CPU s", "peak MB")
    result = Table(*columns, title=title)
    commands = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in precisions:
            found = []
            for seed in seeds:
                out = Path(folder) / f"{case_name}_{precision}.onnx"
                command = case.command(out, images, ("--precision", precision, "--seed", str(seed), *flags))
                usage, scored = measured(command), score(case_name, out)
                size = out.stat().st_size / case.model.stat().st_size
                found.append((scored.top1, scored.kl))
                result.add_row(
                    precision, str(seed), *_cells(reference, scored.top1, scored.kl),
                    f"{size:.3f}", f"{usage.cpu_seconds:.1f}", f"{usage.peak_bytes / 1e6:.0f}",
                )  # fmt: skip
                commands.append(shlex.join(["qcompile", *command[3:]]))
            if len(seeds) > 1:
                result.add_row(precision, "mean", *_cells(reference, *map(mean, zip(*found))))
    result.caption = "\n".join(commands)
    return result


def _cells(reference: float, found: float, kl: float) -> list[str]:
    return [f"{reference:.2f}", f"{found:.2f}", f"{found - reference:+.2f}", f"{kl:.3f}"]


def main() -> None:
    parser = classifier_parser(__doc__, images=256)
    given, flags = parser.parse_known_args()  # other flags are the compiler's
    precisions, seeds = given.bits or ["w8a8", "w4a8", "w4a4"], given.seed or [0]
    Console(soft_wrap=True).print(table(given.case, given.images, precisions, seeds, tuple(flags)))


if __name__ == "__main__":
    main()

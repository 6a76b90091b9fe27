"""Train unit by unit, and with units fused by each criterion; score the files, and say what was fused.

    python tools/bench_fusion.py embedded --images 1024 --bits w2a4 --steps 100
    python tools/bench_fusion.py resnet20 --bits w4a4 --bits w2a4 --seed 0 --seed 1 --fuse-top-k 2

Flags that it does not know go to every compile command. Total steps are the same, but for those that measure losses
(`--score-steps`), which the CPU time has in it. Where nothing was fused, the file is that of QDrop.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean

from assets import CASES
from measure import measured
from rich.console import Console
from rich.table import Table
from scoring import score, top1

MRECG = ("--method", "mrecg", "--fuse-by")
WAYS: dict[str, tuple[str, ...]] = {
    "qdrop": ("--method", "qdrop"),
    "data-free": (*MRECG, "data-free"),
    "data-dependent": (*MRECG, "data-dependent"),
    "loss": (*MRECG, "loss"),
}
COLUMNS = ("bits", "fused by", "seed", "top-1", "difference", "KL", "CPU s", "fused")


def table(given: argparse.Namespace, flags: tuple[str, ...]) -> Table:
    """Compile and score in every way; one row per precision, way and seed, one with the means of several seeds."""
    reference, seeds = top1(given.case), given.seed or [0]
    result = Table(title=f"{given.case}, {given.images} calibration images, float {reference:.2f}")
    for column in COLUMNS:
        result.add_column(column, no_wrap=True)
    for precision in given.bits or ["w4a4", "w2a4"]:
        for way, chosen in WAYS.items():
            found = []
            count = ("--fuse-top-k", given.fuse_top_k) if "mrecg" in chosen else ()
            for seed in seeds:
                more = ("--precision", precision, "--seed", str(seed), *chosen, *count, *flags)
                *figures, regions = compiled(given.case, given.images, more)
                found.append(figures)
                result.add_row(precision, way, str(seed), *_cells(reference, *figures), regions)
            if len(seeds) > 1:
                result.add_row(precision, way, "mean", *_cells(reference, *map(mean, zip(*found))), "")
    return result


def compiled(case_name: str, images: int, flags: tuple[str, ...]) -> tuple[float, float, float, str]:
    """Return top-1, KL, CPU seconds of the compilation and the units that it fused, by number."""
    with tempfile.TemporaryDirectory() as folder:
        out, report = Path(folder) / "out.onnx", Path(folder) / "report.json"
        usage = measured(CASES[case_name].command(out, images, (*flags, "--report", str(report))))
        scored = score(case_name, out)
        return scored.top1, scored.kl, usage.cpu_seconds, fused(report)


def fused(report: Path) -> str:
    """Return the regions of several units, each unit by its number."""
    found = json.loads(report.read_text(encoding="utf-8"))
    numbers = {row["name"]: str(number) for number, row in enumerate(found["units"])}
    return ", ".join("+".join(numbers[name] for name in row["units"]) for row in found["regions"] if row["units"][1:])


def _cells(reference: float, found: float, kl: float, seconds: float) -> list[str]:
    return [f"{found:.2f}", f"{found - reference:+.2f}", f"{kl:.4f}", f"{seconds:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=["resnet20", "embedded", "lite0"])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--bits", action="append")
    parser.add_argument("--seed", action="append", type=int)
    parser.add_argument("--fuse-top-k", default="auto")
    given, flags = parser.parse_known_args()  # other flags are the compiler's
    Console(soft_wrap=True, width=120).print(table(given, tuple(flags)))


if __name__ == "__main__":
    main()

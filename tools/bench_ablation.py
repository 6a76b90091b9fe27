"""What each part of the training recipe is worth: compile without it, or with another value, and score the files.

    python tools/bench_ablation.py resnet20 --images 1024 --bits w4a4 --bits w3a3 --bits w2a4 --seed 0 --seed 1
    python tools/bench_ablation.py lite0 --images 400 --bits w2a4 --only default --only qdrop --steps 250

Flags that it does not know go to every compile command, and --alter changes a constant in every row (see altered.py).
Each row is the mean over the seeds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from assets import CASES
from measure import measured
from rich.console import Console
from rich.table import Table
from scoring import classifier_parser, score, top1

RECIPE = "qcompile.training.recipe"
ALTERED = Path(__file__).with_name("altered.py")


@dataclass(frozen=True)
class Variation:
    """One change: `flags` of the compiler, or `constants` of its source (see altered.py)."""

    flags: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()


VARIATIONS = {
    "default": Variation(),
    "qdrop": Variation(("--method", "qdrop")),
    "no fusing": Variation(("--fuse-top-k", "0")),
    "fused by data-dependent": Variation(("--fuse-by", "data-dependent")),
    "fused by loss": Variation(("--fuse-by", "loss")),
    "pairs at most": Variation(("--max-fused", "2")),
    "fours at most": Variation(("--max-fused", "4")),
    "no rotation": Variation(constants=("qcompile.passes.rotate_channels:FEWEST=1000000",)),
    "short filters to nearest": Variation(constants=("qcompile.quant.filters:MOST_BITS=0",)),
    "short filters trained from the float weight": Variation(constants=("qcompile.training.rounding:LEANING=0.0",)),
    "half quantized": Variation(constants=(f"{RECIPE}:QUANTIZED.mrecg=(0.5, 0.5)",)),
    "three quarters quantized": Variation(constants=(f"{RECIPE}:QUANTIZED.mrecg=(0.75, 0.75)",)),
    "all quantized": Variation(("--method", "mrecg-brecq")),
    "no pull": Variation(constants=(f"{RECIPE}:PULL=0.0",)),
    "no hardening": Variation(constants=(f"{RECIPE}:LAST_STRETCH=1.2",)),
    "hardening to 16": Variation(constants=(f"{RECIPE}:LAST_STRETCH=16.0",)),
    "rounding rate 0.3": Variation(constants=(f"{RECIPE}:RATES.rounding=0.3",)),
    "rounding rate 0.05": Variation(constants=(f"{RECIPE}:RATES.rounding=0.05",)),
    "batches of 8": Variation(("--recon-batch", "8")),
    "batches of 32": Variation(("--recon-batch", "32")),
    "sums at A bits": Variation(("--residual-bits", "a")),
    "plain grids": Variation(constants=("qcompile.quant.scales:QUARTERS={}",)),
    "ranges by percentile": Variation(("--calibration-method", "percentile")),
}


def table(given: argparse.Namespace, flags: tuple[str, ...]) -> Table:
    """Compile and score every variation; a row per precision and variation."""
    reference, seeds = top1(given.case), given.seed or [0]
    result = Table(title=f"{given.case}, {given.images} calibration images, seeds {seeds}, float {reference:.2f}")
    for column in ("bits", "variation", "top-1", "difference", "KL", "CPU s"):
        result.add_column(column, no_wrap=True)
    for precision in given.bits or ["w4a4", "w3a3", "w2a4"]:
        for name in given.only or VARIATIONS:
            more = ("--precision", precision, *flags)
            variation = replace(VARIATIONS[name], constants=(*VARIATIONS[name].constants, *given.alter))
            found = [compiled(given.case, given.images, variation, more, seed) for seed in seeds]
            correct, kl, seconds = map(mean, zip(*found))
            cells = f"{correct:.2f}", f"{correct - reference:+.2f}", f"{kl:.4f}", f"{seconds:.0f}"
            result.add_row(precision, name, *cells)
            print(precision, name, *cells, file=sys.stderr, flush=True)
    return result


def compiled(
    case_name: str, images: int, variation: Variation, flags: tuple[str, ...], seed: int
) -> tuple[float, float, float]:
    """Return top-1 and KL of one file, and the CPU seconds of its compilation."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        command = CASES[case_name].command(out, images, ("--seed", str(seed), *flags, *variation.flags))
        interpreter, arguments = command[0], command[3:]
        usage = measured([interpreter, str(ALTERED), *variation.constants, "--", *arguments])
        scored = score(case_name, out)
        return scored.top1, scored.kl, usage.cpu_seconds


def main() -> None:
    parser = classifier_parser(__doc__, images=1024)
    parser.add_argument("--only", action="append", choices=list(VARIATIONS))
    parser.add_argument("--alter", action="append", default=[], metavar="MODULE:NAME=VALUE", help="in every row")
    given, flags = parser.parse_known_args()  # other flags are the compiler's
    Console(soft_wrap=True, width=120).print(table(given, tuple(flags)))


if __name__ == "__main__":
    main()

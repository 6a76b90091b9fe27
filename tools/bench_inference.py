"""Speed of emitted files against the float model and the file of quantize_static: one thread, taking turns in one run.

    python tools/bench_inference.py resnet20 --batch 64
    python tools/bench_inference.py lite0 --batch 1 --batch 8
    python tools/bench_inference.py ppocr --profile

Ratios are medians over rounds in which every file runs once, so that what else the machine does meets all alike. Files
are compiled first; with --folder they are kept there and found again.
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

PEER = "quantize_static"
OURS = {
    "W8A8": ("--precision", "w8a8"),
    "W4A4 narrow trunk": ("--precision", "w4a4", "--method", "rtn", "--residual-bits", "a"),
    "W4A4 wide trunk": ("--precision", "w4a4", "--method", "rtn"),
}


def files(case_name: str, folder: Path, images: int) -> dict[str, Path]:
    """Return {what: file}, making those that are not in `folder` yet."""
    case = CASES[case_name]
    found = {"float": case.model, PEER: folder / f"{case_name}_peer.onnx"}
    found |= {what: folder / f"{case_name}_{what.replace(' ', '_').lower()}.onnx" for what in OURS}
    for what, path in found.items():
        if not path.exists():
            measured(
                quantize_command(case_name, path, "MinMax", images)
                if what == PEER
                else case.command(path, images, OURS[what])
            )
    return found


def speed_table(case_name: str, models: dict[str, Path], batch: int, seconds: float) -> Table:
    """Time all files in turn on one batch."""
    import numpy as np

    from qcompile.runtime.session import Session
    from qcompile.runtime.timing import take_turns

    case = CASES[case_name]
    feeds = next(case.batches(case.evaluation, batch, batch))
    times = take_turns([Session(path, threads=1) for path in models.values()], feeds, seconds=seconds)
    by_name = dict(zip(models, times.T))
    title = f"{case_name}, batch {batch}, one thread, median of {len(times)} rounds"
    table = Table("file", "MB", "ms", "x float", f"x {PEER}", "time / W8A8", title=title)
    for name, path in models.items():
        ratios = [np.median(by_name["float"] / by_name[name]), np.median(by_name[PEER] / by_name[name])]
        over = np.median(by_name[name] / by_name["W8A8"])
        cells = [f"{path.stat().st_size / 1e6:.2f}", f"{np.median(by_name[name]) * 1e3:.2f}"]
        table.add_row(name, *cells, *(f"{ratio:.2f}" for ratio in ratios), f"{over:.2f}")
    return table


def profile_table(case_name: str, models: dict[str, Path], batch: int) -> Table:
    """Show where the time goes: milliseconds of one run by operator of the optimized graph."""

    from qcompile.runtime.timing import operator_seconds

    case = CASES[case_name]
    feeds = next(case.batches(case.evaluation, batch, batch))
    profiles = {name: operator_seconds(path, feeds) for name, path in models.items()}
    operators = {
        op: max(found.get(op, 0.0) for found in profiles.values()) for found in profiles.values() for op in found
    }
    table = Table("operator", *profiles, title=f"{case_name}, batch {batch}: ms by operator")
    for op in sorted(operators, key=lambda name: -operators[name]):
        if operators[op] >= 1e-5:  # a hundredth of a millisecond
            table.add_row(op, *(f"{found.get(op, 0.0) * 1e3:.2f}" for found in profiles.values()))
    table.add_section()
    table.add_row("all", *(f"{sum(found.values()) * 1e3:.2f}" for found in profiles.values()))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--images", type=int, default=64, help="to calibrate with")
    parser.add_argument("--seconds", type=float, default=20.0, help="to time each batch size")
    parser.add_argument("--folder", type=Path, help="where compiled files are kept")
    parser.add_argument("--profile", action="store_true", help="also print the time by operator")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        models = files(given.case, folder, given.images)
        for batch in given.batch or [1]:
            Console().print(speed_table(given.case, models, batch, given.seconds))
            if given.profile:
                Console().print(profile_table(given.case, models, batch))


if __name__ == "__main__":
    main()

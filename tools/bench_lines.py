"""Compile the text recogniser at several bit-widths and count the lines that each file reads as the float model does.

    python tools/bench_lines.py --bits w8a8 --bits w4a8 --method rtn
    python tools/bench_lines.py --bits w4a4

A line is what is left of the likeliest character at each place without repeats and without the blank (class 0).
"Warned of" says whether the compiler found the file far from the float model, by the lines that it holds back. What is
trained is listed too, with the CPU time that each piece took. Flags that it does not know go to every compile command.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from assets import ASSETS
from measure import measured
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from qcompile.runtime.session import Session

MODEL, LINES = ASSETS / "models" / "ppocr_v4_rec.onnx", ASSETS / "text_lines"


def scores(model: Path) -> NDArray[np.float32]:
    """Return what a model file makes of the lines that judge: [lines, places, characters]."""
    with np.load(LINES / "judge.npz") as arrays:
        images = (arrays["images"].astype(np.float32) - 127.5) / 127.5
    session = Session(model, threads=1)
    parts = [session.run({"x": part[None].transpose(0, 3, 1, 2)}) for part in images]
    return np.concatenate([part[session.outputs[0]] for part in parts])


def texts(found: NDArray[np.float32]) -> list[list[int]]:
    """Return the characters of each line."""
    return [[key for key, _ in groupby(line) if key] for line in found.argmax(-1).tolist()]


def tables(precisions: list[str], flags: list[str]) -> list[Table]:
    """Compile and compare; one row per precision, and for each that was trained a table of what was."""
    exact = scores(MODEL)
    result = Table(
        "bits", "lines equal", "SQNR dB", "warned of", "CPU s", "peak MB", title=f"{MODEL.name}, {len(exact)} lines"
    )
    commands, trained = [], list[Table]()
    with tempfile.TemporaryDirectory() as folder:
        for precision in precisions:
            out, report = Path(folder) / f"{precision}.onnx", Path(folder) / f"{precision}.json"
            options = ["--data", str(LINES / "calib.npz"), "--preprocess", "tf", "--precision", precision, *flags]
            command = [
                sys.executable,
                "-m",
                "qcompile",
                str(MODEL),
                "-o",
                str(out),
                "-q",
                *options,
                "--report",
                str(report),
            ]
            usage, found = measured(command), scores(out)
            equal = sum(one == two for one, two in zip(texts(exact), texts(found)))
            decibel = 10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum())
            told = json.loads(report.read_text())
            warned = any("differs much" in text for text in told["warnings"])
            trained += [pieces(precision, told["training"])] if told["training"] else []
            result.add_row(
                precision, f"{equal} of {len(exact)}", f"{decibel:.1f}", "yes" if warned else "no",
                f"{usage.cpu_seconds:.1f}", f"{usage.peak_bytes / 1e6:.0f}",
            )  # fmt: skip
            commands.append(shlex.join(["qcompile", *command[3:]]))
    result.caption = "\n".join(commands)
    return [result, *trained]


def pieces(precision: str, training: list[dict[str, Any]]) -> Table:
    """Return where the time of training went."""
    result = Table("piece", "units", "CPU s", "share", "error", title=f"{precision}, trained")
    total = sum(row["cpu_seconds"] for row in training)
    for row in training:
        names, seconds = row["piece"].split(" + "), row["cpu_seconds"]
        error = " to ".join(f"{row[key]:.3g}" for key in ("before", "after") if row[key] is not None)
        shown = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
        result.add_row(shown, str(len(names)), f"{seconds:.0f}", f"{100 * seconds / total:.0f} %", error)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", action="append")
    given, flags = parser.parse_known_args()  # other flags are the compiler's
    Console(soft_wrap=True).print(*tables(given.bits or ["w8a8", "w4a8"], flags), sep="\n")


if __name__ == "__main__":
    main()

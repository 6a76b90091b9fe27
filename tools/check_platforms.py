"""Run emitted files on x86-64, on three arm64 processors and in WebAssembly, and compare their outputs byte for byte.

    python tools/check_platforms.py build/platforms
    python tools/check_platforms.py build/platforms --case lite0 --bits w4a4 --method adaround --steps 200
    python tools/check_platforms.py build/platforms --file a.onnx --file b.onnx

Runtimes are fetched into the folder named first where they are not there yet (tools/platforms.py) and used again; arm64
is emulated. Without --file the cases are compiled, with the flags that this tool does not know (default: --method rtn);
the inputs are evaluation images. Those of --file are drawn from a fixed seed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from assets import CASES
from check_versions import random_feeds
from numpy.typing import NDArray
from platforms import commands, run
from rich.console import Console
from rich.table import Table

Feeds = dict[str, NDArray[Any]]


def compiled(folder: Path, case_name: str, precision: str, images: int, flags: Sequence[str]) -> tuple[Path, Feeds]:
    """Return an emitted file and the images it is run on."""
    case, file = CASES[case_name], folder / f"{case_name}_{precision}.onnx"
    run(case.command(file, 32, ("--precision", precision, *flags)), f"compile {case_name}")
    return file, next(iter(case.batches(case.evaluation, images, images)))


def drawn(file: Path, dynamic: int) -> Feeds:
    """Return inputs of a file from a fixed seed."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return random_feeds(session.get_inputs(), dynamic)


def job(file: Path, feeds: Feeds, folder: Path) -> dict[str, Any]:
    """Write the inputs of a file and return what run_outputs.py wants to know."""
    inputs = {}
    for name, array in feeds.items():
        stored = folder / f"{file.stem}.{len(inputs)}.input"
        stored.write_bytes(array.tobytes())
        inputs[name] = {"file": str(stored), "type": array.dtype.name, "shape": array.shape}
    return {"model": str(file), "inputs": inputs, "output": str(folder / f"{file.stem}.output")}


def difference(expected: bytes, found: bytes) -> str:
    """Say in how many bytes two outputs differ."""
    if len(expected) != len(found):
        return f"[red]{len(found):,} bytes, not {len(expected):,}"
    count = int((np.frombuffer(expected, np.uint8) != np.frombuffer(found, np.uint8)).sum())
    return f"[red]{count:,} of {len(expected):,} bytes differ" if count else "equal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--file", action="append", type=Path, help="an emitted file, in place of the cases")
    parser.add_argument("--case", action="append", choices=sorted(CASES), help="default: embedded and lite0")
    parser.add_argument("--bits", action="append", help="default: w8a8 and w4a4")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument(
        "--dynamic", type=int, default=224, help="of --file: size of dynamic dimensions behind the batch"
    )
    given, flags = parser.parse_known_args()
    platforms, work = commands(given.folder), given.folder / "files"
    work.mkdir(exist_ok=True)
    pairs = [(file.resolve(), drawn(file, given.dynamic)) for file in given.file or []] or [
        compiled(work.resolve(), case, bits, given.images, flags or ["--method", "rtn"])
        for case in given.case or ["embedded", "lite0"]
        for bits in given.bits or ["w8a8", "w4a4"]
    ]
    jobs = [job(file, feeds, work.resolve()) for file, feeds in pairs]
    (work / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    outputs, times = {}, {}
    for name, command in platforms.items():
        started = time.monotonic()
        run([*command, str(work / "jobs.json")], f"run the files on {name}")
        outputs[name] = [Path(item["output"]).read_bytes() for item in jobs]
        times[name] = time.monotonic() - started
    first = outputs.pop("x86-64")
    table = Table("file", *outputs, title=f"outputs compared with those of x86-64, {len(first)} files")
    for place, (file, _) in enumerate(pairs):
        table.add_row(file.stem, *(difference(first[place], found[place]) for found in outputs.values()))
    table.add_row("seconds", *(f"{times[name]:.0f}" for name in outputs), style="dim")
    Console().print(table)
    raise SystemExit(any(found != first for found in outputs.values()))


if __name__ == "__main__":
    main()

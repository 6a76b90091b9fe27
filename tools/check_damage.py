"""Edited plans, flipped bits of models, broken data: each gets one true line and exit code 2, or a right file.

    python tools/check_damage.py --plans 300 --models 200 --data 100 --seed 0 [--messages]

Stands alone: the model is made by numpy. Every case runs the whole command in a process of its own, which starts as a
copy of this one. A file that comes out is compared with the damaged float model: at least 20 dB, or a warning.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import assets  # noqa: F401  (puts the checkout on the path)
import damage
import numpy as np
import onnx

from qcompile.cli import main as qcompile
from qcompile.passes import validate
from qcompile.runtime.session import Session

SECONDS = 120  # of one case
LEAST_DB = 20.0 - 1.0  # below 20 dB there is a warning; on other samples it may be a little more or less
COMPILE = ("in.onnx", "--data", "calib.npz")
Result = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in (("plans", 300), ("models", 200), ("data", 100)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--messages", action="store_true", help="print each case with its line")
    given = parser.parse_args()
    validate.TIMING_SECONDS = 0.0  # nobody reads the speed of these files
    faults = 0
    with tempfile.TemporaryDirectory(prefix="damage-") as name:
        base = prepared(Path(name) / "base")
        for kind, count in (("plans", given.plans), ("models", given.models), ("data", given.data)):
            counts: Counter[str] = Counter()
            for number in range(count):
                result = case(kind, np.random.default_rng([given.seed, len(kind), number]), base)
                counts[result["verdict"]] += 1
                faults += result["fault"]
                if result["fault"] or given.messages:
                    print(f"{kind} {number}: {result['what']}\n    {result['verdict']}: {result['said']}", flush=True)
            print(f"{kind}: {count}")
            for verdict, times in counts.most_common():
                print(f"{times:6d}  {verdict}", flush=True)
    print(f"faults: {faults}")
    sys.exit(bool(faults))


def prepared(folder: Path) -> Path:
    """Return a folder with in.onnx, calib.npz and a plan of both."""
    folder.mkdir()
    onnx.save(damage.small_model(), folder / "in.onnx")
    np.savez(folder / "calib.npz", image=damage.samples(40, 1))
    made = in_process(
        folder, [*COMPILE, "-o", "out.onnx", "--w", "4", "--a", "4", "--method", "rtn", "--save-plan", "plan"]
    )
    assert made["code"] == 0, made
    (folder / "out.onnx").unlink()
    return folder


def case(kind: str, random: np.random.Generator, base: Path) -> Result:
    """Damage one file in a copy of `base`, run the command there, and judge."""
    folder = base.parent / "case"
    shutil.copytree(base, folder)
    try:
        what, arguments = DAMAGE[kind](random, folder)
        before = contents(folder)
        result = in_process(folder, [*arguments, "-o", "out.onnx", "--threads", "1", "-q"])
        after = contents(folder)
        made = after.pop("out.onnx", None) is not None
        return {**result, "what": what} | judged(result, made=made, touched=after != before)
    finally:
        shutil.rmtree(folder)


def damaged_plan(random: np.random.Generator, folder: Path) -> tuple[str, list[str]]:
    return damage.edited_plan(random, folder / "plan"), [*COMPILE, "--load-plan", "plan"]


def damaged_model(random: np.random.Generator, folder: Path) -> tuple[str, list[str]]:
    changed, what = damage.flipped_bit(random, (folder / "in.onnx").read_bytes())
    (folder / "in.onnx").write_bytes(changed)
    return what, [*COMPILE, "--method", "rtn"]


def damaged_data(random: np.random.Generator, folder: Path) -> tuple[str, list[str]]:
    path, what = damage.broken_data(random, folder)
    return what, ["in.onnx", "--data", path.name, "--method", "rtn"]


DAMAGE: dict[str, Callable[[np.random.Generator, Path], tuple[str, list[str]]]] = {
    "plans": damaged_plan, "models": damaged_model, "data": damaged_data,
}  # fmt: skip


def judged(result: Result, *, made: bool, touched: bool) -> Result:
    """Return the verdict on what a case said and left, and whether it is a fault."""
    errors = [line for line in result["said"].splitlines() if not line.startswith("warning: ")]
    code, said = result["code"], " | ".join(errors)
    if code not in (0, 2):
        verdict = f"exit {code}" if isinstance(code, int) else str(code)
    elif touched:
        verdict = "other files were touched"
    elif "Traceback" in result["said"]:
        verdict = "a traceback"
    elif code == 2:
        one = len(errors) == 1 and errors[0].startswith("error: ") and len(errors[0]) < 500
        good = one and not made
        return {
            "verdict": "refused in one line" if good else "not one line, or a file",
            "said": said,
            "fault": not good,
        }
    elif not made or errors:
        verdict = "no file, or more than warnings"
    else:
        warnings = [line for line in result["said"].splitlines() if "slower" not in line]
        close, warned = result["db"] >= LEAST_DB, bool(warnings)
        verdict = f"a file, {'20 dB or more' if close else 'warned' if warned else 'FAR FROM FLOAT WITHOUT A WARNING'}"
        said = f"{result['db']:.1f} dB {result['said'][:200]}"
        return {"verdict": verdict, "said": said, "fault": not (close or warned)}
    return {"verdict": verdict, "said": said, "fault": True}


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of every file below `folder`."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def in_process(folder: Path, arguments: list[str]) -> Result:
    """Run the command in a copy of this process, there; return its exit code, what it said, and the file's SQNR."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        signal.alarm(SECONDS)
        with os.fdopen(writer, "w") as file:
            file.write(json.dumps(run(arguments)))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        answer = file.read()
    _, status = os.waitpid(child, 0)
    return json.loads(answer) if answer else {"code": f"the process ended: {status}", "said": "", "db": 0.0}


def run(arguments: list[str]) -> Result:
    """Run the command here."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            qcompile(arguments)
        except SystemExit as left:
            code = left.code or 0
        except BaseException as error:
            code = f"{type(error).__name__} came through"
    db = sqnr() if code == 0 else 0.0
    return {"code": code, "said": err.getvalue().strip(), "db": db}


def sqnr() -> float:
    """Return the least SQNR of the file's outputs against the float model, in dB, on new samples."""
    model = onnx.load("in.onnx")
    name = model.graph.input[0].name
    feeds = {name: damage.samples(16, 2)}
    expected, found = Session(model, threads=1).run(feeds), Session("out.onnx", threads=1).run(feeds)
    noise = [float(np.square(expected[key] - found[key]).sum()) for key in found]
    power = [float(np.square(expected[key]).sum()) for key in found]
    return min(10 * np.log10(max(p, 1e-30) / max(n, 1e-30)) for p, n in zip(power, noise, strict=True))


if __name__ == "__main__":
    main()

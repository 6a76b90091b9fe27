"""Kill training with signal 9 at random moments, go on with --resume: the file must be that of a run nobody disturbed.

python tools/check_resume.py embedded --kills 10 --steps 20 --images 256
python tools/check_resume.py lite0 --kills 10 --precision w4a4 --steps 250 --images 400
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from assets import CASES
from measure import environment

from qcompile.training.work_dir import STATE

POLL = 0.02  # seconds


def outcomes(state: Path) -> int:
    """Return how many pieces are done; -1 before there is a state."""
    return len(json.loads(state.read_text())["outcomes"]) if state.exists() else -1


def run(command: Sequence[str]) -> float:
    """Run to the end; return the seconds it took."""
    start = time.perf_counter()
    subprocess.run(command, env=environment(), check=True)
    return time.perf_counter() - start


def killed(command: Sequence[str], state: Path, pieces: int, seconds: float) -> bool:
    """Run until `pieces` are done and so many seconds more, then kill; say whether there was anything to kill."""
    process = subprocess.Popen(command, env=environment())
    while process.poll() is None and outcomes(state) < pieces:
        time.sleep(POLL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    return process.wait() != 0


def check(command: list[str], out: Path, folder: Path, kills: int, seed: int) -> None:
    """Run once whole, then killed `kills` times; leave with 1 unless the files are the same."""
    work, state = folder / "work", folder / "work" / STATE
    command = [*command, "--work-dir", str(work)]
    seconds, pieces = run(command), outcomes(state)
    expected = out.read_bytes()
    out.unlink()
    shutil.rmtree(work)
    print(f"undisturbed: {seconds:.1f} s, {pieces} pieces")
    moments = random.Random(seed)
    for kill in range(kills):  # spread over the run, so that pieces early and late are hit
        more = ["--resume"] if state.exists() else []
        hit = killed([*command, *more], state, kill * pieces // kills, moments.uniform(0, seconds / pieces))
        print(f"kill {kill + 1}: {f'{outcomes(state)} pieces done' if hit else 'it had ended before'}", flush=True)
    run([*command, "--resume"])
    same = out.read_bytes() == expected
    print("the same file" if same else "ANOTHER FILE")
    sys.exit(not same)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--precision", default="w4a4")
    parser.add_argument("--method", default="qdrop")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    flags = ("--precision", given.precision, "--method", given.method, "--steps", str(given.steps))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out = folder / "out.onnx"
        check(CASES[given.case].command(out, given.images, flags), out, folder, given.kills, given.seed)


if __name__ == "__main__":
    main()

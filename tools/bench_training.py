"""CPU time of a whole compilation with training against the same training written plainly in torch.

    python tools/bench_training.py
    python tools/bench_training.py --steps 50        quickly: accuracy is not that of 1000 steps

ResNet-20, W4A4, BRECQ unit by unit, 1024 images. Each side runs in a process of its own, from starting Python to the
written file, ours with calibration, training, emission and validation. Scored afterwards: the torch network as it was
trained (fake-quant), our emitted file.

Waiting threads sleep (OMP_WAIT_POLICY=passive): on a machine that does something else, torch's two threads otherwise
burn several times the CPU time of the work.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path

from assets import CASES, ROOT
from measure import measured
from rich.console import Console
from rich.table import Table

CASE, IMAGES = "resnet20", 1024
os.environ["OMP_WAIT_POLICY"] = "passive"  # of the processes that are measured


def table(steps: int, batch: int, threads: int) -> Table:
    """Train with both, score both."""
    settings = ["--steps", str(steps)]
    with tempfile.TemporaryDirectory() as folder:
        out, state = Path(folder) / "out.onnx", Path(folder) / "net.pt"
        flags = ("--precision", "w4a4", "--method", "brecq", "--recon-batch", str(batch), *settings)
        command = CASES[CASE].command(out, IMAGES, (*flags, "--threads", str(threads)))
        ours = measured(command)
        peer = [sys.executable, str(ROOT / "tools" / "torch_brecq.py"), str(state), *settings]
        theirs = measured([*peer, "--batch", str(batch), "--threads", str(threads)])
        from scoring import top1  # after measuring: these load onnxruntime and torch
        from torch_brecq import accuracy

        reference, score, other = top1(CASE), top1(CASE, out), accuracy(state)
    title = f"{CASE}, W4A4, {steps} steps of batch {batch} per unit, {IMAGES} images, {threads} threads"
    result = Table("", "top-1", "CPU s", "wall s", "peak MB", "CPU time / torch", title=title)
    result.add_row("float", f"{reference:.2f}")
    result.add_row("torch", f"{other:.2f}", *theirs.columns(), "1.00")
    result.add_row("qcompile", f"{score:.2f}", *ours.columns(), f"{ours.cpu_seconds / theirs.cpu_seconds:.2f}")
    result.caption = shlex.join(["qcompile", *command[3:]])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="per unit")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    Console(soft_wrap=True).print(table(given.steps, given.batch, given.threads))


if __name__ == "__main__":
    main()

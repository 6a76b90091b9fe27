"""The float fake-quant graph against the emitted file: the same decisions, nearly the same codes layer by layer.

    python tools/check_simulation.py resnet20 --bits w8a8 --bits w4a4 --images 2000

"argmax" compares the outputs of the two files. "codes" feeds every step of the float simulation the file's own codes
and counts the results that differ, on the first batch; the share is that of the worst step.
"""

from __future__ import annotations

import argparse

import numpy as np
from assets import CASES
from check_codes import compiled, with_codes
from rich.console import Console
from rich.table import Table

from qcompile.execution.fragment import boundary, fragment
from qcompile.program.lower import lower
from qcompile.qmodel import QModel
from qcompile.runtime.session import Session
from qcompile.simulation import simulate


def agreement(model: QModel, case_name: str, images: int, batch: int) -> float:
    """Return the percentage of images to which file and simulation give the same class."""
    assert model.emitted is not None
    file = Session(model.emitted, threads=1)
    simulation = Session(simulate(model.graph, model.plan, "float"), threads=1, fuse_qdq=False)
    case, same, count = CASES[case_name], 0, 0
    for feeds in case.batches(case.evaluation, images, batch):
        ours, theirs = (next(iter(session.run(feeds).values())) for session in (simulation, file))
        same += int((ours.argmax(1) == theirs.argmax(1)).sum())
        count += len(ours)
    return 100 * same / count


def worst_step(model: QModel, case_name: str, batch: int) -> tuple[str, float, int]:
    """Return the step whose codes differ most: name, share in percent, largest difference in codes."""
    assert model.emitted is not None
    case, program = CASES[case_name], lower(model.graph, model.plan)
    watched, names = with_codes(model.emitted, program)
    feeds = next(iter(case.batches(case.evaluation, batch, batch)))
    known = {**feeds, **Session(watched, threads=1).run(feeds)}
    worst = ("", 0.0, 0)
    for step in program.steps:
        target = step.outputs[0].name
        inputs, _ = boundary([step])
        if target not in names or any(value.name not in known for value in inputs):
            continue
        alone = Session(fragment(model.graph, model.plan, [step], inputs, [target]), threads=1, fuse_qdq=False)
        made = alone.run({value.name: known[value.name] for value in inputs})[target]
        off = np.abs(made.astype(int) - known[target])
        worst = max(worst, (target, 100 * float((off > 0).mean()), int(off.max())), key=lambda row: row[1:])
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("--bits", action="append")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    given = parser.parse_args()
    table = Table(
        "bits", "same argmax, %", "worst step", "codes off, %", "by", title=f"{given.case}, {given.images} images"
    )
    for precision in given.bits or ["w8a8", "w4a4"]:
        model = compiled(given.case, precision)
        same = agreement(model, given.case, given.images, given.batch)
        step, share, size = worst_step(model, given.case, given.batch)
        table.add_row(precision, f"{same:.2f}", step, f"{share:.4f}", str(size))
    Console().print(table)


if __name__ == "__main__":
    main()

"""The integer reference against the emitted file: every code of every quantized tensor, on real images.

    python tools/check_codes.py resnet20 --images 64 --bits w8a8 --bits w4a4

Both run the whole network from the image. Where a code differs, the reference is run again on the file's own codes,
layer by layer, which shows where differences arise and where they are only passed on.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import onnx
from assets import CASES
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import qcompile
from qcompile.backends.ort_cpu.reference import IntegerReference
from qcompile.config import Config
from qcompile.passmanager import PassManager
from qcompile.pipeline import build
from qcompile.program.lower import Program, lower
from qcompile.qmodel import QModel
from qcompile.runtime.session import Session

Arrays = dict[str, NDArray[Any]]


@dataclass
class Count:
    """Codes compared, and those that differ, by tensor; `alone`: with each layer fed the file's own codes."""

    compared: Counter[str] = field(default_factory=Counter)
    differing: Counter[str] = field(default_factory=Counter)
    alone: Counter[str] = field(default_factory=Counter)


def compiled(case_name: str, precision: str) -> QModel:
    """Return a model with its plan and its emitted file."""
    case = CASES[case_name]
    weights, activations = int(precision[1]), int(precision[3])
    config = Config(w=weights, a=activations, method="rtn", preprocess=case.preprocess, samples=32, threads=1)
    model = qcompile.open_model(case.model, config, str(case.calibration))
    PassManager(build(config)).run(model)
    return model


def with_codes(emitted: onnx.ModelProto, program: Program) -> tuple[onnx.ModelProto, list[str]]:
    """Return the emitted model with every tensor of codes as an output (the kernels stay the same), and their names."""
    names = [value.name for step in program.steps for value in step.outputs if value.quantizer is not None]
    made = {name for node in emitted.graph.node for name in node.output}
    watched = onnx.ModelProto()
    watched.CopyFrom(emitted)
    names = [name for name in names if name in made]
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in names
    )
    return watched, names


def compare(case_name: str, precision: str, images: int, batch: int) -> Count:
    """Run file and reference on the same images and count."""
    case, model = CASES[case_name], compiled(case_name, precision)
    assert model.emitted is not None
    program = lower(model.graph, model.plan)
    watched, names = with_codes(model.emitted, program)
    session, reference, count = Session(watched, threads=1), IntegerReference(model.graph, model.plan, program), Count()
    for feeds in case.batches(case.evaluation, images, batch):
        file, ours = session.run(feeds, names), reference.run(feeds)
        differing = {name: int((file[name] != ours[name]).sum()) for name in names}
        count.compared.update({name: file[name].size for name in names})
        count.differing.update(differing)
        if any(differing.values()):
            alone = reference.run(feeds, given=file)
            count.alone.update({name: int((file[name] != alone[name]).sum()) for name in names})
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("--bits", action="append")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    given = parser.parse_args()
    table = Table(
        "bits", "tensors", "codes", "differ", "arise", "where they arise", title=f"{given.case}, {given.images} images"
    )
    for precision in given.bits or ["w8a8", "w4a4"]:
        count = compare(given.case, precision, given.images, given.batch)
        where = ", ".join(f"{name}: {number}" for name, number in count.alone.most_common(5) if number)
        sums = [sum(counts.values()) for counts in (count.compared, count.differing, count.alone)]
        table.add_row(precision, str(len(count.compared)), *(f"{total:,}" for total in sums), where)
    Console().print(table)


if __name__ == "__main__":
    main()

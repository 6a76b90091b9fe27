"""The two ways of writing a quantizer, in ONNX Runtime at its default options, against what the plan says.

    python tools/check_fake_quant.py resnet20 lite0 attention --bits w8a8 --bits w4a4

`pairs` are QuantizeLinear and DequantizeLinear around float operators, `rows` Div, Round, Mul, Clip as the target
academic writes them, these also at the level EXTENDED and without optimizations. All are compared with the pairs run
without optimizations and without Q/DQ fusion. Networks of the tests go by their names there, such as attention.
"""

from __future__ import annotations

import argparse

import numpy as np
import onnx
from assets import CASES
from rich.console import Console
from rich.table import Table

import qcompile
from qcompile.config import Config
from qcompile.ir.store import whole_model
from qcompile.passmanager import PassManager
from qcompile.pipeline import build
from qcompile.qmodel import Arrays, QModel
from qcompile.runtime.session import Session
from qcompile.simulation import simulate


def compiled(name: str, w: int, a: int, images: int) -> tuple[QModel, list[Arrays]]:
    """Return a model of the target academic with its file, and samples in batches."""
    settings = {"w": w, "a": a, "method": "rtn", "target": "academic", "threads": 1}
    if name in CASES:
        case = CASES[name]
        config = Config(**settings, preprocess=case.preprocess, samples=64)
        model = qcompile.open_model(case.model, config, str(case.calibration))
        feeds = list(case.batches(case.evaluation, images, 8))
    else:
        from networks import NETWORKS, network, samples

        source = network(NETWORKS[name])
        model = qcompile.open_model(source, Config(**settings), samples(source, 64))
        feeds = [samples(source, images, seed=5)]
    PassManager(item for item in build(model.config) if item.name not in ("validate", "float-where-faster")).run(model)
    return model, feeds


def outputs(file: onnx.ModelProto, feeds: list[Arrays], level: str = "all") -> Arrays:
    """Run a file on all samples, at the default options or another level; without optimizations as it is written."""
    session = Session(file, threads=1, level=level, fuse_qdq=level != "off")
    made = [session.run(some) for some in feeds]
    return {name: np.concatenate([one[name] for one in made]) for name in made[0]}


def row(found: Arrays, expected: Arrays) -> list[str]:
    """Return SQNR over all outputs, and the share of values that are off by more than float32's rounding."""
    signal = sum(float(np.square(values, dtype=np.float64).sum()) for values in expected.values())
    noise = sum(float(np.square(found[name] - values, dtype=np.float64).sum()) for name, values in expected.items())
    off = [np.abs(found[name] - values) > 1e-5 * np.abs(values).max() for name, values in expected.items()]
    share = 100 * np.concatenate([item.reshape(-1) for item in off]).mean()
    return ["equal" if noise == 0 else f"{10 * np.log10(signal / noise):.1f} dB", f"{share:.2f} %"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--bits", action="append")
    parser.add_argument("--images", type=int, default=64)
    given = parser.parse_args()
    columns = ("model", "bits", "pairs", "differ", "rows", "differ", "extended", "off")
    table = Table(*columns, title=f"against the simulation, {given.images} samples")
    for name in given.cases:
        for bits in given.bits or ["w8a8", "w4a4"]:
            model, feeds = compiled(name, int(bits[1]), int(bits[3]), given.images)
            assert model.emitted is not None
            pairs, rows = simulate(model.graph, model.plan, "float"), whole_model(model.emitted)
            expected = outputs(pairs, feeds, "off")
            found = [*row(outputs(pairs, feeds), expected), *row(outputs(rows, feeds), expected)]
            plainer = [row(outputs(rows, feeds, level), expected)[0] for level in ("extended", "off")]
            table.add_row(name, bits, *found, *plainer)
    Console().print(table)


if __name__ == "__main__":
    main()

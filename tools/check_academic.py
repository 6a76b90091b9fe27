"""Files of the target academic in several runtimes, against their simulation, value by value.

    python tools/check_academic.py build/environments
    python tools/check_academic.py build/environments --runtime onnxruntime==1.24.1 --runtime openvino==2026.4.1

The files are the networks of the tests at W8A8, W4A4 and W2A4. Environments are made in the folder named first where
they are not there yet (pip install), and used again. ONNX Runtime runs without optimizations, where the simulation is
expected bit for bit, and as it does by default; OpenVINO in float32.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from check_versions import interpreter

RUNTIMES = ("onnxruntime==1.19.2", "openvino==2026.4.1")
OFF = 1e-5  # of the largest value: more than float32's rounding, so a value that fell to the other side of a half


def run_files(folder: Path, way: str) -> None:
    """Run each model in a folder on its inputs, and write its outputs; needs numpy and the runtime only."""
    for path in sorted(folder.glob("*.onnx")):
        with np.load(path.with_suffix(".inputs.npz")) as feeds:
            made = RUNNERS[way](path, dict(feeds))
        np.savez(path.with_suffix(f".{way}.npz"), **made)


def _onnxruntime(path: Path, feeds: Mapping[str, Any], level: str) -> Mapping[str, Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(zip([item.name for item in session.get_outputs()], session.run(None, feeds)))


def _openvino(path: Path, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
    import openvino

    core = openvino.Core()
    model = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return {output.any_name: values for output, values in model(feeds).items()}


RUNNERS = {
    "plain": lambda path, feeds: _onnxruntime(path, feeds, "ORT_DISABLE_ALL"),
    "default": lambda path, feeds: _onnxruntime(path, feeds, "ORT_ENABLE_ALL"),
    "openvino": _openvino,
}


def compile_networks(folder: Path) -> None:
    """Write every network with inputs and what its simulation makes of them."""
    import assets  # noqa: F401  (puts the checkout on the path)
    from networks import NETWORKS, network, samples

    import qcompile
    from qcompile.runtime.session import Session
    from qcompile.simulation import simulate

    for name, text in NETWORKS.items():
        for w, a in ((8, 8), (4, 4), (2, 4)):
            source = network(text)
            config = qcompile.Config(w=w, a=a, first_last_bits=w, method="rtn", target="academic", threads=1)
            result = qcompile.compile(source, config, samples(source, 64))
            feeds, path = samples(source, 16, seed=5), folder / f"{name}_w{w}a{a}.onnx"
            result.save(path)
            exact = simulate(result.qmodel.graph, result.plan, "float")
            np.savez(path.with_suffix(".inputs.npz"), **feeds)
            expected = Session(exact, level="off", fuse_qdq=False, threads=1).run(feeds)
            np.savez(path.with_suffix(".expected.npz"), **expected)


def row(folder: Path, way: str) -> list[str]:
    """Return how many files were run, outputs that are equal bit for bit, and values that are off, of how many."""
    files = equal = outputs = off = values = 0
    for path in sorted(folder.glob("*.onnx")):
        files += 1
        with np.load(path.with_suffix(".expected.npz")) as expected, np.load(path.with_suffix(f".{way}.npz")) as found:
            for name in expected.files:
                outputs, equal = outputs + 1, equal + np.array_equal(expected[name], found[name])
                largest = np.abs(expected[name]).max()
                off += int((np.abs(expected[name] - found[name]) > OFF * largest).sum())
                values += expected[name].size
    return [str(files), f"{equal} of {outputs}", f"{off} of {values}"]


def main() -> None:
    if sys.argv[1:2] == ["--run"]:  # the call in an environment
        run_files(Path(sys.argv[2]), sys.argv[3])
        return
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runtime", action="append", help=f"default: {', '.join(RUNTIMES)}, and the one installed")
    given = parser.parse_args()
    table = Table("runtime", "how", "files", "outputs equal", "values off", title="against the simulation")
    pythons: Sequence[tuple[str, str]] = [
        ("onnxruntime, installed", sys.executable),
        *((runtime, str(interpreter(given.folder, runtime))) for runtime in given.runtime or RUNTIMES),
    ]
    with tempfile.TemporaryDirectory() as name:
        compile_networks(Path(name))
        for runtime, python in pythons:
            for way in ["openvino"] if runtime.startswith("openvino") else ["plain", "default"]:
                subprocess.run([python, __file__, "--run", name, way], check=True)
                table.add_row(runtime, way, *row(Path(name), way))
    Console().print(table)


if __name__ == "__main__":
    main()

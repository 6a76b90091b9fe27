"""Peak memory of a compilation by the weights of a model: a chain of Gemm, few samples.

python tools/bench_memory.py                               32 layers of 1536x1536: 302 MB of float weights
python tools/bench_memory.py --layers 8 --size 1024 --external --bits w4a8
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measure import Usage, measured
from numpy.typing import NDArray
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

SAMPLES, ROWS = 8, 4
FLOAT = 4  # bytes
TINY = 16


def write_chain(path: Path, layers: int, size: int, *, external: bool) -> None:
    """Write a chain of `layers` Gemm of size x size; with `external` the weights stand in a file beside it.

    It is written layer by layer: the maker needs no more memory than two layers take.
    """
    data = path.with_name(f"{path.name}.data")
    graph = helper.make_graph(
        [helper.make_node("Gemm", [f"t{i}", f"w{i}"], [f"t{i + 1}"], f"gemm{i}") for i in range(layers)],
        "chain",
        [helper.make_tensor_value_info("t0", TensorProto.FLOAT, ["N", size])],
        [helper.make_tensor_value_info(f"t{layers}", TensorProto.FLOAT, ["N", size])],
    )
    with data.open("wb") as file:
        for index, weight in enumerate(weights(layers, size)):
            tensor = graph.initializer.add(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[size, size])
            if not external:
                tensor.raw_data = weight.tobytes()
                continue
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", file.tell()), ("length", weight.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            file.write(weight.tobytes())
    if not external:
        data.unlink()
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


def weights(layers: int, size: int) -> Iterator[NDArray[np.float32]]:
    """Yield matrices that keep the power of what goes through them."""
    random = np.random.default_rng(0)
    for _ in range(layers):
        yield random.standard_normal((size, size), np.float32) / np.float32(np.sqrt(size))


def table(layers: int, size: int, schemes: list[str], *, external: bool) -> Table:
    """Compile the chain at each scheme; return peak memory, less that of a tiny chain, by the bytes of its weights.

    Resident memory counts what is mapped from files as well, which the system may drop at any time; anonymous does not.
    """
    stored = layers * size * size * FLOAT
    title = f"{layers} Gemm of {size}x{size}, {stored / 1e6:.0f} MB of weights{', external' if external else ''}"
    found = Table("scheme", "CPU s", "wall s", "peak MB", "resident / weights", "anonymous / weights", title=title)
    for scheme in schemes:
        empty, usage = (compiled(layers, edge, scheme, external=external) for edge in (TINY, size))
        peaks = (usage.peak_bytes - empty.peak_bytes, usage.anonymous_bytes - empty.anonymous_bytes)
        found.add_row(scheme, *usage.columns(), *(f"{peak / stored:.2f}" for peak in peaks))
    return found


def compiled(layers: int, size: int, scheme: str, *, external: bool) -> Usage:
    """Compile a chain; return what it took."""
    with tempfile.TemporaryDirectory() as folder:
        model, data, out = (Path(folder) / name for name in ("chain.onnx", "data.npz", "out.onnx"))
        write_chain(model, layers, size, external=external)
        np.savez(data, t0=np.random.default_rng(1).standard_normal((SAMPLES * ROWS, size), np.float32))
        command = [sys.executable, "-m", "qcompile", str(model), "-o", str(out), "--data", str(data), "-q"]
        command += ["--precision", scheme, "--method", "rtn", "--placement", "all", "--threads", "1"]
        return measured(command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--size", type=int, default=1536)
    parser.add_argument("--bits", action="append", help="schemes; w8a8 and w4a8 without any")
    parser.add_argument("--external", action="store_true", help="weights in a file beside the model")
    given = parser.parse_args()
    schemes = given.bits or ["w8a8", "w4a8"]
    Console().print(table(given.layers, given.size, schemes, external=given.external))


if __name__ == "__main__":
    main()

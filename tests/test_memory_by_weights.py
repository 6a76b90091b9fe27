"""Peak memory of a compilation by the bytes of the weights, in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from qcompile.memory import free_memory

GB = 10**9
# Peaks count from what the process has after a tiny chain: libraries, and what they take once.
SCRIPT = """
import json, re, sys, threading, time
import numpy as np
import qcompile

def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

def compiled(path, out):
    rows = np.random.default_rng(1).standard_normal((16, SIZES[path]), np.float32)
    config = qcompile.Config(method="rtn", placement="all", threads=1)
    qcompile.compile(path, config, {"t0": rows}).save(out)

SIZES = {path: int(size) for path, size in zip(sys.argv[1:5:2], sys.argv[2:5:2])}
tiny, chain = SIZES
compiled(tiny, tiny + ".out")
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before, anonymous, done = status("VmRSS"), [status("RssAnon")], threading.Event()

def watch():
    while not done.wait(0.01):
        anonymous.append(status("RssAnon"))

watching = threading.Thread(target=watch)
watching.start()
compiled(chain, chain + ".out")
done.set()
watching.join()
print(json.dumps({"resident": status("VmHWM") - before, "anonymous": max(anonymous)}))
"""


def write_chain(path: Path, layers: int, size: int, between: str) -> None:
    """Write a chain of Gemm and an activation with its weights in a file beside it, layer by layer."""
    names, random = [f"w{i}" for i in range(layers)], np.random.default_rng(0)
    nodes = [helper.make_node("Gemm", [f"t{i}", name], [f"h{i}"], f"gemm{i}") for i, name in enumerate(names)]
    nodes += [helper.make_node(between, [f"h{i}"], [f"t{i + 1}"], f"between{i}") for i in range(layers)]
    nodes.sort(key=lambda node: int(node.input[0][1:]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name in ("t0", f"t{layers}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    with path.with_suffix(".data").open("wb") as file:
        for name in names:
            weight = random.standard_normal((size, size), np.float32) * np.float32(size**-0.5)
            tensor = graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=weight.shape)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": path.with_suffix(".data").name, "offset": file.tell(), "length": weight.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            file.write(weight.tobytes())
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def peaks(folder: Path, layers: int, size: int, between: str = "Identity") -> dict[str, int]:
    """Compile such a chain with few samples; return peaks in bytes."""
    write_chain(folder / "tiny.onnx", 3, 16, between)
    write_chain(folder / "chain.onnx", layers, size, between)
    arguments = [str(folder / "tiny.onnx"), "16", str(folder / "chain.onnx"), str(size)]
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert not list(folder.glob("qcompile-*"))  # where weights stood
    found: dict[str, int] = json.loads(run.stdout)
    return found


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not say what a process had")
def test_peak_by_weights(tmp_path: Path) -> None:
    found = peaks(tmp_path, 12, 1024)
    weights = 12 * 1024 * 1024 * 4  # 50 MB: what does not grow with them is still a part of it
    assert found["resident"] < 2.75 * weights


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not say what a process had")
def test_six_gigabytes_of_weights_compile_in_eight(tmp_path: Path) -> None:
    """What is mapped from files does not count: the system drops it where memory is short.

    No channels can be rotated or equalised across a Tanh, which would take an hour.
    """
    layers, size = 90, 4096
    weights = layers * size * size * 4
    assert weights > 6 * GB
    if (free_memory() or 0) < 9 * GB:
        pytest.skip("less than 9 GB of memory are free")
    if shutil.disk_usage(tmp_path).free < 5 * weights:
        pytest.skip(f"less than {5 * weights / GB:.0f} GB of disk are free")
    assert peaks(tmp_path, layers, size, "Tanh")["anonymous"] < 8 * GB

"""Ask ONNX Runtime whether its blocked-layout operators can be used, and how wide a block is on this machine."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from qcompile.errors import QCompileError
from qcompile.runtime.session import Session

DOMAIN = "com.microsoft.nchwc"
CHANNELS = 64  # a multiple of every block there is
TOLERANCE = 1e-4


@cache
def block_size() -> int:
    """Return the block of the layout, or 1 where convolutions on it are missing or wrong.

    The operators are internal to ONNX Runtime: nothing about them is promised, so one of each is run and compared.
    """
    try:
        block = _measured_block()
        return block if block > 1 and _convolves(block) else 1
    except QCompileError:
        return 1


def _measured_block() -> int:
    """Reorder 64 channels of two positions: the second position of the first channel ends up a block further on."""
    nodes = [helper.make_node("ReorderInput", ["x"], ["y"], domain=DOMAIN)]
    data = np.arange(2 * CHANNELS, dtype=np.float32).reshape(1, CHANNELS, 1, 2)
    found = _run(nodes, {"x": data}, "y").ravel()
    return int(np.flatnonzero(found == 1)[0])


def _convolves(block: int) -> bool:
    """Compare one convolution, its weight given at run time, with the ordinary one."""
    random = np.random.default_rng(0)
    data = random.standard_normal((1, CHANNELS, 5, 5)).astype(np.float32)
    weight = random.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
    blocks = CHANNELS // block
    packed = weight.reshape(blocks, block, blocks, block, 3, 3).transpose(0, 2, 4, 5, 3, 1).reshape(weight.shape)
    window: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("ReorderInput", ["x"], ["blocked"], domain=DOMAIN),
        helper.make_node("Conv", ["blocked", "packed"], ["sums"], domain=DOMAIN, **window),
        helper.make_node("ReorderOutput", ["sums"], ["fast"], domain=DOMAIN, channels=CHANNELS),
        helper.make_node("Conv", ["x", "weight"], ["exact"], **window),
        helper.make_node("Sub", ["fast", "exact"], ["off"]),
    ]
    off = _run(nodes, {"x": data, "weight": weight, "packed": np.ascontiguousarray(packed)}, "off")
    return bool(np.abs(off).max() <= TOLERANCE * CHANNELS)


def _run(nodes: list[onnx.NodeProto], feeds: dict[str, np.ndarray], output: str) -> np.ndarray:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in feeds.items()]
    graph = helper.make_graph(nodes, "probe", inputs, [onnx.ValueInfoProto(name=output)])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    return Session(model, level="off", threads=1).run(feeds)[output]

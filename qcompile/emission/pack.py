"""Weights on disk at their own width, turned into int8 by nodes that ONNX Runtime folds when it loads the file.

planes   uint8 bytes with 8/width codes each; BitShift, BitwiseAnd and Reshape take them apart. Loads on 1.19.2.
         A code of 3 bits is a 2-bit plane and a 1-bit plane; 5, 6 and 7 bits likewise add planes to a 4-bit one.
int4     one INT4 initializer and a Cast: smaller nodes, but opset 21 and ONNX Runtime 1.23 or later.
none     int8 as the kernel reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qcompile.emission.constants import Constants
from qcompile.quant.params import WeightQuantizer

AddNode = Callable[..., str]  # add(op, inputs, stem, **attributes) -> name of the output
INT4_OPSET = 21  # of blocks too; a model below it is packed as planes
PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}
NODES_COST = {1: 700, 2: 1200, 3: 1700}  # bytes of nodes and constants of one tensor, by its number of planes


def worth_packing(quantizer: WeightQuantizer) -> bool:
    """Say whether planes make the file smaller: the nodes that unpack a small tensor outweigh its bytes."""
    if quantizer.bits == 8:
        return False
    saved = quantizer.codes.size * (8 - quantizer.bits) // 8
    return saved > NODES_COST[len(PLANES[quantizer.bits])]


def pack_planes(codes: NDArray[np.uint8], bits: int) -> list[tuple[int, NDArray[np.uint8]]]:
    """Split codes of any shape into (width, bytes) planes, lowest bits first; lane k of a byte is bits k*width ..."""
    flat, shift, planes = codes.reshape(-1), 0, []
    for width in PLANES[bits]:
        lanes = 8 // width
        part = (flat >> shift) & ((1 << width) - 1)
        rows = np.pad(part, (0, -part.size % lanes)).reshape(lanes, -1)
        packed = np.zeros(rows.shape[1], np.uint8)
        for lane in range(lanes):
            packed |= rows[lane] << np.uint8(width * lane)
        planes.append((width, packed))
        shift += width
    return planes


def unpack_planes(quantizer: WeightQuantizer, stem: str, constants: Constants, add: AddNode) -> str:
    """Store the codes as planes, add the nodes that make int8 of them, and return the int8 tensor's name."""
    codes, merged, shift = quantizer.codes, "", 0
    for plane, (width, packed) in enumerate(pack_planes(codes, quantizer.bits)):
        lanes = 8 // width
        shifts = constants.add((np.arange(lanes) * width).astype(np.uint8)[:, None], f"lanes_{width}")
        mask = constants.scalar((1 << width) - 1, np.uint8)
        data = constants.add(packed[None, :], f"{stem}_p{plane}")
        part = add("BitwiseAnd", [add("BitShift", [data, shifts], stem, direction="RIGHT"), mask], stem)
        if shift:
            part = add("BitShift", [part, constants.scalar(shift, np.uint8)], stem, direction="LEFT")
        part = add("Reshape", [part, constants.add(np.array([-1]), "flat")], stem)
        if packed.size * lanes != codes.size:
            ends = [constants.add(np.array([end]), f"end_{end}") for end in (0, codes.size)]
            part = add("Slice", [part, *ends], stem)
        merged = add("BitwiseOr", [merged, part], stem) if merged else part
        shift += width
    shaped = add("Reshape", [merged, constants.add(np.array(codes.shape), "shape")], stem)
    return _on_lattice(shaped, quantizer, stem, constants, add)


def _on_lattice(codes: str, quantizer: WeightQuantizer, stem: str, constants: Constants, add: AddNode) -> str:
    """Add the nodes codes * step + offset, in int32: 8-bit Mul and Add have no kernel."""
    wide = add("Cast", [codes], stem, to=TensorProto.INT32)
    for op, values, neutral in (("Mul", quantizer.step, 1), ("Add", quantizer.offset, 0)):
        if (values == values[0]).all():
            if values[0] != neutral:
                wide = add(op, [wide, constants.scalar(int(values[0]), np.int32)], stem)
        else:
            narrow = constants.add(quantizer.along(values), f"{stem}_{op.lower()}")
            wide = add(op, [wide, add("Cast", [narrow], stem, to=TensorProto.INT32)], stem)
    return add("Cast", [wide], stem, to=TensorProto.INT8)


def int4_initializer(integers: NDArray[np.int8], name: str) -> onnx.TensorProto:
    """Return int8 values in -8..7 as an INT4 tensor, low nibble first."""
    flat = integers.reshape(-1).view(np.uint8) & 0xF
    flat = np.pad(flat, (0, flat.size % 2))
    data: bytes = (flat[0::2] | flat[1::2] << 4).tobytes()
    return helper.make_tensor(name, TensorProto.INT4, integers.shape, data, raw=True)


def fits_int4(quantizer: WeightQuantizer) -> bool:
    """Say whether every integer of the weight lies in -8..7."""
    integers: NDArray[Any] = quantizer.integers()
    return quantizer.bits <= 4 and bool(integers.min() >= -8) and bool(integers.max() <= 7)

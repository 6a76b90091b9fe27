"""What strangers do to files, drawn at random: edits of plans, flipped bits of models, broken files of data."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

Random = np.random.Generator
Array = NDArray[Any]


# --- the model and its samples


def small_model() -> ModelProto:
    """Return a network with a clip, a depthwise layer, a gate, a residual sum, a Gemm and a MatMul."""
    random = np.random.default_rng(0)
    shapes = {
        "w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "b2": (8,), "w3": (8, 8, 1, 1), "w4": (4, 8, 1, 1),
        "w5": (8, 4, 1, 1), "w6": (10, 8), "b6": (10,), "w7": (10, 6),
    }  # fmt: skip
    weights = [
        _tensor(random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape), name) for name, shape in shapes.items()
    ]
    weights += [_tensor(np.array(bound), name) for name, bound in (("zero", 0.0), ("six", 6.0))]
    same = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes = [
        _node("Conv", ["image", "w1", "b1"], "stem", **same),
        _node("Clip", ["stem", "zero", "six"], "relu6"),
        _node("Conv", ["relu6", "w2", "b2"], "depthwise", group=8, **same),
        _node("Relu", ["depthwise"], "relu"),
        _node("Conv", ["relu", "w3"], "project"),
        _node("Add", ["project", "relu6"], "sum"),
        _node("GlobalAveragePool", ["sum"], "pool"),
        _node("Conv", ["pool", "w4"], "squeeze"),
        _node("Conv", ["squeeze", "w5"], "excite"),
        _node("HardSigmoid", ["excite"], "gate"),
        _node("Mul", ["sum", "gate"], "scaled"),
        _node("MaxPool", ["scaled"], "smaller", kernel_shape=[2, 2], strides=[2, 2]),
        _node("GlobalAveragePool", ["smaller"], "pooled"),
        _node("Flatten", ["pooled"], "flat"),
        _node("Gemm", ["flat", "w6", "b6"], "hidden", transB=1),
        _node("Relu", ["hidden"], "shown"),
        _node("MatMul", ["shown", "w7"], "logits"),
        _node("Tanh", ["logits"], "scores"),
    ]
    inputs = [helper.make_tensor_value_info("image", 1, ["N", 3, 8, 8])]
    outputs = [helper.make_tensor_value_info("scores", 1, ["N", 6])]
    graph = helper.make_graph(nodes, "small", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _tensor(values: Array, name: str) -> Any:
    return numpy_helper.from_array(values.astype(np.float32), name)


def _node(op: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    return helper.make_node(op, inputs, [output], output, **attributes)


def samples(count: int, seed: int) -> Array:
    """Return images for `small_model`."""
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


# --- models


def flipped_bit(random: Random, data: bytes) -> tuple[bytes, str]:
    """Return `data` with one bit flipped, and which."""
    place, bit = int(random.integers(len(data))), int(random.integers(8))
    changed = bytearray(data)
    changed[place] ^= 1 << bit
    return bytes(changed), f"bit {bit} of byte {place}"


# --- plans, as a folder: plan.json and arrays.npz


def edited_plan(random: Random, folder: Path) -> str:
    """Edit the plan in `folder` once; return what was done."""
    edit = EDITS[int(random.integers(len(EDITS)))]
    return edit(random, folder)


def _edit_value(random: Random, folder: Path) -> str:
    """Put another value in the place of one of the JSON's values."""
    path = folder / "plan.json"
    document = json.loads(path.read_text())
    places = list(_places(document))
    holder, key = places[int(random.integers(len(places)))]
    others = [*STRANGE, *_near(random, holder[key], document)]
    value = others[int(random.integers(len(others)))]
    what = f"{key!r}: {str(holder[key])[:40]} -> {str(value)[:40]}"
    holder[key] = value
    path.write_text(json.dumps(document))
    return what


def _edit_entry(random: Random, folder: Path) -> str:
    """Remove, double or rename one of the JSON's entries, or add one."""
    path = folder / "plan.json"
    document = json.loads(path.read_text())
    places = list(_places(document))
    holder, key = places[int(random.integers(len(places)))]
    way = ("remove", "rename", "add")[int(random.integers(3))]
    if way == "add":
        holder["more"] = holder[key]
    value = holder.pop(key) if way != "add" else None
    if way == "rename":
        holder[f"{key}_2"] = value
    path.write_text(json.dumps(document))
    return f"{way} {key!r}"


def _edit_array(random: Random, folder: Path) -> str:
    """Change one of the arrays."""
    path = folder / "arrays.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    name = list(arrays)[int(random.integers(len(arrays)))]
    way = list(ARRAY_EDITS)[int(random.integers(len(ARRAY_EDITS)))]
    arrays[name] = ARRAY_EDITS[way](random, arrays[name])
    np.savez(path, **arrays)
    return f"{name}: {way}"


def _edit_members(random: Random, folder: Path) -> str:
    """Remove one of the arrays, or add one."""
    path = folder / "arrays.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    if random.integers(2):
        arrays["more"] = np.zeros(3)
        what = "an array more"
    else:
        what = f"without {arrays.popitem()[0]}"
    np.savez(path, **arrays)
    return what


def _damage_file(random: Random, folder: Path) -> str:
    """Damage one of the files as a whole."""
    path = folder / ("plan.json", "arrays.npz")[int(random.integers(2))]
    way = list(BYTE_EDITS)[int(random.integers(len(BYTE_EDITS)))]
    path.write_bytes(BYTE_EDITS[way](random, path.read_bytes()))
    return f"{path.name}: {way}"


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value in a JSON document, those in lists by number."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    found = []
    for key in keys:
        found += [*([(value, key)] if isinstance(value, dict) else []), *_places(value[key])]
    return found


def _near(random: Random, value: Any, document: Any) -> list[Any]:
    """Return values of the same type: the mistakes of an editor."""
    if isinstance(value, bool):
        return [not value, int(value)]
    if isinstance(value, int | float):
        return [0, -value, value + 1, value + 0.5, value * 3, value * 1e-3, value * 1e30, 1e-44, 10**400, str(value)]
    if isinstance(value, str):
        names = [*document["nodes"], *document["groups"], "compute", "absorbed", "codes", "float", "arithmetic"]
        return [value + "x", names[int(random.integers(len(names)))], names[int(random.integers(len(names)))]]
    if isinstance(value, list):
        return [value[1:], value + value[:1], value[::-1], [*value, "none"]]
    return [dict(list(value.items())[1:])] if isinstance(value, dict) else []


STRANGE: list[Any] = [None, "", "text", -1, 9, 256, 1e308, float("nan"), float("inf"), -float("inf"), True, [], {}, [1]]
ARRAY_EDITS: dict[str, Callable[[Random, Array], Any]] = {
    "float64": lambda random, array: array.astype(np.float64),
    "int64": lambda random, array: array.astype(np.int64),
    "one more axis": lambda random, array: array[None],
    "flat": lambda random, array: array.reshape(-1),
    "turned": lambda random, array: array.T,
    "one less": lambda random, array: array[:-1],
    "nothing": lambda random, array: array[:0],
    "scalar": lambda random, array: np.zeros((), array.dtype),
    "zeros": lambda random, array: np.zeros_like(array),
    "the largest": lambda random, array: np.full_like(array, _largest(array)),
    "the least": lambda random, array: np.full_like(array, _least(array)),
    "one of the largest": lambda random, array: _one(random, array, _largest(array)),
    "one of the least": lambda random, array: _one(random, array, _least(array)),
    "one NaN": lambda random, array: _one(random, array.astype(np.float32), np.nan),
    "one infinity": lambda random, array: _one(random, array.astype(np.float32), np.inf),
    "negative": lambda random, array: (-array.astype(np.int64)).astype(array.dtype) if array.dtype != "f4" else -array,
    "texts": lambda random, array: array.astype("U"),
    "shuffled": lambda random, array: random.permuted(array.reshape(-1)).reshape(array.shape),
}
BYTE_EDITS: dict[str, Callable[[Random, bytes], bytes]] = {
    "empty": lambda random, data: b"",
    "cut": lambda random, data: data[: int(random.integers(len(data)))],
    "flipped": lambda random, data: flipped_bit(random, data)[0],
    "text": lambda random, data: b"no plan\n",
    "zeros": lambda random, data: bytes(len(data)),
    "deep": lambda random, data: b"[" * 100_000,
    "a list": lambda random, data: b"[1, 2]",
}
EDITS = [_edit_value] * 6 + [_edit_entry] * 2 + [_edit_array] * 4 + [_edit_members, _damage_file]


def _largest(array: Array) -> Any:
    return np.finfo(array.dtype).max if array.dtype.kind == "f" else np.iinfo(array.dtype).max


def _least(array: Array) -> Any:
    return np.finfo(array.dtype).min if array.dtype.kind == "f" else np.iinfo(array.dtype).min


def _one(random: Random, array: Array, value: Any) -> Array:
    changed = array.copy()
    if changed.size:
        changed.reshape(-1)[int(random.integers(changed.size))] = value
    return changed


# --- data


def npy(array: Array, shape: object = None, descr: object = None) -> bytes:
    """Return an .npy file, with another shape or type in its head where these are given."""
    if shape is None and descr is None:
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()
    shown = {"descr": descr or array.dtype.str, "fortran_order": False, "shape": shape or array.shape}
    head = f"{shown!r}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + array.tobytes()


def npz(**members: bytes) -> bytes:
    """Return a zip file with these members."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def _pickled(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}, None], object), allow_pickle=True)
    return stream.getvalue()


GOOD = samples(12, 1)
WAYS: dict[str, Callable[[Random], bytes]] = {  # of one array; each is tried as .npy and as a member of an .npz
    "cut": lambda random: npy(GOOD)[: int(random.integers(len(npy(GOOD))))],
    "a shape of a petabyte": lambda random: npy(GOOD, shape=(10**12, 3, 8, 8)),
    "a shape beyond 64 bits": lambda random: npy(GOOD, shape=(10**30, 3, 8, 8)),
    "a shape a little too large": lambda random: npy(GOOD, shape=(13, 3, 8, 8)),
    "a negative shape": lambda random: npy(GOOD, shape=(-1, 3, 8, 8)),
    "a shape of texts": lambda random: npy(GOOD, shape=("N", 3, 8, 8)),
    "an unknown type": lambda random: npy(GOOD, descr="<q9"),
    "a type that is code": lambda random: npy(GOOD, descr="__import__('os')"),
    "a structured type": lambda random: npy(GOOD, shape=(1,), descr=[("a", "<f4"), ("b", "<i4")]),
    "pickled objects": _pickled,
    "complex numbers": lambda random: npy(GOOD.astype(np.complex64)),
    "texts": lambda random: npy(GOOD.astype("U8")),
    "dates": lambda random: npy(GOOD.astype(np.int64).astype("M8[s]")),
    "truth values": lambda random: npy(GOOD > 0),
    "no samples": lambda random: npy(GOOD[:0]),
    "no channels": lambda random: npy(GOOD[:, :0]),
    "a scalar": lambda random: npy(np.float32(3)),
    "a vector": lambda random: npy(GOOD.reshape(-1)),
    "six axes": lambda random: npy(GOOD[:, :, None, None]),
    "another size": lambda random: npy(GOOD[..., :7]),
    "NHWC": lambda random: npy(np.ascontiguousarray(GOOD.transpose(0, 2, 3, 1))),
    "NaN": lambda random: npy(_one(random, GOOD, np.nan)),
    "infinity": lambda random: npy(_one(random, GOOD, -np.inf)),
    "beyond float32": lambda random: npy(_one(random, GOOD.astype(np.float64), 1e300)),
    "text": lambda random: b"image,label\n1,2\n",
    "nothing": lambda random: b"",
    "zeros": lambda random: bytes(4096),
    "a bad head": lambda random: b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4', " + bytes(100),
    "a head without an end": lambda random: b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
    "another version": lambda random: b"\x93NUMPY\x09\x00" + npy(GOOD)[8:],
}
ARCHIVES: dict[str, Callable[[Random], bytes]] = {  # of whole archives
    "no members": lambda random: npz(),
    "other names": lambda random: npz(left=npy(GOOD), right=npy(GOOD)),
    "cut": lambda random: npz(image=npy(GOOD))[: int(random.integers(len(npz(image=npy(GOOD)))))],
    "flipped": lambda random: flipped_bit(random, npz(image=npy(GOOD)))[0],
    "text": lambda random: b"no zip\n",
    "an npy": lambda random: npy(GOOD[..., :5]),
    "a member twice": lambda random: _twice(),
    "no suffix": lambda random: npz(image=npy(GOOD)).replace(b"image.npy", b"image.txt"),
    "encrypted": lambda random: _encrypted(npz(image=npy(GOOD))),
    "another compression": lambda random: npz(image=npy(GOOD)).replace(b"\x08\x00", b"\x5d\x00"),
}


def _twice() -> bytes:
    return npz(image=npy(GOOD[:, :2])).replace(b"image", b"imago") + npz(image=npy(GOOD[:, :2]))


def _encrypted(data: bytes) -> bytes:
    """Set the bit of both heads that says so."""
    changed = bytearray(data)
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        changed[changed.index(mark) + place] |= 1
    return bytes(changed)


def broken_data(random: Random, folder: Path) -> tuple[Path, str]:
    """Write a broken file of data; return it and what is wrong with it."""
    place = int(random.integers(2 * len(WAYS) + len(ARCHIVES)))
    if place < len(ARCHIVES):
        way = list(ARCHIVES)[place]
        path, content = folder / "broken.npz", ARCHIVES[way](random)
    else:
        number, inside = divmod(place - len(ARCHIVES), 2)
        way = list(WAYS)[number]
        path, content = folder / ("broken.npz" if inside else "broken.npy"), WAYS[way](random)
        content = npz(image=content) if inside else content
    path.write_bytes(content)
    return path, f"{path.name}: {way}"

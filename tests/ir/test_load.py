"""Reading model files, and the way into the graph and back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from qcompile.errors import InputError
from qcompile.ir import Constant, sound
from qcompile.ir.load import load_model, to_graph, to_model
from qcompile.ir.prepare import prepare
from qcompile.runtime.session import Session

Build = Callable[..., ModelProto]
Same = Callable[..., None]


def written(model: ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def set_weight(model: ModelProto, name: str, position: int, value: float) -> ModelProto:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            values = numpy_helper.to_array(tensor).copy()
            values.flat[position] = value
            tensor.CopyFrom(numpy_helper.from_array(values, name))
    return model


# --- what is refused


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"cannot read the model: No such file or directory .*no\.onnx.*; check the path"
    ):
        load_model(tmp_path / "no.onnx")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the model: it is a folder"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello, this is a text file\n", b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_other_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not an ONNX model"):
        load_model(path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_truncated_files(part: float, conv: ModelProto, tmp_path: Path) -> None:
    content = conv.SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(InputError, match="truncated"):
        load_model(path)


def test_a_model_without_outputs(conv: ModelProto, tmp_path: Path) -> None:
    del conv.graph.output[:]
    with pytest.raises(InputError, match="no outputs"):
        load_model(written(conv, tmp_path / "model.onnx"))


@pytest.mark.parametrize("field", ["input", "initializer"])
def test_one_name_for_two(field: str, conv: ModelProto, tmp_path: Path) -> None:
    items = getattr(conv.graph, field)
    items.append(items[0])
    with pytest.raises(InputError, match=f"it has two {field}s of the name '{items[0].name}'"):
        load_model(written(conv, tmp_path / "model.onnx"))


def test_two_nodes_that_make_one_tensor(conv: ModelProto, tmp_path: Path) -> None:
    conv.graph.node.append(conv.graph.node[0])
    with pytest.raises(InputError, match="tensor 'y' is made twice"):
        load_model(written(conv, tmp_path / "model.onnx"))


def test_an_opset_of_the_future(conv: ModelProto, tmp_path: Path) -> None:
    path = written(conv, tmp_path / "model.onnx")
    assert load_model(path, max_opset=18)
    with pytest.raises(InputError, match=r"opset 18, this installation reads up to 17 .*; export with opset 17"):
        load_model(path, max_opset=17)


@pytest.mark.parametrize(("name", "value"), [("W", np.nan), ("W", np.inf), ("B", -np.inf)])
def test_broken_weights(name: str, value: float, conv: ModelProto, tmp_path: Path) -> None:
    path = written(set_weight(conv, name, -1, value), tmp_path / "model.onnx")
    with pytest.raises(InputError, match=f"weight '{name}' contains {'NaN' if np.isnan(value) else 'infinite'}"):
        load_model(path)


def test_broken_weights_in_constant_nodes_and_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound, "CHUNK", 2)
    text = "g (float[N,4] x) => (float[N] y) { c = Constant<value = float[4] {1, 2, 3, 4}>() y = MatMul(x, c) }"
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> {text}')
    values = np.array([1, 2, 3, np.nan], dtype=np.float32)
    model.graph.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(values))
    with pytest.raises(InputError, match="weight 'c' contains NaN"):
        load_model(written(model, tmp_path / "model.onnx"))


def test_infinity_in_a_mask_is_fine(model_of: Build, tmp_path: Path) -> None:
    model = set_weight(model_of("g (float[N,4] x, float[4] M) => (float[N,4] y) { y = Add(x, M) }"), "M", 0, -np.inf)
    assert load_model(written(model, tmp_path / "model.onnx"))


def test_nan_that_marks_missing_values_is_fine(model_of: Build, tmp_path: Path) -> None:
    text = "g (float[N,4] x, bool[N,4] c, float[4] M) => (float[N,4] y) { y = Where(c, M, x) }"
    assert load_model(written(set_weight(model_of(text), "M", 0, np.nan), tmp_path / "model.onnx"))


def test_quantized_models(tmp_path: Path) -> None:
    text = """g (float[N,4] x) => (float[N,4] y) <float s = {0.1}, uint8 z = {128}> {
        [first] q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }"""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> {text}')
    with pytest.raises(InputError, match="quantized already: node 'first' is a QuantizeLinear"):
        load_model(written(model, tmp_path / "model.onnx"))


def test_quantized_activations_behind_stored_weights(tmp_path: Path) -> None:
    text = """g (float[N,2] x) => (float[N,2] y) <float s = {0.1}, uint8 z = {128}, int8[2,2] w = {1,2,3,4}> {
        v = DequantizeLinear(w, s)  [data] q, t, o = DynamicQuantizeLinear(x)  d = DequantizeLinear(q, t, o)
        y = MatMul(d, v) }"""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> {text}')
    with pytest.raises(InputError, match="quantized already: node 'data' is a DynamicQuantizeLinear"):
        load_model(written(model, tmp_path / "model.onnx"))


def test_external_data(conv: ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(
        onnx.ModelProto.FromString(conv.SerializeToString()),
        path,
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    loaded = load_model(path)
    assert [t.raw_data for t in loaded.graph.initializer] == [t.raw_data for t in conv.graph.initializer]
    data = tmp_path / "w.bin"
    data.write_bytes(data.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"'w\.bin' is truncated: \d+ of \d+ bytes \(tensor '[WB]'"):
        load_model(path)
    data.unlink()
    with pytest.raises(InputError, match=r"external data file 'w\.bin' is missing"):
        load_model(path)


def test_external_data_outside_the_folder(conv: ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "inner" / "model.onnx"
    path.parent.mkdir()
    onnx.save(conv, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "../w.bin"
    path.write_bytes(model.SerializeToString())
    (path.parent / "w.bin").rename(tmp_path / "w.bin")
    with pytest.raises(InputError, match="external data cannot be read"):
        load_model(path)


def test_messages_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_model(tmp_path / "no.onnx")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


# --- graph and back


def test_round_trip_keeps_what_is_not_the_graph(conv: ModelProto) -> None:
    conv.producer_name, conv.producer_version = "exporter", "1.2"
    helper.set_model_props(conv, {"license": "free"})
    model = to_model(to_graph(conv), ir_version=9)
    assert (model.producer_name, model.producer_version, model.ir_version) == ("exporter", "1.2", 9)
    assert {item.key: item.value for item in model.metadata_props} == {"license": "free"}
    assert [item.version for item in model.opset_import if item.domain == ""] == [18]
    onnx.checker.check_model(model, full_check=True)


def test_weights_are_shared_with_the_source_and_renaming_leaves_it_alone(conv: ModelProto) -> None:
    before = conv.SerializeToString()
    graph = prepare(conv, 18)
    weight = graph.nodes[0].inputs[1]
    assert isinstance(weight, Constant)
    assert weight._values.tensor is next(t for t in conv.graph.initializer if t.name == "W")
    weight.name = "renamed"
    assert to_model(graph).graph.node[0].input[1] == "renamed"
    assert conv.SerializeToString() == before


@pytest.mark.parametrize(("own", "end"), [(9, 18), (13, 18), (17, 18), (18, 18), (21, 21)])
def test_opsets_are_raised_never_lowered(own: int, end: int, model_of: Build, same_outputs: Same) -> None:
    source = model_of("g (float[N,4,8,8] x, float[16,4,5,5] W) => (float[N,16,4,4] y) { y = Conv(x, W) }", opset=own)
    graph = prepare(source, 18)
    assert graph.opset == end
    same_outputs(source, graph, [{"x": (2, 4, 8, 8)}], rtol=0)  # the same convolution


def test_a_model_that_cannot_be_converted_keeps_its_opset(model_of: Build) -> None:
    text = (
        "g (float[N,4] x) => (float[N,4] y) { y = Scan<body = b (float[4] i) => (float[4] o) { o = Upsample(i) }>(x) }"
    )
    assert prepare(model_of(text, opset=13), 18).opset in (13, 18)
    old = model_of("g (float[N,4] x) => (float[N,4] y) { y = Unknown(x) }", opset=9)
    with pytest.raises(InputError, match="opset 9 is too old and cannot be converted to 18"):
        prepare(old, 18)


def test_local_functions_are_inlined() -> None:
    source = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18, "local": 1]>
        g (float[N,4] x) => (float[N,4] y) { y = local.twice(x) }
        <domain: "local", opset_import: ["": 18]> twice (a) => (b) { c = Relu(a)  b = Add(c, c) }"""
    )
    graph = prepare(source, 18)
    assert [node.op for node in graph.nodes] == ["Relu", "Add"]
    feeds = {"x": np.array([[-1, 0, 2, 3]], dtype=np.float32)}
    np.testing.assert_array_equal(Session(to_model(graph), threads=1).run(feeds)["y"], [[0, 0, 4, 6]])


def test_initializers_that_are_inputs_too_become_constants(conv: ModelProto) -> None:
    conv.ir_version = 3
    conv.graph.input.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, [16, 4, 5, 5]))
    assert [tensor.name for tensor in prepare(conv, 18).inputs] == ["x"]


def test_bytes_and_types_in_attributes_survive() -> None:
    node = helper.make_node("Op", ["x"], ["y"], domain="custom", blob=b"\xff\xfe", number=3)
    optional = helper.make_node("Optional", [], ["o"], type=helper.make_tensor_type_proto(TensorProto.FLOAT, [2]))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    result = helper.make_empty_tensor_value_info("y")
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("custom", 1)]
    source = helper.make_model(helper.make_graph([node, optional], "g", [value], [result]), opset_imports=opsets)
    back = to_model(to_graph(source))
    kept = {attribute.name: helper.get_attribute_value(attribute) for n in back.graph.node for attribute in n.attribute}
    assert kept["blob"] == b"\xff\xfe"
    assert kept["number"] == 3
    assert kept["type"].tensor_type.elem_type == TensorProto.FLOAT


def _entry(tensor: TensorProto, key: str) -> Any:
    return next(entry for entry in tensor.external_data if entry.key == key)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("offset", "-8", "cannot stand at -8"),
        ("length", "-1", "cannot stand at 0, -1 bytes long"),
        ("offset", "99999999999999999999999999", "is truncated: "),
        ("offset", "here", "external data cannot be read: invalid literal"),
        ("location", "", "external data file '' is missing"),
        ("location", "loop", "external data file 'loop' is missing"),
        ("location", "pipe", "external data file 'pipe' is missing"),
        ("location", "n" * 300, "external data cannot be read: .*File name too long"),
        ("length", "4", "contains more or fewer values than its shape says"),
    ],
)
def test_absurd_places_of_external_data(conv: ModelProto, tmp_path: Path, key: str, value: str, message: str) -> None:
    path = tmp_path / "model.onnx"
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    onnx.save(conv, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    if key not in {entry.key for entry in tensor.external_data}:
        tensor.external_data.add(key=key)
    _entry(tensor, key).value = value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def _flipped(model: ModelProto, old: bytes, new: bytes) -> bytes:
    data = model.SerializeToString()
    assert old in data
    return data.replace(old, new, 1)


def test_names_that_are_no_text(conv: ModelProto, tmp_path: Path) -> None:
    name = conv.graph.node[0].output[0].encode()
    (tmp_path / "m.onnx").write_bytes(_flipped(conv, name, bytes([name[0] ^ 0x80]) + name[1:]))
    with pytest.raises(InputError, match="is not UTF-8 text"):
        load_model(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: setattr(tensor, "data_type", 0), "unknown element type 0"),
        (lambda tensor: setattr(tensor, "data_type", 99), "unknown element type 99"),
        (lambda tensor: tensor.dims.__setitem__(0, -3), r"has the shape \[-3"),
        (lambda tensor: tensor.dims.append(2), "more or fewer values than its shape says"),
        (lambda tensor: setattr(tensor, "data_type", TensorProto.INT64), "more or fewer values"),
        (lambda tensor: setattr(tensor, "raw_data", tensor.raw_data[:-1]), "more or fewer values"),
    ],
)
def test_tensors_that_are_none(
    conv: ModelProto, tmp_path: Path, change: Callable[[TensorProto], None], message: str
) -> None:
    change(conv.graph.initializer[0])
    (tmp_path / "m.onnx").write_bytes(conv.SerializeToString())
    with pytest.raises(InputError, match=message):
        load_model(tmp_path / "m.onnx")

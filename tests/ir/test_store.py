"""Weights on disk: the same values, names and bytes as in memory, and nothing left behind."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from qcompile.errors import InputError
from qcompile.ir import Constant, to_model
from qcompile.ir import store as module
from qcompile.ir.fingerprint import fingerprint
from qcompile.ir.load import byte_size, load_model, model_files, to_graph
from qcompile.ir.prepare import prepare
from qcompile.ir.store import Store, Stored, place_of, stored_model, values_of, whole_model, whole_size
from qcompile.runtime.session import Session

SIDE = 40
RANDOM = np.random.default_rng(0)
FEEDS = {"x": RANDOM.standard_normal((2, SIDE), np.float32)}


@pytest.fixture(autouse=True)
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE_BYTES", 2000)


def model(*, constant_node: bool = False, typed: bool = False, kind: int = TensorProto.FLOAT) -> ModelProto:
    """Two products: one weight is an initializer, the other too or a Constant; `typed` values are no raw bytes."""
    weights = [RANDOM.standard_normal((SIDE, SIDE), np.float32) for _ in "ab"]
    tensors = [
        numpy_helper.from_array(w.astype(helper.tensor_dtype_to_np_dtype(kind)), n) for n, w in zip("ab", weights)
    ]
    if typed:
        tensors = [helper.make_tensor(t.name, kind, t.dims, numpy_helper.to_array(t).ravel()) for t in tensors]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "b"], ["y"], "second"),
    ]
    if constant_node:
        nodes.insert(0, helper.make_node("Constant", [], ["b"], value=tensors.pop()))
    ports = [helper.make_tensor_value_info(name, kind, ["N", SIDE]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("form", [{}, {"constant_node": True}, {"typed": True}])
def test_a_stored_model_is_the_same_model(form: dict[str, bool]) -> None:
    source, store = model(**form), Store()
    before = source.SerializeToString()
    light = stored_model(source, store)
    assert light.ByteSize() < 1000 and source.SerializeToString() == before
    assert fingerprint(light) == fingerprint(source)
    np.testing.assert_array_equal(Session(light).run(FEEDS)["y"], Session(source).run(FEEDS)["y"])
    assert [item.name for item in store.path.parent.iterdir()] == ["weights"]


@pytest.mark.parametrize("form", [{}, {"constant_node": True}])
def test_inside_again_it_has_the_bytes_of_before(form: dict[str, bool]) -> None:
    source, store = model(**form), Store()
    light = stored_model(source, store)
    assert whole_size(light) == source.ByteSize() == whole_size(source)
    assert whole_model(light).SerializeToString() == source.SerializeToString()
    assert whole_model(source) is source
    (content,) = model_files(light, Path("out.onnx")).values()
    assert list(content) == [source.SerializeToString()]
    assert byte_size(light) == byte_size(source) == source.ByteSize()


@pytest.mark.parametrize("external", [False, True])
def test_a_file_is_read_into_the_store(external: bool, tmp_path: Path) -> None:
    source, store = model(), Store()
    onnx.save(source, tmp_path / "m.onnx", save_as_external_data=external, size_threshold=0, location="m.data")
    light = load_model(tmp_path / "m.onnx", store=store)
    places = [place_of(tensor) for tensor in light.graph.initializer]
    assert all(place is not None and place.path == store.path for place in places)
    for stored, tensor in zip(light.graph.initializer, model_in(tmp_path).graph.initializer):
        np.testing.assert_array_equal(values_of(stored), numpy_helper.to_array(tensor))


def model_in(folder: Path) -> ModelProto:
    return load_model(folder / "m.onnx")


def test_what_is_not_finite_is_found_in_the_store(tmp_path: Path) -> None:
    source = model()
    values = numpy_helper.to_array(source.graph.initializer[0]).copy()
    values[3, 4] = np.nan
    source.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "a"))
    onnx.save(source, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(InputError, match="weight 'a' contains NaN"):
        load_model(tmp_path / "m.onnx", store=Store())


def test_half_precision_becomes_float32_in_the_store() -> None:
    store = Store()
    graph = prepare(stored_model(model(kind=TensorProto.FLOAT16), store), 17, store=store)
    constants = [tensor for tensor in graph.tensors().values() if isinstance(tensor, Constant)]
    held = {tensor.name: tensor._values for tensor in constants if list(tensor.shape) == [SIDE, SIDE]}
    assert len(held) == 2 and all(isinstance(values, Stored) and values.dtype == np.float32 for values in held.values())


def test_a_constant_maps_its_values_and_stores_new_ones() -> None:
    store = Store()
    graph = prepare(stored_model(model(), store), 17, store=store)
    (constant,) = (tensor for name, tensor in graph.tensors().items() if name == "a")
    before = constant.values
    assert constant.values is not before  # it keeps none
    first = float(before[0, 0])
    before[0, 0] = 9  # in this array alone
    assert constant.values[0, 0] == first
    held = constant._values
    constant.values = before * 2
    assert isinstance(constant._values, Stored)
    constant.name = "renamed"
    made = next(tensor for tensor in to_model(graph).graph.initializer if tensor.name == "renamed")
    np.testing.assert_array_equal(values_of(made), before * 2)
    constant.values = held
    assert constant.values[0, 0] == first


def test_what_passes_make_is_stored() -> None:
    store, graph = Store(), to_graph(model())
    for tensor in graph.tensors().values():
        if isinstance(tensor, Constant):
            tensor.values = np.asarray(tensor.values) + 1
    expected = {name: t.values for name, t in graph.tensors().items() if isinstance(t, Constant)}
    store.hold_all(graph)
    for name, values in expected.items():
        assert isinstance(graph.tensors()[name]._values, Stored)
        np.testing.assert_array_equal(graph.tensors()[name].values, values)


def test_the_folder_goes_with_what_refers_to_it() -> None:
    store = Store()
    graph = prepare(stored_model(model(), store), 17, store=store)
    folder = store.path.parent
    del store
    gc.collect()
    assert folder.exists()  # constants of the graph refer to it
    del graph
    gc.collect()
    assert not folder.exists()


def test_a_store_that_nobody_needs_makes_no_folder() -> None:
    store = Store()
    stored_model(ModelProto(), store)
    assert "path" not in vars(store)


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match=r"cannot keep the weights on disk: No space left .*; make room there"):
        stored_model(model(), Store())

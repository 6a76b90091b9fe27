"""Models are written whole or not at all, large weights beside them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from qcompile.errors import InputError
from qcompile.files import write_files
from qcompile.ir import load as load_module
from qcompile.ir.load import load_model, model_files, to_model
from qcompile.ir.prepare import prepare
from qcompile.runtime.session import Session

Build = Callable[..., ModelProto]
Same = Callable[..., None]


def test_saving_replaces_the_file_and_leaves_nothing_else(conv: ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    write_files(model_files(conv, path))
    assert load_model(path) == conv
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]


def test_a_full_disk_keeps_the_old_file(conv: ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write model\.onnx: No space left on device"):
        write_files(model_files(conv, path))
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_text() == "old"


def test_a_missing_folder(conv: ModelProto, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        write_files(model_files(conv, tmp_path / "none" / "model.onnx"))


def test_a_folder_in_the_way(conv: ModelProto, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_files(model_files(conv, tmp_path / "model.onnx"))
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]


def test_weights_beyond_the_limit_go_beside_the_model(
    conv: ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "MESSAGE_LIMIT", 4000)
    before = conv.SerializeToString()
    path = tmp_path / "model.onnx"
    write_files(model_files(conv, path))
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert conv.SerializeToString() == before
    onnx.checker.check_model(path, full_check=True)
    weights = {t.name: numpy_helper.to_array(t) for t in load_model(path).graph.initializer}
    for tensor in conv.graph.initializer:
        np.testing.assert_array_equal(weights[tensor.name], numpy_helper.to_array(tensor))
    feeds = {"x": np.ones((1, 4, 8, 8), np.float32)}
    np.testing.assert_array_equal(Session(path, threads=1).run(feeds)["y"], Session(conv, threads=1).run(feeds)["y"])


@pytest.fixture
def huge() -> Iterator[ModelProto]:
    """Nine matrices of 256 MB: 2.3 GB of weights."""
    side, count = 8192, 9
    weight = np.zeros((side, side), np.float32)
    names = [f"w{i}" for i in range(count)]
    nodes = [helper.make_node("MatMul", [f"t{i}", name], [f"t{i + 1}"], name=name) for i, name in enumerate(names)]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, side]) for name in ("t0", f"t{count}")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", infos[:1], infos[1:]), opset_imports=[helper.make_opsetid("", 17)]
    )
    for name in names:
        tensor: Any = model.graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=[side, side])
        weight[0, 0] += 1
        tensor.raw_data = weight.tobytes()
    yield model


@pytest.mark.slow
def test_more_than_two_gigabytes(huge: ModelProto, tmp_path: Path) -> None:
    graph = prepare(huge, 18)
    assert graph.opset == 18
    write_files(model_files(to_model(graph), tmp_path / "model.onnx"))
    loaded = load_model(tmp_path / "model.onnx")
    first = [np.frombuffer(tensor.raw_data, np.float32, count=1)[0] for tensor in loaded.graph.initializer]
    assert first == list(range(1, 10))

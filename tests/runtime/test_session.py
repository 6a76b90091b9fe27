"""The door to ONNX Runtime: levels, Q/DQ as written, models too large for bytes, and errors of one line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import CHAIN, EMIT, compiled, network, samples
from onnx import numpy_helper, parser

from qcompile.errors import InputError, QCompileError
from qcompile.runtime import session as module
from qcompile.runtime.session import LEVELS, Session, first_line, loadable, newest_opset, version

SQUARE = """<ir_version: 8, opset_import: ["": 18]>
net (float[N,2] x) => (float[N,2] y, float[N,2] z) { y = Mul(x, x)  z = Neg(y) }"""


def model_of(text: str = SQUARE) -> onnx.ModelProto:
    return parser.parse_model(text)


def test_run() -> None:
    session = Session(model_of(), threads=1)
    assert list(session.inputs) == ["x"] and session.outputs == ["y", "z"]
    x = np.array([[1, 2]], np.float32)
    found = session.run({"x": x})
    assert list(found) == ["y", "z"] and found["z"].tolist() == [[-1, -4]]
    assert list(session.run({"x": x}, ["z"])) == ["z"]


def test_model_from_a_file(tmp_path: Path) -> None:
    onnx.save(model_of(), tmp_path / "m.onnx")
    for path in (tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        assert Session(path).run({"x": np.ones((1, 2), np.float32)})["z"].tolist() == [[-1, -1]]


@pytest.mark.parametrize("level", LEVELS)
def test_levels_compute_the_same(level: str) -> None:
    model = compiled(CHAIN, EMIT, w=4, a=4)
    assert model.emitted is not None
    feeds = samples(model.source, 2)
    expected = Session(model.source, level="off", threads=1).run(feeds)["y"]
    found = Session(model.source, level=level, threads=1).run(feeds)["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)  # fusions sum in another order


def test_levels_optimize_more_and_more(tmp_path: Path) -> None:
    emitted = compiled(CHAIN, EMIT).emitted
    assert emitted is not None
    operators = {}
    for level in LEVELS:
        Session(emitted, level=level, threads=1, save_optimized=tmp_path / level)
        saved = onnx.load(tmp_path / level, load_external_data=False)
        operators[level] = [node.op_type for node in saved.graph.node]
    assert "QLinearConv" not in operators["off"] + operators["basic"]
    assert operators["extended"].count("QLinearConv") == 3
    assert len(operators["off"]) == len(emitted.graph.node)


def test_qdq_can_be_kept_as_written(tmp_path: Path) -> None:
    emitted = compiled(CHAIN, EMIT).emitted
    assert emitted is not None
    Session(emitted, fuse_qdq=False, threads=1, save_optimized=tmp_path / "m.onnx")
    kept = {node.op_type for node in onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.node}
    assert "QuantizeLinear" in kept and not any(op.startswith("QLinear") for op in kept)


def large_model(bytes_: int) -> onnx.ModelProto:
    model = model_of(f'<ir_version: 8, opset_import: ["": 18]> net (float[{bytes_ // 4}] x) => (y) {{ y = Add(x, w) }}')
    model.graph.initializer.append(numpy_helper.from_array(np.arange(bytes_ // 4, dtype=np.float32), "w"))
    return model


@pytest.mark.parametrize(("limit", "files"), [(1 << 20, 0), (100, 2)])
def test_model_of_any_size(limit: int, files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones as bytes, others through a file with their weights beside it, which can be mapped."""
    monkeypatch.setattr(module, "SMALL", limit)
    model = large_model(8000)
    before = model.SerializeToString()
    with loadable(model) as source:
        folder = Path(source).parent if isinstance(source, str) else None
        assert len(list(folder.iterdir()) if folder else []) == files
        assert folder is None or Path(source).stat().st_size < 8000 < sum(f.stat().st_size for f in folder.iterdir())
    assert folder is None or not folder.exists()
    y = Session(model).run({"x": np.zeros(2000, np.float32)})["y"]
    np.testing.assert_array_equal(y, np.arange(2000))
    assert model.SerializeToString() == before


def test_model_that_cannot_be_loaded() -> None:
    model = model_of(SQUARE.replace("Neg(y)", "Neg(missing)"))
    with pytest.raises(QCompileError, match=r"ONNX Runtime [\d.]+ cannot load the model: .*missing") as caught:
        Session(model)
    assert "\n" not in str(caught.value) and not isinstance(caught.value, InputError)


def test_a_full_disk_is_the_users_to_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match=r"cannot hand the model to ONNX Runtime: No space left .*; make room there"):
        Session(model_of())


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(QCompileError, match="cannot load the model"):
        Session(tmp_path / "nothing.onnx")


@pytest.mark.parametrize(
    "feeds", [{}, {"x": np.ones((1, 3), np.float32)}, {"x": np.ones((1, 2))}, {"other": np.ones((1, 2), np.float32)}]
)
def test_data_that_does_not_fit(feeds: dict[str, np.ndarray]) -> None:
    with pytest.raises(InputError, match=r"the model cannot run on this data: .+") as caught:
        Session(model_of(), fault=InputError).run(feeds)
    assert "\n" not in str(caught.value)


def test_a_file_of_ours_that_cannot_run_is_no_fault_of_the_data() -> None:
    session = Session(model_of())
    with pytest.raises(QCompileError, match=r"cannot run what was made of the model: .+; please report it") as caught:
        session.run({"x": np.ones((1, 3), np.float32)})
    assert not isinstance(caught.value, InputError) and "\n" not in str(caught.value)


def test_first_line() -> None:
    assert first_line(ValueError("  what happened\nstack trace\nmore")) == "what happened"
    assert first_line(ValueError()) == ""


def test_threads() -> None:
    x = np.ones((1, 2), np.float32)
    assert all(Session(model_of(), threads=count).run({"x": x})["y"].tolist() == [[1, 1]] for count in (0, 1, 2))


def test_newest_opset_is_one_that_loads() -> None:
    opset = newest_opset()
    assert 18 <= opset <= onnx.defs.onnx_opset_version()
    text = "net (float[N,2] x) => (uint8[N,2] y) <float s = {1}, uint8 z = {0}> { y = QuantizeLinear(x, s, z) }"
    assert Session(network(text, opset=opset)).outputs == ["y"]


def test_version() -> None:
    assert [part.isdecimal() for part in version().split(".")[:2]] == [True, True]


def test_outputs_are_those_that_can_be_compared() -> None:
    session = Session(
        model_of("""<ir_version: 8, opset_import: ["": 18]> net (float[N,2] x) => (float[N,2] y, seq(float[N,2]) s)
        { y = Neg(x)  s = SequenceConstruct(x, y) }""")
    )
    assert session.outputs == ["y"] and list(session.run({"x": np.ones((1, 2), np.float32)})) == ["y"]


def test_weights_that_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left as they are mapped, large weights give the same products but for the order of sums."""
    monkeypatch.setattr(module, "LARGE", 1000)
    model = model_of('<ir_version: 8, opset_import: ["": 18]> net (float[4,64] x) => (y) { y = MatMul(x, w) }')
    weight = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    x = np.random.default_rng(1).standard_normal((4, 64), np.float32)
    found = Session(model, threads=1, packed=False).run({"x": x})["y"]
    np.testing.assert_allclose(found, x @ weight, rtol=1e-4, atol=1e-4)

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from networks import network, samples
from numpy.typing import NDArray

import qcompile
from qcompile import Config, InputError, PassManager, QCompileError, QModel, build
from qcompile.api import Result, read_plan
from qcompile.errors import nearest
from qcompile.ir import store
from qcompile.ir.fingerprint import fingerprint
from qcompile.ir.store import place_of
from qcompile.quant.plan import Form
from qcompile.runtime.session import Session, version
from qcompile.simulation import simulate
from qcompile.targets.schema import release

Data = dict[str, NDArray[Any]]
W4A4 = Config(w=4, a=4, threads=1)


PUBLIC = """
    Check Config EmissionError InputError Pass PassManager PassRun Plan QCompileError QModel Result
    build check compile open_model plan_only report simulate
"""


def test_public_names() -> None:
    assert qcompile.__all__ == PUBLIC.split()
    assert all(hasattr(qcompile, name) for name in qcompile.__all__)


def test_compile_emits_a_model_that_is_close_to_float(residual_model: onnx.ModelProto, residual_data: Data) -> None:
    result = qcompile.compile(residual_model, Config(threads=1), residual_data)
    expected = Session(residual_model).run(residual_data)["scores"]
    found = Session(result.model).run(residual_data)["scores"]
    error = float(np.mean((expected - found) ** 2) / np.mean(expected**2))
    assert 0 < error < 0.01  # 8 bits throughout: SQNR above 20 dB; exactly 0 would mean that nothing was quantized
    assert result.plan.form("branch") is Form.COMPUTE
    assert result.report["audit"]["size"]["emitted"] == result.model.ByteSize()


def test_path_and_model_in_memory_give_the_same_bytes(
    residual_model: onnx.ModelProto, residual_data: Data, tmp_path: Path
) -> None:
    onnx.save(residual_model, tmp_path / "in.onnx")
    before = residual_model.SerializeToString()
    from_memory = qcompile.compile(residual_model, W4A4, residual_data).model
    from_file = qcompile.compile(tmp_path / "in.onnx", W4A4, residual_data).model
    assert from_memory.SerializeToString() == from_file.SerializeToString()
    assert residual_model.SerializeToString() == before


def test_a_tenth_is_held_back_and_both_parts_make_the_whole(
    residual_model: onnx.ModelProto, residual_data: Data
) -> None:
    opened = qcompile.open_model(residual_model, Config(), residual_data)
    assert opened.data is not None and opened.held_back is not None
    assert (opened.data.count, opened.held_back.count) == (36, 4)
    parts = np.concatenate([opened.data.numbers, opened.held_back.numbers])
    assert sorted(parts.tolist()) == list(range(40))


def test_one_sample_serves_both(residual_model: onnx.ModelProto, residual_data: Data) -> None:
    opened = qcompile.open_model(residual_model, Config(), {"image": residual_data["image"][:1]})
    assert opened.data is opened.held_back


def test_a_fixed_batch_is_never_cut(residual_model: onnx.ModelProto, residual_data: Data) -> None:
    residual_model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    opened = qcompile.open_model(residual_model, Config(), residual_data)
    assert opened.data is not None and opened.held_back is not None
    assert (opened.data.count, opened.held_back.count) == (32, 8)
    assert len(next(opened.held_back.batches(1))["image"]) == 8


def test_labels_give_top1(residual_model: onnx.ModelProto, residual_data: Data) -> None:
    labels = Session(residual_model).run(residual_data)["scores"].argmax(1)
    result = qcompile.compile(
        residual_model, Config(threads=1), residual_data, evaluation={**residual_data, "labels": labels}
    )
    top1 = result.report["audit"]["top1"]
    assert (top1["samples"], top1["float"]) == (40, 100)
    assert 50 < top1["emitted"] <= 100


def test_an_effort_beside_a_number_of_steps_is_told(residual_model: onnx.ModelProto) -> None:
    for settings, count in (({"steps": 2}, 0), ({"effort": "max"}, 0), ({"effort": "max", "steps": 2}, 1)):
        opened = qcompile.open_model(residual_model, Config(w=4, a=4, threads=1, **settings))
        told = [entry["text"] for entry in opened.journal.by("open-model") if entry["what"] == "warning"]
        assert told == ["--effort max has no effect: --steps says how long to train"] * count


def test_no_data_says_how_to_give_it(residual_model: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match="no calibration data; give samples with --data"):
        qcompile.compile(residual_model)


def test_random_data_has_to_be_asked_for(residual_model: onnx.ModelProto, residual_data: Data) -> None:
    result = qcompile.compile(residual_model, Config(random_data=True, threads=1))
    assert any("random data" in text for text in result.report["warnings"])
    with pytest.raises(InputError, match="leave one of them out"):
        qcompile.compile(residual_model, Config(random_data=True), residual_data)


@dataclass
class Wrong:
    """A user's pass that does not keep what the protocol asks for."""

    requires: Any
    name: ClassVar[str] = "wrong"

    def run(self, model: QModel) -> None:
        pass


CONFIG = "give qcompile.Config"
WRONG: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "bytes as model": (
        lambda model: qcompile.compile(model.SerializeToString(), W4A4, {}),
        "model is of type bytes; give",
    ),
    "no model": (lambda _: qcompile.plan_only(None), "model is of type NoneType; give the path of an ONNX file"),
    "graph as model": (lambda model: qcompile.plan_only(model.graph), "model is of type GraphProto; give the path"),
    "dict as config": (lambda model: qcompile.plan_only(model, {"w": 4}), f"config is of type dict; {CONFIG}"),
    "empty dict as config": (lambda model: qcompile.plan_only(model, {}), f"config is of type dict; {CONFIG}"),
    "class as config": (lambda model: qcompile.plan_only(model, Config), f"config is the class Config; {CONFIG}"),
    "bytes as data": (lambda model: qcompile.compile(model, W4A4, b"calib.npz"), "cannot read data from bytes; give"),
    "dict as plan": (lambda model: qcompile.compile(model, W4A4, plan={}), "plan is of type dict; give the path"),
    "class as pass": (lambda _: PassManager([type(build(W4A4)[0])]), "NormalizeGraph is no pass; give objects"),
    "text as requirement": (
        lambda _: PassManager([Wrong("calibrate")]),
        r"a text, 'calibrate'; write requires = \('ca",
    ),
    "a pass that returns nothing": (
        lambda model: PassManager([Wrong(())]).run(qcompile.open_model(model)),
        "result of pass 'wrong' is of type NoneType; return the number of changes",
    ),
    "no name of a file": (
        lambda model: qcompile.plan_only(model).save(None),
        "model's file is of type NoneType; give",
    ),
    "file as a name": (
        lambda model: qcompile.plan_only(model).save("o", report=io.BytesIO()),
        "name of the report's file is of type BytesIO; give a path",
    ),
    "list as recipe": (lambda _: Config.from_dict([4]), "recipe is of type list; give a dict of keys and values"),
    "number as key": (lambda _: Config.from_dict({4: 4}), "unknown recipe key 4"),
    "model to passes": (
        lambda model: PassManager([]).run(model),
        "model is of type ModelProto; give what qcompile.open",
    ),
    "model to report": (lambda model: qcompile.report(model), "model is of type ModelProto; give what qcompile.open"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_types_say_what_to_write(case: str, residual_model: onnx.ModelProto) -> None:
    call, message = WRONG[case]
    with pytest.raises(qcompile.InputError, match=message):
        call(residual_model)


def test_plan_only_needs_no_data(residual_model: onnx.ModelProto) -> None:
    result = qcompile.plan_only(residual_model, W4A4)
    assert result.plan.nodes["branch"].weight_bits == 4
    assert not result.plan.quantizers
    with pytest.raises(QCompileError, match="no pass emitted a model"):
        _ = result.model


@pytest.mark.parametrize("name", ["plan.npz", "plan"])
def test_a_saved_plan_compiles_to_the_same_bytes(
    residual_model: onnx.ModelProto, residual_data: Data, tmp_path: Path, name: str
) -> None:
    first = qcompile.compile(residual_model, W4A4, residual_data)
    first.save(tmp_path / "out.onnx", plan=tmp_path / name)
    again = qcompile.compile(residual_model, Config(threads=1), plan=tmp_path / name)
    assert again.model.SerializeToString() == first.model.SerializeToString()
    assert again.report["audit"]["agreement"] is None
    assert again.report["verdict"].startswith("w4a4")


def test_settings_that_a_plan_overrules_are_told(residual_model: onnx.ModelProto, residual_data: Data) -> None:
    config = Config(w=4, a=4, method="rtn", threads=1)
    plan = qcompile.compile(residual_model, config, residual_data).plan
    ignored = "no effect: the plan decides"
    for again in (config, Config(threads=1), Config(samples=9, threads=1)):
        result = qcompile.compile(residual_model, again, plan=plan)
        assert not any(ignored in text for text in result.report["warnings"])
    result = qcompile.compile(residual_model, Config(w=3, method="rtn", threads=1), plan=plan)
    assert f"w, method have {ignored}" in result.report["warnings"]


def test_a_plan_of_other_weights_is_refused(
    residual_model: onnx.ModelProto, residual_data: Data, tmp_path: Path
) -> None:
    compiled = qcompile.compile(residual_model, W4A4, residual_data)
    compiled.save(tmp_path / "out.onnx", plan=tmp_path / "plan.npz")
    weight = residual_model.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), weight.name))
    with pytest.raises(InputError, match="another model or other weights"):
        read_plan(qcompile.open_model(residual_model), tmp_path / "plan.npz")


def test_a_model_is_known_by_what_was_given(residual_model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which kernels ONNX Runtime has decides what results are compared with, not whose plan it is."""
    other = onnx.ModelProto.FromString(residual_model.SerializeToString())
    other.graph.node[0].name = "another form"
    monkeypatch.setattr("qcompile.api._reference", lambda source, notes: other)
    opened = qcompile.open_model(residual_model)
    assert opened.source is other and opened.fingerprint == fingerprint(residual_model)


def test_save_leaves_all_or_nothing(
    residual_model: onnx.ModelProto, residual_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = qcompile.compile(residual_model, Config(threads=1), residual_data)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(InputError, match="No space left on device"):
        patch.setattr(os, "fsync", full)
        result.save(tmp_path / "out.onnx", plan=tmp_path / "plan", report=tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []
    result.save(tmp_path / "out.onnx", plan=tmp_path / "plan", report=tmp_path / "report.json")
    assert {path.name for path in tmp_path.iterdir()} == {"out.onnx", "plan", "report.json"}


def test_result_report_is_json_whatever_a_pass_notes(residual_model: onnx.ModelProto) -> None:
    opened = qcompile.open_model(residual_model)
    opened.journal.note("mine", "measured", value=np.float32(1.5))
    assert '"value": 1.5' in Result(opened, {"journal": opened.journal.entries}).report_text()


def test_nearest_names_the_right_one() -> None:
    assert nearest("--treads", ["--threads", "--target"]) == "did you mean '--threads'?"


def test_a_result_is_shown_as_its_verdict(residual_model: onnx.ModelProto) -> None:
    result = qcompile.plan_only(residual_model)
    assert repr(result) == f"<Result: {result.report['verdict']}>" == "<Result: w8a8 for ort-cpu>"


BLOCKS = """net (float[N,3,8,8] image, float[16,3,3,3] W1, float[4,4,3,3] W2) => (float[N,4,P,Q] y) {
  [first] a = Conv<pads = [1,1,1,1]>(image, W1)  [blocks] b = DepthToSpace<blocksize = 2>(a)  [last] y = Conv(b, W2)
}"""


@pytest.mark.parametrize(("runtime", "form"), [(None, Form.FLOAT), ("installed", Form.CODES)])
def test_what_later_runtimes_have_is_used_where_these_are_promised(runtime: str | None, form: Form) -> None:
    if release(version()) < release("1.21"):
        pytest.skip("the installed ONNX Runtime has no DepthToSpace on uint8")
    source = network(BLOCKS)
    config = Config(runtime_version=runtime, threads=1, w=4, method="rtn")
    result = qcompile.compile(source, config, samples(source))
    assert result.plan.nodes["blocks"].form is form
    assert result.report["audit"]["fused"]["missing"] == []
    assert result.report["target"]["runtime"] == (version() if runtime else "1.19.2")
    feeds = samples(source, 2, seed=5)
    reference = simulate(result.qmodel.graph, result.plan, "integer").run(feeds)["y"]
    np.testing.assert_array_equal(Session(result.model, threads=1).run(feeds)["y"], reference)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runtime_version": "99.0"}, "is newer than what is installed"),
        ({"runtime_version": "1.18.0"}, "is too old"),
        ({"runtime_version": "new"}, "is no version"),
        ({"runtime_version": "1.20.0", "pack": "int4"}, r"--pack int4 needs ONNX Runtime 1\.23\.0 or later"),
    ],
)
def test_versions_that_cannot_be(residual_model: onnx.ModelProto, settings: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        qcompile.plan_only(residual_model, Config(**settings))  # type: ignore[arg-type]


def test_int4_needs_a_later_runtime_without_being_told(residual_model: onnx.ModelProto) -> None:
    report = qcompile.plan_only(residual_model, Config(w=4, pack="int4")).report
    assert report["target"]["runtime"] == "1.23.0"


OUTPUTS = {
    "pixels": (
        """net (float[N,3,8,8] image, float[8,3,3,3] W1, float[12,8,3,3] W2) => (float[N,3,P,Q] y) {
        [a] a = Conv<pads = [1,1,1,1]>(image, W1) [r] r = Relu(a) [b] b = Conv<pads = [1,1,1,1]>(r, W2)
        [d] y = DepthToSpace<blocksize = 2>(b) }""",
        "values",
    ),
    "boxes": (
        """net (float[N,3,8,8] image, float[8,3,3,3] W1, float[8,8,1,1] W2) => (float[N,72,4] y)
        <int64[3] shape = {0, -1, 4}> {
        [a] a = Conv(image, W1) [r] r = Relu(a) [b] b = Conv(r, W2)
        [t] t = Transpose<perm = [0,2,3,1]>(b) [s] y = Reshape(t, shape) }""",
        "values",
    ),
    "hidden channels": (
        """net (float[N,6,16] x, float[16,32] W1, float[32,16] W2) => (float[N,6,16] y) {
        [a] a = MatMul(x, W1) [r] r = Relu(a) [b] y = MatMul(r, W2) }""",
        "values",
    ),
    "a segmentation": (
        """net (float[N,3,8,8] image, float[8,3,3,3] W1, float[3,8,1,1] W2) => (float[N,3,P,Q] y) {
        [a] a = Conv(image, W1) [r] r = Relu(a) [b] b = Conv(r, W2) [s] y = Softmax<axis = 1>(b) }""",
        "classes",
    ),
    "decisions": (
        """net (float[N,3,8,8] image, float[8,3,3,3] W1, float[3,8,1,1] W2) => (int64[N,1,P,Q] y) {
        [a] a = Conv(image, W1) [r] r = Relu(a) [b] b = Conv(r, W2) [s] y = ArgMax<axis = 1>(b) }""",
        "decisions",
    ),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_the_report_judges_an_output_by_what_it_is(case: str) -> None:
    text, kind = OUTPUTS[case]
    source = network(text)
    report = qcompile.compile(source, Config(threads=1), samples(source)).report
    assert report["audit"]["agreement"]["outputs"]["y"]["kind"] == kind
    assert ("same class" in report["verdict"]) is (kind != "values")
    assert ("relative error" in report["verdict"]) is (kind == "values")


def test_a_late_sample_that_the_float_model_cannot_take_is_no_fault_of_ours() -> None:
    source = network(
        """net (int64[N,4] ids, float[10,8] T, float[8,8] A, float[8,3] B) => (float[N,4,3] y) {
          e = Gather(T, ids)  a = MatMul(e, A)  r = Relu(a)  y = MatMul(r, B)
        }"""
    )
    ids = np.random.default_rng(0).integers(0, 10, (64, 4))
    ids[50, 2] = 99  # behind the samples that are looked at first
    with pytest.raises(
        InputError, match=r"the model cannot run on this data: .*indices element out of data bounds, idx=99"
    ):
        qcompile.compile(source, Config(w=8, a=8, method="rtn", threads=1), {"ids": ids})


def test_weights_on_disk_give_the_same_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large weights are stored: with a limit that makes nearly all of them large, the file is the same."""
    weights = ", ".join(f"float[80, 80] {name}" for name in "UVW")
    nodes = "a = MatMul(x, U) b = MatMul(a, V) y = MatMul(b, W)"
    source = network(f"net (float[N, 80] x, {weights}) => (float[N, 80] y) {{ {nodes} }}")
    data = samples(source)
    config = Config(w=4, a=8, method="rtn", placement="all", threads=1)
    files = []
    for limit in (1 << 30, 3000):
        monkeypatch.setattr(store, "LARGE_BYTES", limit)
        result = qcompile.compile(source, config, data)
        files.append(result.model.SerializeToString())
    assert any(place_of(tensor) for tensor in result.qmodel.source.graph.initializer)
    assert files[0] == files[1]

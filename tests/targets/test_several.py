"""One plan for several targets: what becomes of their facts, and a file for each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import DATA, Run
from networks import NETWORKS, RELU6, Arrays, initializers, network, samples

import qcompile
from qcompile import Config, InputError, PassManager, open_model
from qcompile.api import open_target
from qcompile.passes.settle_scales import SettleScales
from qcompile.pipeline import decide
from qcompile.quant.params import Quantizer
from qcompile.quant.powers import is_power
from qcompile.runtime.session import Session
from qcompile.targets.own import FORMS
from qcompile.targets.schema import Target
from qcompile.targets.several import merged

ORT, TRT, ACADEMIC, OPENVINO = map(Target.load, ("ort-cpu", "tensorrt", "academic", "openvino"))
BYTES = """like = "tensorrt"
activations = "uint8"
symmetric = false
unrounded_sums = false
arithmetic = [
  "Add", "Mul", "AveragePool", "GlobalAveragePool", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "HardSwish",
]
power_of_two = ["activations", "weights"]
per_tensor_weights = ["Gemm"]
"""
SHIFTS = 'like = "tensorrt"\nname = "shifts"\npower_of_two = ["activations"]\nper_tensor_weights = ["depthwise"]\n'


def test_facts_are_those_that_all_take() -> None:
    found = merged([ORT, ACADEMIC])
    for fact in (*FORMS, "clips", "float_output"):
        assert getattr(found, fact) == getattr(ORT, fact) & getattr(ACADEMIC, fact)
    assert found.even_zero_point == ORT.even_zero_point and found.least_output_scale == ORT.least_output_scale
    assert (found.name, found.backend, found.bias, found.kernels) == ("ort-cpu,academic", "ort-cpu", "int32", "others")
    assert found.dictated == ORT.dictated and found.checks.keys() == ORT.checks.keys() | ACADEMIC.checks.keys()
    assert [target.name for target in found.parts] == ["ort-cpu", "academic"]


def test_the_stricter_of_two_facts_counts() -> None:
    found = merged([TRT, ACADEMIC])
    assert found.symmetric and not found.unrounded_sums and found.activations == "int8"
    assert merged([ACADEMIC, TRT]).activations == "int8"
    newest = merged([ORT, OPENVINO])
    assert (newest.opset, newest.runtime) == (OPENVINO.opset, OPENVINO.runtime)
    assert {(target.opset, target.runtime) for target in newest.parts} == {(newest.opset, newest.runtime)}
    shifting = replace(ORT, name="a", power_of_two=("weights",), per_tensor_weights=frozenset({"MatMul"}))
    both = merged([replace(shifting, name="b", power_of_two=("activations",)), shifting])
    assert both.power_of_two == ("activations", "weights") and both.per_tensor_weights == {"MatMul"}


def test_what_is_not_the_same_everywhere_stays_float() -> None:
    found = merged([ORT, replace(ORT, name="a", arithmetic=ORT.arithmetic - {"Mul"})])
    assert "Mul" not in found.arithmetic and "not in the same form" in found.float_reasons["Mul"]
    assert found.float_reasons["Softmax"] == ORT.float_reasons["Softmax"]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            [ORT, TRT],
            "ort-cpu,tensorrt: no plan serves both: codes of activations are uint8 on ort-cpu, int8 on tensorrt",
        ),
        ([ORT, ORT], "ort-cpu,ort-cpu names one twice"),
        ([ORT, ACADEMIC, TRT], "no plan serves all: codes"),
        ([ORT, replace(ORT, name="a", compute=frozenset())], "no operator with a weight is in the facts of all"),
        ([ORT, replace(ACADEMIC, symmetric=True)], "zero points are 0 on academic, and uint8 has no code below it"),
        (
            [ORT, replace(ORT, name="a", dictated={"HardSigmoid": Quantizer(ORT.grid(8), 0.5, 0)})],
            "HardSigmoid has another quantizer on a",
        ),
    ],
)
def test_what_no_plan_serves_is_told(targets: list[Target], message: str) -> None:
    with pytest.raises(InputError) as error:
        merged(targets)
    assert message in str(error.value)


def test_files_know_their_own_facts_and_plans_all(tmp_path: Path) -> None:
    path = tmp_path / "shifts.toml"
    path.write_text(SHIFTS, encoding="utf-8")
    before = open_target(Config(target=f"tensorrt, {path}"))
    assert before.identity == f"tensorrt,shifts ({before.digest})" and before.digest
    path.write_text(SHIFTS.replace('["depthwise"]', "[]"), encoding="utf-8")
    assert open_target(Config(target=f"tensorrt,{path}")).digest != before.digest
    assert merged([ORT, ACADEMIC]).identity == "ort-cpu,academic"


def run(file: onnx.ModelProto, feeds: Arrays) -> Arrays:
    return Session(file, level="off", fuse_qdq=False, threads=1).run(feeds)


@pytest.mark.parametrize("name", ["chain", "residual", "relu6", "classifier", "attention"])
@pytest.mark.parametrize("bits", [{}, {"w": 4, "a": 4}], ids=str)
def test_files_for_different_runtimes_compute_the_same(name: str, bits: dict[str, int]) -> None:
    source = network(NETWORKS[name])
    config = Config(**{"target": "tensorrt,academic", "method": "rtn", "threads": 1} | bits)
    result = qcompile.compile(source, config, samples(source, count=32))
    (other,) = result.others
    assert [item.qmodel.target.name for item in (result, other)] == ["tensorrt", "academic"]
    assert result.plan is other.plan and result.plan.target == "tensorrt,academic"
    feeds = samples(source, seed=9)
    fake = qcompile.simulate(result.plan, feeds, source, mode="fake-quant")
    for output, expected in run(result.model, feeds).items():
        np.testing.assert_array_equal(run(other.model, feeds)[output], expected)
        np.testing.assert_allclose(fake[output], expected, atol=1e-5 * np.abs(expected).max())  # blocked layouts


def test_what_one_plan_says_for_ort_cpu_is_what_its_kernels_compute() -> None:
    """Scales are settled for it though another target comes first; the weights of both files are the same integers."""
    source = network(NETWORKS["residual"])
    config = Config(target="openvino,ort-cpu", w=4, a=4, method="rtn", threads=1)
    result = qcompile.compile(source, config, samples(source, count=32))
    (ort_cpu,) = result.others
    assert ort_cpu.report["audit"]["fused"] and not ort_cpu.report["audit"]["fused"]["missing"]
    assert result.report["audit"]["fused"] is None
    feeds = samples(source, seed=9)
    expected = Session(ort_cpu.model, threads=1).run(feeds)
    for output, found in qcompile.simulate(ort_cpu.model, feeds).items():
        np.testing.assert_array_equal(found, expected[output])
    stored = [initializers(item.model) for item in (result, ort_cpu)]
    scales = [
        {name: array for name, array in item.items() if name.startswith("W") and "scale" in name} for item in stored
    ]
    assert scales[0].keys() == scales[1].keys() and scales[0]
    for name, array in scales[0].items():
        np.testing.assert_array_equal(scales[1][name], array)


@pytest.mark.parametrize("name", ["residual", "squeeze_excite", "elementwise", "hard_swish", "prelu", "classifier"])
def test_kernels_of_onnx_runtime_take_powers_of_two(tmp_path: Path, name: str) -> None:
    """Scales that its kernels ask for, or that are settled for it, are powers of two where the other wants these."""
    path = tmp_path / "bytes.toml"
    path.write_text(BYTES, encoding="utf-8")
    source = network(NETWORKS[name])
    config = Config(target=f"ort-cpu,{path}", threads=1)
    result = qcompile.compile(source, config, samples(source, count=32))
    assert all(is_power(item.scale) for item in (*result.plan.quantizers.values(), *result.plan.weights.values()))
    assert not result.report["audit"]["fused"]["missing"]
    feeds = samples(source, seed=9)
    found = qcompile.simulate(result.plan, feeds, source, config)
    for output, expected in Session(result.model, threads=1).run(feeds).items():
        np.testing.assert_array_equal(found[output], expected)


def test_scales_are_settled_for_the_one_that_asks_for_it() -> None:
    source = network(NETWORKS["residual"])
    data, config = samples(source, count=32), Config(target="academic,ort-cpu", method="rtn", threads=1)
    alone = open_model(source, replace(config, target="ort-cpu"), data)
    PassManager(decide(alone.config)).run(alone)
    assert SettleScales().run(alone) > 0  # there is something to settle
    (ort_cpu,) = qcompile.compile(source, config, data).others
    assert SettleScales().run(ort_cpu.qmodel) == 0


def test_what_is_said_of_one_file_is_not_said_of_another() -> None:
    source = network(NETWORKS["residual"])
    config = Config(target="ort-cpu,openvino", pack="int4", method="rtn", threads=1)
    result = qcompile.compile(source, config, samples(source, count=32))
    for item in (result, *result.others):
        assert item.qmodel.journal.warnings == ["--pack int4 has no effect: all weights have 8 bits"]


def test_a_trained_plan_is_saved_once_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "shifts.toml"
    path.write_text(SHIFTS, encoding="utf-8")
    source = network(RELU6)
    config = Config(target=f"tensorrt,{path}", w=4, a=4, steps=4, threads=1, work_dir=str(tmp_path / "work"))
    data = samples(source, count=40)
    result = qcompile.compile(source, config, data)
    assert any(outcome.trained for outcome in result.qmodel.outcomes)
    assert all(is_power(quantizer.scale) for quantizer in result.plan.quantizers.values())
    result.save(tmp_path / "out.onnx", plan=tmp_path / "p.npz", report=tmp_path / "r.json")
    names = {item.name for item in tmp_path.iterdir()}
    assert names == {
        *("shifts.toml", "work", "p.npz", "out.tensorrt.onnx", "out.shifts.onnx", "r.tensorrt.json", "r.shifts.json"),
    }
    resumed = qcompile.compile(source, replace(config, resume=True), data)
    again = qcompile.compile(source, replace(config, work_dir=None), data, plan=tmp_path / "p.npz")
    for other in (resumed, again):
        for one, two in zip((result, *result.others), (other, *other.others)):
            assert one.model.SerializeToString() == two.model.SerializeToString()
    with pytest.raises(InputError, match=r"made for target 'tensorrt,shifts \(\w+\)', not 'tensorrt'"):
        qcompile.compile(source, Config(target="tensorrt", threads=1), data, plan=tmp_path / "p.npz")


def test_the_command_writes_a_file_for_each(run: Run, folder: Path) -> None:
    ended = run("in.onnx", "-o", "out.onnx", *DATA, "--target", "tensorrt,academic", "--report", "r.json")
    assert ended.code == 0
    assert {"out.tensorrt.onnx", "out.academic.onnx", "r.tensorrt.json", "r.academic.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert not (folder / "out.onnx").exists()
    assert "\nout.tensorrt.onnx: w8a8 for tensorrt" in ended.out and "\nout.academic.onnx: w8a8 for a" in ended.out
    (folder / "in.onnx").rename(folder / "in.academic.onnx")
    taken = run("in.academic.onnx", "-o", "in.onnx", *DATA, "--target", "tensorrt,academic")
    assert (taken.code, "the output would overwrite the model (in.academic.onnx)" in taken.err) == (2, True)
    shown = run("in.academic.onnx", "--plan", "--target", "tensorrt,academic")
    assert shown.code == 0 and "Plan for tensorrt,academic" in shown.out
    fast = run("in.academic.onnx", "-o", "o.onnx", *DATA, "--target", "ort-cpu,academic", "--placement", "all")
    assert fast.code == 2 and "--placement all has no effect" in fast.err

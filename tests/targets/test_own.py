"""Targets of one's own: TOML files that are like a known target."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import COMPILE, Run
from networks import CORRECT, NETWORKS, compiled, samples

from qcompile import Config, InputError
from qcompile.backends import check
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.runtime.session import Session
from qcompile.simulation import simulate
from qcompile.targets.listing import as_file
from qcompile.targets.own import changeable
from qcompile.targets.schema import Target, known, known_tables

NPU = """like = "tensorrt"
name = "example-npu"
bias = "int32"
unrounded_sums = false
arithmetic = ["Add", "Mul", "Concat"]
movement = "codes"
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """npu.toml in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "npu.toml"
    path.write_text(NPU, encoding="utf-8")
    return path


def test_facts_are_those_of_the_file_and_of_the_target_it_is_like(written: Path) -> None:
    own, base = Target.load(str(written)), Target.load("tensorrt")
    assert (own.name, own.like, own.bias, own.movement) == ("example-npu", "tensorrt", "int32", "codes")
    assert own.arithmetic == {"Add", "Mul", "Concat"} and not own.unrounded_sums
    for fact in (
        "compute",
        "codes",
        "clips",
        "activations",
        "symmetric",
        "opset",
        "backend",
        "kernels",
        "float_reasons",
    ):
        assert getattr(own, fact) == getattr(base, fact)


def test_a_name_is_that_of_the_file(written: Path) -> None:
    written.with_name("my chip.toml").write_text('like = "academic"', encoding="utf-8")
    assert Target.load("my chip.toml").name == "my-chip"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'does not say what it is like (npu.toml); give like = "tensorrt"'),
        ('like = "tensort"', "like 'tensort' is unknown (npu.toml); did you mean 'tensorrt'?"),
        ('like = ["tensorrt"]', "like cannot be"),
        ('like = "tensorrt"\nbaas = "int32"', "unknown fact 'baas' (npu.toml); did you mean 'bias'?"),
        ('like = "tensorrt"\nbias = "int33"', "bias 'int33' is unknown (npu.toml); did you mean 'int32'?"),
        ('like = "tensorrt"\ncompute = ["Cnv"]', "compute 'Cnv' is unknown (npu.toml); did you mean 'Conv'?"),
        ('like = "tensorrt"\ncodes = ["Add"]', "Add cannot be one of codes (npu.toml); it can be one of arithmetic"),
        ('like = "ort-cpu"\ncodes = ["Depth"]', "did you mean 'DepthToSpace'?"),
        ('like = "tensorrt"\nsymmetric = 1', "symmetric cannot be 1 (npu.toml); give true or false"),
        ('like = "tensorrt"\nopset = 19.0', "opset cannot be 19.0 (npu.toml); give a whole number from 18 to 21"),
        ('like = "tensorrt"\nclips = "Relu"', 'clips cannot be "Relu" (npu.toml); give a list of names'),
        ('like = "tensorrt"\npacking = []', "packing cannot be []"),
        ('like = "tensorrt"\nname = "a,b"', 'name cannot be "a,b"'),
        ('like = "tensorrt"\nname = "ort-cpu"', "name 'ort-cpu' is that of a known target"),
        ('like = "tensorrt"\nkernels = "none"', "a target like tensorrt keeps its kernels"),
        ('like = "ort-cpu"\nbias = "float32"', "a target like ort-cpu keeps its bias"),
        ('like = "academic"\npacking = ["int4"]', "a target like academic keeps its packing"),
        ('like = "tensorrt"\nactivations = "uint8"', "symmetric activations in uint8 have no code below 0"),
        ('like = "academic"\ncodes = ["Concat"]', "Concat cannot be one of codes"),
        ('like = "tensorrt"\ncodes = ["Reshape"]', "codes has Reshape without Flatten"),
        ('like = "tensorrt"\nclips = ["Relu", "Relu"]', "give a list of names, each once"),
        ('like = "ort-cpu"\npower_of_two = []', "a target like ort-cpu keeps its power_of_two"),
        ("like =", "the target is not TOML"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(written: Path, text: str, message: str) -> None:
    written.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        Target.load("npu.toml")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"cannot read the target: .* \(nothing.toml\)"):
        Target.load("nothing.toml")


@pytest.mark.parametrize("name", known())
def test_what_is_listed_of_a_known_target_is_a_file_that_changes_nothing(written: Path, name: str) -> None:
    written.write_text(as_file(name), encoding="utf-8")
    own, base = Target.load("npu.toml"), Target.load(name)
    assert own.like == name
    for fact in changeable(known_tables()[name], known_tables()):
        assert fact in ("name", "purpose", "proven") or getattr(own, fact) == getattr(base, fact)
    assert own.codes_since == base.codes_since or "DepthToSpace" not in own.codes


def test_an_operator_of_a_later_version_waits_for_it(written: Path) -> None:
    written.write_text('like = "ort-cpu"\ncodes = ["Reshape", "Flatten", "DepthToSpace"]', encoding="utf-8")
    assert Target.load("npu.toml").codes == {"Reshape", "Flatten"}
    assert Target.load("npu.toml", "1.21").codes == {"Reshape", "Flatten", "DepthToSpace"}


def test_texts_are_no_facts_and_neither_is_their_order(written: Path) -> None:
    before = Target.load("npu.toml").digest
    written.write_text(NPU.replace('"Add", "Mul"', '"Mul", "Add"') + 'proven = "all"\n', encoding="utf-8")
    assert Target.load("npu.toml").digest == before
    written.write_text(NPU.replace('"Add", ', ""), encoding="utf-8")
    assert Target.load("npu.toml").digest != before


def test_reasons_of_its_own_are_listed(written: Path) -> None:
    written.write_text(NPU + '[float_reasons]\nSoftmax = "no kernel"\n', encoding="utf-8")
    text = as_file("npu.toml")
    assert text.endswith('[float_reasons]\nSoftmax = "no kernel"')
    written.write_text(text, encoding="utf-8")
    assert Target.load("npu.toml").float_reasons["Softmax"] == "no kernel"


@pytest.mark.parametrize("name", ["movers", "classifier"])
def test_weights_behind_movers_are_none_of_the_activations(written: Path, name: str) -> None:
    """Whose scales alone are powers of two: the mover stands between DequantizeLinear and layer."""
    written.write_text('like = "tensorrt"\npower_of_two = ["activations"]', encoding="utf-8")
    model = compiled(NETWORKS[name], (*CORRECT, InsertQDQ()), target=str(written))
    assert model.emitted is not None and check(model.emitted, model.target) == []


@pytest.mark.parametrize("name", ["chain", "residual", "squeeze_excite", "concat", "movers", "classifier", "attention"])
@pytest.mark.parametrize("bits", [{"w": 8, "a": 8}, {"w": 4, "a": 4}], ids=str)
def test_file_keeps_the_rules_and_computes_what_the_simulation_does(
    written: Path, name: str, bits: dict[str, int]
) -> None:
    """Biases are int32 here, and sums rounded: simulations know it from the plan."""
    model = compiled(NETWORKS[name], (*CORRECT, InsertQDQ()), target="npu.toml", **bits)
    assert model.emitted is not None and check(model.emitted, model.target) == []
    feeds = samples(model.source)
    file = Session(model.emitted, level="off", fuse_qdq=False)
    fake = Session(simulate(model.graph, model.plan, "float"), level="off", fuse_qdq=False)
    for output, expected in fake.run(feeds).items():
        np.testing.assert_array_equal(file.run(feeds)[output], expected)


def test_a_plan_and_a_recipe_of_a_file(written: Path, folder: Path, run: Run) -> None:
    """A plan is for these facts: where they change it is refused; the recipe keeps the path, the file the hash."""
    npu = folder / "npu.toml"
    npu.write_text(NPU, encoding="utf-8")
    made = run(
        *COMPILE, "--target", "npu.toml", "--save-plan", "p.npz", "--save-config", "r.toml", "--report", "r.json"
    )
    assert made.code == 0 and "for example-npu" in made.out
    assert 'target = "npu.toml"' in (folder / "r.toml").read_text()
    digest = Target.load("npu.toml").digest
    report = json.loads((folder / "r.json").read_text())
    assert (report["target"]["like"], report["target"]["digest"]) == ("tensorrt", digest)
    notes = {item.key: item.value for item in onnx.load(folder / "out.onnx").metadata_props}
    assert notes["qcompile.target"] == f"example-npu ({digest})"
    again = run(*COMPILE, "--target", "npu.toml", "--load-plan", "p.npz")
    assert again.code == 0
    npu.write_text(NPU.replace('"Mul", ', ""), encoding="utf-8")
    refused = run(*COMPILE, "--target", "npu.toml", "--load-plan", "p.npz")
    assert refused.code == 2 and f"the plan was made for target 'example-npu ({digest})', not 'exa" in refused.err
    over = run(*COMPILE[:2], "npu.toml", *COMPILE[3:], "--target", "npu.toml")
    assert over.code == 2 and "the output would overwrite the target" in over.err


def test_a_state_of_training_is_for_these_facts(written: Path, folder: Path, run: Run) -> None:
    npu = folder / "npu.toml"
    npu.write_text(NPU, encoding="utf-8")
    training = (*COMPILE, "--target", "npu.toml", "--w", "4", "--a", "4", "--steps", "2", "--work-dir", "work")
    assert run(*training).code == 0
    npu.write_text(NPU.replace('"Mul", ', ""), encoding="utf-8")
    refused = run(*training, "--resume")
    assert refused.code == 2 and "the state was made with other facts: target example-npu (" in refused.err


def test_the_command_lists_a_file(written: Path, run: Run) -> None:
    code, text, err = run("targets", "npu.toml")
    assert (code, err) == (0, "")
    assert 'bias = "int32"  # there "float32"' in text.splitlines() and 'activations = "int8"' in text.splitlines()


def test_python_takes_a_path(written: Path) -> None:
    assert Config(target="npu.toml").target == "npu.toml"

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from plans import small_weight, weight_in_blocks

from qcompile.errors import InputError
from qcompile.quant.grid import unsigned
from qcompile.quant.params import ActivationSpec, Quantizer
from qcompile.quant.plan import Boundary, Edge, Form, NodePlan, Plan, Unit
from qcompile.quant.plan_file import load_plan, save_plan

FRONT = Edge("/x", "/layer1/conv")
MADE_FOR = {"target": "ort-cpu", "fingerprint": "f"}


def example() -> Plan:
    """A plan that uses every field, with names as exporters make them and bounds that JSON has no number for."""
    weight = small_weight()
    return Plan(
        nodes={
            "/layer1/conv": NodePlan(Form.COMPUTE, "", 4, 2),
            "/head": NodePlan(Form.COMPUTE, "", 4, 32, 3),
            "soft max": NodePlan(Form.FLOAT, "no integer kernel"),
        },
        groups={"/x": "/x"},
        reads={FRONT: FRONT},
        specs={
            Edge("/x"): ActivationSpec(unsigned(4), upper=10.0),
            FRONT: ActivationSpec(unsigned(2), fixed=Quantizer(unsigned(2), 1 / 3, 1)),
        },
        quantizers={
            Edge("/x"): Quantizer(unsigned(4), float(np.float32(0.1)), 3),
            FRONT: Quantizer(unsigned(2), 1 / 3, 1),
        },
        weights={"/layer1/conv": weight, "/head": weight_in_blocks()},
        biases={"/layer1/conv": np.array([1.5, -2], np.float32)},
        units=[Unit("stem", ("/layer1/conv",), ("/x",), ("/y",), "a note"), Unit("head", ("soft max",), ("/y",), ())],
        capacities={"stem": 48.0, "head": 0.0},
        boundaries=[Boundary("stem", "head", -48.0, homogeneous=False, inner=True)],
        losses={"stem": 1 / 3},
        untouched=["a"],
        regions=[("stem", "head")],
    )


@pytest.mark.parametrize("name", ["plan.npz", "folder"])
def test_a_plan_comes_back_whole(tmp_path: Path, name: str) -> None:
    plan = example()
    save_plan(plan, tmp_path / name, **MADE_FOR)
    loaded = load_plan(tmp_path / name, **MADE_FOR)
    for field in (
        "nodes",
        "groups",
        "reads",
        "specs",
        "quantizers",
        "units",
        "capacities",
        "boundaries",
        "losses",
        "untouched",
        "regions",
    ):
        assert getattr(loaded, field) == getattr(plan, field)
    assert loaded.weights.keys() == plan.weights.keys()
    for name, two in plan.weights.items():
        one = loaded.weights[name]
        assert (one.bits, one.axis, one.spec) == (two.bits, two.axis, two.spec)
        for array in ("codes", "scale", "step", "offset"):
            np.testing.assert_array_equal(getattr(one, array), getattr(two, array), strict=True)
    np.testing.assert_array_equal(loaded.biases["/layer1/conv"], plan.biases["/layer1/conv"], strict=True)


def test_the_same_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.npz", "two.npz"):
        save_plan(example(), tmp_path / name, **MADE_FOR)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


@pytest.mark.parametrize(
    ("keys", "value", "where"),
    [
        (("quantizers", "/x", "", "scale"), -1, "quantizers//x//scale"),
        (("nodes", "soft max", "form"), "flaot", "nodes/soft max/form"),
        (("weights", "/layer1/conv", "bits"), 4.5, "weights//layer1/conv/bits"),
        (("quantizers", "/x", "", "grid", "high"), 15.0, "quantizers//x//grid/high"),
        (("specs", "/x", "", "grid", "container"), "int16", "specs//x//grid/container"),
        (("quantizers", "/x", "", "zero_point"), True, "quantizers//x//zero_point"),
        (("quantizers", "/x", "", "zero_point"), 16, "has the zero point 16"),
        (("nodes", "soft max", "input_bits"), 1, "nodes/soft max/input_bits"),
        (("specs", "/x", "", "upper"), 10**400, "specs//x//upper"),
        (("extra",), 1, "extra"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, keys: tuple[str, ...], value: object, where: str) -> None:
    save_plan(example(), tmp_path / "plan", **MADE_FOR)
    path = tmp_path / "plan" / "plan.json"
    document = json.loads(path.read_text())
    entry = document
    for key in keys[:-1]:
        entry = entry[key]
    entry[keys[-1]] = value
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="the plan has a wrong entry") as error:
        load_plan(tmp_path / "plan", **MADE_FOR)
    assert where in str(error.value)


def test_what_is_no_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no zip")
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    save_plan(example(), tmp_path / "plan.npz", **MADE_FOR)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "plan.npz").read_bytes()[:-40])
    for name in ("text.npz", "other.npz", "cut.npz"):
        with pytest.raises(InputError, match="not a plan"):
            load_plan(tmp_path / name, **MADE_FOR)
    with pytest.raises(InputError, match="cannot read the plan"):
        load_plan(tmp_path / "missing.npz", **MADE_FOR)


@pytest.mark.parametrize("text", ['{"scale": NaN}', "[" * 100_000, "[1]", "3", '"text"', "null"])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    save_plan(example(), tmp_path / "plan", **MADE_FOR)
    (tmp_path / "plan" / "plan.json").write_text(text)
    with pytest.raises(InputError, match=r"not a plan|wrong entry"):
        load_plan(tmp_path / "plan", **MADE_FOR)


def test_a_plan_of_another_version_is_refused(tmp_path: Path) -> None:
    save_plan(example(), tmp_path / "plan", **MADE_FOR)
    path = tmp_path / "plan" / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 1}))
    with pytest.raises(InputError, match="of another version of qcompile"):
        load_plan(tmp_path / "plan", **MADE_FOR)


def test_missing_arrays_are_noticed(tmp_path: Path) -> None:
    save_plan(example(), tmp_path / "plan", **MADE_FOR)
    np.savez(tmp_path / "plan" / "arrays.npz", other=np.zeros(1))
    with pytest.raises(InputError, match="arrays do not belong"):
        load_plan(tmp_path / "plan", **MADE_FOR)


def test_target_and_weights_must_be_the_same(tmp_path: Path) -> None:
    save_plan(example(), tmp_path / "plan.npz", **MADE_FOR)
    with pytest.raises(InputError, match="made for target 'ort-cpu'"):
        load_plan(tmp_path / "plan.npz", target="other", fingerprint="f")
    with pytest.raises(InputError, match="another model or other weights"):
        load_plan(tmp_path / "plan.npz", target="ort-cpu", fingerprint="g")

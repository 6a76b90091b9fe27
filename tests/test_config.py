from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.config import (
    Config,
    Files,
    build_settings,
    read_recipe,
    recipe,
    recipe_text,
)
from qcompile.errors import InputError
from qcompile.flags import flag_of, parse_fix
from qcompile.memory import parse_size

BITS = st.integers(2, 8)
NAMES = st.text("abc.*/_0=,", min_size=1, max_size=6).filter(lambda text: not text.startswith("*") and "**" not in text)
UNITS = st.text("abc./_0 ", min_size=1, max_size=6).map(str.strip).filter(bool)
CONFIGS = st.builds(
    Config,
    w=BITS,
    a=BITS,
    residual_bits=BITS,
    keep_float=st.lists(NAMES, max_size=2).map(tuple),
    fix=st.lists(st.sampled_from(["sr=16000", "flag=true", "past/k=[[0.5, -1e3]]", "a=b=[]"]), max_size=2).map(tuple),
    bits=st.lists(st.tuples(NAMES, BITS, BITS), max_size=2).map(tuple),
    samples=st.none() | st.integers(1, 99),
    calibration_method=st.just("percentile"),
    percentile=st.floats(50, 100),
    random_data=st.booleans(),
    method=st.just("mrecg"),
    fuse=st.lists(st.lists(UNITS, min_size=1, max_size=3).map(tuple), max_size=2).map(tuple),
    max_fused=st.integers(1, 5),
)


@given(CONFIGS)
def test_recipe_holds_every_setting(config: Config) -> None:
    files = Files(data="calib.npz", out="out.onnx")
    assert build_settings(tomllib.loads(recipe_text(config, files))) == (config, files)


def test_every_field_has_help_and_a_group() -> None:
    for item in (*fields(Config), *fields(Files)):
        assert flag_of(item).help and flag_of(item).group


@pytest.mark.parametrize(
    ("text", "size"), [("1GB", 10**9), ("512 MB", 512 * 10**6), ("1.5GiB", 3 << 29), ("20kb", 20_000), ("0B", 0)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size("--memory", text) == size


@pytest.mark.parametrize("text", ["", "1", "GB", "1 TB", "-1GB", "1,5GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match=r"give a number and a unit"):
        Config(method="qdrop", memory=text)


def test_later_layers_win() -> None:
    config, files = build_settings({"w": 8, "a": 6, "data": "one.npz"}, {"w": 4}, {"data": "two.npz"})
    assert (config.w, config.a, files.data) == (4, 6, "two.npz")


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([{"precision": "w4a6"}], (4, 6)),
        ([{"precision": "W2A8"}], (2, 8)),
        ([{"w": 8, "a": 8}, {"precision": "w3a5"}], (3, 5)),
        ([{"precision": "w3a5"}, {"a": 7}], (3, 7)),
    ],
)
def test_precision_is_both_bits(layers: list[dict[str, Any]], expected: tuple[int, int]) -> None:
    config, _ = build_settings(*layers)
    assert (config.w, config.a) == expected


def test_precision_may_say_again_what_w_says() -> None:
    config, _ = build_settings({"precision": "w4a6", "w": 4})
    assert (config.w, config.a) == (4, 6)


def test_residual_bits_follow_the_inputs_in_the_end() -> None:
    assert build_settings({"residual-bits": "a"}, {"a": 3})[0].residual_bits == 3
    assert build_settings({"residual-bits": "a"})[0].residual_bits == 8
    assert build_settings({"residual-bits": 5})[0].residual_bits == 5


def test_overrides_are_read_from_the_right() -> None:
    assert build_settings({"bits": ["a=b,c=2,4"]})[0].bits == (("a=b,c", 2, 4),)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"w": 9}, "--w 9 is out of range; give 2 to 8"),
        ({"a": 1}, "--a 1 is out of range"),
        ({"w": "four"}, "give a whole number"),
        ({"w": True}, "give a whole number"),
        ({"w": 8.0}, "--w 8.0 has the wrong type; give a whole number"),  # it equals the default
        ({"seed": False}, "--seed False has the wrong type"),
        ({"seed": -1}, "give 0 or more"),
        (
            {"percentile": 99.9},
            "--percentile 99.9 has no effect: ranges are not chosen by it; add --calibration-method percentile",
        ),
        ({"percentile": 99.9, "calibration_method": "mse"}, "--percentile 99.9 has no effect"),
        ({"percentile": 20}, "--percentile 20 is out of range; give 50 to 100"),
        ({"precison": "w4a4"}, "did you mean 'precision'?"),
        ({"precision": "4/4"}, "not of the form w4a4"),
        ({"precision": "w9a4"}, "--w 9 is out of range"),
        ({"precision": "w4a4", "w": 8}, "--w 8 contradicts --precision w4a4; leave one of them out"),
        ({"precision": "w4a4", "a": 2}, "--a 2 contradicts --precision w4a4"),
        ({"calibration-method": "ms"}, "did you mean 'mse'?"),
        ({"residual-bits": "b"}, "give 2 to 8, or a"),
        ({"bits": ["layer1"]}, "not of the form REGEX=W,A"),
        ({"bits": ["layer1=4,9"]}, "--bits layer1=a 9 is out of range"),
        ({"keep-float": ["("]}, "not a regular expression"),
        ({"fix": ["rate"]}, "--fix 'rate' is not NAME=VALUE; give NAME=VALUE: an input"),
        ({"fix": ["=3"]}, "--fix '=3' is not NAME=VALUE"),
        ({"fix": ["rate=fast"]}, "--fix 'rate=fast' is not NAME=VALUE"),
        ({"fix": ["rate=NaN"]}, "--fix 'rate=NaN' is not NAME=VALUE"),
        ({"fix": ["rate=[1, {}]"]}, "is not NAME=VALUE"),
        ({"fix": "rate=3"}, "--fix takes a list"),
        ({"keep-float": "head"}, "--keep-float takes a list"),
        ({"random-data": 1}, "give true or false"),
        ({"data": 3}, "give a text"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        build_settings(values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_fixed_values_are_numbers_and_lists() -> None:
    assert [parse_fix(text) for text in ("sr=16000", "a=b=[[1, 2.5]]", "on=true")] == [
        ("sr", 16000), ("a=b", [[1, 2.5]]), ("on", True),
    ]  # fmt: skip


def test_config_alone_knows_no_files() -> None:
    assert Config.from_dict({"first-last-bits": 4}) == Config(first_last_bits=4)
    with pytest.raises(InputError, match="unknown recipe key 'out'"):
        Config.from_dict({"out": "x.onnx"})


def test_unset_values_are_not_in_the_recipe() -> None:
    assert "samples" not in recipe(Config())
    assert recipe(Config(samples=3))["samples"] == 3


@pytest.mark.parametrize(
    ("content", "message"), [(b"w = ", "is not TOML"), (b"\xff\xfe", "is not TOML"), (None, "cannot read")]
)
def test_unreadable_recipe(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_recipe(path)


def test_training_flags_need_a_method_that_trains() -> None:
    assert Config(method="qdrop", steps=10).steps == 10
    with pytest.raises(InputError, match="--recon-batch is for methods that train"):
        Config(recon_batch=8)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a+b"], (("a", "b"),)),
        (["layer1.0 + layer1.1", "3+4"], (("layer1.0", "layer1.1"), ("3", "4"))),
        ([["a", 2], [5]], (("a", "2"), ("5",))),
        ([["a+b", "c"]], (("a+b", "c"),)),  # a list takes names as they are
    ],
)
def test_regions_are_texts_or_lists(given: list[Any], expected: tuple[tuple[str, ...], ...]) -> None:
    assert Config.from_dict({"method": "mrecg", "fuse": given}).fuse == expected


@pytest.mark.parametrize("given", [["a+"], [[]], [["a", ""]], [[True]], [[1.5]], [3], "a+b"])
def test_what_is_no_region_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match="--fuse"):
        Config.from_dict({"method": "mrecg", "fuse": given})


def test_regions_in_python_are_tuples_or_texts() -> None:
    config = Config(method="mrecg", fuse=("a+b", ("c", "d")))  # type: ignore[arg-type]
    assert config.fuse == (("a", "b"), ("c", "d"))


def test_auto_is_the_default_number_of_boundaries() -> None:
    assert Config.from_dict({"method": "mrecg", "fuse-top-k": "auto"}) == Config(method="mrecg")
    config, _ = build_settings({"method": "mrecg", "fuse-top-k": 3}, {"fuse_top_k": "auto"})
    assert config.fuse_top_k is None


@pytest.mark.parametrize(
    "settings",
    [{"fuse_top_k": 0}, {"fuse_by": "loss"}, {"max_fused": 2}, {"fuse": (("a", "b"),)}, {"stride_factor": 1.0}],
)
def test_settings_of_fusion_need_a_method_that_fuses(settings: dict[str, Any]) -> None:
    for method in ("rtn", "brecq", "qdrop"):
        with pytest.raises(InputError, match="is for methods that fuse; add --method mrecg, or leave it out"):
            Config(method=method, **settings)  # type: ignore[arg-type]
    for method in ("mrecg", "mrecg-brecq"):
        Config(method=method, **settings)  # type: ignore[arg-type]


def test_steps_of_scoring_need_a_choice_by_losses() -> None:
    with pytest.raises(InputError, match="--score-steps has no effect: nothing is fused by losses; add --fuse-by loss"):
        Config(method="mrecg", score_steps=5)
    assert Config(method="mrecg", score_steps=5, fuse_by="data-dependent").score_steps == 5


@pytest.mark.parametrize("settings", [{"fuse_top_k": 2}, {"fuse_by": "loss"}])
def test_a_scheme_leaves_nothing_to_choose(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="has no effect: --fuse names the regions"):
        Config(method="mrecg", fuse=(("a", "b"),), **settings)


def test_notations_of_the_command_line_work_in_python() -> None:
    config = Config(bits=("layer1=8,4", ("head", 2, 8)), residual_bits="a", a=3)  # type: ignore[arg-type]
    assert (config.bits, config.residual_bits) == ((("layer1", 8, 4), ("head", 2, 8)), 3)
    assert Config(bits=["layer1=8,8"], keep_float=["head"]).keep_float == ("head",)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ("layer1=8,8", r"--bits takes a list \('layer1=8,8'\); give \['REGEX=W,A', ...\]"),
        (("layer1",), "--bits layer1 is not of the form REGEX=W,A; for example --bits 'layer1=4,8'"),
        ((("layer1", 8),), "is not of the form REGEX=W,A"),
        ((("layer1", 8, 9),), "--bits layer1=a 9 is out of range"),
    ],
)
def test_wrong_bits_say_what_to_write(bits: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(bits=bits)

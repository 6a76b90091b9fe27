"""Asking for an engine or a device that is not there is one line, before any work; what lies between both engines."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from networks import NETWORKS
from regions import feeds, whole_region

import qcompile
from qcompile import Config, InputError
from qcompile.errors import QCompileError
from qcompile.runtime.session import Session
from qcompile.training.engines import check_engine
from qcompile.training.ort_training import PACKAGES, PYTHON, PackageTrainer
from qcompile.training.ort_training_forms import differentiable
from qcompile.training.ort_training_worker import read_message, write_message
from qcompile.training.recipe import Training, settings_at
from qcompile.training.region import EXPONENT, RECONSTRUCTION, STRENGTH, STRETCH, UNIT_ERROR
from qcompile.training.step_graph import StepGraph

SETTINGS = {"method": "qdrop", "w": 4, "a": 4}
DTYPES = st.sampled_from([np.float32, np.uint8, np.bool_, np.int64])


def test_engines_that_are_always_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON, raising=False)
    for config in (Config(), Config(method="qdrop"), Config(method="qdrop", engine="ort", device="cpu")):
        check_engine(Training.of(config))


@pytest.mark.parametrize(
    ("python", "message"),
    [
        (None, "the engine ort-training is not installed; python3.11 -m venv DIR, DIR/bin/pip install onnxruntime-tr"),
        ("/absent/python", "names no file (/absent/python); python3.11 -m venv DIR"),
        (sys.executable, "the engine ort-training cannot start: "),  # it has onnxruntime, not the package
    ],
)
def test_a_missing_environment_says_how_to_make_it(
    python: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PYTHON, raising=False)
    if python is not None:
        monkeypatch.setenv(PYTHON, python)
    with pytest.raises(InputError) as caught:  # before the model is looked for
        qcompile.compile("absent.onnx", Config(engine="ort-training", **SETTINGS))
    assert message in str(caught.value) and f"then set {PYTHON}=" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_make_installs_what_the_error_names() -> None:
    assert PACKAGES in (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")


def test_a_missing_provider_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompile.runtime.session.ort.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(InputError, match=r"has no CUDA provider; pip install onnxruntime-gpu .* or use --device cpu"):
        qcompile.compile("absent.onnx", Config(device="cuda", **SETTINGS))


def test_a_provider_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build with CUDA falls back to the CPU without an exception where there is no GPU."""
    runtime = "qcompile.runtime.session.ort"
    fallen_back = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(f"{runtime}.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(f"{runtime}.InferenceSession", lambda source, options, providers: fallen_back)
    with pytest.raises(InputError, match="cannot start its CUDA provider; check the driver"):
        qcompile.compile("absent.onnx", Config(device="cuda", **SETTINGS))


@pytest.mark.parametrize("setting", [{"engine": "ort-training"}, {"engine": "ort"}, {"device": "cuda"}])
def test_they_are_for_methods_that_train(setting: dict[str, str]) -> None:
    with pytest.raises(InputError, match=f"--{next(iter(setting))} is for methods that train"):
        Config(**setting)


@pytest.mark.parametrize("name", ["residual", "relu6", "hard_swish", "squeeze_excite", "attention"])
def test_forms_of_the_package_compute_what_the_step_graph_computes(name: str) -> None:
    region, values = whole_region(NETWORKS[name], w=4, a=4)
    given, settings = feeds(region, values, seed=3), settings_at(0.5)
    session = Session(differentiable(region), level="off", threads=1)
    scalars = {STRENGTH: settings.strength, EXPONENT: settings.exponent, STRETCH: settings.stretch, UNIT_ERROR: 0.1}
    numbers = {key: np.array(value, np.float32) for key, value in scalars.items()}
    found = session.run({key: array for key, array in (given | numbers).items() if key in session.inputs})
    expected = StepGraph(region, 1).run(given, settings, 0.1)
    assert found[RECONSTRUCTION] == pytest.approx(expected, rel=1e-5)  # sums in another order; codes are the same


@given(st.dictionaries(st.text(max_size=5), DTYPES.flatmap(lambda kind: arrays(kind, array_shapes(min_dims=0)))))
def test_messages_arrive_as_they_were_sent(sent: dict[str, Any]) -> None:
    pipe = io.BytesIO()
    write_message(pipe, {"command": "step", "highest": np.inf}, sent)
    pipe.seek(0)
    header, found = read_message(pipe)
    assert header == {"command": "step", "highest": np.inf} and list(found) == list(sent)
    for name, array in sent.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    with pytest.raises(EOFError):
        read_message(pipe)


def test_a_process_that_dies_is_one_line(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'first line' >&2\necho 'no space left' >&2\nexit 3\n")
    python.chmod(0o755)
    region, _ = whole_region(NETWORKS["chain"], w=4, a=4)
    with pytest.raises(QCompileError) as caught:
        PackageTrainer(region, python, 1)
    assert "ended with code 3: no space left" in str(caught.value) and "\n" not in str(caught.value)

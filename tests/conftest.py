"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import Ended, Run
from hypothesis import settings
from long_files import LONG
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper, parser

from qcompile.cli import main
from qcompile.config import Config
from qcompile.ir import Graph
from qcompile.ir.load import to_model
from qcompile.ir.prepare import prepare
from qcompile.qmodel import QModel
from qcompile.runtime.session import Session
from qcompile.targets.schema import Target

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")

ROOT = Path(__file__).parent.parent
RESIDUAL = """<ir_version: 8, opset_import: ["": 18]>
g (float[N,3,8,8] image) => (float[N,5] scores) {
    stem = Conv<pads=[1,1,1,1]>(image, w_stem, b_stem)
    start = Relu(stem)
    branch = Conv<pads=[1,1,1,1]>(start, w_branch, b_branch)
    sum = Add(branch, start)
    end = Relu(sum)
    pooled = GlobalAveragePool(end)
    flat = Flatten(pooled)
    logits = Gemm<transB=1>(flat, w_head, b_head)
    scores = Tanh(logits)
}"""
RESIDUAL_SHAPES = {
    "w_stem": (8, 3, 3, 3),
    "b_stem": (8,),
    "w_branch": (8, 8, 3, 3),
    "b_branch": (8,),
    "w_head": (5, 8),
    "b_head": (5,),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden from what the tests find")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests in long files."""
    for item in items:
        if item.path.relative_to(ROOT / "tests").as_posix() in LONG:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Assert that a text is that of tests/golden/NAME; with --update-golden write it: review the difference."""

    def compare(name: str, text: str) -> None:
        path = ROOT / "tests" / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"no golden file {name}: pytest --update-golden writes it"
        assert text == path.read_text(encoding="utf-8")

    return compare


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of the embedded example."""
    return ROOT / "models"


@pytest.fixture(scope="session")
def shared_assets() -> Path:
    """Larger models and image sets that stand beside a development checkout; users do not have them."""
    folder = ROOT.parent / "shared" / "assets"
    if not folder.is_dir():
        pytest.skip("needs the development assets (../shared/assets), which are not part of the repository")
    return folder


@pytest.fixture
def residual_model() -> onnx.ModelProto:
    """A tiny residual network with random weights; its nodes are named like their outputs, and the Tanh stays float."""
    model = onnx.parser.parse_model(RESIDUAL)
    random = np.random.default_rng(0)
    for name, shape in RESIDUAL_SHAPES.items():
        spread = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1
        values = (spread * random.standard_normal(shape)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    for node in model.graph.node:
        node.name = node.output[0]
    return model


@pytest.fixture
def residual_data() -> dict[str, NDArray[Any]]:
    """Samples for `residual_model`."""
    return {"image": np.random.default_rng(1).standard_normal((40, 3, 8, 8)).astype(np.float32)}


@pytest.fixture(scope="session")
def model_of() -> Callable[..., ModelProto]:
    """Parse the ONNX text of a graph; inputs named in capitals become random float weights."""

    def build(text: str, *, opset: int = 18, seed: int = 0) -> ModelProto:
        model = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}, "custom": 1]> {text}')
        random = np.random.default_rng(seed)
        weights = [item for item in model.graph.input if item.name.isupper()]
        for item in weights:
            model.graph.input.remove(item)
            dims = [dim.dim_value for dim in item.type.tensor_type.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type)
            model.graph.initializer.append(numpy_helper.from_array(random.normal(size=dims).astype(dtype), item.name))
        return model

    return build


@pytest.fixture(scope="session")
def as_qmodel() -> Callable[[ModelProto], QModel]:
    """Make what the passes take from a model: prepared for ort-cpu, no data."""
    target = Target.load("ort-cpu")
    return lambda source: QModel(prepare(source, target.opset), source, target, Config())


@pytest.fixture(scope="session")
def same_outputs() -> Callable[..., None]:
    """Assert that a graph computes what the model it came from computes, on random inputs of each of `shapes`."""

    def check(
        source: ModelProto, graph: Graph, shapes: Sequence[Mapping[str, Sequence[int]]], *, rtol: float = 1e-5
    ) -> None:
        before, after = Session(source, level="off", threads=1), Session(to_model(graph), level="off", threads=1)
        random = np.random.default_rng(1)
        for sizes in shapes:
            feeds = {name: random.normal(size=size, scale=2).astype(np.float32) for name, size in sizes.items()}
            for name, expected in before.run(feeds).items():
                largest = np.abs(expected[np.isfinite(expected)]).max(initial=0)
                atol = rtol * max(float(largest), 1e-6)  # of the largest value: sums cancel
                np.testing.assert_allclose(after.run(feeds)[name], expected, rtol=rtol, atol=atol, err_msg=name)

    return check


@pytest.fixture
def folder(
    tmp_path: Path,
    residual_model: onnx.ModelProto,
    residual_data: dict[str, NDArray[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A working directory with in.onnx and calib.npz; nothing else."""
    onnx.save(residual_model, tmp_path / "in.onnx")
    np.savez(tmp_path / "calib.npz", **residual_data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command in the folder."""

    def run(*arguments: str) -> Ended:
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        captured = capsys.readouterr()
        return Ended(int(left.value.code or 0), captured.out, captured.err)

    return run

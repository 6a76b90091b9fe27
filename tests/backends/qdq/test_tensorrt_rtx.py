"""Files of target tensorrt in the parser and the ahead-of-time builder of TensorRT-RTX, without a GPU."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from networks import CORRECT, MATRICES, NETWORKS, compiled, network, samples

from qcompile import Config, compile
from qcompile.passes.insert_qdq import InsertQDQ

pytest.importorskip(
    "tensorrt_rtx_bindings", reason="needs TensorRT-RTX: make test-tensorrt, or pip install '.[tensorrt]'"
)
from tensorrt_rtx import complaints

MODELS = Path(__file__).parents[3] / "models"


def written(path: Path, name: str, target: str, bits: int) -> Path:
    """Write the file of a network."""
    model = compiled(NETWORKS[name], (*CORRECT, InsertQDQ()), target=target, w=bits, a=bits)
    assert model.emitted is not None
    onnx.save(model.emitted, path)
    return path


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_complaints(name: str, bits: int, tmp_path: Path) -> None:
    assert complaints(written(tmp_path / "a.onnx", name, "tensorrt", bits)) == []


@pytest.mark.parametrize("block", [None, 16])
def test_no_complaints_of_weights_alone(block: int | None, tmp_path: Path) -> None:
    source = network(MATRICES)
    config = Config(w=4, a=32, first_last_bits=4, block_size=block, method="rtn", target="tensorrt", threads=1)
    compile(source, config, samples(source, 16)).save(tmp_path / "a.onnx")
    assert complaints(tmp_path / "a.onnx") == []


def test_no_complaints_of_a_real_network(tmp_path: Path) -> None:
    config = Config(target="tensorrt", preprocess="imagenet-norm", samples=32, threads=1)
    compile(MODELS / "resnet20_cifar10.onnx", config, MODELS / "cifar10_calib.npz").save(tmp_path / "a.onnx")
    assert complaints(tmp_path / "a.onnx") == []


def test_complains_of_a_file_for_another_runtime(tmp_path: Path) -> None:
    """Else the test above could not fail."""
    said = complaints(written(tmp_path / "a.onnx", "chain", "ort-cpu", 8))
    assert said and "QuantizeLinear" in said[0]

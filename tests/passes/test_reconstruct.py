from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import NETWORKS, network, samples

import qcompile
from qcompile import Config, InputError, PassManager, QModel, open_model
from qcompile.pipeline import build
from qcompile.runtime.session import Session

WIDE = """net (float[N,3,8,8] x, float[16,3,3,3] A, float[16,16,3,3] B, float[5,16,1,1] C) => (float[N,5,P,Q] y) {
  [first] a = Conv<pads = [1,1,1,1]>(x, A)  [relu1] b = Relu(a)  [inner] c = Conv<pads = [1,1,1,1]>(b, B)
  [relu2] d = Relu(c)  [last] y = Conv(d, C)
}"""


def trained(source: onnx.ModelProto, method: str, *, data: Any = None, **settings: Any) -> QModel:
    config = Config(method=method, threads=1, **settings)
    model = open_model(source, config, samples(source, 200) if data is None else data)
    PassManager(item for item in build(config) if item.name not in ("validate", "float-where-faster")).run(model)
    return model


def error(model: QModel) -> float:
    """Squared error of the emitted file against the float model, on samples that nobody saw."""
    feeds = samples(model.source, 32, seed=99)
    assert model.emitted is not None
    exact, made = Session(model.source, threads=1).run(feeds), Session(model.emitted, threads=1).run(feeds)
    return float(sum(np.square(made[name] - exact[name]).sum() / np.square(exact[name]).sum() for name in exact))


@pytest.mark.parametrize("method", ["qdrop", "brecq"])
def test_unseen_samples_come_out_closer(method: str) -> None:
    """The mean of three networks: one alone varies by a few percent with its weights."""
    low = {"w": 2, "a": 8, "first_last_bits": 2}
    ratios = []
    for seed in range(3):
        source = network(WIDE, seed=seed)
        data = samples(source, 800)
        made = trained(source, method, data=data, steps=400, **low)
        ratios.append(error(made) / error(trained(source, "rtn", data=data, **low)))
    assert np.mean(ratios) < 0.9


def test_same_seed_same_file() -> None:
    source = network(NETWORKS["residual"])
    one, two = (trained(source, "qdrop", w=4, a=4, steps=10).emitted for _ in range(2))
    assert one is not None and two is not None
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)


def test_every_unit_is_accounted_for() -> None:
    model = trained(network(NETWORKS["squeeze_excite"]), "qdrop", w=4, a=4, steps=20)
    with_weights = {unit.name for unit in model.plan.units if any(node in model.plan.weights for node in unit.nodes)}
    assert {entry["unit"] for entry in model.journal.by("reconstruct")} == with_weights
    for entry in model.journal.by("reconstruct"):
        better = entry["after"] < entry["before"]
        assert better or entry["what"] == "not better after training: left as it was"
        assert better or (entry["after"] == entry["before"] and not entry["trained"])


def test_what_cannot_be_trained_is_left_with_a_note() -> None:
    source = network(
        """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B, float[4,4,1,1] C) => (float[N,4,P,Q] y) {
          [first] a = Conv(x, A)  [inner] b = Conv(a, B)  [round] r = Round(b)  [last] y = Conv(r, C)
        }"""
    )
    model = trained(source, "qdrop", w=4, a=4, steps=5)
    notes = [entry for entry in model.journal.by("reconstruct") if entry["what"] == "not trained"]
    assert notes and all("Round" in note["reason"] for note in notes)


def test_two_bits_of_the_embedded_example(models: Path) -> None:
    """A few steps: 60 of 16 images per unit, scored on the first 300 test images (float 92)."""
    with np.load(models / "cifar10_test.npz") as arrays:
        evaluation = {"images": arrays["images"][:300], "labels": arrays["labels"][:300]}
    config = Config(w=2, a=3, method="qdrop", steps=60, samples=200, preprocess="imagenet-norm", threads=1)
    result = qcompile.compile(
        models / "resnet20_cifar10.onnx", config, str(models / "cifar10_calib.npz"), evaluation=evaluation
    )
    assert result.report["audit"]["top1"]["emitted"] > 87


def test_one_sample_is_enough_to_run() -> None:
    model = trained(network(WIDE), "qdrop", data=samples(network(WIDE), 1), w=4, a=4, steps=2)
    assert model.emitted is not None


def test_samples_of_differing_sizes_are_refused() -> None:
    source = network(
        """net (float[N,3,H,W] x, float[4,3,1,1] A, float[4,4,1,1] B) => (float[N,4,P,Q] y) {
          [first] a = Conv(x, A)  [last] y = Conv(a, B)
        }"""
    )
    random = np.random.default_rng(0)

    def feeds() -> Any:
        for size in (6, 8, 10, 12):
            yield {"x": random.normal(size=(1, 3, size, size)).astype(np.float32)}

    every = list(feeds())
    with pytest.raises(InputError, match="samples of one size"):
        trained(source, "qdrop", data=lambda: iter(every), w=4, a=4, steps=2)

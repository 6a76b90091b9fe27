"""A preprocessing that labels show to be wrong."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

from qcompile import Config, PassManager, QModel, open_model
from qcompile.passes.check_data import CheckData
from qcompile.passes.normalize_graph import NormalizeGraph
from qcompile.passes.try_preprocessing import TryPreprocessing, is_better

# Class 1 where the mean of the image is above 0: trained with (x - 127.5) / 127.5.
MODEL = """<ir_version: 8, opset_import: ["": 18]> net (float[N,3,4,4] image) => (float[N,2] logits)
  <float[3,2] w = {-1, 1, -1, 1, -1, 1}> { p = GlobalAveragePool(image)  f = Flatten(p)  logits = MatMul(f, w) }"""


def opened(preprocess: str | None, *, pixels: bool = True) -> QModel:
    grey = np.tile(np.arange(0, 256, 4, dtype=np.uint8), 4)  # 124 lies between the means of the presets
    images = np.broadcast_to(grey[:, None, None, None], (256, 4, 4, 3)).copy()
    labels = (grey > 127.5).astype(np.int64)
    ready = (images.transpose(0, 3, 1, 2) - np.float32(127.5)) / np.float32(127.5)
    data = {"images": images} if pixels else {"image": ready}
    model: onnx.ModelProto = parser.parse_model(MODEL)
    return open_model(model, Config(preprocess=preprocess, threads=1), data, evaluation={**data, "labels": labels})


def warned(model: QModel) -> list[str]:
    PassManager([NormalizeGraph(), CheckData(), TryPreprocessing(model.config.preprocess)]).run(model)
    return [entry["text"] for entry in model.journal.by("try-preprocessing")]


def test_a_better_preset_is_named_with_its_flag() -> None:
    (text,) = warned(opened("raw"))
    assert text.startswith("the float model is right on ") and " of 100 labelled images" in text
    assert text.endswith(", on 100 % with --preprocess tf: was it trained with that?")


@pytest.mark.parametrize("preprocess", ["tf", "scale=1,mean=127.5,std=60"])
def test_the_right_one_is_left_alone(preprocess: str) -> None:
    assert warned(opened(preprocess)) == []


def test_without_pixels_there_is_nothing_to_try() -> None:
    assert warned(opened(None, pixels=False)) == []


def test_better_is_more_than_chance() -> None:
    right, one_less, ten_less = np.ones(100, bool), np.arange(100) > 0, np.arange(100) >= 10
    assert is_better(right, ten_less)
    assert not is_better(right, one_less) and not is_better(ten_less, right) and not is_better(right, right)
    mixed = np.concatenate([~right[:20], right[:80]])
    assert not is_better(np.roll(mixed, 20), mixed)  # 20 gained, 20 lost
    assert not is_better(right[:50], ten_less)

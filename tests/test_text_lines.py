"""The warning about a text recogniser: a file that reads most lines as the float model does, and one that does not."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qcompile import Config, PassManager, Result, build, open_model
from qcompile.runtime.session import Session


def lines(session: Session, images: NDArray[np.uint8]) -> list[list[int]]:
    """Return the characters of each line: no repeats, no blanks."""
    found = []
    for image in images:
        feed = ((image.astype(np.float32) - 127.5) / 127.5).transpose(2, 0, 1)[None]
        (values,) = session.run({"x": feed}).values()
        found.append([key for key, _ in groupby(values[0].argmax(-1).tolist()) if key])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("a", "corrected", "least", "most"), [(8, True, 28, 32), (8, False, 0, 24), (6, False, 0, 17)])
def test_a_file_is_warned_of_where_it_reads_many_lines_wrong(
    shared_assets: Path, a: int, corrected: bool, least: int, most: int
) -> None:
    """Without bias correction 8 bits lose a third of the lines, 6 bits for activations most."""
    path, images = shared_assets / "models" / "ppocr_v4_rec.onnx", shared_assets / "text_lines"
    if not path.exists():
        pytest.skip("no text recogniser in the shared assets")
    config = Config(preprocess="tf", threads=1, a=a, method="rtn")
    model = open_model(path, config, images / "calib.npz")
    correcting = ("correct-bias", "float-where-inexact")  # the second needs what the first noticed
    passes = [item for item in build(config) if corrected or item.name not in correcting]
    result = Result.of(model, PassManager(passes).run(model))
    with np.load(images / "judge.npz") as arrays:
        expected, found = (lines(Session(item, threads=1), arrays["images"]) for item in (path, result.model))
    assert least <= sum(one == two for one, two in zip(expected, found, strict=True)) <= most
    assert any("differs much" in text for text in result.report["warnings"]) is not corrected

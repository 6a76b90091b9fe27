"""The probe for ONNX Runtime's blocked operators never fails, it only says that there are none."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.errors import QCompileError
from qcompile.runtime import blocked


def probe(monkeypatch: pytest.MonkeyPatch, **replaced: object) -> int:
    for name, value in replaced.items():
        monkeypatch.setattr(blocked, name, value)
    return blocked.block_size.__wrapped__()


def test_the_block_divides_the_channels_of_the_probe() -> None:
    assert blocked.CHANNELS % blocked.block_size() == 0


def test_missing_operators_mean_a_block_of_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> np.ndarray:
        raise QCompileError("no such operator")

    assert probe(monkeypatch, _run=missing) == 1


def test_wrong_results_mean_a_block_of_1(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = blocked._run

    def wrong(nodes: list[object], feeds: dict[str, np.ndarray], output: str) -> np.ndarray:
        return measured(nodes, feeds, output) + (output == "off")

    assert probe(monkeypatch, _run=wrong) == 1

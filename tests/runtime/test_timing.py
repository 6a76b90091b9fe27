"""Paired timing and operator profiles. Times themselves cannot be asserted; order, counting and large ratios can."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

from qcompile.runtime import timing
from qcompile.runtime.session import Session
from qcompile.runtime.timing import compare, operator_seconds, take_turns


class Recorder:
    """Stands in for a session: writes down its runs and lets a clock run on by `seconds`."""

    def __init__(self, name: str, seconds: float, clock: list[float], log: list[str]) -> None:
        self.name, self.seconds, self.clock, self.log = name, seconds, clock, log

    def run(self, feeds: object) -> None:
        self.log.append(self.name)
        self.clock[0] += self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_sessions_take_turns_after_a_run_that_does_not_count(clock: list[float]) -> None:
    log: list[str] = []
    sessions = [Recorder("a", 2.0, clock, log), Recorder("b", 1.0, clock, log)]
    times = take_turns(sessions, {}, rounds=3, seconds=100)  # type: ignore[arg-type]
    assert log == [*"ab", *"ab", *"ba", *"ab"]
    np.testing.assert_allclose(times, [[2.0, 1.0]] * 3, rtol=1e-12)  # float64 differences of small whole numbers


def test_stops_when_the_time_is_over_but_measures_once(clock: list[float]) -> None:
    slow = [Recorder(name, 10.0, clock, []) for name in "ab"]
    assert take_turns(slow, {}, seconds=1.0).shape == (1, 2)  # type: ignore[arg-type]
    assert take_turns(slow, {}, seconds=50.0).shape == (3, 2)  # type: ignore[arg-type]


def test_speedup_is_first_over_second(clock: list[float]) -> None:
    found = compare(Recorder("a", 3.0, clock, []), Recorder("b", 1.0, clock, []), {}, rounds=5)  # type: ignore[arg-type]
    assert (found.speedup, found.first, found.second) == pytest.approx((3.0, 3.0, 1.0))


def test_profile_finds_the_slow_operator() -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> net (float[256,512] x) => (float[512,512] y)
        { t = Transpose(x)  a = MatMul(t, x)  b = Neg(a)  y = Abs(b) }"""
    )
    found = operator_seconds(model, {"x": np.ones((256, 512), np.float32)}, runs=3)
    assert next(iter(found)) in ("MatMul", "Gemm", "FusedMatMul")
    assert all(seconds >= 0 for seconds in found.values()) and sum(found.values()) > 0


def test_real_sessions() -> None:
    text = """<ir_version: 8, opset_import: ["": 18]> net (float[300,300] x) => (float[300,300] y) { %s }"""
    light = Session(parser.parse_model(text % "y = Neg(x)"), threads=1)
    heavy = Session(parser.parse_model(text % "a = MatMul(x, x) b = MatMul(a, x) y = MatMul(b, x)"), threads=1)
    found = compare(heavy, light, {"x": np.zeros((300, 300), np.float32)}, seconds=0.2)
    assert found.speedup > 1.5  # 81 million multiplications against 90,000 negations

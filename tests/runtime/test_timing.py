"""Paired timing and operator profiles. Times themselves cannot be asserted; order, counting and large ratios can."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from onnx import parser

from qcompile.runtime import timing
from qcompile.runtime.session import Session
from qcompile.runtime.timing import compare, compare_apart, operator_seconds, take_turns


@dataclass
class Clock:
    """Wall and processor time in seconds; the latter is told in whole steps of `step`."""

    wall: float = 0.0
    cpu: float = 0.0
    step: float = 0.0

    def thread_time(self) -> float:
        return self.cpu // self.step * self.step if self.step else self.cpu


class Recorder:
    """Stands in for a session: writes down its runs, works for `seconds`, and waits another `waits` for others."""

    def __init__(self, name: str, seconds: float, clock: Clock, log: list[str], waits: float = 0.0) -> None:
        self.name, self.seconds, self.clock, self.log, self.waits = name, seconds, clock, log, waits

    def run(self, feeds: object) -> None:
        self.log.append(self.name)
        self.clock.wall += self.seconds + self.waits
        self.clock.cpu += self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.wall)
    monkeypatch.setattr(timing.time, "thread_time", clock.thread_time)
    monkeypatch.setattr(timing, "clock_step", lambda: clock.step)
    return clock


def test_sessions_take_turns_after_a_run_that_does_not_count(clock: Clock) -> None:
    log: list[str] = []
    sessions = [Recorder("a", 2.0, clock, log), Recorder("b", 1.0, clock, log)]
    times = take_turns(sessions, {}, rounds=3, seconds=100)  # type: ignore[arg-type]
    assert log == [*"ab", *"ab", *"ba", *"ab"]
    np.testing.assert_allclose(times, [[2.0, 1.0]] * 3, rtol=1e-12)  # float64 differences of small whole numbers


def test_stops_when_the_time_is_over_but_measures_once(clock: Clock) -> None:
    slow = [Recorder(name, 10.0, clock, []) for name in "ab"]
    assert take_turns(slow, {}, seconds=1.0).shape == (1, 2)  # type: ignore[arg-type]
    assert take_turns(slow, {}, seconds=50.0).shape == (3, 2)  # type: ignore[arg-type]


def test_speedup_is_first_over_second(clock: Clock) -> None:
    found = compare(Recorder("a", 3.0, clock, []), Recorder("b", 1.0, clock, []), {}, rounds=5)  # type: ignore[arg-type]
    assert (found.speedup, found.first, found.second) == pytest.approx((3.0, 3.0, 1.0))
    assert (found.low, found.high) == pytest.approx((3.0, 3.0))


def test_waiting_for_others_does_not_count(clock: Clock) -> None:
    one, two = Recorder("a", 3.0, clock, [], waits=40.0), Recorder("b", 1.0, clock, [])
    assert compare(one, two, {}, rounds=5).speedup == pytest.approx(3.0)  # type: ignore[arg-type]


def test_half_of_the_rounds_lie_in_the_spread(clock: Clock) -> None:
    class Uneven(Recorder):
        def run(self, feeds: object) -> None:
            super().run(feeds)
            self.seconds += 1.0  # 1 does not count, then 2, 3, 4, 5, 6

    found = compare(Uneven("a", 1.0, clock, []), Recorder("b", 2.0, clock, []), {}, rounds=5, seconds=100)  # type: ignore[arg-type]
    assert (found.low, found.speedup, found.high) == pytest.approx((1.5, 2.0, 2.5))


def test_short_runs_are_timed_together_where_the_clock_is_coarse(clock: Clock) -> None:
    clock.step = 1 / 64
    short = Recorder("a", 0.001, clock, [])
    assert take_turns([short], {}, rounds=1)[0, 0] == pytest.approx(0.001, rel=0.05)  # type: ignore[list-item]


def test_the_clock_step_is_what_the_clock_moves_by(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([5.0, 5.0, 5.0, 5.25])
    monkeypatch.setattr(timing.time, "thread_time", lambda: next(times))
    assert timing.clock_step() == 0.25


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
    heavy = parser.parse_model(text % "a = MatMul(x, x) b = MatMul(a, x) y = MatMul(b, x)")
    light, feeds = parser.parse_model(text % "y = Neg(x)"), {"x": np.zeros((300, 300), np.float32)}
    found = compare(Session(heavy, threads=1), Session(light, threads=1), feeds, seconds=0.2)
    assert found.speedup > 1.5  # 81 million multiplications against 90,000 negations
    apart = compare_apart(heavy, light, feeds, seconds=0.1)
    assert apart.speedup > 1.5 and apart.low <= apart.speedup <= apart.high and apart.first > apart.second > 0

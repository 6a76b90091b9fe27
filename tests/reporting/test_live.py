"""What is shown while long steps run."""

from __future__ import annotations

import io

from rich.console import Console

from qcompile.progress import listening, tell
from qcompile.reporting.live import Lines, bars, duration


def test_at_80_columns_step_and_time_stay_and_details_give_way() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=True, color_system=None)
    with bars(console, redirect_stdout=False):
        tell("reconstruct", 0, 24000)
        tell("reconstruct", 1200, 24000, f"{'a_long_name/' * 5}conv: loss 0.0123, now 0.45 of it")
    lines = [line for line in stream.getvalue().replace("\r", "\n").splitlines() if "1200/24000" in line]
    assert lines
    assert all("reconstruct" in line and ":" in line and "…" in line and len(line) <= 85 for line in lines)


def lines_of(calls: list[tuple[float, int, str]], total: int = 100) -> list[str]:
    """Return the lines that calls at certain times lead to."""
    now, written = [0.0], []
    lines = Lines(written.append, clock=lambda: now[0])
    with listening(lines):
        for moment, done, detail in calls:
            now[0] = moment
            tell("reconstruct", done, total, detail)
    return written


def test_a_line_when_a_piece_is_done() -> None:
    calls = [(0.0, 0, "stem"), (19.0, 20, "stem: loss 0.1, now 0.50 of it"), (20.0, 20, "block")]
    assert lines_of(calls) == ["reconstruct 20/100 stem: loss 0.1, now 0.50 of it, 0:01:16 left"]


def test_pieces_that_are_done_at_once_have_no_line() -> None:
    calls = [(float(second), second, f"piece{second}: loss 1") for second in range(30)]
    assert [line.split()[2] for line in lines_of(calls)] == ["piece9:", "piece19:"]


def test_a_long_piece_has_a_line_a_minute() -> None:
    calls = [(float(second), second // 10, "stem: loss 1") for second in range(0, 200, 5)]
    assert [line.split()[1] for line in lines_of(calls)] == ["6/100", "12/100", "18/100"]


def test_time_left_counts_from_where_a_run_goes_on() -> None:
    calls = [(0.0, 50, "stem"), (10.0, 60, "stem: loss 1"), (11.0, 60, "block")]
    assert lines_of(calls)[0].endswith("0:00:40 left")


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 61, 3725)] == ["0:00:00", "0:01:01", "1:02:05"]

"""How far long steps are: bars on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from qcompile.progress import listening

EVERY, AT_LEAST = 10.0, 60.0  # seconds between lines: when a piece is done, and inside a long one
BAR_WIDTH = 16


@contextmanager
def bars(console: Console, *, redirect_stdout: bool) -> Iterator[None]:
    """Show a bar for every long step inside the block. Where it is narrow, the details give way to step and time."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(BAR_WIDTH),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn(
            "{task.fields[detail]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True, redirect_stdout=redirect_stdout, expand=True) as progress:

        def listen(title: str, done: int, total: int | None, detail: str) -> None:
            if title not in tasks or done == 0:
                tasks[title] = progress.add_task(title, total=total, detail=detail)
            progress.update(tasks[title], completed=done, total=total, visible=done != total, detail=detail)

        with listening(listen):
            yield


class Lines:
    """A listener that writes a line when a piece of a step is done, and at times inside a long one; never many."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.write, self.clock = write, clock
        self.written = self.began = clock()
        self.title, self.piece, self.first, self.latest = "", "", 0, ""

    def __call__(self, title: str, done: int, total: int | None, detail: str) -> None:
        """Take in how far the step `title` is; `detail` is the name of a piece, and behind a colon what it came to."""
        now, piece = self.clock(), detail.partition(": ")[0]
        if title != self.title:
            self.title, self.began, self.first, self.piece, self.latest = title, now, done, piece, ""
        left = ""
        if total and self.first < done < total:
            left = f", {duration((total - done) * (now - self.began) / (done - self.first))} left"
        text = f"{title} {done}/{total or '?'} {detail}".rstrip() + left
        if piece != self.piece and self.latest and now - self.written >= EVERY:
            self._line(self.latest, now)
        elif now - self.written >= AT_LEAST:
            self._line(text, now)
        self.piece, self.latest = piece, text

    def _line(self, text: str, now: float) -> None:
        self.write(text)
        self.written = now


def duration(seconds: float) -> str:
    """Return a time as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"

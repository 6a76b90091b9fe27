"""Signals that end a run: Ctrl-C, a polite kill, a terminal that closes. All do the same."""

from __future__ import annotations

import os
import signal
import time

TYPE_CHECKING = False  # that of typing, which takes a while to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, NoReturn, TypeAlias

INTERRUPTED = 130  # the exit code
ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
SAME = 2.0  # seconds in which a second signal says what the first did; a run that tidies up is not to be disturbed
_last = float("-inf")  # when there was one

Handler: TypeAlias = "Callable[[int, FrameType | None], None]"


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """End at once: while code is read in there is nothing to put in order, and other libraries may be in the middle."""
    os.write(2, b"error: interrupted\n")
    os._exit(INTERRUPTED)


def interrupt(number: int, frame: FrameType | None) -> None:
    """End a run from inside, so that it puts everything in order."""
    global _last
    again, _last = time.monotonic() - _last < SAME, time.monotonic()
    if not again:
        raise KeyboardInterrupt


def listen(handler: Handler) -> None:
    """Let `handler` take the signals, but for those that whoever started us wants to be ignored, as nohup does."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def hand_over(new: Handler | signal.Handlers) -> None:
    """Replace the handler of `listen`; where nobody listened, as in Python, nothing changes."""
    for number in ENDING:
        current: Any = signal.getsignal(number)
        if current in (leave, interrupt):
            signal.signal(number, new)

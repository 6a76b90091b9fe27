"""Progress of long steps: a pass says how far it is, whoever runs the compiler decides whether to show it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Listener = Callable[[str, int, int | None, str], None]
"""Called with the title of a step, how many items are done, how many there are (None: unknown), and a detail or ""."""

_listener: ContextVar[Listener | None] = ContextVar("progress_listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send the progress of everything inside the block to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(title: str, done: int, total: int | None, detail: str = "") -> None:
    """Say how far a step is; for steps that `track` does not suit. `done` == `total` ends it."""
    listener = _listener.get()
    if listener is not None:
        listener(title, done, total, detail)


def track(items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
    """Yield `items`, reporting each as done when the next is asked for; `total` is their number where it is known."""
    done = 0
    tell(title, done, total)
    for done, item in enumerate(items, start=1):
        yield item
        tell(title, done, total)
    tell(title, done, done)

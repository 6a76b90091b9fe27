"""The standard streams of the command line: what nobody can take any more must not end a run."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # that of typing, which takes a while to import
if TYPE_CHECKING:
    from typing import IO, Any


class Steady:
    """A text stream that goes on into nothing where it is closed or full: the files are what counts."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, if somebody takes it."""
        try:
            return self.stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Flush, if somebody takes it."""
        try:
            self.stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError) and self.stream is not sys.__stderr__:  # `| head` is no fault
            os.write(2, f"warning: not all could be printed: {error.strerror}\n".encode())
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.stream.fileno())
        os.close(nothing)


def steady_streams() -> None:
    """Make standard output and error steady; one that was closed before leads into nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
        setattr(sys, name, Steady(stream))

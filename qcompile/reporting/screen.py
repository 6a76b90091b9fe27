"""What the terminal shows. Results go to stdout; progress, warnings and times of passes to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from qcompile.flags import FLOAT_BITS
from qcompile.passmanager import PassRun
from qcompile.progress import listening
from qcompile.qmodel import QModel
from qcompile.reporting import tables
from qcompile.reporting.live import Lines, bars
from qcompile.reporting.summary import node_rows, quantizer_rows

DECIDING = ("place-quantizers", "use-plan")  # after these the plan is known
FILE_WIDTH = 120


def width() -> int | None:
    """Return the width to write to a file or a pipe, None for a terminal: rich asks it."""
    return None if sys.stdout.isatty() else FILE_WIDTH


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Return a console; where a terminal says that it is 0 wide, which some do, rich would print nothing."""
    made = Console(stderr=stderr, highlight=False, width=width)
    if made.width < 1:
        made.width = FILE_WIDTH
    return made


class Screen:
    """One compilation's view. `quiet` leaves the verdict and warnings, `verbose` adds each pass with its time."""

    def __init__(self, *, verbose: bool = False, quiet: bool = False) -> None:
        self.verbose, self.quiet = verbose, quiet
        self.out = console(width=width())
        self.err = console(stderr=True)
        self.warned: set[str] = set()
        self.shown: list[str] = []  # lines about float nodes

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Show inside the block how far long steps are."""
        if self.quiet:
            yield
        elif self.err.is_terminal:  # stdout with it, or rich would send what we write to a pipe to the terminal
            with bars(self.err, redirect_stdout=sys.stdout.isatty()):
                yield
        else:
            with listening(Lines(lambda line: self.err.print(line, markup=False, soft_wrap=True))):
                yield

    def watch(self, run: PassRun, model: QModel) -> None:
        """Show what is known after a pass."""
        if self.verbose:
            self.err.print(tables.pass_line(run), markup=False)
        if not self.quiet and run.name in DECIDING:
            opened = model.journal.by("open-model")
            self.show([f"model  {entry['text']}" for entry in opened if entry["what"] == "model"])
            nodes = node_rows(model)
            self.shown = tables.float_view(nodes)
            oldest = "" if model.target.kernels == "others" else f", ONNX Runtime {model.target.runtime} or later"
            forms = tables.IN_FLOAT if model.target.kernels == "none" else tables.FORMS
            if model.config.a == FLOAT_BITS:
                forms = tables.ALONE
            self.show(tables.plan_view(nodes, quantizer_rows(model), model.target.name + oldest, forms))
        if not self.quiet and run.name == "check-data":
            for line in model.first_batch:
                self.out.print(f"first batch  {line}", markup=False, soft_wrap=True)
        self.warn(model.journal.warnings)

    def show(self, view: tables.View) -> None:
        """Write tables and lines to stdout; long lines are left whole."""
        for part in view:
            self.out.print(part, soft_wrap=isinstance(part, str))

    def warn(self, warnings: list[str]) -> None:
        """Show the warnings that have not been shown."""
        for text in warnings:
            if text not in self.warned:
                self.err.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)
        self.warned |= {*warnings}

    def result(self, report: dict[str, Any], path: str) -> None:
        """Show the audit, the table of before and after, and the verdict about the file at `path`."""
        if not self.quiet:
            self.show(tables.audit_view(report, self.shown))
        self.warn(report["warnings"])
        self.out.print(f"{path}: {report['verdict']}", markup=False, soft_wrap=True)

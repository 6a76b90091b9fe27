"""Signals that come while the libraries are imported, and two that come together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qcompile.signals import interrupt, leave

ROOT = Path(__file__).parent.parent
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
SLOW = "import pathlib, time\npathlib.Path('reading').touch()\ntime.sleep(60)\n"


def default_signals() -> None:
    """What runs in the background may have been told to ignore them, and a child inherits that."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "arguments", [("in.onnx", "-o", "out.onnx", "--data", "x.npz"), ("plot", "r.json", "-o", "r.svg")]
)
def test_interrupted_while_libraries_are_imported(
    tmp_path: Path, number: signal.Signals, arguments: tuple[str]
) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "numpy.py").write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, "-m", "qcompile", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "slow"), str(ROOT)])},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals,
    )
    while process.poll() is None and not (tmp_path / "reading").exists():
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate()
    assert (process.returncode, said) == (130, "error: interrupted\n")
    assert {path.name for path in tmp_path.iterdir()} == {"slow", "reading"}


def test_two_that_come_together_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([100.0, 100.0, 101.0, 101.0, 103.5, 103.5])  # the clock is read twice for each
    monkeypatch.setattr(time, "monotonic", lambda: next(moments))
    with pytest.raises(KeyboardInterrupt):
        interrupt(signal.SIGTERM, None)
    interrupt(signal.SIGHUP, None)
    with pytest.raises(KeyboardInterrupt):  # somebody is impatient
        interrupt(signal.SIGINT, None)


def test_nobody_listens_in_python() -> None:
    import qcompile.commands  # noqa: F401

    assert signal.getsignal(signal.SIGINT) not in (leave, interrupt)

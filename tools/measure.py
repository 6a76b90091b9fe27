"""Measure a command in a process of its own: wall and CPU seconds, peak resident and peak anonymous memory.

Run as a script it is the small process in between: the peak that Linux reports for a child is at least the size of the
process that started it, so a large parent must not start it itself.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

INTERVAL = 0.02  # seconds between two looks at a process
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Usage:
    """What a command took: wall and CPU seconds (user + system), peak memory in bytes, exit status.

    `anonymous_bytes` leaves out what is mapped from files and can be dropped at any time; it is looked at every
    `INTERVAL`, 0 where the system does not say.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    status: int
    anonymous_bytes: int = 0

    def columns(self) -> list[str]:
        """Return CPU seconds, wall seconds and peak megabytes as text for a table."""
        return [f"{self.cpu_seconds:.1f}", f"{self.seconds:.1f}", f"{self.peak_bytes / 1e6:.0f}"]


def measured(command: Sequence[str]) -> Usage:
    """Run `command` and measure it; leave with the end of what it said when it fails."""
    with tempfile.TemporaryFile() as said:
        between = subprocess.run(
            [sys.executable, __file__, *command], stdout=subprocess.PIPE, stderr=said, env=environment(), check=True
        )
        usage = Usage(**json.loads(between.stdout))
        if usage.status:
            said.seek(0)
            text = said.read().decode(errors="replace")[-2000:]
            raise SystemExit(f"exit status {usage.status}: {' '.join(command)}\n{text}")
    return usage


def environment() -> dict[str, str]:
    """Return this process's environment with the checkout on the module path: tools run without an installation."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


def anonymous_memory(process: int) -> int:
    """Return the bytes of a process that no file backs, or 0 where the system does not say."""
    with suppress(OSError):
        found = re.search(r"^RssAnon:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    return 0


def main() -> None:
    start = time.perf_counter()
    child = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
    anonymous = 0
    while (found := os.wait4(child.pid, os.WNOHANG))[0] == 0:
        anonymous = max(anonymous, anonymous_memory(child.pid))
        time.sleep(INTERVAL)
    _, status, usage = found
    child.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    seconds, cpu_seconds = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    print(json.dumps(asdict(Usage(seconds, cpu_seconds, usage.ru_maxrss * unit, child.returncode, anonymous))))


if __name__ == "__main__":
    main()

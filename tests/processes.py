"""Work in a process of its own, with what pickle carries there."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FRAME = """
import pickle, sys
given = pickle.load(sys.stdin.buffer)
{}
pickle.dump(result, sys.stdout.buffer)
"""


def in_fresh_process(code: str, *given: Any) -> Any:
    """Run `code`, which finds `given`, in a new interpreter; return what it calls `result`."""
    call = [sys.executable, "-c", FRAME.format(code)]
    done = subprocess.run(call, input=pickle.dumps(given), cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return pickle.loads(done.stdout)

"""Print the lowest versions that pyproject.toml allows as constraints of pip: dependencies and the extra for plots.

python tools/lowest_versions.py > constraints.txt
"""

from __future__ import annotations

import tomllib
from pathlib import Path


def constraints(project: dict[str, object]) -> list[str]:
    """Return one line, NAME==VERSION, for every requirement NAME>=VERSION, with what it says of Python behind it."""
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict) and isinstance(project["dependencies"], list)
    return [requirement.replace(">=", "==", 1) for requirement in [*project["dependencies"], *extras["plot"]]]


if __name__ == "__main__":
    text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    print("\n".join(constraints(tomllib.loads(text)["project"])))

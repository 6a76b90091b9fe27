"""What is installed is what is on disk: the list of packages, the wheel, and what an import pulls in."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DATA_SUFFIXES = {".toml", ".json", ".html"}


def source_folders() -> dict[str, Path]:
    """Return every package by name; `passes` stands at the top and is seen as qcompile.passes through a link."""
    folders = {path.parent for path in (ROOT / "qcompile").rglob("*.py") if path.parent.name != "passes"}
    return {".".join(folder.relative_to(ROOT).parts): folder for folder in folders} | {
        "qcompile.passes": ROOT / "passes"
    }


def packaged_files() -> set[str]:
    """Return what a wheel must hold, by its path inside."""
    return {
        f"{name.replace('.', '/')}/{path.name}"
        for name, folder in source_folders().items()
        for path in folder.iterdir()
        if path.suffix in {".py"} | DATA_SUFFIXES or path.name == "py.typed"
    }


def test_every_folder_is_listed() -> None:
    assert sorted(SETTINGS["tool"]["setuptools"]["packages"]) == sorted(source_folders())


def test_every_package_has_an_init() -> None:
    assert [name for name, folder in source_folders().items() if not (folder / "__init__.py").is_file()] == []


def test_link_shows_the_passes() -> None:
    link = ROOT / "qcompile" / "passes"
    if not link.is_symlink():
        pytest.skip("this checkout has no symbolic links: static tools miss the passes, the installed package does not")
    assert link.readlink() == Path("../passes")


def test_wheel_holds_every_file(tmp_path: Path) -> None:
    needed = re.search(r"setuptools>=(\d+)", SETTINGS["build-system"]["requires"][0])
    assert needed is not None
    if importlib.util.find_spec("setuptools") is None or setuptools_major() < int(needed[1]):
        pytest.skip(f"needs setuptools {needed[1]} in this environment: the wheel is built without a network")
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("needs git, to copy the sources without what builds left behind")
    copy = tmp_path / "source"
    for name in tracked.stdout.splitlines():
        if name.split("/")[0] in {"qcompile", "passes", "pyproject.toml", "README.md", "LICENSE"}:
            source, target = ROOT / name, copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_symlink():
                target.symlink_to(source.readlink())
            elif source.is_file():
                target.write_bytes(source.read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    subprocess.run([*command, str(copy)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == packaged_files()


def setuptools_major() -> int:
    """Return the major version of the setuptools that a build without isolation would use."""
    import setuptools

    return int(setuptools.__version__.split(".")[0])


def test_passes_under_their_bare_name_are_refused() -> None:
    result = python("import passes")
    assert result.returncode == 1
    assert result.stderr.strip().endswith(
        "ImportError: this folder is the package qcompile.passes: import it by that name"
    )


def test_import_needs_no_torch() -> None:
    result = python("import sys, qcompile.cli; print('torch' in sys.modules)")
    assert (result.stdout.strip(), result.stderr) == ("False", "")


def python(program: str) -> subprocess.CompletedProcess[str]:
    """Run `program` in a new interpreter whose search path starts at the root of the checkout."""
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)

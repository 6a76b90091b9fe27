"""What is installed is what is on disk: the list of packages, the wheel, and what an import pulls in."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from long_files import LONG

import qcompile

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
    (needed,) = SETTINGS["build-system"]["requires"]
    if setuptools_version() < int(needed.removeprefix("setuptools>=")):
        pytest.skip(f"{needed} is not in this environment, and a test builds without a network")
    copy = tmp_path / "source"  # a build leaves files behind
    for name in ("qcompile", "passes"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", str(copy)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == packaged_files()


def setuptools_version() -> int:
    """Return the major version of the installed setuptools, 0 where there is none."""
    try:
        return int(metadata.version("setuptools").split(".")[0])
    except metadata.PackageNotFoundError:
        return 0


def test_passes_under_their_bare_name_are_refused() -> None:
    result = python("import passes")
    assert result.returncode == 1
    assert result.stderr.strip().endswith(
        "ImportError: this folder is the package qcompile.passes: import it by that name"
    )


def test_the_command_needs_no_torch() -> None:
    result = python("import sys, qcompile.commands; print('torch' in sys.modules)")
    assert (result.stdout.strip(), result.stderr) == ("False", "")


def test_the_help_needs_no_library_but_that_of_the_command_line() -> None:
    program = (
        "import sys, qcompile.cli; print(sorted({name.split('.')[0] for name in sys.modules} & set(sys.argv[1:])))"
    )
    heavy = ["numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "networkx", "rich", "PIL", "jsonschema"]
    result = python(program, *heavy)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_public_names_are_found_when_they_are_used() -> None:
    program = (
        "import qcompile; print([getattr(qcompile, name).__name__ for name in qcompile.__all__] == qcompile.__all__)"
    )
    result = python(f"{program}; print(qcompile.errors.__name__, hasattr(qcompile, 'eror'))")
    assert (result.stdout.split("\n")[:2], result.stderr) == (["True", "qcompile.errors False"], "")
    assert sorted({*qcompile.__all__} - {*dir(qcompile)}) == []


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `program` in a new interpreter whose search path starts at the root of the checkout."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_files_that_the_quick_suite_leaves_out_exist() -> None:
    assert [name for name in LONG if not (ROOT / "tests" / name).is_file()] == []

"""The documents: their links lead somewhere, their flags exist, their Python runs, their tables are complete."""

from __future__ import annotations

import importlib
import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from qcompile import Config, compile
from qcompile.cli import main
from qcompile.targets.own import changeable
from qcompile.targets.schema import known_tables

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")]
    if not path.relative_to(ROOT).parts[0].startswith(".")
)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
COMMANDS = [option for command in main.commands.values() for option in command.params]
KNOWN_FLAGS = {name for option in COMMANDS for name in (*option.opts, *option.secondary_opts)} | {"--help"}
named = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def python_blocks(document: Path) -> list[str]:
    return [code for language, code in BLOCK.findall(document.read_text(encoding="utf-8")) if language == "python"]


def run_blocks(document: Path, folder: Path) -> dict[str, Any]:
    """Run the Python of `document` as one program in `folder`; return its names."""
    program = folder / f"{document.stem}.py"
    program.write_text("\n".join(python_blocks(document)), encoding="utf-8")
    return runpy.run_path(str(program))


def commands(document: Path) -> Iterator[str]:
    """Yield the command lines of `document`: lines of sh blocks, and code inside sentences."""
    text = document.read_text(encoding="utf-8")
    for language, code in BLOCK.findall(text):
        if language == "sh":
            yield from code.replace("\\\n", " ").splitlines()
    yield from CODE.findall(BLOCK.sub("", text))


@named
def test_links_lead_somewhere(document: Path) -> None:
    targets = [target for target in LINK.findall(document.read_text(encoding="utf-8")) if "://" not in target]
    assert [target for target in targets if not (document.parent / target).exists()] == []


@named
def test_flags_exist(document: Path) -> None:
    own = [line for line in commands(document) if re.match(r"qcompile |--", line)]
    assert sorted({flag for line in own for flag in FLAG.findall(line)} - KNOWN_FLAGS) == []


def test_flags_of_the_makefile_exist() -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    flags = {flag for line in recipe.splitlines() if "/qcompile " in line for flag in FLAG.findall(line)}
    assert flags
    assert flags <= KNOWN_FLAGS


@named
def test_scripts_exist(document: Path) -> None:
    scripts = {script for line in commands(document) for script in re.findall(r"python ([\w/]+\.py)", line)}
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


@pytest.fixture
def folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    residual_model: onnx.ModelProto,
    residual_data: dict[str, NDArray[Any]],
) -> Path:
    """A working folder with in.onnx and calib.npz, as the documents call them."""
    monkeypatch.chdir(tmp_path)
    onnx.save(residual_model, "in.onnx")
    np.savez("calib.npz", **residual_data)
    return tmp_path


def test_worked_example_runs(folder: Path) -> None:
    names = run_blocks(ROOT / "docs" / "writing_a_pass.md", folder)
    model, run = names["model"], next(run for run in names["runs"] if run.name == "widen-small-weights")
    # Of three weights the first (216 elements) and the last have 8 bits anyway; the one between has 8 * 8 * 9.
    assert run.changed == 1
    assert {name: weight.bits for name, weight in model.plan.weights.items()} == {"stem": 8, "branch": 8, "logits": 8}
    assert names["WidenSmallWeights"]().run(model) == 0
    assert (folder / "out.onnx").is_file()


def test_worked_example_is_short() -> None:
    example = python_blocks(ROOT / "docs" / "writing_a_pass.md")[0]
    body = [line for line in example.splitlines() if line.strip() and "import" not in line]
    assert len(body) <= 15


def test_readme_python_runs(folder: Path) -> None:
    run_blocks(ROOT / "README.md", folder)
    assert {"out.onnx", "out.json"} <= {path.name for path in folder.iterdir()}


def test_python_of_the_api_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In integers plan and file give the same."""
    run_blocks(ROOT / "docs" / "python.md", folder)
    assert re.search(r"^scores True ", capsys.readouterr().out, re.MULTILINE)


def test_deployment_python_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test_readme_python_runs(folder)
    run_blocks(ROOT / "docs" / "deployment.md", folder)
    assert "QLinearConv" in capsys.readouterr().out


def test_every_fact_of_a_target_is_in_the_table() -> None:
    text = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
    told = {fact for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for fact in re.findall(r"`(\w+)`", row)}
    facts = {"like", "float_reasons", *changeable(known_tables()["tensorrt"], known_tables())}
    assert told - known_tables().keys() == facts


def test_the_target_of_the_example_compiles(folder: Path) -> None:
    """The commands of docs/targets.md, on its own file."""
    text = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
    (table,) = [code for language, code in BLOCK.findall(text) if language == "toml"]
    (folder / "npu.toml").write_text(table, encoding="utf-8")
    result = compile("in.onnx", Config(target="npu.toml", threads=1), "calib.npz")
    assert result.qmodel.target.name == "example-npu" and not result.report["warnings"]


def test_every_pass_is_in_the_table() -> None:
    text = (ROOT / "passes" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)\.py` \| `([\w-]+)` \|", text, re.MULTILINE)
    assert sorted(module for module, _ in rows) == sorted(
        path.stem for path in (ROOT / "passes").glob("*.py") if path.stem != "__init__"
    )
    for module, name in rows:
        classes = vars(importlib.import_module(f"qcompile.passes.{module}")).values()
        assert name in {getattr(item, "name", None) for item in classes if isinstance(item, type)}


def test_layers_are_those_of_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = {layer for row in contracts[0]["layers"] for layer in row.split(" | ")} - {"__main__"}
    section = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Layers")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert {layer for row in rows for layer in CODE.findall(row)} == layers

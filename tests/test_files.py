from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qcompile.errors import InputError
from qcompile.files import (
    check_outputs,
    here,
    parse_json,
    parse_toml,
    read_bytes,
    remove_leftovers,
    staying,
    write_files,
)


def contents(folder: Path) -> dict[str, str]:
    """Return every file below `folder`, and folders as names that end in a stroke."""
    return {
        f"{path.relative_to(folder)}{'/' if path.is_dir() else ''}": path.read_text() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


# --- writing


def test_files_appear_together_and_replace_old_ones(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("old")
    write_files({tmp_path / "one": [b"n", b"ew"], tmp_path / "plan" / "two": [b"2"]}, made=[tmp_path / "plan"])
    assert contents(tmp_path) == {"one": "new", "plan/": "", "plan/two": "2"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError()])
def test_an_error_while_writing_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    def broken() -> Iterator[bytes]:
        yield b"part"
        raise error

    (tmp_path / "one").write_text("old")
    with pytest.raises(InputError if isinstance(error, OSError) else type(error)):
        write_files({tmp_path / "one": [b"new"], tmp_path / "p" / "two": broken()}, made=[tmp_path / "p"])
    assert contents(tmp_path) == {"one": "old"}


@pytest.mark.parametrize("moment", range(7))
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_an_error_while_renaming_puts_everything_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int, error: BaseException
) -> None:
    before = {"a": "old a", "b": "old b"}
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    left = moment

    def failing(name: str) -> None:
        original = getattr(Path, name)

        def call(path: Path, *arguments: object) -> object:
            nonlocal left
            left -= 1
            if left == -1:
                raise error
            return original(path, *arguments)

        monkeypatch.setattr(Path, name, call)

    for name in ("rename", "replace", "mkdir"):
        failing(name)
    new = {tmp_path / name: [b"new"] for name in ("a", "b", "c", "p/d")}
    if moment == 6 + 1:
        write_files(new, made=[tmp_path / "p"])
    else:
        with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
            write_files(new, made=[tmp_path / "p"])
        assert contents(tmp_path) == before


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    write_files({tmp_path / "link": [b"new"]})
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "file").read_text() == "new"


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    write_files({tmp_path / ("n" * 255): [b"1"], tmp_path / ("\N{SNOWMAN}" * 85): [b"2"]})
    assert len(list(tmp_path.iterdir())) == 2


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    for name in (".state.json.0011aabb", ".plan-3.npz.0011aabb", "state.json", ".mine"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, ["state.json", "plan-*.npz"])
    assert set(contents(tmp_path)) == {"state.json", ".mine"}


# --- before any work


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files of several kinds."""
    (tmp_path / "in.onnx").write_text("model")
    (tmp_path / "link.onnx").symlink_to("in.onnx")
    os.link(tmp_path / "in.onnx", tmp_path / "hard.onnx")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["in.onnx", "./in.onnx", "folder/../in.onnx", "link.onnx", "hard.onnx"])
def test_an_input_is_not_overwritten(folder: Path, name: str) -> None:
    for given in (Path(name), folder / name):
        with pytest.raises(InputError, match="would overwrite the model"):
            check_outputs({Path("in.onnx"): "model"}, [given])


@pytest.mark.parametrize("other", ["out.onnx", "./out.onnx", "folder/../out.onnx", "OUT.onnx"])
def test_two_outputs_of_one_name(folder: Path, other: str) -> None:
    for given in (Path(other), folder / other):
        with pytest.raises(InputError, match="two outputs have the same name"):
            check_outputs({}, [Path("out.onnx"), given])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (".", "cannot write .: it is a folder"),
        ("folder", "cannot write folder: it is a folder"),
        ("loop", "cannot write loop"),
        ("pipe", "it is not a file"),
        ("none/out", "No such file or directory"),
        ("in.onnx/out", "cannot write out"),
        ("n" * 256, "File name too long"),
        ("a\0b", "null"),
    ],
)
def test_a_place_that_cannot_be_written(folder: Path, name: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        check_outputs({}, [Path(name)])


def test_a_folder_that_will_be_made_may_be_missing(folder: Path) -> None:
    check_outputs({}, [Path("plan/plan.json")], made=[Path("plan")])
    with pytest.raises(InputError, match="No such file"):
        check_outputs({}, [Path("plan/plan.json")])


def test_the_state_of_training_is_not_overwritten(folder: Path) -> None:
    check_outputs({}, [Path("folder/out.onnx")], work=Path("folder"))
    for name in ("folder/qcompile-state.json", "folder/qcompile-values/out.onnx"):
        with pytest.raises(InputError, match="belong to the state"):
            check_outputs({}, [Path(name)], made=[Path("folder/qcompile-values")], work=Path("folder"))
    with pytest.raises(InputError, match="two outputs have the same name"):
        check_outputs({}, [Path("work")], work=Path("work"))


# --- reading


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("none", "cannot read the plan: No such file"),
        ("folder", "it is a folder"),
        ("pipe", "it is not a file"),
        ("loop", "cannot read the plan: .*symbolic link"),
        ("n" * 300, "File name too long"),
        ("a\0b", "null"),
    ],
)
def test_what_cannot_be_read(folder: Path, name: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        read_bytes(Path(name), "plan")


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "1e999", "[" * 100_000, "\ud800", "{"])
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text.encode(errors="surrogatepass"))


def test_a_current_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    with staying():
        os.chdir(tmp_path)
    assert here() == tmp_path / "gone"
    (tmp_path / "gone").rmdir()
    with staying():
        assert here() == Path()


def test_what_is_no_toml() -> None:
    for text in ("a = " + "[" * 100_000, "a = ", "\xff"):
        with pytest.raises(ValueError):
            parse_toml(text.encode("latin-1"))
    assert parse_toml("\ufeffw = 4".encode()) == {"w": 4}

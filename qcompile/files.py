"""Files, read and written: what is written is whole or absent, and several files appear together or not at all."""

from __future__ import annotations

import json
import os
import secrets
import stat
import tempfile
import tomllib
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from qcompile.errors import InputError

Content = Iterable[bytes | memoryview]  # of a file, in parts
SPACE = "check the folder, its permissions and free space"
OURS = "qcompile-"  # what the names of our files begin with, in a work folder and where temporary ones go

# --- writing


def write_files(contents: Mapping[Path, Content], *, made: Collection[Path] = ()) -> None:
    """Write all of these files or none; the folders in `made` are made where they are missing. Raises InputError.

    Each is written under a temporary name, flushed and renamed at the end. Where there are several, those that were
    there before are set aside first: no new file ever stands beside an old one. After an error or an interruption they
    are put back, and nothing else is left. A link is followed.
    """
    places = {path: _place(path) for path in contents}
    new = {folder: _resolved(folder) for folder in made if not folder.exists()}
    staged: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            with _writing(path):
                folder = places[path].parent
                staged[path] = _temporary(folder.parent if folder in new.values() else folder, places[path].name)
                _write(staged[path], content)
        with ExitStack() as undo:
            for path, folder in new.items():
                with _writing(path):
                    undo.callback(_remove_folder, folder)
                    folder.mkdir()
            _publish({path: (staged[path], places[path]) for path in contents})
            undo.pop_all()
    finally:
        for temporary in staged.values():
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _publish(files: Mapping[Path, tuple[Path, Path]]) -> None:
    """Rename temporary files to their places, all or none."""
    aside: dict[Path, Path] = {}
    with ExitStack() as undo:
        for path, (_, place) in files.items() if len(files) > 1 else ():
            with _writing(path):
                if place.exists():
                    aside[place] = _temporary(place.parent, place.name)
                    undo.callback(_move, aside[place], place)
                    place.rename(aside[place])
        for path, (temporary, place) in files.items():
            with _writing(path):
                if len(files) > 1:
                    undo.callback(_take_back, temporary, place)
                temporary.replace(place)
        undo.pop_all()
    for old in aside.values():
        with suppress(OSError):
            old.unlink()
    for folder in {place.parent for _, place in files.values()}:
        _flush_folder(folder)


def _move(aside: Path, place: Path) -> None:
    if aside.exists():
        aside.replace(place)


def _take_back(temporary: Path, place: Path) -> None:
    if not temporary.exists():  # it has been renamed
        place.unlink(missing_ok=True)


def _remove_folder(folder: Path) -> None:
    with suppress(OSError):  # it was not made, or somebody else uses it
        folder.rmdir()


def _temporary(folder: Path, name: str) -> Path:
    """Return a new name for what becomes `name`, short whatever that is."""
    return folder / f"{_prefix(name)}{secrets.token_hex(4)}"


def _prefix(name: str) -> str:
    return f".{name[:32]}."


def _write(path: Path, content: Content) -> None:
    with path.open("xb") as file:
        for part in content:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Let names reach the disk, where folders can be flushed."""
    if os.name == "posix":
        with suppress(OSError):
            number = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Name the file in the error of the file system."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error.strerror or str(error), remedy=SPACE) from error


def unwritable(path: Path, why: str, remedy: str = "give another name") -> InputError:
    """Return the error for a file that cannot be written."""
    return InputError(f"cannot write {path.name or path}: {why}", where=str(path.parent), remedy=remedy)


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Delete what processes that were killed have left of files of these names (patterns) in a folder that is ours."""
    for name in names:
        for part in folder.glob(f"{_prefix(name)}*"):
            part.unlink(missing_ok=True)


# --- before any work


def check_outputs(
    inputs: Mapping[Path, str], outputs: Iterable[Path], *, made: Collection[Path] = (), work: Path | None = None
) -> None:
    """Raise InputError for an output that cannot be written, or that is an input, another output or part of the state.

    `inputs` says what each file is; `made` are folders that will be made, `work` is that of the state of training.
    Files are compared, not names: links are followed, and capitals make no difference between two outputs, since on
    some file systems they make none.
    """
    read: dict[object, str] = {}
    for path, what in inputs.items():
        with suppress(InputError):  # whoever reads it says what is wrong with it
            read |= dict.fromkeys(_identities(_resolved(path)), what)
    new = {_resolved(folder) for folder in made}
    folders = [*new, *([_resolved(work)] if work else [])]
    written = {key for folder in folders for key in _identities(folder, loose=True)}
    for path in outputs:
        place = _place(path)
        keys = _identities(place, loose=True)
        if taken := [read[key] for key in keys if key in read]:
            raise InputError(f"the output would overwrite the {taken[0]}", where=str(path), remedy="give another name")
        if not written.isdisjoint(keys):
            raise InputError("two outputs have the same name", where=str(path), remedy="give each its own")
        if work and _is_state(place, _resolved(work)):
            what = f"names that begin with {OURS} belong to the state in the work folder"
            raise InputError(what, where=str(path), remedy="give another name")
        written.update(keys)
        _try(path, place.parent.parent if place.parent in new and not place.parent.exists() else place.parent)


def _is_state(place: Path, work: Path) -> bool:
    return place.is_relative_to(work) and place.relative_to(work).parts[0].startswith(OURS)


def _identities(place: Path, *, loose: bool = False) -> list[object]:
    """Return keys of which two places of one file have at least one in common."""
    keys: list[object] = [place, *([unicodedata.normalize("NFC", str(place)).casefold()] if loose else [])]
    with suppress(OSError):
        found = place.stat()
        keys.append((found.st_dev, found.st_ino))
    return keys


def _place(path: Path) -> Path:
    """Return where a file of that name is written; raise InputError where there is a folder, a device or a loop."""
    place = _resolved(path)
    try:
        mode = place.lstat().st_mode
    except FileNotFoundError:
        return place
    except OSError as error:
        raise unwritable(path, error.strerror or str(error)) from error
    if stat.S_ISDIR(mode):
        raise unwritable(path, "it is a folder", remedy="give the name of a file")
    if stat.S_ISLNK(mode):
        raise unwritable(path, "the link leads to itself")
    if not stat.S_ISREG(mode):
        raise unwritable(path, "it is not a file", remedy="give a file")
    return place


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name that no file can have
        raise unwritable(path, str(error)) from error


def _try(path: Path, folder: Path) -> None:
    """Ask the only question that every file system answers truthfully."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise unwritable(path, error.strerror or str(error), "make the folder, or give another place") from error


# --- reading


def here() -> Path:
    """Return the current folder, as a relative path where it has been deleted."""
    with suppress(FileNotFoundError):
        return Path.cwd()
    return Path()


@contextmanager
def staying() -> Iterator[None]:
    """Come back to the current folder at the end."""
    place = here()
    try:
        yield
    finally:
        with suppress(OSError):
            os.chdir(place)


def read_bytes(path: Path, what: str, remedy: str = "check the path") -> bytes:
    """Return what is in a file; raise InputError, which calls it `what`, where that is none or cannot be read.

    Pipes and devices are none: they may never end, and many things here are read twice.
    """
    with _reading(path, what, remedy):
        if stat.S_ISDIR(_mode(path)):
            raise InputError(f"cannot read the {what}: it is a folder", where=str(path), remedy=remedy)
        return path.read_bytes()


def kind_of_place(path: Path, what: str) -> str:
    """Return "file", "folder", or "" where nothing is; raise InputError, which calls it `what`, for all else."""
    with _reading(path, what, "give a file or a folder"), suppress(FileNotFoundError, NotADirectoryError):
        return "folder" if stat.S_ISDIR(_mode(path)) else "file"
    return ""


def files_below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield the files in a folder and in those below it, but for hidden ones. Links are followed, never in circles.

    `above` are the folders on the way there. Raises InputError where one cannot be read.
    """
    with _reading(folder, "folder", "check its permissions"):
        place = folder.resolve()
        entries = () if place in above else sorted(folder.iterdir())
        found = [(path, path.is_dir()) for path in entries if not path.name.startswith(".")]
    for path, is_folder in found:
        yield from files_below(path, above | {place}) if is_folder else [path]


def _mode(path: Path) -> int:
    """Return the mode of a file or a folder; raise OSError for pipes and devices."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(0, "it is not a file")
    return mode


@contextmanager
def _reading(path: Path, what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        why = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot read the {what}: {why}", where=str(path), remedy=remedy) from error


def parse_json(data: bytes) -> Any:
    """Return the values in JSON; raise ValueError for all that is none, as numbers that are not finite."""
    try:
        return json.loads(data.decode(), parse_constant=_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _finite(text: str) -> float:
    if abs(value := float(text)) < float("inf"):
        return value
    raise ValueError(f"{text} is no number")


def parse_toml(data: bytes) -> dict[str, Any]:
    """Return the values in TOML; raise ValueError for what is none."""
    try:
        return tomllib.loads(data.decode("utf-8-sig"))  # editors write a mark in front
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error

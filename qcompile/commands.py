"""What the command line does, once it is clear what is asked for: check the places, call the API, write, print."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from qcompile import api
from qcompile.checking import check
from qcompile.checking.rules import rule_of
from qcompile.checking.rules.text import explained
from qcompile.config import Config, Files, recipe_text
from qcompile.data.sources import files_behind, split_labels
from qcompile.errors import InputError, QualityError
from qcompile.files import check_outputs, write_files
from qcompile.ir.load import external_files
from qcompile.quant.plan_file import plan_folders, plan_places
from qcompile.reporting import check_view, plot, tables
from qcompile.reporting.screen import Screen
from qcompile.signals import hand_over, interrupt
from qcompile.targets.listing import as_file
from qcompile.targets.own import is_own
from qcompile.targets.schema import Target, known
from qcompile.training.work_dir import has_state

SEPARATORS = tuple(filter(None, (os.sep, os.altsep)))


@dataclass(frozen=True)
class Request:
    """One compilation as the command line asks for it; `recipe` and `save_config` are files."""

    config: Config
    files: Files
    recipe: str | None
    save_config: str | None
    plan_only: bool


def compile_model(request: Request, arguments: Sequence[str], *, verbose: bool, quiet: bool) -> None:
    """Compile, write all files and print; `arguments` are those of the command. Raises QualityError with --strict."""
    hand_over(interrupt)
    check_places(request)
    screen = Screen(verbose=verbose, quiet=quiet)
    with resumable(request.config, arguments), screen.progress():
        result = compiled(request, screen)
        hand_over(signal.SIG_IGN)  # all is written, and the last lines are for the user
        results = () if request.plan_only else (result, *result.others)
        for part, place in zip(results, api.places(str(request.files.out), [part.qmodel.target for part in results])):
            screen.result(part.report, str(place))
    if request.files.strict and (count := len({text for part in results for text in part.report["warnings"]})):
        raise QualityError(f"--strict: {count} warning{'s' if count > 1 else ''}", remedy="all files are written")


def compiled(request: Request, screen: Screen) -> api.Result:
    """Compile, and write all files."""
    config, files, model = request.config, request.files, str(request.files.model)
    if request.plan_only:
        result = api.plan_only(model, config, watch=screen.watch)
        contents = result.files(report=files.report)
    else:
        data, plan = files.data, files.load_plan
        result = api.compile(model, config, data, evaluation=files.eval, plan=plan, watch=screen.watch)
        contents = result.files(files.out, plan=files.save_plan, report=files.report)
    if request.save_config:
        contents[Path(request.save_config)] = [recipe_text(config, files).encode()]
    write_files(contents, made=plan_folders(Path(files.save_plan)) if files.save_plan else ())
    return result


def check_places(request: Request) -> None:
    """Raise InputError, before any work, where an output cannot be written or would be written over an input."""
    config, files = request.config, request.files
    plan = Path(files.save_plan) if files.save_plan else None
    named = [None if request.plan_only else files.out, files.report, request.save_config]
    if folder := next((name for name in named if name and name.endswith(SEPARATORS)), ""):
        raise InputError(f"cannot write {folder}: it is the name of a folder", remedy="give the name of a file")
    written = [Path(request.save_config)] if request.save_config else []
    targets = (api.open_target(config),) if request.plan_only else api.open_target(config).written
    written += [place for name in named[:2] if name for place in api.places(name, targets)]
    written += plan_places(plan) if plan else ()
    there = any(os.path.exists(path) for path in written)  # noqa: PTH110  (Path.exists fails for names too long)
    read = read_places(request) if there else {}  # a new file takes nobody's place
    made = plan_folders(plan) if plan else ()
    check_outputs(read, written, made=made, work=Path(config.work_dir) if config.work_dir else None)


def read_places(request: Request) -> dict[Path, str]:
    """Return every file that is read, and what it is."""
    config, files, model = request.config, request.files, str(request.files.model)
    folder, table = split_labels(files.eval or "")
    named = [(model, "model"), (request.recipe, "recipe"), (table, "labels")]
    named += [(part, "preprocessing") for part in (config.preprocess or "").split(",")]
    read = {Path(name): what for name, what in named if name}
    read |= {Path(name): "target" for name in map(str.strip, config.target.split(",")) if is_own(name)}
    read |= dict.fromkeys(plan_places(Path(files.load_plan)) if files.load_plan else (), "plan")
    read |= dict.fromkeys(external_files(Path(model)), "external data of the model")
    read |= dict.fromkeys(files_behind(str(folder)) if files.eval else (), "evaluation data")
    return read | dict.fromkeys(files_behind(files.data) if files.data else (), "data")


@contextmanager
def resumable(config: Config, arguments: Sequence[str]) -> Iterator[None]:
    """Say with an interruption which command goes on, if there is a state to go on from."""
    try:
        yield
    except KeyboardInterrupt:
        if config.work_dir is None or not has_state(Path(config.work_dir)):
            raise
        command = shlex.join(["qcompile", *arguments, *([] if config.resume else ["--resume"])])
        raise KeyboardInterrupt(f"; go on with: {command}") from None


def list_targets(name: str | None) -> None:
    """Print what `--target` can be, or all facts about one of them, known or in a file. Raises InputError."""
    Screen().show([escape(as_file(name))] if name else tables.targets_view(map(Target.load, known())))


def plot_report(report: Path, figure: Path) -> None:
    """Draw a report. Raises InputError, before any work, where it cannot be read or the figure cannot be written."""
    hand_over(interrupt)
    kind = plot.kind_of(figure)
    check_outputs({report: "report"}, [figure])
    write_files({figure: [plot.draw(plot.read_report(report), kind)]})


def check_file(file: str, *, as_json: bool, **flags: Any) -> bool:
    """Check a quantized file and print what was found; return whether there is nothing against it."""
    hand_over(interrupt)
    screen = Screen()
    with screen.progress():
        found = check(file, **flags)
    if as_json:
        print(json.dumps(asdict(found), indent=1, allow_nan=False))
    else:
        screen.show([*check_view.check_view(found), check_view.conclusion(found)])
    return not found.faults


def explain_rule(code: str) -> None:
    """Print what a rule says of itself."""
    print(explained(rule_of(code)))

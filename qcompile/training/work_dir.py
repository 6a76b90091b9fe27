"""The state of training on disk: written whole after every piece, so that a killed run goes on where it was."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema

from qcompile.config import PLACES, recipe
from qcompile.errors import InputError
from qcompile.files import parse_json, read_bytes, remove_leftovers, write_files
from qcompile.qmodel import QModel
from qcompile.quant.plan import Plan
from qcompile.quant.plan_file import load_plan, record, save_plan
from qcompile.targets.plan_fit import plan_misfit

if sys.platform != "win32":
    import fcntl

VERSION = 4
STATE = "qcompile-state.json"  # names that nobody else gives: the folder may hold other things
PLAN = "qcompile-plan-{}.npz"
VALUES = "qcompile-values"  # folder for what does not fit into memory
LOCK = "qcompile-lock"
Entry = dict[str, Any]
_NUMBER = {"type": ["number", "null"]}
_OUTCOME = {
    "piece": {"type": "string"},
    "what": {"type": "string"},
    "trained": {"type": "boolean"},
    "before": _NUMBER,
    "after": _NUMBER,
    "fitted": _NUMBER,
    "cpu_seconds": {"type": "number", "minimum": 0},
    "reason": {"type": "string"},
}
_PURPOSE = {
    "fingerprint": {"type": "string"},
    "target": {"type": "string"},
    "recipe": {"type": "object"},
    "pieces": {"type": "array", "items": {"type": "string"}},
    "samples": {"type": "integer"},
    "digest": {"type": "string"},
}
SCHEMA = record(
    version={"const": VERSION},
    purpose=record(**_PURPOSE),
    outcomes={"type": "array", "items": record(**_OUTCOME)},
    plan={"type": "string", "pattern": f"^{PLAN.format('[0-9]+')}$"},
)


class Lock:
    """Keeps other processes out of a folder while somebody in this one has it.

    Raises BlockingIOError where one is there, OSError where the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        held = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        weakref.finalize(self, os.close, held)
        if sys.platform != "win32":
            try:
                fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):  # else the file system has no locks
                    raise BlockingIOError(*error.args) from error


# A process has one lock for a folder: it loses all that it has on a file when it closes that file once.
LOCKS: weakref.WeakValueDictionary[Path, Lock] = weakref.WeakValueDictionary()


@dataclass
class WorkDir:
    """A folder with one state: what it was made for, the outcomes of the pieces that are done, and the plan then.

    The state names the file of its plan. The plan is written first, each of them whole: whenever the process ends, the
    folder holds the state before or the state after.
    """

    path: Path
    purpose: Entry
    state: Entry = field(default_factory=dict)
    held: Lock | None = None

    @property
    def outcomes(self) -> list[Entry]:
        """What became of the pieces that are done, in order."""
        return list(self.state.get("outcomes", []))

    def plan(self, model: QModel) -> Plan:
        """Return the plan of the state; raise InputError where it is damaged or does not fit `model`."""
        path = self.path / self.state["plan"]
        plan = load_plan(path, **self._whose)
        if problem := plan_misfit(plan, model.graph, model.target):
            what = f"the plan in the state of training does not fit the model: {problem}"
            raise InputError(what, where=str(path), remedy="begin again with another --work-dir")
        return plan

    @property
    def _whose(self) -> dict[str, str]:
        """What the plan of the state is for."""
        return {key: self.purpose[key] for key in ("target", "fingerprint")}

    def values(self) -> Path:
        """Return an empty folder for values; those of a run that was killed are deleted."""
        folder = self.path / VALUES
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir()
        except OSError as error:
            raise _unusable(folder, error) from error
        return folder

    def lock(self) -> None:
        """Keep other processes out of the folder while this object lives; delete what a killed one left half written.

        Raises InputError where another run is at work there, or nothing can be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            place = self.path.resolve() / LOCK
            self.held = LOCKS.get(place) or Lock(place)
        except BlockingIOError as error:
            remedy = "wait for its end, or give another --work-dir"
            raise InputError("another run is at work there", where=str(self.path), remedy=remedy) from error
        except OSError as error:
            raise _unusable(self.path, error) from error
        LOCKS[place] = self.held
        remove_leftovers(self.path, (STATE, PLAN.format("*")))

    def match(self, pieces: Sequence[str], samples: int, digest: str) -> None:
        """Add pieces and samples to what the state is for; raise InputError if it was made for others."""
        self.purpose |= {"pieces": list(pieces), "samples": samples, "digest": digest}
        for key, name in (("pieces", "another partition"), ("samples", "other samples"), ("digest", "other samples")):
            if self.state and self.state["purpose"].get(key) != self.purpose[key]:
                raise self._made_for(name)

    def save(self, plan: Plan, outcomes: Sequence[Entry]) -> None:
        """Write the state; raise InputError, with the one before left whole, where that cannot be done."""
        name = PLAN.format(len(outcomes))
        state = {"version": VERSION, "purpose": self.purpose, "outcomes": list(outcomes), "plan": name}
        text = json.dumps(state, indent=1)
        try:
            save_plan(plan, self.path / name, **self._whose)
            write_files({self.path / STATE: [text.encode()]})
            for old in self.path.glob(PLAN.format("*")):
                if old.name != name:
                    old.unlink()
        except InputError as error:
            what = f"cannot write the state of training: {error.what.partition(': ')[2]}"
            raise InputError(what, where=str(self.path), remedy="make room, then --resume") from error
        except OSError as error:
            raise _unusable(self.path, error) from error
        self.state = state

    def _made_for(self, what: str) -> InputError:
        remedy = "give what it was made with, or another --work-dir"
        return InputError(f"the state was made with {what}", where=str(self.path), remedy=remedy)

    def check(self) -> None:
        """Raise InputError unless the state that is there was made with this model and these settings."""
        found = self.state["purpose"]
        if found["fingerprint"] != self.purpose["fingerprint"]:
            raise self._made_for("another model or other weights")
        then, now = found["recipe"], self.purpose["recipe"]
        for key in sorted(then.keys() | now.keys()):
            if then.get(key) != now.get(key):
                raise self._made_for(f"--{key} {_spelt(then.get(key))}, not {_spelt(now.get(key))}")
        if found["target"] != self.purpose["target"]:
            raise self._made_for(f"other facts: target {found['target']}, not {self.purpose['target']}")


def open_work_dir(model: QModel) -> WorkDir | None:
    """Return the work folder of the configuration, made if need be; with the state to go on from, if it asks for that.

    Raises InputError where there is no such state, or one of another model or other settings; where there is one of an
    unfinished run that the configuration does not ask for, since hours may be in it; and where another run is at work.
    """
    if model.config.work_dir is None:
        return None
    folder = WorkDir(
        Path(model.config.work_dir),
        {
            "fingerprint": model.fingerprint,
            "target": model.target.identity,
            "recipe": {key: value for key, value in recipe(model.config).items() if key not in PLACES},
        },
    )
    if model.config.resume and not has_state(folder.path):
        remedy = "leave --resume out to begin"
        raise InputError("there is no state to go on from", where=str(folder.path), remedy=remedy)
    folder.lock()
    state = _read(folder.path / STATE) if has_state(folder.path) else None
    if model.config.resume and state is not None:
        folder.state = state
        folder.check()
    elif state is not None and len(state["outcomes"]) < len(state["purpose"]["pieces"]):
        remedy = "add --resume to go on from it, or give another folder"
        raise InputError("there is the state of an unfinished run", where=str(folder.path), remedy=remedy)
    return folder


def has_state(folder: Path) -> bool:
    """Say whether a run can go on from what is in `folder`."""
    return (folder / STATE).is_file()


def _read(path: Path) -> Entry:
    remedy = "give another --work-dir"
    try:
        state: Entry = parse_json(read_bytes(path, "state of training", remedy))
        if isinstance(state, dict) and state.get("version", VERSION) != VERSION:
            raise InputError("the state is of another version of qcompile", where=str(path), remedy="begin again")
        jsonschema.validate(state, SCHEMA)
    except ValueError as error:
        raise InputError("not a state of training", where=str(path), remedy=remedy) from error
    except jsonschema.ValidationError as error:
        where = f"{path}: {'/'.join(map(str, error.absolute_path)) or 'top'}: {error.message[:100]}"
        raise InputError("not a state of training", where=where, remedy=remedy) from error
    return state


def _unusable(folder: Path, error: OSError) -> InputError:
    what = f"cannot use the work folder: {error.strerror or error}"
    return InputError(what, where=str(folder), remedy="give another --work-dir")


def _spelt(value: object) -> str:
    return "unset" if value is None else str(value)

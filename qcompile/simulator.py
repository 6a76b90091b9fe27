"""What a plan or an emitted file computes, for whoever wants to look at numbers: one call from feeds to outputs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx

from qcompile.api import Source, open_model, open_target
from qcompile.config import Config
from qcompile.emission.origin import PREFIX
from qcompile.errors import InputError, expect, nearest
from qcompile.files import kind_of_place
from qcompile.ir import constant_value
from qcompile.passes.use_plan import UsePlan
from qcompile.passmanager import PassManager
from qcompile.pipeline import PREPARE, change_channels
from qcompile.qmodel import Arrays, QModel
from qcompile.quant.plan import Plan
from qcompile.quant.plan_file import read_plan_file
from qcompile.runtime.session import Session
from qcompile.simulation import simulate as simulation
from qcompile.targets.schema import known

Mode = Literal["integer", "fake-quant"]


def simulate(
    source: Plan | Source,
    feeds: Mapping[str, Any],
    model: Source | None = None,
    config: Config | None = None,
    *,
    mode: Mode = "integer",
) -> Arrays:
    """Compute once what a plan or an emitted file computes.

    Parameters
    ----------
    source
        A file that qcompile wrote (its path, or the model), or a plan (that of a result, or the path of a saved one).
    feeds
        {input: array}, in the types and shapes that the float model takes.
    model
        The float model that a plan is for.
    config
        What plan and file cannot say: which TOML file the target is, which inputs are fixed.
    mode
        "integer": a plan is interpreted in numpy with exact sums of integers. They are rounded as by ONNX Runtime's
        kernels where it is for these, else once for each layer, half to even. A file runs on these kernels.
        "fake-quant": float operators on rounded values, which is how files of targets without kernels here are run.

    Returns
    -------
    dict
        {output: array}.

    Raises
    ------
    InputError
        Something is missing or does not belong to the rest, or integers are asked of a file whose kernels are not here.
    """
    expect(feeds, Mapping, "feeds", "give a dict of arrays by input name")
    if mode not in get_args(Mode):
        raise InputError(f"mode {mode!r} is unknown", remedy=nearest(str(mode), get_args(Mode)))
    arrays = {name: np.asarray(value) for name, value in feeds.items()}
    if isinstance(source, Plan) or _is_plan_file(source):
        return _of_plan(_opened(source, model, config), arrays, mode)
    expect(source, (str, os.PathLike, onnx.ModelProto), "source", "give a plan, or a file that qcompile wrote")
    return _of_file(source, arrays, mode, config)


def _is_plan_file(source: object) -> bool:
    return isinstance(source, str | os.PathLike) and (Path(source).suffix == ".npz" or Path(source).is_dir())


def _opened(source: Any, model: Source | None, config: Config | None) -> QModel:
    """Return the float model, prepared as it was when the plan was made, with that plan."""
    plan, made_from = (source, "") if isinstance(source, Plan) else read_plan_file(Path(source))
    if model is None:
        raise InputError("a plan computes nothing without its model", remedy="give the float model: model=...")
    opened = open_model(model, config or _known(plan.target))
    if made_from not in ("", opened.fingerprint):
        what = "the plan was made for another model or other weights"
        raise InputError(what, where=str(source), remedy="give the model that it was made for")
    PassManager((*PREPARE, *change_channels(opened.config, plan.untouched), UsePlan(plan))).run(opened)
    return opened


def _known(target: str) -> Config:
    """Return the configuration for a known target; raise InputError for one that only a file has."""
    if {*target.split(",")} <= known().keys():
        return Config(target=target)
    raise InputError(f"{target} is a target from a file", remedy="give config=qcompile.Config(target='FILE.toml')")


def _of_plan(opened: QModel, feeds: Arrays, mode: Mode) -> Arrays:
    graph, plan = opened.graph, opened.plan
    if mode == "fake-quant":
        return Session(simulation(graph, plan, "float"), fuse_qdq=False, fault=InputError).run_all(feeds)
    _check_feeds(feeds, {tensor.name: tensor.dtype for tensor in graph.inputs})
    values = feeds | simulation(graph, plan, "integer").run(feeds)
    outputs = {tensor.name: constant_value(tensor) for tensor in graph.outputs}
    return {name: values[name] if value is None else value for name, value in outputs.items()}


def _check_feeds(feeds: Arrays, wanted: Mapping[str, Any]) -> None:
    """Raise InputError unless there is an array of the right type for every input, and no other."""
    for name in sorted(feeds.keys() ^ wanted.keys()):
        what = f"there is no input {name!r}" if name in feeds else f"input {name!r} has no value"
        raise InputError(what, remedy=f"the inputs are {', '.join(sorted(wanted))}")
    for name, array in feeds.items():
        if array.dtype != wanted[name]:
            what = f"the values of input {name!r} are {array.dtype}"
            raise InputError(what, remedy=f"give {np.dtype(wanted[name])}")


def _of_file(source: Source, feeds: Arrays, mode: Mode, config: Config | None) -> Arrays:
    file = source if isinstance(source, onnx.ModelProto) else Path(source)
    if isinstance(file, Path) and kind_of_place(file, "file") != "file":
        raise InputError("there is no such file", where=str(file), remedy="check the path")
    session = Session(file, fuse_qdq=mode == "integer", fault=InputError)
    target = session.metadata.get(f"{PREFIX}target")
    if target is None:
        what, remedy = "qcompile did not write this file", "give one that it wrote, or a plan and the float model"
        raise InputError(what, remedy=remedy)
    if mode == "integer" and not open_target(config or _known(target)).runs_here:
        what, remedy = f"the integer kernels of {target} are not here", 'give the plan, or mode="fake-quant"'
        raise InputError(what, remedy=remedy)
    return session.run_all(feeds)

"""Compile a model in one call, or open it for passes of your own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qcompile.config import Config, decided_by_plan, recipe_hash
from qcompile.data import InputInfo, input_infos, open_dataset, open_evaluation, parse_preprocess, random_dataset
from qcompile.data.dataset import Dataset
from qcompile.emission.pack import INT4_OPSET
from qcompile.errors import InputError, QCompileError, expect
from qcompile.files import Content, check_outputs, write_files
from qcompile.flags import FLOAT_BITS, parse_fix
from qcompile.ir.fingerprint import fingerprint
from qcompile.ir.freeze import freeze
from qcompile.ir.load import check_model, load_model, model_files
from qcompile.ir.prepare import plain_model, prepare
from qcompile.ir.store import Store, stored_model, whole_model
from qcompile.passes.settle_scales import SettleScales
from qcompile.passmanager import Pass, PassManager, PassRun, Watch
from qcompile.pipeline import build, build_placement, decide, write
from qcompile.qmodel import Journal, QModel
from qcompile.quant.plan import Plan
from qcompile.quant.plan_file import load_plan, plan_files, plan_folders
from qcompile.reporting.summary import build_report
from qcompile.runtime.session import Session, newest_opset, version
from qcompile.targets.schema import Target, known, release
from qcompile.targets.several import merged
from qcompile.training.engines import check_engine
from qcompile.training.recipe import Training
from qcompile.training.work_dir import open_work_dir

Source = str | Path | onnx.ModelProto
HELD_BACK = 64  # samples that nothing is fitted to; at most a tenth of them
RANDOM_SAMPLES = 32
NO_DATA = "give samples with --data FROM (data=... in Python), or ask for noise with --random-data"


@dataclass(frozen=True, repr=False)
class Result:
    """A compiled model: what the passes left behind, and the report about it (schema.json).

    Compiled for several targets, it is that for the first of them, and has the `others`.
    """

    qmodel: QModel
    report: dict[str, Any]
    others: tuple[Result, ...] = ()

    @classmethod
    def of(cls, model: QModel, runs: Sequence[PassRun] = (), name: str = "") -> Result:
        """Return the result of passes of your own: `runs` is what `PassManager.run(model)` returned."""
        return cls(model, build_report(model, runs, name))

    def __repr__(self) -> str:
        return f"<Result: {self.report['verdict']}>"

    @property
    def model(self) -> onnx.ModelProto:
        """The emitted model."""
        return whole_model(self._emitted)

    @property
    def _emitted(self) -> onnx.ModelProto:
        if self.qmodel.emitted is None:
            raise QCompileError("no pass emitted a model", remedy="add InsertQDQ to the passes")
        return self.qmodel.emitted

    @property
    def plan(self) -> Plan:
        """Every decision, with its reason and its numbers."""
        return self.qmodel.plan

    def save(self, path: str | Path, *, plan: str | Path | None = None, report: str | Path | None = None) -> None:
        """Write the model, and where asked its plan and its report: all of them, or InputError and nothing.

        With `others` there are a file and a report for each target, such as out.TARGET.onnx.
        """
        paths = (str, os.PathLike)
        expect(path, paths, "name of the model's file", "give a path")
        for name, what in ((plan, "plan"), (report, "report")):
            expect(name, (*paths, type(None)), f"name of the {what}'s file", "give a path")
        folders = plan_folders(Path(plan)) if plan is not None else ()
        contents = self.files(path, plan=plan, report=report)
        check_outputs({}, contents, made=folders)
        write_files(contents, made=folders)

    def files(
        self, path: str | Path | None = None, *, plan: str | Path | None = None, report: str | Path | None = None
    ) -> dict[Path, Content]:
        """Return what `save` writes under these names."""
        contents: dict[Path, Content] = {}
        results = (self, *self.others)
        targets = [result.qmodel.target for result in results]
        if path is not None:
            for result, place in zip(results, places(path, targets)):
                contents |= model_files(result._emitted, place)
        if plan is not None:
            facts = {"target": self.plan.target, "fingerprint": self.qmodel.fingerprint}
            contents |= plan_files(self.plan, Path(plan), **facts)
        if report is not None:
            for result, place in zip(results, places(report, targets)):
                contents[place] = [result.report_text().encode()]
        return contents

    def report_text(self) -> str:
        """Return the report as JSON."""
        return json.dumps(self.report, indent=1, default=lambda array: array.tolist())


def places(path: str | Path, targets: Sequence[Target]) -> list[Path]:
    """Return where what is to have the name `path` is written for each of the targets: there, if it is one."""
    path = Path(path)
    if len(targets) == 1:
        return [path]
    return [path.with_name(f"{path.stem}.{target.name}{path.suffix}") for target in targets]


def compile(
    model: Source,
    config: Config | None = None,
    data: Any = None,
    *,
    evaluation: Any = None,
    plan: str | Path | Plan | None = None,
    watch: Watch | None = None,
) -> Result:
    """Quantize a float model.

    Parameters
    ----------
    model
        An ONNX file, or the model itself.
    data
        Calibration samples: a dict of arrays by input name, a file, a folder, "module:function" ... (`open_dataset`).
    evaluation
        Labelled samples in the same forms; with them the report has top-1 before and after.
    plan
        Decisions that were made before, in place of calibration: `data` then only serves the comparison with float.
    watch
        Called after each pass with what it took and the model as it left it.

    Raises
    ------
    InputError
        The model, the data or the configuration cannot be used; found before any long work where possible.
    QCompileError
        The compiler failed, or the emitted model broke a rule of its target.
    """
    plans = (str, os.PathLike, Plan, type(None))
    expect(plan, plans, "plan", "give the path of a plan that was saved, or the plan of a result")
    opened = open_model(model, config, data, evaluation=evaluation)
    _held = open_work_dir(opened)  # a wrong one is refused before any work; others stay out to the end
    if opened.data is None and plan is None:
        raise InputError("no calibration data", remedy=NO_DATA)
    if isinstance(plan, str | os.PathLike):
        plan = read_plan(opened, Path(plan))
    if plan is not None:
        _note_overruled(opened, plan)
    name = "" if isinstance(model, onnx.ModelProto) else Path(model).name
    if not opened.target.parts:
        return Result.of(opened, _run(opened, build(opened.config, plan), watch), name)
    decided, results = _run(opened, (*decide(opened.config, plan), SettleScales()), watch), list[Result]()
    for target in opened.target.parts:
        part = replace(opened, target=target, journal=Journal([*opened.journal.entries]))
        results.append(Result.of(part, [*decided, *_run(part, write(opened.config), watch)], name))
    return replace(results[0], others=tuple(results[1:]))


def _note_overruled(opened: QModel, plan: Plan) -> None:
    """Warn about settings that are not those the plan was made with, and that it decides."""
    if plan.recipe == recipe_hash(opened.config):
        return
    if names := [name for name in decided_by_plan() if getattr(opened.config, name) != getattr(Config, name)]:
        text = f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} no effect: the plan decides"
        opened.journal.warn("open-model", text)


def plan_only(model: Source, config: Config | None = None, *, watch: Watch | None = None) -> Result:
    """Decide what would be done, without data: the result has a plan without numbers, and no model."""
    opened = open_model(model, config)
    runs = _run(opened, build_placement(opened.config), watch)
    return Result.of(opened, runs, "" if isinstance(model, onnx.ModelProto) else Path(model).name)


def _run(opened: QModel, passes: Sequence[Pass], watch: Watch | None) -> list[PassRun]:
    quiet = np.errstate(all="ignore")  # numpy's lines help nobody: what is not finite is looked for where it matters
    with blaming(opened.source, opened.data), quiet:
        return PassManager(passes).run(opened, watch)


def report(model: QModel, runs: Sequence[PassRun] = ()) -> dict[str, Any]:
    """Return the report about a model that passes of your own have run on: plain JSON values (schema.json).

    `runs` is what `PassManager.run(model)` returned: what each pass changed and took.
    """
    expect(model, QModel, "model", "give what qcompile.open_model returned")
    return build_report(model, runs)


def open_model(model: Source, config: Config | None = None, data: Any = None, *, evaluation: Any = None) -> QModel:
    """Return what passes work on: `PassManager([...]).run(open_model("in.onnx", config, data))`.

    A tenth of the samples, at most 64, is held back from all fitting, to compare the emitted file with the float model;
    where these are fewer than 8, the others are compared as well.
    """
    config = Config() if config is None else config
    expect(config, Config, "config", "give qcompile.Config(w=4), or qcompile.Config.from_dict of a recipe's values")
    expect(model, (str, os.PathLike, onnx.ModelProto), "model", "give the path of an ONNX file, or an onnx.ModelProto")
    target = open_target(config)
    check_engine(Training.of(config))
    if config.preprocess is not None:
        parse_preprocess(config.preprocess)  # a wrong one is refused even where there is no image
    store = Store()
    if isinstance(model, onnx.ModelProto):
        check_model(model, max_opset=onnx.defs.onnx_opset_version())
        source = stored_model(model, store)
    else:
        source = load_model(Path(model), max_opset=onnx.defs.onnx_opset_version(), store=store)
    if config.fix:
        source = freeze(source, map(parse_fix, config.fix))
    with blaming(source):
        packed = any("int4" in item.forms_of_weights(config.pack) for item in target.written)
        oldest = max(target.opset, INT4_OPSET) if packed or config.block_size else target.opset
        graph = prepare(source, oldest, newest_opset(), store)
        notes: list[str] = vars(graph)["notes"]
        reference = stored_model(_reference(source, notes), store)
        notes += [f"{text} is fixed: it is no input of the file" for text in config.fix]
    inputs = input_infos(graph)
    if not inputs:
        raise InputError("the model has no inputs: nothing to calibrate", remedy="export it with its inputs")

    def open_samples(alone: str) -> None:
        samples = _samples(config, data, inputs, alone)
        opened.data, opened.held_back = (None, None) if samples is None else _split(samples)
        if evaluation is not None:
            opened.evaluation = open_evaluation(evaluation, inputs, config.preprocess, alone=alone)
            if config.preprocess is not None:
                opened.evaluation_as = lambda text: open_evaluation(evaluation, inputs, text, alone=alone)

    identity = "" if reference is source else fingerprint(source)
    plan = Plan(recipe=recipe_hash(config), target=target.identity, backend=target.backend, bias=target.bias)
    opened = QModel(
        graph, reference, target, config, feed_alone=open_samples, plan=plan, identity=identity, store=store
    )
    open_samples("")
    for text in notes:
        opened.journal.note("open-model", "model", text=text)
    if config.effort and config.steps:
        opened.journal.warn("open-model", f"--effort {config.effort} has no effect: --steps says how long to train")
    return opened


def open_target(config: Config) -> Target:
    """Return the facts about the target, or what all of several take, for the oldest version that has to run files."""
    targets = [_open_one(name.strip(), config) for name in config.target.split(",")]
    if len(targets) > 1 and config.placement != Config.placement:
        what = f"--placement {config.placement} has no effect: files for several targets have one plan"
        raise InputError(what, remedy="leave it out")
    return targets[0] if len(targets) == 1 else merged(targets)


def _open_one(name: str, config: Config) -> Target:
    target, installed = Target.load(name), version()
    asked = installed if config.runtime_version == "installed" else config.runtime_version
    needed = target.packing_since.get(config.pack)
    if asked and needed and release(asked) < release(needed):
        what = f"--pack {config.pack} needs ONNX Runtime {needed} or later"
        raise InputError(what, where=f"--runtime-version {asked}", remedy="leave one of them out")
    if asked and release(asked) > release(installed):
        what = f"--runtime-version {asked} is newer than what is installed, so the file could not be run here"
        raise InputError(what, where=f"ONNX Runtime {installed}", remedy="install it, or give an older version")
    target = Target.load(name, asked or needed)
    if config.a == FLOAT_BITS:
        target = replace(target, packing=target.packing_alone)
    _check_forms(config, target)
    return target


def _check_forms(config: Config, target: Target) -> None:
    """Raise InputError where something is asked for that the target does not have."""
    if not target.packing and config.a != FLOAT_BITS:
        what = f"--a {config.a} is of no use on {target.name}, which has kernels for quantized weights alone"
        raise InputError(what, remedy=f"give --a {FLOAT_BITS}, with --w 4 --block-size 32 for example")
    if not target.packing:
        what = f"--a {FLOAT_BITS}, which quantizes weights alone, is of no use on {target.name}"
        able = [name for name in known() if Target.load(name).packing_alone]
        raise InputError(what, remedy=f"give 2 to 8, or one of the targets {', '.join(able)}")
    if config.pack not in ("auto", *target.packing):
        what = f"--pack {config.pack} is no form of weights for {target.name}"
        raise InputError(what, remedy=f"it takes: auto, {', '.join(target.packing)}")
    if config.placement != Config.placement and not target.runs_here:
        what = f"--placement {config.placement} has no effect: the speed of {target.name} is not measured here"
        raise InputError(what, remedy="leave it out")


def _reference(source: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto:
    """Return the model that results are compared with: `source`, or its float32 form where there are no kernels."""
    if notes:
        try:
            Session(source, level="off", threads=1)
        except QCompileError:
            notes.append("ONNX Runtime has no kernels for it as it is: results are compared with its float32 form")
            return plain_model(source)
    return source


@contextmanager
def blaming(source: onnx.ModelProto, data: Dataset | None = None) -> Iterator[None]:
    """Turn a failure into InputError where the float model fails as well, to load or on some of `data`."""
    try:
        yield
    except InputError:
        raise
    except Exception as failure:
        try:
            float_model = Session(source, level="off", threads=1, fault=InputError)
            samples = data.batches(1) if data is not None else ()
            for feeds in samples if isinstance(failure, QCompileError) else islice(samples, 1):
                float_model.run(feeds)
        except InputError as refused:
            raise refused from failure
        raise


def _samples(config: Config, data: Any, inputs: list[InputInfo], alone: str) -> Dataset | None:
    if data is not None and config.random_data:
        raise InputError("both data and --random-data are given", remedy="leave one of them out")
    if config.random_data:
        noise = random_dataset(inputs, config.samples or RANDOM_SAMPLES, config.seed)
        return noise.one_by_one(alone) if alone else noise
    if data is None:
        return None
    return open_dataset(data, inputs, config.preprocess, config.samples, config.seed, alone=alone)


def _split(samples: Dataset) -> tuple[Dataset, Dataset]:
    step = samples.fixed_batch or 1  # a model that insists on a batch gets whole ones
    pieces = samples.count // step
    if pieces < 2:  # none to spare: agreement is measured on what the numbers were made from
        return samples, samples
    held_back = samples.spread(min(HELD_BACK // step, pieces // 10) * step)
    return samples.select(np.flatnonzero(~np.isin(samples.numbers, held_back.numbers))), held_back


def read_plan(model: QModel, path: Path) -> Plan:
    """Read a plan file that was made for this model and target; raises InputError."""
    return load_plan(path, target=model.target.identity, fingerprint=model.fingerprint)

"""How the command line fails: one line, nothing written."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import COMPILE, DATA, PLAIN, Run, names
from numpy.typing import NDArray

from qcompile import api
from qcompile.errors import QCompileError

ACADEMIC = ("--target", "academic")


def test_interrupted(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "build_report", interrupt)
    ended = run(*COMPILE, "-q", "--save-config", "recipe.toml")
    assert (ended.code, ended.err.splitlines()[-1]) == (130, "error: interrupted")
    assert names(folder) == {"in.onnx", "calib.npz"}


@pytest.mark.parametrize("error", [RuntimeError("deep\ninside"), QCompileError("deep inside")])
def test_a_fault_of_the_tool_is_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(api, "build_report", fail)
    ended = run(*COMPILE, "-q")
    assert ended.code == 1
    assert "deep inside" in ended.err.splitlines()[-1] and "Traceback" not in ended.err
    assert "Traceback" in run(*COMPILE, "-q", "-v").err


def edit(change: Callable[[onnx.ModelProto], object]) -> Callable[[], object]:
    """Return a function that changes in.onnx."""

    def apply() -> None:
        model = onnx.load("in.onnx")
        change(model)
        onnx.save(model, "in.onnx")

    return apply


def nan_weight(model: onnx.ModelProto) -> None:
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight.flat[3] = np.nan
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, model.graph.initializer[0].name))


def quantized(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), "s"))
    model.graph.node.insert(0, onnx.helper.make_node("QuantizeLinear", ["image", "s"], ["codes"]))


def newer(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def logarithm(model: onnx.ModelProto) -> None:
    model.graph.node[-1].op_type = "Log"


def without_external_data() -> None:
    model = onnx.load("in.onnx")
    onnx.save(model, "in.onnx", save_as_external_data=True, location="in.data", size_threshold=0)
    Path("in.data").unlink()


def data(**arrays: NDArray[Any]) -> Callable[[], object]:
    return lambda: np.savez("calib.npz", **arrays)


def image_folder() -> None:
    Path("images").mkdir()
    Path("images", "one.jpg").write_bytes(b"no image")


def labelled_folder() -> None:
    image_folder()
    Path("images", "labels.csv").write_text("one.jpg,0\n")


def tensor_folder() -> None:
    Path("f/test_data_set_0").mkdir(parents=True)
    Path("f/test_data_set_0/input_0.pb").touch()


def pipe_in_folder() -> None:
    Path("f/test").mkdir(parents=True)
    os.mkfifo("f/x.png")
    os.mkfifo("f/test/input_0.pb")


PIPE: Callable[[], object] = lambda: os.mkfifo("pipe")  # noqa: E731
LOOP: Callable[[], object] = lambda: Path("loop").symlink_to("loop")  # noqa: E731
GOOD = np.ones((4, 3, 8, 8), np.float32)
NOTHING: Callable[[], object] = lambda: None  # noqa: E731
MRECG = ("--method", "mrecg")
BAD: dict[str, tuple[Callable[[], object], tuple[str, ...], str]] = {
    "no model": (NOTHING, (), "no model given"),
    "no such model": (NOTHING, ("none.onnx", "-o", "out.onnx", *DATA), "No such file"),
    "a word that is no command": (
        NOTHING,
        ("help",),
        "there is no such model, and no such command (help); qcompile IN",
    ),
    "not an ONNX file": (lambda: Path("in.onnx").write_text("hello"), COMPILE, "not an ONNX model"),
    "truncated": (lambda: Path("in.onnx").write_bytes(Path("in.onnx").read_bytes()[:900]), COMPILE, "truncated"),
    "missing external data": (without_external_data, COMPILE, "'in.data' is missing"),
    "NaN in weights": (edit(nan_weight), COMPILE, "weight 'w_stem' contains NaN"),
    "already quantized": (edit(quantized), COMPILE, "quantized already"),
    "opset too new": (edit(newer), COMPILE, "opset 99"),
    "nothing to quantize": (NOTHING, (*COMPILE, "--keep-float", ".*"), "nothing to quantize"),
    "NaN in activations": (edit(logarithm), COMPILE, "output 'scores'"),
    "unknown flag": (NOTHING, (*COMPILE, "--sample", "3"), "unknown flag --sample; did you mean '--samples'?"),
    "flag without value": (NOTHING, (*COMPILE, "--w"), "requires an argument"),
    "too many arguments": (NOTHING, (*COMPILE, "more.onnx"), "more.onnx"),
    "absurd threads": (NOTHING, (*COMPILE, "--threads", "1000000000"), "out of range; give 0 to 1024"),
    "absurd memory": (
        NOTHING,
        (*COMPILE, "--method", "qdrop", "--memory", f"{'9' * 400}GB"),
        "is not a size",
    ),
    "a pipe as model": (PIPE, ("pipe", "-o", "out.onnx", *DATA), "cannot read the model: it is not a file"),
    "a pipe as data": (PIPE, (*PLAIN, "--data", "pipe"), "cannot read the data: it is not a file"),
    "a pipe as recipe": (PIPE, (*COMPILE, "--config", "pipe"), "cannot read the recipe: it is not a file"),
    "a pipe as plan": (PIPE, (*PLAIN, "--load-plan", "pipe"), "cannot read the plan: it is not a file"),
    "a pipe as preprocessing": (
        lambda: os.mkfifo("p.toml"),
        (*COMPILE, "--preprocess", "p.toml"),
        "it is not a file",
    ),
    "a pipe as an image": (
        pipe_in_folder,
        (*PLAIN, "--data", "f", "--preprocess", "raw"),
        "it is not a file (f/x.png)",
    ),
    "a pipe as a tensor": (pipe_in_folder, (*PLAIN, "--data", "f/test"), "it is not a file (f/test/input_0.pb)"),
    "a link to itself as data": (LOOP, (*PLAIN, "--data", "loop"), "cannot read the data: Too many levels"),
    "a link to itself as model": (LOOP, ("loop", "-o", "out.onnx", *DATA), "cannot read the model: Too many levels"),
    "a link to itself as output": (LOOP, ("in.onnx", "-o", "loop", *DATA), "cannot write loop"),
    "a name too long as data": (NOTHING, (*PLAIN, "--data", "n" * 300), "cannot read the data: File name too long"),
    "a name too long as model": (NOTHING, ("n" * 300, "-o", "out.onnx", *DATA), "cannot read the model: File name too"),
    "a name too long as output": (NOTHING, ("in.onnx", "-o", "n" * 300, *DATA), "File name too long"),
    "a name that is no text": (NOTHING, ("in\udcff.onnx", "-o", "out.onnx", *DATA), "is not UTF-8 text"),
    "a deep recipe": (
        lambda: Path("r.toml").write_text("a = " + "[" * 100_000),
        (*COMPILE, "--config", "r.toml"),
        "deep",
    ),
    "a deep plan": (lambda: Path("p.json").write_text("[" * 100_000), (*PLAIN, "--load-plan", "p.json"), "not a plan"),
    "a deep report": (
        lambda: Path("p.json").write_text("[" * 100_000),
        ("plot", "p.json", "-o", "f.svg"),
        "not a report",
    ),
    "--w 9": (NOTHING, (*COMPILE, "--w", "9"), "--w 9 is out of range; give 2 to 8"),
    "--w four": (NOTHING, (*COMPILE, "--w", "four"), "give a whole number"),
    "unknown value": (NOTHING, (*COMPILE, "--pack", "plains"), "did you mean 'planes'?"),
    "unknown target": (NOTHING, (*COMPILE, "--target", "ort-cup"), "did you mean 'ort-cpu'?"),
    "unknown preprocess": (NOTHING, (*COMPILE, "--preprocess", "imagnet"), "did you mean 'imagenet'?"),
    "unknown recipe key": (
        lambda: Path("r.toml").write_text("precison = 'w4a4'"),
        (*COMPILE, "--config", "r.toml"),
        "unknown recipe key 'precison' (r.toml: precison); did you mean 'precision'?",
    ),
    "unknown recipe key with an underscore": (
        lambda: Path("r.toml").write_text("out_folder = 'x'"),
        (*COMPILE, "--config", "r.toml"),
        "unknown recipe key 'out_folder' (r.toml: out-folder)",
    ),
    "a recipe key twice": (
        lambda: Path("r.toml").write_text("keep-float = ['stem']\nkeep_float = ['branch']"),
        (*COMPILE, "--config", "r.toml"),
        "recipe key 'keep_float' is given twice, with - and with _; leave one of them out",
    ),
    "a plan twice": (
        lambda: Path("p.npz").write_bytes(b""),
        ("model.onnx", "--plan", "--load-plan", "p.npz"),
        "--plan decides anew, so --load-plan has no effect (p.npz)",
    ),
    "unlike any flag": (NOTHING, (*COMPILE, "--frobnicate"), "unknown flag --frobnicate; see qcompile --help"),
    "value in a recipe": (
        lambda: Path("r.toml").write_text("w = 9"),
        (*COMPILE, "--config", "r.toml"),
        "--w 9 is out of range (r.toml: w); give 2 to 8",
    ),
    "both bits in a recipe": (
        lambda: Path("r.toml").write_text("precision = 'w4a9'"),
        (*COMPILE, "--config", "r.toml"),
        "--a 9 is out of range (r.toml: precision)",
    ),
    "nodes in a recipe": (
        lambda: Path("r.toml").write_text("keep-float = ['brnch']"),
        (*COMPILE, "--config", "r.toml"),
        "matches no node (r.toml: keep-float); did you mean 'branch'?",
    ),
    "data in a recipe": (
        lambda: Path("r.toml").write_text("data = 'none.npz'"),
        (*PLAIN, "--config", "r.toml"),
        "the data does not exist (r.toml: data, none.npz)",
    ),
    "a flag over a recipe": (
        lambda: Path("r.toml").write_text("w = 4"),
        (*COMPILE, "--config", "r.toml", "--w", "9"),
        "--w 9 is out of range; give 2 to 8",
    ),
    "broken recipe": (lambda: Path("r.toml").write_text("w = "), (*COMPILE, "--config", "r.toml"), "not TOML"),
    "no such target": (NOTHING, (*COMPILE, "--target", "nonsense"), "is unknown; known: academic, openvino, ort-cpu"),
    "packing of float weights": (
        NOTHING,
        (*COMPILE, *ACADEMIC, "--pack", "int4"),
        "--pack int4 is no form of weights for academic",
    ),
    "placing by speed in float": (NOTHING, (*COMPILE, *ACADEMIC, "--placement", "fast"), "--placement fast has no eff"),
    "no arguments": (
        NOTHING,
        ("targets", "academic", "ort-cpu"),
        "unexpected extra argument (ort-cpu); see qcompile targets --h",
    ),
    "no recipe": (NOTHING, (*COMPILE, "--config", "r.toml"), "cannot read the recipe"),
    "broken expression": (NOTHING, (*COMPILE, "--keep-float", "("), "not a regular expression"),
    "--keep-float matches nothing": (NOTHING, (*COMPILE, "--keep-float", "brnch"), "did you mean 'branch'?"),
    "--fix of no input": (NOTHING, (*COMPILE, "--fix", "imagge=1"), "no such size; did you mean 'image'?"),
    "--fix without a value": (NOTHING, (*COMPILE, "--fix", "image"), "--fix 'image' is not NAME=VALUE"),
    "--fix of the only input": (NOTHING, (*COMPILE, "--fix", "N=-1"), "--fix N: -1 is no size"),
    "--bits matches nothing": (NOTHING, (*COMPILE, "--bits", "steam=4,4"), "did you mean 'stem'?"),
    "no data": (NOTHING, PLAIN, "give samples with --data"),
    "data twice": (NOTHING, (*COMPILE, "--random-data"), "leave one of them out"),
    "no such data": (NOTHING, (*PLAIN, "--data", "none.npz"), "none.npz"),
    "data of the wrong name": (data(picture=GOOD, mask=GOOD), COMPILE, "'image'"),
    "data of the wrong shape": (data(image=GOOD[:, :2]), COMPILE, "[N, 3, 8, 8]"),
    "data of the wrong dtype": (data(image=GOOD.astype(np.int64)), COMPILE, "int64"),
    "NaN in data": (data(image=np.full_like(GOOD, np.nan)), COMPILE, "NaN or Inf"),
    "broken image": (image_folder, (*PLAIN, "--data", "images", "--preprocess", "size=8"), "one.jpg"),
    "eval without labels": (NOTHING, (*COMPILE, "--eval", "calib.npz"), "labels"),
    "no output": (NOTHING, ("in.onnx", *DATA), "give -o OUT.onnx"),
    "output is the input": (NOTHING, ("in.onnx", "-o", "./in.onnx", *DATA), "overwrite"),
    "output twice": (NOTHING, (*COMPILE, "--report", "out.onnx"), "the same name"),
    "output twice, by two names": (
        lambda: Path("here").symlink_to("."),
        (*COMPILE, "--report", "here/out.onnx"),
        "the same name",
    ),
    "output is the folder of the plan": (NOTHING, (*COMPILE, "--save-plan", "out.onnx"), "the same name"),
    "output is part of the plan": (
        lambda: Path("dir").mkdir(),
        ("in.onnx", "-o", "dir/plan.json", *DATA, "--save-plan", "dir"),
        "the same name",
    ),
    "output is the data": (NOTHING, ("in.onnx", "-o", "calib.npz", *DATA), "overwrite the data"),
    **{
        f"output is {what}": (samples, ("in.onnx", "-o", f"./{name}", *options), f"overwrite the {kind} ({name})")
        for what, samples, name, options, kind in (
            ("an image", image_folder, "images/one.jpg", ("--data", "images", "--preprocess", "raw"), "data"),
            ("a tensor", tensor_folder, "f/test_data_set_0/input_0.pb", ("--data", "f"), "data"),
            (
                "the labels in a folder",
                labelled_folder,
                "images/labels.csv",
                (*DATA, "--eval", "images"),
                "evaluation data",
            ),
            ("the function", lambda: Path("mine.py").touch(), "mine.py", ("--data", "mine:samples"), "data"),
        )
    },
    "report is an image": (
        image_folder,
        (*PLAIN, "--data", "images", "--preprocess", "raw", "--report", "images/one.jpg"),
        "overwrite the data (images/one.jpg)",
    ),
    "plan is a file of the data": (
        lambda: np.savez("x.npz", image=GOOD),
        (*PLAIN, "--data", "x.npz", "--save-plan", "x.npz"),
        "overwrite the data (x.npz)",
    ),
    "output is the recipe": (
        lambda: Path("r.toml").write_text("w = 4"),
        (*COMPILE, "--config", "r.toml", "--save-config", "./r.toml"),
        "overwrite the recipe",
    ),
    "output is external data": (
        lambda: onnx.save(onnx.load("in.onnx"), "in.onnx", save_as_external_data=True, location="w", size_threshold=0),
        (*COMPILE, "--report", "w"),
        "overwrite the external data of the model",
    ),
    "output is the labels": (
        lambda: Path("l.csv").touch(),
        (*COMPILE, "--eval", ".,l.csv", "--report", "l.csv"),
        "overwrite the labels",
    ),
    "output is the work folder": (
        NOTHING,
        (*COMPILE, *MRECG, "--work-dir", "out.onnx"),
        "the same name",
    ),
    "report is a folder": (lambda: Path("dir").mkdir(), (*COMPILE, "--report", "dir"), "cannot write dir: it is a"),
    "output is here": (NOTHING, ("in.onnx", "-o", ".", *DATA), "cannot write .: it is a folder"),
    "output with a slash behind": (
        NOTHING,
        ("in.onnx", "-o", "out/", *DATA),
        "cannot write out/: it is the name of a f",
    ),
    "report with a slash behind": (NOTHING, (*COMPILE, "--report", "r.json/"), "cannot write r.json/: it is the name"),
    "output in no folder": (NOTHING, ("in.onnx", "-o", "none/out.onnx", *DATA), "cannot write out.onnx"),
    "output below a file": (NOTHING, (*COMPILE, "--report", "calib.npz/r.json"), "cannot write r.json"),
    "output is a folder": (
        lambda: Path("dir").mkdir(),
        ("in.onnx", "-o", "dir", *DATA),
        "cannot write dir: it is a folder",
    ),
    "not a plan": (NOTHING, (*PLAIN, "--load-plan", "calib.npz"), "not a plan"),
    "nothing to fuse": (NOTHING, (*COMPILE, "--fuse-top-k", "2"), "--fuse-top-k is for methods that fuse"),
    "fused twice": (NOTHING, (*COMPILE, *MRECG, "--fuse-by", "loss", "--fuse", "0+1"), "--fuse names the regions"),
    "no such unit": (NOTHING, (*COMPILE, *MRECG, "--fuse", "stem+brnch"), "no such unit; did you mean 'branch'?"),
    "no unit": (NOTHING, (*COMPILE, *MRECG, "--fuse", "stem+"), "lacks a unit"),
    "no losses": (NOTHING, (*COMPILE, *MRECG, "--score-steps", "5"), "--score-steps has no effect"),
    "no number of boundaries": (NOTHING, (*COMPILE, *MRECG, "--fuse-top-k", "some"), "give a whole number"),
    "plot nothing": (NOTHING, ("plot",), "no report given; qcompile plot REPORT.json -o FIG.svg"),
    "plot nowhere": (NOTHING, ("plot", "calib.npz"), "give -o FIG.svg"),
    "plot no report": (NOTHING, ("plot", "calib.npz", "-o", "figure.svg"), "not a report"),
    "plot no file": (NOTHING, ("plot", "none.json", "-o", "figure.svg"), "cannot read the report"),
    "plot over the report": (NOTHING, ("plot", "r.svg", "-o", "r.svg"), "overwrite"),
    "plot a PDF": (NOTHING, ("plot", "calib.npz", "-o", "figure.pdf"), "end its name in .png or .svg"),
    "--effort with rtn": (NOTHING, (*COMPILE, "--effort", "max"), "--effort is for methods that train"),
    "--resume with rtn": (NOTHING, (*COMPILE, "--resume", "--work-dir", "w"), "--work-dir is for methods that train"),
    "--memory without a unit": (NOTHING, (*COMPILE, "--method", "qdrop", "--memory", "12"), "such as 1GB or 512MB"),
    "--resume without a folder": (
        NOTHING,
        (*COMPILE, "--method", "qdrop", "--resume"),
        "name its folder with --work-dir",
    ),
    "--resume from nothing": (
        lambda: Path("work").mkdir(),
        (*COMPILE, "--method", "qdrop", "--work-dir", "work", "--resume"),
        "no state to go on from (work)",
    ),
    "nothing to save": (NOTHING, ("in.onnx", "--plan", "--save-plan", "p.npz"), "--save-plan"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(run: Run, folder: Path, case: str) -> None:
    prepare, arguments, message = BAD[case]
    prepare()
    before = names(folder)
    ended = run(*arguments)
    lines = [line for line in ended.err.splitlines() if not line.startswith("warning: ")]
    assert ended.code == 2, ended.err
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert message in lines[0]
    assert names(folder) == before


def test_without_a_work_folder_training_leaves_the_file_alone(run: Run, folder: Path) -> None:
    assert run(*COMPILE, "-q", "--method", "adaround", "--steps", "2", "--memory", "1kB").code == 0
    assert names(folder) == {"in.onnx", "calib.npz", "out.onnx"}


@pytest.mark.parametrize("argument", [("--w", "1"), ("--data", "none.npz"), ("--target", "no"), ("--keep-float", "no")])
def test_arguments_are_checked_before_the_first_inference(
    run: Run, monkeypatch: pytest.MonkeyPatch, argument: tuple[str, str]
) -> None:
    monkeypatch.setattr("qcompile.runtime.session.Session.run", lambda *_, **__: pytest.fail("the model was run"))
    assert run(*COMPILE, *argument).code == 2


def test_read_only_place(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    ended = run(*COMPILE)
    assert (ended.code, names(folder)) == (2, {"in.onnx", "calib.npz"})
    assert "cannot write out.onnx: Read-only file system" in ended.err


def test_full_disk(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    ended = run(*COMPILE, "-q", "--report", "report.json", "--save-config", "recipe.toml")
    assert (ended.code, names(folder)) == (2, {"in.onnx", "calib.npz"})
    assert "cannot write out.onnx: No space left on device" in ended.err

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from qcompile import api
from qcompile.cli import main
from qcompile.config import Config, Files
from qcompile.errors import QCompileError
from qcompile.targets.schema import Target, known

Run = Callable[..., "Ended"]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def folder(
    tmp_path: Path,
    residual_model: onnx.ModelProto,
    residual_data: dict[str, NDArray[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A working directory with in.onnx and calib.npz; nothing else."""
    onnx.save(residual_model, tmp_path / "in.onnx")
    np.savez(tmp_path / "calib.npz", **residual_data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command in the folder."""

    def run(*arguments: str) -> Ended:
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        captured = capsys.readouterr()
        return Ended(int(left.value.code or 0), captured.out, captured.err)

    return run


DATA = ("--data", "calib.npz", "--threads", "1")
ACADEMIC = ("--target", "academic")
COMPILE = ("in.onnx", "-o", "out.onnx", *DATA)
PLAIN = ("in.onnx", "-o", "out.onnx")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- what it does


def test_the_sub_command_may_be_left_out(run: Run, folder: Path) -> None:
    assert run(*COMPILE, "-q").code == 0
    first = (folder / "out.onnx").read_bytes()
    assert run("compile", *COMPILE, "-q").code == 0
    assert (folder / "out.onnx").read_bytes() == first
    assert run("-q", *DATA, "-o", "out.onnx", "in.onnx").code == 0
    assert names(folder) == {"in.onnx", "calib.npz", "out.onnx"}
    onnx.checker.check_model(onnx.load(folder / "out.onnx"))


def test_plan_first_batch_audit_and_verdict_are_shown_in_this_order(run: Run) -> None:
    _, out, err = run(*COMPILE, "--w", "4", "--a", "4")
    marks = [
        "Plan for ort-cpu",
        "first or last",
        "first batch  image: [16, 3, 8, 8]",
        "kernels      ",
        "Before and after",
        "out.onnx: w4a4 for",
    ]
    places = [out.index(mark) for mark in marks]
    assert places == sorted(places)
    assert out.count("float, ") == 1  # the one float node is named with the plan
    assert "Traceback" not in err and "━" not in err  # no progress bar where stderr is no terminal


def test_a_terminal_without_a_width_shows_all(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    ended = run("in.onnx", "-o", "out.onnx", "--random-data", "--threads", "1")
    assert "Before and after" in ended.out and "warning: calibrated on random data" in ended.err


def test_quiet_leaves_the_verdict(run: Run) -> None:
    ended = run(*COMPILE, "-q")
    assert len(ended.out.splitlines()) == 1 and ended.out.startswith("out.onnx: w8a8 for ort-cpu, ")
    assert all(line.startswith("warning: ") for line in ended.err.splitlines())


def test_verbose_shows_each_pass(run: Run) -> None:
    err = run(*COMPILE, "-v").err
    for name in ("normalize-graph", "calibrate", "validate"):
        assert any(line.startswith(name) and " s " in line for line in err.splitlines())


def test_precision_is_short_for_both_bits(run: Run, folder: Path) -> None:
    run(*COMPILE, "-q", "--w", "4", "--a", "3")
    first = (folder / "out.onnx").read_bytes()
    run(*COMPILE, "-q", "--precision", "w4a3")
    assert (folder / "out.onnx").read_bytes() == first


def test_flags_override_the_recipe(run: Run, folder: Path) -> None:
    (folder / "recipe.toml").write_text('w = 4\na = 4\nkeep-float = ["branch"]\ndata = "calib.npz"\nout = "out.onnx"\n')
    ended = run("in.onnx", "--config", "recipe.toml", "--a", "6", "--report", "report.json", "-q")
    assert ended.code == 0
    recipe = json.loads((folder / "report.json").read_text())["recipe"]
    assert (recipe["w"], recipe["a"], recipe["keep-float"]) == (4, 6, ["branch"])


def test_a_saved_recipe_does_the_same(run: Run, folder: Path) -> None:
    run(*COMPILE, "-q", "--w", "3", "--bits", "branch=2,4", "--residual-bits", "a", "--save-config", "recipe.toml")
    first = (folder / "out.onnx").read_bytes()
    assert run("-q", "--config", "recipe.toml").code == 0  # the model is in it too
    assert (folder / "out.onnx").read_bytes() == first


def test_plan_alone_needs_no_data_and_writes_nothing(run: Run, folder: Path) -> None:
    ended = run("in.onnx", "--plan", "--w", "4")
    assert (ended.code, ended.err) == (0, "")
    assert "Plan for ort-cpu" in ended.out and "Before and after" not in ended.out
    assert names(folder) == {"in.onnx", "calib.npz"}


def test_a_saved_plan_gives_the_same_file_without_data(run: Run, folder: Path) -> None:
    run(*COMPILE, "-q", "--w", "4", "--a", "4", "--save-plan", "plan.npz")
    assert run("in.onnx", "-o", "again.onnx", "-q", "--load-plan", "plan.npz").code == 0
    assert (folder / "again.onnx").read_bytes() == (folder / "out.onnx").read_bytes()


def test_settings_that_a_plan_overrules_are_told_once(run: Run, folder: Path) -> None:
    run(*COMPILE, "-q", "--method", "rtn", "--save-plan", "plan.npz")
    (folder / "recipe.toml").write_text('w = 4\nmethod = "rtn"\n')
    ended = run("in.onnx", "-o", "again.onnx", "--load-plan", "plan.npz", "--config", "recipe.toml")
    assert "warning: w, method have no effect: the plan decides" in ended.err.splitlines()
    assert "no effect" not in ended.out


def test_a_data_function_may_go_elsewhere(run: Run, folder: Path) -> None:
    (folder / "there").mkdir()
    (folder / "going.py").write_text(
        "import numpy as np, os\nimages = np.load('calib.npz')['image']\n"
        f"def samples():\n    os.chdir({str(folder / 'there')!r})\n    yield images\n"
    )
    ended = run("in.onnx", "-o", "out.onnx", "--data", "going:samples", "--threads", "1", "-q", "--report", "r.json")
    assert ended.code == 0, ended.err
    assert {"out.onnx", "r.json"} <= names(folder) and names(folder / "there") == set()


def test_random_data_is_warned_about(run: Run) -> None:
    ended = run("in.onnx", "-o", "out.onnx", "--random-data", "-q", "--threads", "1")
    assert ended.code == 0
    assert "random data" in ended.err


def test_strict_ends_with_3_where_there_is_a_warning(run: Run, folder: Path) -> None:
    ended = run("in.onnx", "-o", "out.onnx", "--random-data", "-q", "--threads", "1", "--strict")
    assert (ended.code, (folder / "out.onnx").exists()) == (3, True)
    last = ended.err.splitlines()[-1]
    assert last.startswith("error: --strict: ") and "warning" in last and "all files are written" in last
    assert run("in.onnx", "--plan", "--strict").code == 0


def test_help_is_one_screen_with_every_flag(run: Run) -> None:
    code, text, _ = run("--help")
    assert code == 0
    assert len(text.splitlines()) <= 74 and max(map(len, text.splitlines())) <= 80
    assert run("-h").out == text
    for item in (*fields(Config), *fields(Files)):
        assert f"--{item.name.replace('_', '-')}" in text or item.name == "model"
    assert "qcompile plot report.json" in text and run("plot", "-h").out.startswith("Usage: qcompile plot")
    for group in ("Precision:", "Fusion:", "Data:", "Output:", "Recipe:", "Run:", "Examples:"):
        assert group in text


def test_plot_draws_a_report(run: Run, folder: Path) -> None:
    assert run("in.onnx", "--plan", "-q", "--method", "mrecg", "--fuse", "0+branch", "--report", "plot").code == 0
    ended = run("plot", "plot", "-o", "figure.svg")
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert (folder / "figure.svg").read_text().startswith("<?xml")


def test_targets_are_listed_with_what_was_proven(run: Run) -> None:
    code, text, err = run("targets")
    assert (code, err) == (0, "")
    lines = [line for line in text.splitlines() if line.strip()]
    assert lines[0].split("  ")[0] == "--target" and max(map(len, lines)) <= 120
    for name in known():
        target = Target.load(name)
        assert target.purpose and target.proven
        assert any(line.startswith(f"{name}  ") for line in lines[1:])
    assert run("targets", "-h").out.startswith("Usage: qcompile targets")


def test_a_float_graph_for_papers(run: Run, folder: Path) -> None:
    ended = run(*COMPILE, "--target", "academic", "--w", "4", "--a", "4", "--method", "rtn", "--report", "r.json")
    assert ended.code == 0
    verdict = ended.out.splitlines()[-1]
    assert verdict.startswith("out.onnx: w4a4 for academic, a float graph, ") and "speed" not in verdict
    assert "Plan for academic" in ended.out and "integer kernel" not in ended.out
    report = json.loads((folder / "r.json").read_text())
    assert report["target"]["name"] == "academic"
    assert report["audit"]["fused"] is None and report["audit"]["speed"] is None
    operators = {node.op_type for node in onnx.load("out.onnx").graph.node}
    assert {"Div", "Round", "Mul", "Clip"} <= operators and not any("Quantize" in op for op in operators)


def test_a_plan_is_for_one_target(run: Run) -> None:
    assert run(*COMPILE, "--save-plan", "p.npz", "--target", "academic").code == 0
    ended = run(*COMPILE, "--load-plan", "p.npz")
    assert (ended.code, "the plan was made for target 'academic' (p.npz)" in ended.err) == (2, True)
    assert run(*COMPILE, "--load-plan", "p.npz", "--target", "academic").code == 0


def test_a_model_called_plot_is_compiled(run: Run, folder: Path) -> None:
    (folder / "in.onnx").rename(folder / "plot")
    ended = run("plot", "--plan")
    assert (ended.code, ended.err) == (
        2, "error: unknown flag --plan; see qcompile plot --help; a model of the name plot is ./plot\n"
    )  # fmt: skip
    for arguments in (("./plot",), ("compile", "plot"), ("-q", "plot")):
        assert run(*arguments, "--plan").code == 0


def test_version(run: Run) -> None:
    assert run("--version").out.startswith("qcompile ")


# --- how it fails


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
    "no such target": (NOTHING, (*COMPILE, "--target", "nonsense"), "is unknown; known: academic, ort-cpu"),
    "packing of float weights": (NOTHING, (*COMPILE, *ACADEMIC, "--pack", "int4"), "academic has no integer kernels"),
    "placing by speed in float": (NOTHING, (*COMPILE, *ACADEMIC, "--placement", "fast"), "--placement fast has no eff"),
    "no arguments": (
        NOTHING,
        ("targets", "academic"),
        "unexpected extra argument (academic); see qcompile targets --h",
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

"""The configuration: frozen objects that the command line, the recipe file and the Python API share.

Every field of `Config` and `Files` is also a flag and a recipe key of the same name, with - for _. What the help says
about it, and what values it takes, stands beside it.
"""

# ruff: noqa: RUF009  (flag returns a dataclasses.field)

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import tomli_w

from qcompile.errors import InputError, expect, nearest
from qcompile.files import parse_toml, read_bytes
from qcompile.flags import (
    AUTO,
    BITS,
    FLOAT_BITS,
    bit_count,
    check,
    check_pattern,
    check_range,
    flag,
    flag_name,
    flag_of,
    parse_fix,
    parse_override,
    parse_precision,
    parse_region,
)
from qcompile.memory import parse_size

Method = Literal["rtn", "adaround", "brecq", "qdrop", "mrecg", "mrecg-brecq"]
Effort = Literal["fast", "default", "max"]
CalibrationMethod = Literal["mse", "percentile", "entropy", "max"]
FuseBy = Literal["data-free", "data-dependent", "loss"]
Packing = Literal["auto", "int4", "planes", "none"]
Placement = Literal["auto", "fast", "all"]
Engine = Literal["auto", "ort", "ort-training"]
Device = Literal["cpu", "cuda"]
FUSING = ("mrecg", "mrecg-brecq")
# fields that mean nothing without fusion, and without training
OF_FUSION = ("fuse", "fuse_top_k", "fuse_by", "score_steps", "max_fused", "stride_factor")
OF_TRAINING = ("effort", "steps", "recon_batch", "engine", "device", "memory", "work_dir", "resume")
PLACES = ("memory", "work-dir", "resume")  # keys of a recipe that change nothing in the result
COSTS = (*PLACES, "threads")  # and one that decides nothing, but may change the last place of a sum
DECIDING, RANGES = ("Precision", "Fusion"), ("calibration_method", "percentile")  # groups, and fields beside them


@dataclass(frozen=True)
class Config:
    """How to compile.

    `a` 32 leaves activations float: weights alone are quantized, and all else is as it was.
    `block_size`: beside that, so many weights along the inputs of a matrix share a scale; None means all of a channel.
    `fix` holds NAME=VALUE: an input that is a constant of the file and no input any more, or a symbolic size.
    `placement`: "all" puts on integers whatever has a kernel; "fast" measures and keeps float what is faster there;
    "auto" does so where all bits are 8 and the file came out slower than the float model.
    `bits` holds (regular expression on node names, weight bits, input bits), or texts such as "layer1=4,8"; the last
    match wins. `keep_float` holds regular expressions on node names. `residual_bits` are those of a tensor that a
    compute node and a residual Add both read.
    `effort`, `steps` (which wins over it), `recon_batch`, `memory`, `work_dir` and `resume` are for the methods that
    train; None means the recipe's own. `memory` is what the values between units may take, such as "1GB".
    `fuse_top_k` None means as many boundaries as the samples can determine; `fuse` lists the units of each region, by
    name or number.
    `method` None means: nothing is trained (rtn) where all bits are 8, else MRECG (`chosen_method`).
    `runtime_version` is the oldest version of the runtime that the file must run on, such as "1.23.2", or "installed".
    `calibration_method` None means: max for 8 bits, mse below; mse for both where weights alone have fewer
    (`w` < `a` = 8). `threads` 0 means as many as the machine has.
    """

    w: int = bit_count(8, "weights of Conv, Gemm and MatMul, 2 to 8")
    a: int = bit_count(8, "their inputs, 2 to 8; 32: float", beyond=(FLOAT_BITS,))
    method: Method | None = flag(
        None, "Precision", "rtn, brecq, qdrop, mrecg ... [mrecg; rtn at 8]", metavar="NAME",
        choices=get_args(Method),
    )  # fmt: skip
    effort: Effort | None = flag(
        None, "Precision", "of training: fast, default, max [default]", metavar="NAME", choices=get_args(Effort)
    )
    steps: int | None = flag(None, "Precision", "of training per unit [by effort]", kind=int, metavar="N", least=1)
    recon_batch: int | None = flag(None, "Precision", "samples in one of them [16]", kind=int, metavar="N", least=1)
    block_size: int | None = flag(
        None,
        "Precision",
        "with --a 32: inputs that share a scale [all]",
        kind=int,
        metavar="N",
        least=16,
        most=1024,
    )
    first_last_bits: int = bit_count(8, "first and last compute node")
    residual_bits: int = bit_count(8, "sums that a compute node reads too; a: as --a", words=("a",))
    bits: tuple[tuple[str, int, int], ...] = flag((), "Precision", "bits of nodes of that name", metavar="REGEX=W,A")
    keep_float: tuple[str, ...] = flag((), "Precision", "leave nodes of that name float", metavar="REGEX")
    placement: Placement = flag(
        "auto", "Precision", "float where faster: auto, fast, all", metavar="NAME", choices=get_args(Placement)
    )
    fuse_top_k: int | None = flag(
        None, "Fusion", "join N pairs of neighbouring units [auto]", kind=int, metavar="N", least=0, words=(AUTO,)
    )
    fuse_by: FuseBy = flag(
        "data-free", "Fusion", "data-free, data-dependent or loss", metavar="NAME", choices=get_args(FuseBy)
    )
    score_steps: int = flag(100, "Fusion", "per unit, to measure losses", kind=int, metavar="N", least=1)
    max_fused: int = flag(3, "Fusion", "units in one region at most", kind=int, metavar="N", least=1)
    fuse: tuple[tuple[str, ...], ...] = flag((), "Fusion", "join these instead", metavar="UNIT+UNIT")
    stride_factor: float = flag(
        1.6, "Fusion", "capacity of a strided convolution", kind=float, metavar="X", least=0.01, most=100
    )
    fix: tuple[str, ...] = flag((), "Data", "freeze an input or a size", metavar="NAME=VALUE")
    preprocess: str | None = flag(None, "Data", "imagenet, imagenet-norm, tf, raw, .toml, key=value", metavar="HOW")
    samples: int | None = flag(None, "Data", "use N samples, drawn at random", kind=int, metavar="N", least=1)
    batch: int | None = flag(None, "Data", "samples in one run", kind=int, metavar="N", least=1)
    random_data: bool = flag(False, "Data", "noise, to try size and speed: accuracy is lost", kind=bool)
    calibration_method: CalibrationMethod | None = flag(
        None, "Data", "mse, percentile, entropy or max [by bits]", metavar="NAME", choices=get_args(CalibrationMethod)
    )
    percentile: float = flag(99.99, "Data", "of that method", kind=float, metavar="P", least=50, most=100)
    target: str = flag("ort-cpu", "Output", "see qcompile targets; a .toml; A,B", metavar="NAME")
    runtime_version: str | None = flag(
        None, "Output", "oldest one it runs on, or installed [1.19.2]", metavar="VERSION"
    )
    pack: Packing = flag(
        "auto", "Output", "weights below 8: auto, int4, planes, none", metavar="FORM", choices=get_args(Packing)
    )
    seed: int = flag(0, "Run", "of every random choice", kind=int, metavar="N", least=0)
    threads: int = flag(0, "Run", "0: all cores", kind=int, metavar="N", least=0, most=1024)
    engine: Engine = flag(
        "auto", "Run", "of training: auto, ort, ort-training", metavar="NAME", choices=get_args(Engine)
    )
    device: Device = flag("cpu", "Run", "of training: cpu, cuda", metavar="NAME", choices=get_args(Device))
    memory: str | None = flag(None, "Run", "for values in training [half of what is free, to 3 GiB]", metavar="SIZE")
    work_dir: str | None = flag(None, "Run", "keep the state of training there", metavar="FOLDER")
    resume: bool = flag(False, "Run", "go on from the state in --work-dir", kind=bool)

    def __post_init__(self) -> None:
        for name, value in resolved({item.name: getattr(self, item.name) for item in fields(self)}).items():
            object.__setattr__(self, name, value)  # a notation becomes what it stands for
        check(self)
        given = {item.name for item in fields(self) if getattr(self, item.name) != item.default}
        for name in OF_TRAINING if self.chosen_method == "rtn" else ():
            if name in given:
                what = f"{flag_name(name)} is for methods that train"
                raise InputError(what, remedy="add --method mrecg, or leave it out")
        if self.placement == "fast" and self.chosen_method != "rtn":
            what = "--placement fast is for methods that do not train"
            raise InputError(what, remedy="add --method rtn, or leave it out")
        if self.block_size is not None:
            _check_block(self.block_size, self.a)
        if self.resume and self.work_dir is None:
            raise InputError("--resume without a state to go on from", remedy="name its folder with --work-dir")
        if self.memory is not None:
            parse_size("--memory", self.memory)
        for name in OF_FUSION:
            _check_fusion(self, name, given)
        if "percentile" in given and self.calibration_method != "percentile":
            what = f"--percentile {self.percentile:g} has no effect: ranges are not chosen by it"
            raise InputError(what, remedy="add --calibration-method percentile, or leave it out")
        for text in self.fix:
            parse_fix(text)
        for pattern in self.keep_float:
            check_pattern("--keep-float", pattern)
        for pattern, weight_bits, input_bits in self.bits:
            check_pattern("--bits", pattern)
            check_range(f"--bits {pattern}=w", weight_bits, *BITS)
            if self.a != FLOAT_BITS:
                check_range(f"--bits {pattern}=a", input_bits, *BITS)
            elif input_bits != FLOAT_BITS:
                what = f"--bits {pattern}={weight_bits},{input_bits} quantizes inputs, --a {FLOAT_BITS} weights alone"
                raise InputError(what, remedy=f"give {pattern}={weight_bits},{FLOAT_BITS}")

    @property
    def chosen_method(self) -> Method:
        """The method; where none is given, rtn (nothing is trained) at 8 bits throughout and on noise, else MRECG."""
        bits = [self.w, self.a, *(count for _, *counts in self.bits for count in counts)]
        return self.method or ("rtn" if self.random_data or min(bits) >= BITS[1] else "mrecg")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Build a configuration from recipe values; an unknown key is an error that names the nearest right one."""
        expect(values, Mapping, "recipe", "give a dict of keys and values")
        return _build(cls, known_keys(values, cls))


@dataclass(frozen=True)
class Files:
    """What the command line reads and writes; in Python these are arguments and methods."""

    model: str | None = flag(None, "Data", "the float model", metavar="IN.onnx")
    data: str | None = flag(None, "Data", "npz, folder of images, module:function ...", metavar="FROM")
    eval: str | None = flag(None, "Data", "with labels: npz, or images/ and a csv", metavar="FROM")
    out: str | None = flag(None, "Output", "the model to write", metavar="FILE", short="-o")
    report: str | None = flag(None, "Output", "all that is known about it, as JSON", metavar="FILE")
    strict: bool = flag(False, "Output", "exit 3 if there is a warning; the file is written", kind=bool)
    save_plan: str | None = flag(None, "Output", "write the decisions: .npz, or a folder", metavar="FILE")
    load_plan: str | None = flag(None, "Output", "take decisions from there: no calibration", metavar="FILE")

    def __post_init__(self) -> None:
        check(self)


def decided_by_plan() -> list[str]:
    """Return the fields of `Config` whose effect a saved plan holds: beside one they mean nothing."""
    return [item.name for item in fields(Config) if flag_of(item).group in DECIDING or item.name in RANGES]


def _check_block(size: int, input_bits: int) -> None:
    """Raise InputError where blocks are not such as runtimes have, or activations have codes."""
    if size & (size - 1):
        raise InputError(f"--block-size {size} is no power of two", remedy="give 32, 64 or 128")
    if input_bits != FLOAT_BITS:
        what = f"--block-size {size} has no effect beside quantized inputs: kernels sum up whole channels"
        raise InputError(what, remedy=f"add --a {FLOAT_BITS}, or leave it out")


def _check_fusion(config: Config, name: str, given: Collection[str]) -> None:
    """Raise InputError where the field `name` is set, but something else in the configuration makes it void."""
    if name in given and config.chosen_method not in FUSING:
        raise InputError(f"{flag_name(name)} is for methods that fuse", remedy="add --method mrecg, or leave it out")
    if name in given and config.fuse and name in ("fuse_top_k", "fuse_by"):
        raise InputError(f"{flag_name(name)} has no effect: --fuse names the regions", remedy="leave one of them out")
    if name == "score_steps" and name in given and config.fuse_by == "data-free":
        raise InputError(f"{flag_name(name)} has no effect: nothing is fused by losses", remedy="add --fuse-by loss")


def known_keys(values: Mapping[str, Any], *classes: type[Config] | type[Files]) -> dict[str, Any]:
    """Return `values` with field names for keys and `precision` spelt out as `w` and `a`; refuse unknown keys."""
    known = {item.name for cls in classes for item in fields(cls)} | {"precision"}
    result = {}
    for key, value in values.items():
        if (name := str(key).replace("-", "_")) not in known:
            remedy = nearest(str(key), {item.replace("_", "-") for item in known})
            raise InputError(f"unknown recipe key {key!r}", remedy=remedy)
        if name in result:
            raise InputError(f"recipe key {key!r} is given twice, with - and with _", remedy="leave one of them out")
        result[name] = value
    if "precision" not in result:
        return result
    both = parse_precision(text := result.pop("precision"))
    for name in both.keys() & result.keys():
        if both[name] != result[name]:
            what = f"--{name} {result[name]} contradicts --precision {text}"
            raise InputError(what, remedy="leave one of them out")
    return both | result


def resolved(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of `Config`; notations become what the fields hold: lists, REGEX=W,A, UNIT+UNIT, a, auto."""
    result = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if isinstance(result.get("bits"), tuple):
        result["bits"] = tuple(parse_override(text) for text in result["bits"])
    if isinstance(result.get("fuse"), tuple):
        result["fuse"] = tuple(parse_region(group) for group in result["fuse"])
    if result.get("fuse_top_k") == AUTO:
        result["fuse_top_k"] = None
    residual = result.get("residual_bits")
    if residual == "a":
        result["residual_bits"] = result.get("a", Config.a)
    elif isinstance(residual, str):
        if not residual.isdecimal():
            raise InputError(f"--residual-bits {residual} is not a number of bits", remedy="give 2 to 8, or a")
        result["residual_bits"] = int(residual)
    return result


Settings = TypeVar("Settings", Config, Files)


def _build(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
    names = {item.name for item in fields(cls)}
    return cls(**{name: value for name, value in values.items() if name in names})


def build_settings(*layers: Mapping[str, Any]) -> tuple[Config, Files]:
    """Build configuration and files from recipe and flags: a later layer overrides an earlier one."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= known_keys(layer, Config, Files)
    return _build(Config, merged), _build(Files, merged)


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a TOML recipe; raise InputError if it cannot be read or is not TOML."""
    data = read_bytes(path, "recipe")
    try:
        return parse_toml(data)
    except ValueError as error:
        raise InputError(f"the recipe is not TOML: {error}", where=str(path), remedy="correct it there") from error


def recipe(*settings: Config | Files) -> dict[str, Any]:
    """Return every value that is set, as recipe keys and plain TOML values; `build_settings` reads it back."""
    values = {item.name.replace("_", "-"): getattr(part, item.name) for part in settings for item in fields(part)}
    if values.get("bits"):
        values["bits"] = [f"{pattern}={weight},{data}" for pattern, weight, data in values["bits"]]
    if "fuse" in values:
        values["fuse"] = tuple(list(group) for group in values["fuse"])
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in values.items() if value is not None
    }


def recipe_hash(config: Config) -> str:
    """Return a hash of the settings that decide what is computed: not of places, or of what it may cost."""
    decides = {key: value for key, value in recipe(config).items() if key not in COSTS}
    return hashlib.sha256(tomli_w.dumps(decides).encode()).hexdigest()


def recipe_text(*settings: Config | Files) -> str:
    """Return the recipe as TOML."""
    return tomli_w.dumps(recipe(*settings))

"""Which passes run, in which order, on one screen."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from qcompile.calibration.ranges import Ranges
from qcompile.config import FUSING, CalibrationMethod, Config
from qcompile.flags import FLOAT_BITS
from qcompile.passes.assign_bits import AssignBits
from qcompile.passes.calibrate import Calibrate
from qcompile.passes.check_data import CheckData
from qcompile.passes.check_function import CheckFunction
from qcompile.passes.choose_forms import ChooseForms
from qcompile.passes.correct_bias import CorrectBias
from qcompile.passes.equalize_layers import EqualizeLayers
from qcompile.passes.fit_filters import FitFilters
from qcompile.passes.float_where_faster import FloatWhereFaster
from qcompile.passes.float_where_inexact import FloatWhereInexact
from qcompile.passes.fold_batch_norm import FoldBatchNorm
from qcompile.passes.fuse_regions import FuseRegions
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.passes.normalize_graph import NormalizeGraph
from qcompile.passes.partition_units import PartitionUnits
from qcompile.passes.place_quantizers import PlaceQuantizers
from qcompile.passes.reconstruct import Reconstruct
from qcompile.passes.rotate_channels import RotateChannels
from qcompile.passes.score_capacity import ScoreCapacity
from qcompile.passes.score_losses import ScoreLosses
from qcompile.passes.settle_scales import SettleScales
from qcompile.passes.try_preprocessing import TryPreprocessing
from qcompile.passes.use_plan import UsePlan
from qcompile.passes.validate import Validate
from qcompile.passmanager import Pass
from qcompile.quant.plan import Plan
from qcompile.training.recipe import Training

PREPARE: tuple[Pass, ...] = (NormalizeGraph(), FoldBatchNorm(), PartitionUnits())


def build(config: Config, plan: Plan | None = None) -> tuple[Pass, ...]:
    """Return the passes that compile a model; with a `plan` that was made before, decisions are taken from it."""
    passes = (*decide(config, plan), *emit(config))
    if plan is not None or config.chosen_method != "rtn":
        return passes
    return (*passes, FloatWhereFaster(place(config), (*numbers(config), *emit(config)), config.placement))


def decide(config: Config, plan: Plan | None = None) -> tuple[Pass, ...]:
    """Return the passes behind which the plan is whole, or is that `plan`."""
    look: tuple[Pass, ...] = (CheckData(), TryPreprocessing(config.preprocess))
    if plan is not None:
        return (*PREPARE, *change_channels(config, plan.untouched), UsePlan(plan), *look)
    made = (*PREPARE, *scheme(config), *look, *change_channels(config), *numbers(config), *serve(config))
    return (*made, *train(config))


def build_placement(config: Config) -> tuple[Pass, ...]:
    """Return the passes that decide what would be done, without any data; regions that need losses stay open."""
    return (*PREPARE, *scheme(config), *change_channels(config))


def place(config: Config) -> tuple[Pass, ...]:
    """Return the passes that decide what runs on integers, with how many bits, and where quantizers stand."""
    bits = AssignBits(config.w, config.a, config.first_last_bits, config.bits, config.block_size)
    return (ChooseForms(config.keep_float, config.a == FLOAT_BITS), bits, PlaceQuantizers(config.residual_bits))


def scheme(config: Config) -> tuple[Pass, ...]:
    """Return the passes that decide without data, in front of those that need some: a bad scheme is found early."""
    if config.chosen_method not in FUSING:
        return place(config)
    score: tuple[Pass, ...] = (*place(config), ScoreCapacity(config.stride_factor))
    return score if _needs_losses(config) else (*score, fuse(config))


def fuse(config: Config) -> Pass:
    """Return the pass that chooses what is trained together."""
    return FuseRegions(config.fuse_by, config.fuse_top_k, config.max_fused, config.fuse)


def change_channels(config: Config, untouched: Collection[str] | None = None) -> tuple[Pass, ...]:
    """Return the passes that change weights and not the function; a plan says what they leave `untouched`.

    Behind them the float graph is final, so it is compared with its source.
    """
    known, ranges = None if untouched is None else frozenset(untouched), ranges_of(config)
    return (RotateChannels(known, ranges), EqualizeLayers(known, ranges), CheckFunction())


def ranges_of(config: Config) -> Ranges:
    """Return how ranges of activations are chosen, in trials too.

    Searching takes time, which at 8 bits throughout would be most of a compilation.
    """
    at_8_bits: CalibrationMethod = "mse" if config.w < config.a == 8 else "max"
    return Ranges(config.calibration_method, config.percentile, at_8_bits)


def numbers(config: Config) -> tuple[Pass, ...]:
    """Return the passes that choose numbers without training."""
    return (Calibrate(ranges_of(config)), FitFilters(long=config.chosen_method == "rtn"), CorrectBias())


def serve(config: Config) -> tuple[Pass, ...]:
    """Return the pass that keeps float what 8 bits cannot serve; noise does not tell."""
    forced = tuple(pattern for pattern, *_ in config.bits)
    look = FloatWhereInexact(place(config), numbers(config), forced, ranges_of(config))
    return () if config.random_data else (look,)


def train(config: Config) -> tuple[Pass, ...]:
    """Return the passes that train, and those that choose by a first training what is trained together.

    Training corrects each region again, on what the trained ones before it make.
    """
    if config.chosen_method == "rtn":
        return ()
    training = Training.of(config)
    score = (ScoreLosses(replace(training, steps=config.score_steps)), fuse(config)) if _needs_losses(config) else ()
    return (*score, Reconstruct(training))


def emit(config: Config) -> tuple[Pass, ...]:
    """Return the passes that write and check the file."""
    return (SettleScales(), *write(config))


def write(config: Config) -> tuple[Pass, ...]:
    """Return those of them that make one file of a plan; plans for several targets are settled once."""
    return (InsertQDQ(config.pack), Validate())


def _needs_losses(config: Config) -> bool:
    return config.chosen_method in FUSING and config.fuse_by != "data-free" and config.fuse_top_k != 0

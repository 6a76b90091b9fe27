"""How well a model file does on the labelled images of a case: top-1, and how far it is from the float model."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from assets import CASES
from numpy.typing import NDArray

from qcompile.runtime.session import Session


@dataclass(frozen=True)
class Score:
    """Top-1 in percent, and the mean of KL(float || model) over the softmax of the answers, which varies less."""

    top1: float
    kl: float


def classifier_parser(text: str | None, images: int) -> argparse.ArgumentParser:
    """Return a parser of what tools ask that compile and score: the case, `images` to calibrate on, bits, seeds."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=["resnet20", "embedded", "lite0", "lite1"])
    parser.add_argument("--images", type=int, default=images)
    parser.add_argument("--bits", action="append")
    parser.add_argument("--seed", action="append", type=int)
    return parser


def top1(case_name: str, model: Path | None = None) -> float:
    """Return the top-1 in percent of `model`, or of the case's own float model, on one thread."""
    return score(case_name, model).top1


def score(case_name: str, model: Path | None = None, *, fuse_qdq: bool = True) -> Score:
    """Return the score of `model`, or of the case's own float model, on one thread; without fusion in float."""
    case = CASES[case_name]
    exact = float_logits(case_name)
    answers = exact if model is None else logits(case_name, model, fuse_qdq=fuse_qdq)
    labels = case.labels(case.evaluation)
    difference = log_softmax(exact) - log_softmax(answers)
    kl = (np.exp(log_softmax(exact)) * difference).sum(-1).mean()
    return Score(float(np.mean(answers.argmax(-1) == labels) * 100), float(kl))


@cache
def float_logits(case_name: str) -> NDArray[np.float32]:
    """Return what the case's own float model answers."""
    return logits(case_name, CASES[case_name].model)


def logits(case_name: str, model: Path, *, fuse_qdq: bool = True) -> NDArray[np.float32]:
    """Return the answers [images, classes] of a model file to the evaluation images."""
    case, session = CASES[case_name], Session(model, threads=1, fuse_qdq=fuse_qdq)
    feeds = case.batches(case.evaluation, batch=20)
    return np.concatenate([session.run(item)[session.outputs[0]] for item in feeds])


def log_softmax(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return logarithms of probabilities."""
    shifted = values.astype(np.float64) - values.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), np.float64)

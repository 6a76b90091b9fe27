"""Samples for calibration and evaluation: reading, preprocessing, checking, streaming."""

from qcompile.data.dataset import Dataset, first_batch_summary
from qcompile.data.inputs import InputInfo, input_infos
from qcompile.data.preprocess import alternatives, parse_preprocess
from qcompile.data.sources import open_dataset, open_evaluation
from qcompile.data.synthetic import random_dataset

__all__ = [
    "Dataset",
    "InputInfo",
    "alternatives",
    "first_batch_summary",
    "input_infos",
    "open_dataset",
    "open_evaluation",
    "parse_preprocess",
    "random_dataset",
]

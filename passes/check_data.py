"""Run the float model on the first samples, before any long work: do data, preprocessing and model belong together?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qcompile.config import Config
from qcompile.data.arrays import READY
from qcompile.data.dataset import Dataset, first_batch_summary
from qcompile.errors import InputError
from qcompile.ir import Graph, captured_names, topological
from qcompile.qmodel import Arrays, QModel
from qcompile.runtime.agreement import scores_classes
from qcompile.runtime.outputs import Output, OutputKind, describe_outputs
from qcompile.runtime.session import Session
from qcompile.runtime.trial import refusal_to_stack

SAMPLES = 16  # enough to see that all outputs are the same, few enough to cost nothing


@dataclass(frozen=True)
class CheckData:
    """Note what the first batch looks like, and warn about outputs that no trained model gives on its own kind of data.

    NaN and Inf in the outputs are errors: no quantizer could be calibrated on them. Where the model does not take two
    samples at a time, they are fed one by one from here on.
    """

    name: ClassVar[str] = "check-data"
    requires: ClassVar[tuple[str, ...]] = ("normalize-graph",)

    def run(self, model: QModel) -> int:
        """Change nothing but the way in which samples are fed."""
        some = model.data or model.evaluation
        if some is None:
            return 0
        session = Session(model.source, threads=model.config.threads, fault=InputError)
        if model.feed_alone is not None and (reason := refusal(session, some)):
            model.feed_alone(reason)
        if model.data is None:
            return 0
        count = max(SAMPLES // (model.data.fixed_batch or 1), 1)
        feeds = list(islice(model.data.batches(1), count))  # so few at once that activations of large images stay small
        runs = [session.run(feed) for feed in feeds]
        model.first_batch = summary(model.data, feeds)
        model.journal.note(self.name, "first batch", inputs=model.first_batch)
        for text in (*void_batches(model.config, model.data), *void_preprocessing(model), *in_training(model.graph)):
            model.journal.warn(self.name, text)
        self.check_outputs(model, {name: joined([run[name] for run in runs]) for name in runs[0]})
        return 0

    def check_outputs(self, model: QModel, outputs: Arrays) -> None:
        """Raise InputError, or warn, where outputs of the float model on `model.data` show that something is wrong."""
        assert model.data is not None
        described = describe_outputs(model.graph, labelled=model.evaluation is not None)
        flowing = reached(model.graph)
        for name, values in outputs.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise InputError(
                    f"the float model gives NaN or Inf on these samples in its output {name!r}",
                    where=model.data.source,
                    remedy="check the model, --data and --preprocess",
                )
            if name in flowing and (problem := degenerate(values, described.get(name, Output()).kind)):
                text = f"the float model's output {name!r} {problem}; check --preprocess and --data"
                model.journal.warn(self.name, text)
        if model.evaluation is not None and model.evaluation.labels is not None:
            check_labels(model.evaluation.labels, outputs)


def reached(graph: Graph) -> set[str]:
    """Return the names of the tensors that depend on an input."""
    found = {tensor.name for tensor in graph.inputs}
    for node in topological(graph):
        if not found.isdisjoint({tensor.name for tensor in node.inputs} | captured_names(node)):
            found.update(tensor.name for tensor in node.outputs)
    return found


def void_batches(config: Config, data: Dataset) -> list[str]:
    """Return a line for each setting of a number of samples that has no effect, since they are fed one by one."""
    given = {"--batch": config.batch, "--recon-batch": config.recon_batch} if data.alone else {}
    return [
        f"{name} has no effect: one sample in each run, since {data.alone}" for name, count in given.items() if count
    ]


def void_preprocessing(model: QModel) -> list[str]:
    """Return a line about a preprocessing that nothing passes, since no array is an image."""
    sources = [data.source for data in (model.data, model.evaluation) if data is not None]
    void = model.config.preprocess and all(READY in source for source in sources)
    return ["--preprocess has no effect: the data are no images (uint8), but ready inputs"] if void else []


def in_training(graph: Graph) -> list[str]:
    """Return a line about nodes that compute as in training: by the batch that they happen to be in."""
    normalizing = (node for node in graph.nodes if node.op == "BatchNormalization")
    names = [node.name for node in normalizing if node.attrs.get("training_mode", 0)]
    advice = "outputs depend on what else is in the batch; export the model in inference mode (model.eval())"
    return [f"{', '.join(names)}: normalised as in training, so {advice}"] if names else []


def refusal(session: Session, data: Dataset) -> str:
    """Return why the model cannot take several samples at a time; "" where it can, or says itself how many."""
    if data.fixed_batch or data.count < 2:
        return ""
    pair = next(data.take(0, 2).batches(2))
    return refusal_to_stack(session, pair) if data.samples_in(pair) == 2 else ""  # not where their shapes differ


def summary(data: Dataset, feeds: Sequence[Arrays]) -> list[str]:
    """Return one line per input about the first feeds, those of one shape, and why they are not stacked, if so."""
    same = list(takewhile(lambda feed: all(feed[name].shape == array.shape for name, array in feeds[0].items()), feeds))
    join = np.stack if data.alone else np.concatenate
    lines = first_batch_summary({name: join([feed[name] for feed in same]) for name in same[0]})
    return [*lines, f"one sample in each run: {data.alone}"] if data.alone else lines


def joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Join one output of several runs along its samples; flat where its other dimensions depend on the data."""
    if parts[0].ndim == 0:
        return parts[0]
    if len({part.shape[1:] for part in parts}) > 1:
        parts = [part.reshape(-1) for part in parts]
    return np.concatenate(parts)


def check_labels(labels: NDArray[np.int64], outputs: Arrays) -> None:
    """Raise InputError unless an output [samples, classes] can be compared with `labels`."""
    classes = [values.shape[1] for values in outputs.values() if scores_classes(values)]
    if not classes:
        shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in outputs.items())
        raise InputError(f"the labels cannot be compared with the outputs {shapes}", remedy="leave --eval out")
    if not 0 <= labels.min() <= labels.max() < classes[0]:
        what = f"the labels go from {labels.min()} to {labels.max()}, the model has classes 0 to {classes[0] - 1}"
        raise InputError(what, remedy="give the labels as numbers of the model's classes")


def degenerate(outputs: NDArray[Any], kind: OutputKind) -> str:
    """Say what is wrong with float outputs [samples, ...]: all the same, or all of one class; "" if nothing."""
    if outputs.dtype.kind != "f" or outputs.ndim == 0 or len(outputs) < 2:
        return ""
    if np.ptp(outputs, axis=0).max(initial=0.0) <= 1e-6 * np.abs(outputs).max(initial=0.0):
        return f"is the same for all of the first {len(outputs)} samples"
    # Fewer than eight samples of one class are no sign of anything.
    scores = kind is OutputKind.CLASSES and outputs.ndim == 2 and outputs.shape[1] > 2
    if scores and len(outputs) >= 8 and len(set(outputs.argmax(axis=1))) == 1:
        return f"says class {outputs[0].argmax()} for all of the first {len(outputs)} samples"
    return ""

"""Accuracy on labelled samples, before and after."""

from __future__ import annotations

import onnx

from qcompile.data.dataset import Dataset
from qcompile.errors import InputError
from qcompile.outcomes import Top1
from qcompile.progress import track
from qcompile.runtime.agreement import labelled_classes
from qcompile.runtime.session import Session

BATCH = 16


def top1(
    source: onnx.ModelProto,
    emitted: onnx.ModelProto,
    data: Dataset | None,
    *,
    batch: int | None,
    threads: int,
    on_integers: bool = True,
) -> Top1 | None:
    """Score both models on the labelled samples, by the first output that scores classes; None without labels.

    The emitted one runs on integers, or in float between its quantizers.
    """
    if data is None or data.labels is None:
        return None
    sessions = {"float": Session(source, threads=threads, fault=InputError)}
    sessions["emitted"] = Session(emitted, threads=threads, fuse_qdq=on_integers)
    hits, done = dict.fromkeys(sessions, 0), 0
    for feeds in track(data.batches(batch or BATCH), "evaluate"):
        rows = data.samples_in(feeds)
        for name, session in sessions.items():
            hits[name] += int((labelled_classes(session.run(feeds)) == data.labels[done : done + rows]).sum())
        done += rows
    return Top1(done, 100 * hits["float"] / done, 100 * hits["emitted"] / done)

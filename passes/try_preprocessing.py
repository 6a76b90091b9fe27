"""Score the float model on some labelled images with other preprocessing too: a wrong one costs more than 4 bits."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from qcompile.data import Dataset, alternatives
from qcompile.errors import InputError
from qcompile.progress import track
from qcompile.qmodel import QModel
from qcompile.runtime.agreement import labelled_classes
from qcompile.runtime.session import Session

IMAGES, BATCH = 100, 16
LEAST_GAIN = 2.0  # standard errors of the difference between two scores on the same images


@dataclass(frozen=True)
class TryPreprocessing:
    """Warn where the float model is right more often with another preset than the preprocessing that was `asked` for.

    Only where images have labels and pass a preprocessing. Geometry stays as it was given; presets that do not fit the
    model are left out.
    """

    asked: str | None = None
    name: ClassVar[str] = "try-preprocessing"
    requires: ClassVar[tuple[str, ...]] = ("check-data",)

    def run(self, model: QModel) -> int:
        """Change nothing."""
        data = model.evaluation
        if data is None or model.evaluation_as is None or self.asked is None:
            return 0
        session = Session(model.source, threads=model.config.threads, fault=InputError)
        given = hits(session, data.sample(IMAGES, model.config.seed))
        found: dict[str, NDArray[np.bool_]] = {}
        for text in track(alternatives(self.asked), "try preprocessing"):
            with suppress(InputError):
                found[text] = hits(session, model.evaluation_as(text).sample(IMAGES, model.config.seed))
        better = [text for text, right in found.items() if is_better(right, given)]
        if better:
            best = max(better, key=lambda text: found[text].mean())
            before, after = (f"{100 * right.mean():.0f} %" for right in (given, found[best]))
            text = f"the float model is right on {before} of {len(given)} labelled images, on {after}"
            text += f" with --preprocess {best}: was it trained with that?"
            model.journal.warn(self.name, text)
        return 0


def hits(session: Session, data: Dataset) -> NDArray[np.bool_]:
    """Return for each labelled sample whether the model is right [N]."""
    said = np.concatenate([labelled_classes(session.run(feeds)) for feeds in data.batches(BATCH)])
    return np.array(said == data.labels, np.bool_)


def is_better(right: NDArray[np.bool_], given: NDArray[np.bool_]) -> bool:
    """Say whether the first of two scores on the same images is higher by more than chance (McNemar's test)."""
    if right.shape != given.shape:
        return False
    gained, lost = int((right & ~given).sum()), int((given & ~right).sum())
    return gained - lost > LEAST_GAIN * math.sqrt(gained + lost)

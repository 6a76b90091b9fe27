"""Agreement figures against their definitions, in one piece and in batches, for every kind of output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qcompile.runtime import agreement
from qcompile.runtime.agreement import Agreement, differs, kept_positions
from qcompile.runtime.outputs import Output, OutputKind

VALUES = st.floats(-100, 100, width=32)
CLASSES, HEAD = Output(OutputKind.CLASSES, -1), Output(OutputKind.HEAD, 1)
RANDOM = np.random.default_rng(0)


def figures(output: Output, reference: Any, values: Any, **more: Any) -> dict[str, Any]:
    """Return the figures of one batch."""
    found = Agreement(output)
    found.add(np.asarray(reference), np.asarray(values), **more)
    return found.summary()


@given(arrays(np.float32, (6, 5), elements=VALUES), arrays(np.float32, (6, 5), elements=VALUES), st.integers(1, 6))
def test_figures_in_batches(reference: np.ndarray, values: np.ndarray, batch: int) -> None:
    found = Agreement(CLASSES)
    for start in range(0, 6, batch):
        found.add(reference[start : start + batch], values[start : start + batch])
    figures = found.summary()
    one, two = reference.astype(np.float64), values.astype(np.float64)
    noise = ((one - two) ** 2).sum()
    assert found.samples == 6
    assert figures["same"] == pytest.approx((one.argmax(1) == two.argmax(1)).mean())
    assert figures["largest_difference"] == pytest.approx(np.abs(one - two).max())
    # 1e-9: float64 sums in another order
    if noise and one.any():
        assert figures["sqnr_db"] == pytest.approx(10 * np.log10((one**2).sum() / noise), rel=1e-9, abs=1e-9)
        assert figures["relative_error"] == pytest.approx(np.abs(one - two).sum() / np.abs(one).sum(), rel=1e-9)
    cosines = [
        (a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)) if b.any() else 0.0
        for a, b in zip(one, two, strict=True)
        if a.any()
    ]
    if cosines and min(np.abs(one[one != 0])) > 1e-100:
        assert figures["cosine"] == pytest.approx(np.mean(cosines), rel=1e-9, abs=1e-9)
        assert figures["least_cosine"] == pytest.approx(min(cosines), rel=1e-9, abs=1e-9)


def test_large_batches_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, other = RANDOM.normal(size=(2, 7, 5, 4))
    keep = RANDOM.integers(0, 2, (7, 5)).astype(bool)
    whole = figures(CLASSES, exact, other, keep=keep)
    monkeypatch.setattr(agreement, "ELEMENTS", 45)  # two samples
    assert figures(CLASSES, exact, other, keep=keep) == pytest.approx(whole)


def test_equal_outputs() -> None:
    found = figures(CLASSES, np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32))
    assert (found["same"], found["sqnr_db"], found["cosine"], found["relative_error"]) == (1.0, None, 1.0, 0.0)
    assert not differs(found)


def test_zeros_do_not_divide_by_zero() -> None:
    found = Agreement()
    found.add(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32))
    assert (found.summary()["cosine"], found.summary()["relative_error"]) == (None, 0.0)
    found.add(np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32))
    assert found.summary()["relative_error"] == 1.0
    assert np.isfinite(found.summary()["sqnr_db"])


# --- one test per kind


def test_scores_are_judged_by_their_decisions() -> None:
    scores = RANDOM.normal(size=(200, 10))
    found = figures(CLASSES, scores, 0.1 * scores)  # a scale changes no decision
    assert (found["kind"], found["same"], found["foreground"]) == ("classes", 1.0, None)
    assert found["sqnr_db"] == pytest.approx(20 * np.log10(1 / 0.9)) and not differs(found)
    other = np.concatenate([scores[:160], -scores[160:]])
    assert figures(CLASSES, scores, other)["same"] == pytest.approx(0.8, abs=0.02)
    assert differs(figures(CLASSES, scores, other))


def test_steps_that_say_the_prevailing_class_do_not_hide_the_others() -> None:
    """20 samples of 50 steps, of which 10 say a letter; half of these are lost in the second model."""
    decided = np.zeros((20, 50), int)
    decided[:, ::5] = RANDOM.integers(1, 30, (20, 10))
    lost = decided.copy()
    lost[:, ::10] = 0
    found = figures(CLASSES, np.eye(30)[decided], np.eye(30)[lost])
    assert (found["same"], found["foreground"]) == (pytest.approx(0.9), pytest.approx(0.5))
    assert differs(found)
    kept = figures(CLASSES, np.eye(30)[decided], np.eye(30)[decided])
    assert (kept["same"], kept["foreground"]) == (1.0, 1.0) and not differs(kept)


def test_of_a_segmentation_the_background_does_not_count_either() -> None:
    decided = np.zeros((4, 16, 16), int)
    decided[:, :4, :4] = 1
    scores = np.moveaxis(np.eye(3)[decided], -1, 1)
    found = figures(Output(OutputKind.CLASSES, 1), scores, np.moveaxis(np.eye(3)[decided * 0], -1, 1))
    assert (found["same"], found["foreground"]) == (1 - 1 / 16, 0.0)


def test_one_decision_per_sample_is_judged_as_it_is() -> None:
    scores = np.eye(3)[[0] * 95 + [1] * 5]
    found = figures(CLASSES, scores, np.eye(3)[[0] * 100])
    assert (found["same"], found["foreground"]) == (0.95, None)


def test_few_decisions_prove_little() -> None:
    labels = np.arange(8)
    other = np.where(labels < 1, 1, labels)
    assert not differs(figures(CLASSES, np.eye(8)[labels], np.eye(8)[other]))  # 7 of 8
    many, others = np.tile(labels, 50), np.tile(other, 50)
    assert differs(figures(CLASSES, np.eye(8)[many], np.eye(8)[others]))  # 350 of 400


def test_decisions_themselves() -> None:
    found = figures(Output(OutputKind.DECISIONS), [3, 1, 2, 2], [3, 1, 2, 0])
    assert (found["kind"], found["same"], found["sqnr_db"], found["cosine"]) == ("decisions", 0.75, None, None)
    assert differs(figures(Output(OutputKind.DECISIONS), np.arange(20), np.arange(20) % 4))


def test_a_sure_and_varied_head_scores_classes() -> None:
    decided = RANDOM.integers(0, 20, 64)
    scores = 10 * np.eye(20)[decided] + RANDOM.normal(size=(64, 20))
    scores -= scores.mean(1, keepdims=True)
    found = figures(HEAD, scores, 0.9 * scores)
    assert (found["kind"], found["same"]) == ("classes", 1.0)


@pytest.mark.parametrize(
    "values",
    [
        RANDOM.normal(size=(64, 512)) / 512**0.5,  # an embedding
        RANDOM.normal(size=(64, 512)),
        1000 + 500 * RANDOM.normal(size=(64, 1)) + 50 * RANDOM.normal(size=(64, 24)),  # a level, and hours around it
        np.linspace(0, 112, 98) + RANDOM.normal(size=(64, 98)) / 10,  # coordinates: the last is always the largest
    ],
)
def test_embeddings_coordinates_and_forecasts_score_none(values: np.ndarray) -> None:
    found = figures(HEAD, values, 1.01 * values)
    assert (found["kind"], found["same"], found["foreground"]) == ("values", None, None)
    assert found["sqnr_db"] == pytest.approx(40) and found["relative_error"] == pytest.approx(0.01)
    assert not differs(found)


def test_values_are_judged_by_sqnr_and_cosine() -> None:
    values = RANDOM.normal(size=(8, 64))
    assert differs(figures(Output(), values, 0.85 * values))  # 16 dB
    uneven = np.concatenate([1000 * values[:1], values[1:]])
    turned = np.concatenate([1000 * values[:1], values[1:] + values[:-1]])
    found = figures(Output(), uneven, turned)  # one large sample hides the others from the SQNR
    assert found["sqnr_db"] > 40 and found["cosine"] < 0.9 and differs(found)


def test_whole_numbers_and_booleans_by_the_share_that_is_equal() -> None:
    found = figures(Output(OutputKind.WHOLE), np.arange(8), [0, 1, 2, 3, 4, 5, 6, 0])
    assert (found["kind"], found["same"], found["cosine"]) == ("whole", 0.875, None)
    flags = np.tile([True, False], 50)
    assert figures(Output(OutputKind.WHOLE), flags, flags)["same"] == 1.0
    assert differs(figures(Output(OutputKind.WHOLE), flags, np.roll(flags, 1)))
    indices = RANDOM.integers(1000, 1100, 64)
    assert differs(figures(Output(OutputKind.WHOLE), indices, indices + 1))  # near in number, yet others


# --- padding


def test_padding_does_not_count() -> None:
    keep = np.array([[True] * 3 + [False], [True, False, False, False]])
    exact = RANDOM.normal(size=(2, 4, 5))
    noisy = np.where(keep[..., None], exact, 100.0)
    found = figures(CLASSES, exact, noisy, keep=keep)
    assert (found["same"], found["sqnr_db"], found["cosine"]) == (1.0, None, pytest.approx(1.0))
    assert figures(Output(OutputKind.DECISIONS), exact.argmax(-1), noisy.argmax(-1), keep=keep)["same"] == 1.0
    starts = figures(
        Output(OutputKind.CLASSES, 1), exact[..., 0], noisy[..., 0], keep=keep
    )  # which position: none is padding
    assert starts["same"] == 1.0


def test_the_mask_says_what_is_padding() -> None:
    feeds = {"mask": np.array([[1, 1, 0]])}
    assert kept_positions(Output(mask="mask"), feeds).tolist() == [[True, True, False]]  # type: ignore[union-attr]
    inverse = kept_positions(Output(mask="mask", mask_is_padding=True), feeds)
    assert inverse is not None and inverse.tolist() == [[False, False, True]]
    assert kept_positions(Output(), feeds) is None


# --- odd values


def test_markers_of_masked_places_are_no_values() -> None:
    exact = np.array([[1.0, 2.0, -3.4e38], [1.0, -np.inf, 2.0]])
    found = figures(Output(), exact, exact * 1.1)
    assert found["sqnr_db"] == pytest.approx(20) and found["largest_difference"] == pytest.approx(0.2)


def test_a_batch_on_another_axis_is_one_sample() -> None:
    values = RANDOM.normal(size=(50, 2, 8))
    found = Agreement(Output())
    found.add(values, values, samples=2)
    assert (found.samples, len(found.cosines)) == (2, 1)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (3, 0, 4)])
def test_nothing_to_compare(shape: tuple[int, ...]) -> None:
    for output in (Output(), Output(OutputKind.CLASSES, -1), Output(OutputKind.WHOLE)):
        found = figures(output, np.zeros(shape), np.zeros(shape), samples=3)
        assert (found["same"], found["sqnr_db"], found["cosine"]) == (None, None, None) and not differs(found)

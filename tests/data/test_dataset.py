"""The stream itself: batches, slices, samples, random data."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from PIL import Image

from qcompile.data import Dataset, InputInfo, first_batch_summary, open_dataset, random_dataset
from qcompile.data.dataset import rebatch
from qcompile.data.inputs import stackable
from qcompile.errors import InputError

FLOAT, INT64 = np.dtype(np.float32), np.dtype(np.int64)
VECTOR = InputInfo("x", ("N", 2), FLOAT)


def numbered(count: int, first_dim: int | str = "N") -> Dataset:
    """`count` samples [i, i] with label i."""
    rows = np.repeat(np.arange(count, dtype=np.float32)[:, None], 2, axis=1)
    return open_dataset({"x": rows, "labels": np.arange(count)}, [InputInfo("x", (first_dim, 2), FLOAT)], None)


def rows(dataset: Dataset, batch: int = 3) -> list[float]:
    return [float(row[0]) for piece in dataset.batches(batch) for row in piece["x"]]


def test_last_batch_is_ragged_and_iterating_twice_is_the_same() -> None:
    data = numbered(10)
    assert [len(batch["x"]) for batch in data.batches(4)] == [4, 4, 2]
    assert rows(data) == rows(data) == list(range(10))


def test_changing_a_batch_does_not_change_the_data() -> None:
    data = numbered(4)
    for batch in data.batches(4):
        batch["x"][:] = -1
    assert rows(data) == [0, 1, 2, 3]


def test_take_is_a_slice_with_its_labels() -> None:
    part = numbered(10).take(3, 7).take(1, 99)
    assert rows(part) == [4, 5, 6] and part.labels is not None and part.labels.tolist() == [4, 5, 6]
    assert part.count == 3
    assert rows(numbered(3).take(2, 2)) == []


@pytest.mark.parametrize(
    "count, wanted, fixed, found",
    [(10, 3, None, [0, 4, 9]), (10, 99, None, [*range(10)]), (10, 0, None, [0]), (12, 5, 4, [0, 1, 2, 3])],
)
def test_spread_takes_evenly_from_all(count: int, wanted: int, fixed: int | None, found: list[int]) -> None:
    part = replace(numbered(count), fixed_batch=fixed).spread(wanted)
    assert rows(part) == found and part.labels is not None and part.labels.tolist() == found


def test_sample_is_drawn_by_seed_in_order_with_its_labels() -> None:
    data = numbered(100)
    drawn = data.sample(20, seed=1)
    assert drawn.count == 20 and drawn.labels is not None and rows(drawn) == drawn.labels.tolist()
    assert rows(drawn) == sorted(set(rows(drawn))) == rows(data.sample(20, seed=1))
    assert rows(drawn) != rows(data.sample(20, seed=2))
    assert max(rows(drawn)) > 50  # not the first ones: 20 draws below 51 have a chance of one in two million
    assert data.sample(1000, seed=1).count == 100


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_fixed_batch_of_one(batch: int) -> None:
    assert [piece["x"].shape for piece in numbered(3, first_dim=1).batches(batch)] == [(1, 2)] * 3


def test_fixed_batch_drops_the_rest_and_says_so() -> None:
    data = numbered(11, first_dim=4)
    assert data.count == 8 and "without the last 3" in data.source
    assert [len(piece["x"]) for piece in data.batches(3)] == [4, 4]
    assert rows(data.take(0, 6)) + rows(data.take(6, 8)) == list(range(8))  # whole batches on both sides of the cut
    assert data.sample(5, seed=0).count == data.sample(2, seed=0).count == 4


def test_fixed_batch_larger_than_the_data() -> None:
    with pytest.raises(InputError, match="has 3 samples, the model takes 4 at a time"):
        numbered(3, first_dim=4)


@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 2))), st.integers(1, 8))
def test_rebatch_keeps_every_row_in_order_and_stacks_equal_shapes_only(
    pieces: list[tuple[int, int]], size: int
) -> None:
    values = iter(range(1000))
    given_ = [{"x": np.array([[next(values)] * width for _ in range(length)])} for length, width in pieces]
    batches = [batch["x"] for batch in rebatch(given_, size)]
    assert [row.tolist() for batch in batches for row in batch] == [
        row.tolist() for item in given_ for row in item["x"]
    ]
    assert all(len(batch) <= size for batch in batches)
    for batch, after in pairwise(batches):
        assert len(batch) == size or batch.shape[1] != after.shape[1]


def test_two_inputs_stay_in_step() -> None:
    inputs = [InputInfo("ids", ("N", "length"), INT64), InputInfo("weight", ("N",), FLOAT)]
    data = open_dataset({"weight": np.arange(5.0), "ids": np.arange(10, dtype=np.int32).reshape(5, 2)}, inputs, None)
    batches = list(data.take(1, 5).batches(3))
    assert [list(batch) for batch in batches] == [["ids", "weight"]] * 2
    assert [batch["ids"].dtype for batch in batches] == [INT64] * 2
    np.testing.assert_array_equal(np.concatenate([batch["ids"][:, 0] for batch in batches]), [2, 4, 6, 8])
    np.testing.assert_array_equal(np.concatenate([batch["weight"] for batch in batches]), [1, 2, 3, 4])


def test_random_data_follows_the_inputs() -> None:
    inputs = [
        InputInfo("image", ("N", 3, "H", None), FLOAT),
        InputInfo("ids", (None, 7), INT64),
        InputInfo("half", (None,), np.dtype(np.float16)),
        InputInfo("pixels", (None, 50), np.dtype(np.uint8)),
        InputInfo("mask", (None, 50), np.dtype(np.bool_)),
    ]
    data = random_dataset(inputs, 5, seed=3)
    batch = next(data.batches(8))
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "image": ((5, 3, 64, 64), FLOAT),
        "ids": ((5, 7), INT64),
        "half": ((5,), np.float16),
        "pixels": ((5, 50), np.uint8),
        "mask": ((5, 50), np.bool_),
    }
    assert abs(batch["image"].mean()) < 0.02 and abs(batch["image"].std() - 1) < 0.02  # 61440 values: five sigma
    assert set(np.unique(batch["ids"])) == {0, 1} and set(np.unique(batch["mask"])) == {False, True}
    assert batch["pixels"].max() > 200


def test_random_data_depends_on_the_seed_only() -> None:
    def image(dataset: Dataset, batch: int) -> np.ndarray:
        return np.concatenate([piece["x"] for piece in dataset.batches(batch)])

    data = random_dataset([VECTOR], 7, seed=1)
    np.testing.assert_array_equal(image(data, 2), image(data, 7))
    assert len(np.unique(image(data, 7))) == 14  # no two samples alike
    np.testing.assert_array_equal(image(data.take(3, 5), 1), image(data, 7)[3:5])
    assert not np.array_equal(image(data, 7), image(random_dataset([VECTOR], 7, seed=2), 7))


def test_random_data_fills_a_fixed_batch() -> None:
    assert random_dataset([InputInfo("x", (4, 2), FLOAT)], 5, seed=0).count == 8


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([("N", 3), ("M", 4)], True),
        ([(1, 3), ("N", 4)], True),  # one at a time
        ([(4, 3), (4, 2)], True),
        ([()], False),
        ([(1, 2), (4, 2)], False),
        ([("N", 512), (2, "N", 128)], False),
        ([("T", "N", 80), ("N",)], False),
        ([("nodes", "nodes")], False),
        ([("N", ""), ("", "N2")], True),  # dimensions without a name
    ],
)
def test_stackable(shapes: list[tuple[int | str, ...]], expected: bool) -> None:
    assert stackable([InputInfo(f"i{place}", shape, FLOAT) for place, shape in enumerate(shapes)]) is expected


def test_random_feeds_where_samples_cannot_be_stacked() -> None:
    inputs = [
        InputInfo("x", ("N", 512), FLOAT), InputInfo("state", (2, "N", "size"), FLOAT), InputInfo("rate", (), INT64),
    ]  # fmt: skip
    data = random_dataset(inputs, 5, seed=0)
    feeds = list(data.batches(8))
    assert data.count == len(feeds) == 5 and data.samples_in(feeds[0]) == 1
    shapes = [{name: array.shape for name, array in feed.items()} for feed in feeds]
    assert shapes == [{"x": (1, 512), "state": (2, 1, 64), "rate": ()}] * 5


def test_one_by_one_gives_the_same_samples_each_in_a_feed() -> None:
    data = numbered(10)
    alone = data.one_by_one("reason")
    assert [batch["x"].shape for batch in alone.batches(4)] == [(1, 2)] * 10 and rows(alone) == rows(data)
    part = alone.take(3, 7).sample(2, seed=0)
    assert part.alone == "reason" and part.labels is not None and rows(part) == part.labels.tolist()
    assert alone.one_by_one("other") is alone
    assert data.samples_in({"x": np.zeros((3, 2))}) == 3 and alone.samples_in({"x": np.zeros((3, 2))}) == 1


def test_summary_has_shape_range_mean_and_std() -> None:
    empty = np.zeros((2, 0, 4), np.float32)
    arrays = {"a": np.array([[-1.0, 3.0]], np.float32), "b": np.array([0, 2], np.int64), "c": empty}
    lines = first_batch_summary(arrays)
    assert lines == [
        "a: [1, 2] float32, range -1 .. 3, mean 1, std 2",
        "b: [2] int64, range 0 .. 2, mean 1, std 1",
        "c: [2, 0, 4] float32, no values",
    ]


def test_reading_is_lazy() -> None:
    read = []

    def reader(numbers: np.ndarray, batch: int) -> Iterator[dict[str, np.ndarray]]:
        for number in numbers:
            read.append(int(number))
            yield {"x": np.array([number])}

    data = Dataset.over("counting", reader, 100, None).take(10, 90)
    assert read == []
    next(data.batches(4))
    assert read == [10, 11, 12, 13]


# --- other processes


class Five:
    """A function of a user that can go to another process."""

    def __call__(self) -> Iterator[dict[str, Any]]:
        for value in range(5):
            yield {"x": np.full((2, 2), value, np.float32), "labels": np.array([value, value])}


def written(folder: Path, kind: str) -> tuple[Any, list[InputInfo]]:
    """Return a source of each kind, and the inputs it is for."""
    vector, images = np.arange(20, dtype=np.float32).reshape(10, 2), np.arange(480).reshape(10, 4, 4, 3) % 256
    if kind == "folder":
        for number, image in enumerate(images.astype(np.uint8)):
            Image.fromarray(image).save(folder / f"{number}.png")
        return folder, [InputInfo("x", ("N", 3, 4, 4), FLOAT)]
    if kind == "npy":
        np.save(folder / "x.npy", vector)
        return folder / "x.npy", [VECTOR]
    if kind == "tests":
        (folder / "test_data_set_0").mkdir()
        onnx.save_tensor(numpy_helper.from_array(vector, "x"), str(folder / "test_data_set_0" / "input_0.pb"))
        return folder, [VECTOR]
    sources = {"array": vector, "function": Five(), "items": list(Five()())}
    if kind == "runs":
        return {"x": vector, "h": np.zeros((1, 3), np.float32)}, [VECTOR, InputInfo("h", (1, 3), FLOAT)]
    return sources[kind], [VECTOR]


@pytest.mark.parametrize("kind", ["folder", "npy", "tests", "array", "runs", "function", "items", "noise"])
def test_a_dataset_survives_pickle_and_its_parts_still_belong_together(kind: str, tmp_path: Path) -> None:
    if kind == "noise":
        data = random_dataset([VECTOR], 10, 3)
    else:
        source, inputs = written(tmp_path, kind)
        data = open_dataset(source, inputs, "raw" if kind == "folder" else None)
    first, rest = data.take(0, 4), data.take(4, data.count)
    one, other = (pickle.loads(pickle.dumps(part)) for part in (first, rest))  # each by itself
    for found, expected in ((one, first), (other, rest), (one.joined(other), data)):
        assert found.count == expected.count > 0
        for batch, wanted in zip(found.batches(3), expected.batches(3), strict=True):
            np.testing.assert_equal(batch, wanted)
    assert one.joined(pickle.loads(pickle.dumps(numbered(6)))).count == one.count  # of another source


def test_a_named_function_is_called_by_name_in_the_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "its_samples.py").write_text(
        "import numpy as np\ndef some():\n    yield {'x': np.ones((3, 2), np.float32)}\n"
    )
    monkeypatch.chdir(tmp_path)
    data = open_dataset("its_samples:some", [VECTOR], None)
    assert rows(pickle.loads(pickle.dumps(data))) == [1, 1, 1]

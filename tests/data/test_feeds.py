"""ONNX test data and Python functions: sources that give whole feeds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qcompile.data import Dataset, InputInfo, open_dataset, open_evaluation
from qcompile.errors import InputError

FLOAT = np.dtype(np.float32)
INPUTS = [InputInfo("x", ("N", 2), FLOAT), InputInfo("mask", ("N", "length"), np.dtype(np.int64))]
Feed = dict[str, np.ndarray]


def feed(number: int, rows: int = 1, length: int = 3) -> Feed:
    return {"x": np.full((rows, 2), number, np.float32), "mask": np.full((rows, length), number)}


def firsts(data: Dataset, batch: int = 2) -> list[float]:
    return [float(row[0]) for item in data.batches(batch) for row in item["x"]]


def save_test_data(folder: Path, arrays: list[tuple[str, np.ndarray]]) -> None:
    folder.mkdir(parents=True)
    for place, (name, array) in enumerate(arrays):
        onnx.save_tensor(numpy_helper.from_array(array, name), str(folder / f"input_{place}.pb"))


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Twelve sets, so that 10 follows 9; their inputs in the wrong order but named, or in order without names."""
    for number in range(12):
        arrays = feed(number)
        named = [("mask", arrays["mask"]), ("x", arrays["x"])]
        unnamed = [("", arrays["x"]), ("", arrays["mask"])]
        save_test_data(tmp_path / f"test_data_set_{number}", named if number % 2 else unnamed)
    return tmp_path


def test_test_data_in_numerical_order(sets: Path) -> None:
    data = open_dataset(sets, INPUTS, None)
    assert data.count == 12 and firsts(data, 5) == firsts(data, 1) == list(range(12))
    assert firsts(data.take(9, 12)) == [9, 10, 11]
    assert firsts(open_dataset(sets, INPUTS, None, samples=4)) == data.sample(4, 0).numbers.tolist()
    assert firsts(open_dataset(sets / "test_data_set_7", INPUTS, None)) == [7]


def test_test_data_errors(sets: Path) -> None:
    (sets / "test_data_set_3/input_1.pb").write_bytes(b"\xff\xff")
    with pytest.raises(InputError, match=r"cannot read the tensor.*test_data_set_3/input_1.pb"):
        open_dataset(sets, INPUTS, None)
    (sets / "test_data_set_3/input_1.pb").unlink()
    (sets / "test_data_set_3/input_0.pb").unlink()
    with pytest.raises(InputError, match="no array for the model's input 'x'"):
        open_dataset(sets, INPUTS, None)


def test_function_yields_batches_of_any_size() -> None:
    def batches() -> Iterator[Feed]:
        yield feed(0, rows=3)
        yield feed(1, rows=1)
        yield feed(2, rows=4)

    data = open_dataset(batches, INPUTS, None)
    assert [len(item["x"]) for item in data.batches(3)] == [3, 3, 2]
    assert firsts(data) == firsts(data) == [0, 0, 0, 1, 2, 2, 2, 2]
    assert firsts(data.take(2, 5)) == [0, 1, 2]
    assert data.count == 8 and "batches" in data.source


def test_a_function_may_return_all_samples_at_once() -> None:
    whole = {"x": np.repeat(np.arange(5, dtype=np.float32)[:, None], 2, 1), "mask": np.ones((5, 3), np.int64)}
    assert firsts(open_dataset(lambda: whole, INPUTS, None)) == [0, 1, 2, 3, 4]
    assert firsts(open_dataset(lambda: whole["x"], INPUTS[:1], None)) == [0, 1, 2, 3, 4]


def test_sequences_of_differing_length_are_stacked_by_length() -> None:
    data = open_dataset(lambda: [feed(0), feed(1), feed(2, length=5), feed(3)], INPUTS, None)
    assert [item["mask"].shape for item in data.batches(4)] == [(2, 3), (1, 5), (1, 3)]


def test_endless_function_with_samples() -> None:
    data = open_dataset(lambda: (feed(number, rows=2) for number in count()), INPUTS, None, samples=5)
    assert firsts(data) == [0, 0, 1, 1, 2]


def test_function_may_yield_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    inputs = [InputInfo("image", (1, 3, 4, 4), FLOAT)]
    data = open_dataset(lambda: [{"images": images}], inputs, "raw")
    batches = [item["image"] for item in data.batches(8)]
    assert [batch.shape for batch in batches] == [(1, 3, 4, 4)] * 2
    np.testing.assert_array_equal(np.concatenate(batches), images.transpose(0, 3, 1, 2))


def fails() -> Iterator[Feed]:
    yield feed(0)
    raise KeyError("lost")


def raised(error: BaseException) -> Any:
    raise error


CALLS = count()
ONCE = iter([feed(0), feed(1)])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fails, "the data function failed: KeyError: 'lost' .*fails"),
        (lambda: sys.exit(0), "the data function failed: SystemExit: 0"),
        (lambda: [3], "the data gives int.*one dict per batch"),
        (lambda: raised(GeneratorExit("early")), "the data function failed: GeneratorExit: early"),
        (lambda: map(raised, [GeneratorExit("later")]), "the data function failed: GeneratorExit: later"),
        (lambda: raised(StopIteration()), "the data function failed: StopIteration"),
        (lambda: 3, "the data returns int.*one dict per batch"),
        (lambda: None, "the data returns NoneType.*one dict per batch"),
        (lambda: "calib.npz", "the data returns str.*one dict per batch"),
        (list, "the data is empty"),
        (lambda: [feed(0), feed(0, rows=0)], "the data is empty"),
        (lambda: [feed(0), {"x": np.zeros((1, 2), np.float32)}], "no array for the model's input 'mask'"),
        (lambda: [feed(0, rows=2), feed(np.nan)], "'x' has NaN or Inf in sample 2"),
        (lambda: [feed(next(CALLS))], "gives other samples when it is read again.*seed"),
        (lambda: ONCE, "gave 0 of 2 samples when it was read again.*new iterator"),
    ],
)
def test_wrong_functions_are_named(function: Any, message: str) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(InputError, match=message):
        open_dataset(function, INPUTS, None)


def test_a_function_may_return_what_is_indexed() -> None:
    class Indexed:
        def __getitem__(self, number: int) -> Feed:
            return [feed(0), feed(1)][number]

    assert firsts(open_dataset(Indexed, INPUTS, None)) == firsts(open_dataset(Indexed(), INPUTS, None)) == [0, 1]


def test_an_interruption_in_a_function_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt):
        open_dataset(lambda: raised(KeyboardInterrupt()), INPUTS, None)


def test_masked_values_are_no_values() -> None:
    data = {"x": np.ma.masked_greater(np.ones((3, 2), np.float32), 0), "mask": np.ones((3, 3), np.int64)}
    with pytest.raises(InputError, match=r"the data has masked values.*filled"):
        open_dataset(data, INPUTS, None)


def test_module_and_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "calibration_samples.py").write_text(
        "import numpy as np\nimport calibration_beside\n"
        "def batches():\n    import calibration_later\n    for number in range(3):\n"
        "        yield {'x': np.full((1, 2), number, np.float32), 'mask': np.zeros((1, 3), np.int64)}\n"
    )
    (tmp_path / "calibration_beside.py").write_text("")
    (tmp_path / "calibration_later.py").write_text("")
    (tmp_path / "calibration_broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert firsts(open_dataset("calibration_samples:batches", INPUTS, None)) == [0, 1, 2]
    assert sys.path == before
    with pytest.raises(InputError, match=r"has no function 'batchs' .*did you mean 'batches'"):
        open_dataset("calibration_samples:batchs", INPUTS, None)
    with pytest.raises(
        InputError, match=r"cannot import 'calibration_samples.py': .*; give calibration_samples:batches"
    ):
        open_dataset("calibration_samples.py:batches", INPUTS, None)
    with pytest.raises(
        InputError, match=r"no function 'batches' .*calibration_beside.py\); write def batches\(\): ..."
    ):
        open_dataset("calibration_beside:batches", INPUTS, None)
    with pytest.raises(
        InputError, match=r"cannot import 'calibration_missing': ModuleNotFoundError.*; .* go to the folder"
    ):
        open_dataset("calibration_missing:batches", INPUTS, None)
    with pytest.raises(InputError, match="cannot import 'calibration_broken': ZeroDivisionError"):
        open_dataset("calibration_broken:batches", INPUTS, None)
    with pytest.raises(InputError, match="the evaluation data has no labels"):
        open_evaluation("calibration_samples:batches", INPUTS, None)


GOING = """import os
import numpy as np
{lines[0]}
def batches():
    {lines[1]}
    import calibration_left_behind
    for number in range(2):
        yield {{"x": np.load("x.npy")[number:number + 1], "mask": np.zeros((1, 3), np.int64)}}
"""


@pytest.mark.parametrize("early", [True, False], ids=["module", "function"])
def test_where_a_function_goes_is_its_own_business(
    early: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["os.chdir('there')", "pass"]
    (tmp_path / "there").mkdir()
    np.save(tmp_path / "there" / "x.npy", np.float32([[0, 0], [1, 1]]))
    (tmp_path / "calibration_going.py").write_text(GOING.format(lines=lines[:: 1 if early else -1]))
    (tmp_path / "calibration_left_behind.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "calibration_going", raising=False)
    dataset = open_dataset("calibration_going:batches", INPUTS, None)
    assert firsts(dataset) == firsts(dataset) == [0, 1]
    assert Path.cwd() == tmp_path


# --- whole feeds, and what can be iterated

STREAM = [InputInfo("x", ("N", 2), FLOAT), InputInfo("state", (2, "N"), FLOAT), InputInfo("rate", (), FLOAT)]


def chunk(number: int, rows: int = 1) -> Feed:
    x, state = np.full((rows, 2), number, np.float32), np.zeros((2, rows), np.float32)
    return {"x": x, "state": state, "rate": np.array(number, np.float32)}


def test_feeds_that_cannot_be_cut_stay_whole() -> None:
    data = open_dataset(lambda: [chunk(0), chunk(1, rows=3), chunk(2)], STREAM, None)
    assert data.count == 3 and [feed["x"].shape for feed in data.batches(8)] == [(1, 2), (3, 2), (1, 2)]
    assert [float(feed["rate"]) for feed in data.take(1, 3).batches(1)] == [1, 2]


def test_feeds_of_unequal_rows_are_whole_even_if_the_first_is_not() -> None:
    pair = [InputInfo("frames", ("T", 2), FLOAT), InputInfo("tokens", ("U", 2), FLOAT)]

    def joint(frames: int, tokens: int) -> Feed:
        return {"frames": np.zeros((frames, 2), np.float32), "tokens": np.zeros((tokens, 2), np.float32)}

    data = open_dataset([joint(3, 3), joint(4, 2)], pair, None)
    assert [feed["frames"].shape for feed in data.batches(8)] == [(3, 2), (4, 2)]


def test_feeds_of_test_data_with_a_number(tmp_path: Path) -> None:
    for number in range(3):
        save_test_data(tmp_path / f"test_data_set_{number}", [(name, a) for name, a in chunk(number).items()])
    data = open_dataset(tmp_path, STREAM, None)
    assert [(feed["rate"].shape, float(feed["rate"])) for feed in data.batches(4)] == [((), 0), ((), 1), ((), 2)]


class Loader:
    """What a data loader is: it can be iterated again, and gives pairs of a tensor and labels."""

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return ((Tensor(np.full((2, 2), number, np.float32)), Tensor(np.array([number, 9]))) for number in range(3))


class Tensor:
    """A tensor with a gradient on a device, as far as it matters here."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.free = array, False

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        self.free = True
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        assert self.free
        return self.array


ONE = [InputInfo("x", ("N", 2), FLOAT)]
BATCHES = [np.full((2, 2), number, np.float32) for number in range(3)]


@pytest.mark.parametrize(
    "source",
    [
        Loader(),
        BATCHES,
        tuple(BATCHES),
        (batch for batch in BATCHES),
        [{"x": batch} for batch in BATCHES],
        [(batch, np.zeros(2, np.int64)) for batch in BATCHES],
        [[batch] for batch in BATCHES],
    ],
)
def test_what_can_be_iterated_is_data(source: Any) -> None:
    data = open_dataset(source, ONE, None)
    assert data.count == 6 and firsts(data) == firsts(data, 4) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("named", [True, False])
def test_a_tensor_is_an_array(named: bool) -> None:
    tensor = Tensor(np.arange(12, dtype=np.float32).reshape(6, 2))
    assert firsts(open_dataset({"x": tensor} if named else tensor, ONE, None)) == [0, 2, 4, 6, 8, 10]  # type: ignore[arg-type, dict-item]


def test_samples_of_an_endless_generator() -> None:
    data = open_dataset((np.full((2, 2), number, np.float32) for number in count()), ONE, None, samples=5)
    assert firsts(data) == firsts(data) == [0, 0, 1, 1, 2]


def test_labels_of_a_loader() -> None:
    data = open_evaluation(Loader(), ONE, None)
    assert data.labels is not None and data.labels.tolist() == [0, 9, 1, 9, 2, 9]
    texts = [{"x": batch, "labels": np.zeros((2, 5), np.int64)} for batch in BATCHES]  # a class for every token
    assert open_dataset(texts, ONE, None).labels is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "the data is empty"),
        (["a"], "the data gives str .*data given as list.*one dict"),
        ([(BATCHES[0],) * 3], "the data gives tuple"),
        (iter([3]), "the data gives int"),
    ],
)
def test_wrong_iterables_are_named(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_dataset(source, ONE, None)

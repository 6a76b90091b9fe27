"""Arrays in memory and in .npz and .npy files: names, shapes, dtypes, values, labels, images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qcompile.data import Dataset, InputInfo, first_batch_summary, open_dataset, open_evaluation, random_dataset
from qcompile.errors import InputError

FLOAT = np.dtype(np.float32)
NCHW = [InputInfo("image", ("N", 3, 4, 5), FLOAT)]
NHWC = [InputInfo("image", ("N", 4, 5, 3), FLOAT)]
DYNAMIC = [InputInfo("image", ("N", 3, "H", "W"), FLOAT)]
PAIR = [InputInfo("left", ("N", 2), FLOAT), InputInfo("right", ("N", 3), FLOAT)]
READY = np.random.default_rng(0).standard_normal((6, 3, 4, 5), np.float32)
PIXELS = np.random.default_rng(1).integers(0, 256, (6, 4, 5, 3), np.uint8)
LABELS = np.array([3, 1, 4, 1, 5, 9])


def everything(data: Dataset, name: str = "image") -> np.ndarray:
    return np.concatenate([batch[name] for batch in data.batches(4)])


def test_npz_with_ready_input_and_labels(tmp_path: Path) -> None:
    file = tmp_path / "calib.npz"
    np.savez(file, image=READY, labels=LABELS, unrelated=np.array(["a"]))
    data = open_dataset(file, NCHW, None)
    np.testing.assert_array_equal(everything(data), READY)
    assert data.labels is not None and data.labels.tolist() == LABELS.tolist() and data.labels.dtype == np.int64
    assert data.count == 6 and data.source == str(file)


@pytest.mark.parametrize("kind", ["npy", "npz", "array", "mapping"])
def test_a_single_array_needs_no_name(tmp_path: Path, kind: str) -> None:
    np.save(tmp_path / "a.npy", READY)
    np.savez_compressed(tmp_path / "a.npz", READY)
    source = {"array": READY, "mapping": {"anything": READY}}.get(kind, tmp_path / f"a.{kind}")
    np.testing.assert_array_equal(everything(open_dataset(source, NCHW, None)), READY)


def test_npy_is_mapped_not_read(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    np.save(file, READY)
    data = open_dataset(file, NCHW, None)
    with file.open("r+b") as stream:  # a change in the file shows: nothing was copied when it was opened
        stream.seek(-4, 2)
        stream.write(np.float32(123).tobytes())
    assert everything(data)[-1, -1, -1, -1] == 123


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_floats_are_cast(dtype: Any) -> None:
    result = everything(open_dataset({"image": READY.astype(dtype)}, NCHW, None))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, READY.astype(dtype).astype(np.float32))


def test_two_inputs_one_of_them_images() -> None:
    inputs = [*NCHW, InputInfo("scale", ("N", 2), FLOAT)]
    scale = np.arange(12, dtype=np.float32).reshape(6, 2)
    batch = next(open_dataset({"images": PIXELS, "scale": scale}, inputs, "raw").batches(6))
    np.testing.assert_array_equal(batch["image"], PIXELS.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(batch["scale"], scale)


@pytest.mark.parametrize("inputs", [NCHW, NHWC], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("stored", ["nhwc", "nchw"])
def test_images_in_either_layout_become_the_layout_of_the_model(inputs: list[InputInfo], stored: str) -> None:
    images = PIXELS if stored == "nhwc" else PIXELS.transpose(0, 3, 1, 2)
    expected = (PIXELS.astype(np.float32) - 127.5) / 127.5
    expected = expected.transpose(0, 3, 1, 2) if inputs is NCHW else expected
    data = open_dataset({"images": images}, inputs, "tf")
    np.testing.assert_allclose(everything(data), expected, rtol=1e-6, atol=1e-7)  # one float32 rounding more or less


def test_layout_can_be_forced_where_the_shape_is_silent() -> None:
    silent = [InputInfo("image", ("N", "a", "b", "c"), FLOAT)]
    assert everything(open_dataset(PIXELS, silent, "raw")).shape == (6, 3, 4, 5)
    assert everything(open_dataset(PIXELS, silent, "raw,layout=nhwc")).shape == (6, 4, 5, 3)


def test_images_of_the_right_size_skip_the_geometry_exactly() -> None:
    skipped = everything(open_dataset({"images": PIXELS}, NCHW, "imagenet,scale=1,mean=0,std=1"))
    np.testing.assert_array_equal(skipped, PIXELS.transpose(0, 3, 1, 2))
    skipped = everything(open_dataset({"images": PIXELS}, DYNAMIC, "raw,resize=9,crop=4x5"))
    np.testing.assert_array_equal(skipped, PIXELS.transpose(0, 3, 1, 2))


def test_other_images_go_through_the_geometry() -> None:
    images = np.random.default_rng(2).integers(0, 256, (2, 20, 30, 3), np.uint8)
    expected = np.stack(
        [np.asarray(Image.fromarray(image).resize((5, 4), Image.Resampling.BILINEAR)) for image in images]
    )
    result = everything(open_dataset({"images": images}, NHWC, "raw,size=4x5"))
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("shape", [(6, 4, 5), (6, 4, 5, 1), (6, 1, 4, 5)])
def test_grey_images(shape: tuple[int, ...]) -> None:
    grey = [InputInfo("image", ("N", 1, 4, 5), FLOAT)]
    result = everything(open_dataset({"images": PIXELS[..., 0].reshape(shape)}, grey, "raw,size=4x5"))
    np.testing.assert_array_equal(result, PIXELS[:, None, :, :, 0])


def test_a_model_that_takes_bytes_gets_them_as_they_are() -> None:
    takes_bytes = [InputInfo("image", ("N", 4, 5, 3), np.dtype(np.uint8))]
    result = everything(open_dataset({"image": PIXELS}, takes_bytes, None))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, PIXELS)


def test_preprocessing_leaves_ready_input_alone_and_says_so() -> None:
    data = open_dataset({"image": READY}, NCHW, "imagenet")
    np.testing.assert_array_equal(everything(data), READY)
    assert "no preprocessing applied" in data.source


def test_samples_keeps_a_random_part_with_its_labels() -> None:
    data = open_dataset({"image": READY, "labels": np.arange(6)}, NCHW, None, samples=3)
    assert data.labels is not None and data.count == 3
    np.testing.assert_array_equal(everything(data), READY[data.labels])


def test_a_dataset_passes_through() -> None:
    data = open_dataset({"image": READY}, NCHW, None)
    assert open_dataset(data, NCHW, None) is data
    assert open_dataset(data, NCHW, None, samples=2).count == 2


def broken_at(sample: int, value: float) -> np.ndarray:
    array = np.ones((6, 3, 4, 5), np.float64)
    array[sample, 0, 1, 2] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "inputs", "message"),
    [
        ({"left": np.zeros((2, 2)), "rigth": np.zeros((2, 3))}, PAIR, "input 'right'; its arrays: 'left', 'rigth'"),
        ({"image": [[1, 2], [3]]}, NCHW, "the data holds a list that is no array: setting an array.*give numpy arrays"),
        (
            {"image": np.zeros((4, 3, 2, 2), np.float32).astype(object)},
            NCHW,
            r"the data holds an array of objects \(float\), not of numbers or texts",
        ),
        ({"labels": LABELS}, NCHW, "no array for the model's input 'image'"),
        ({}, NCHW, "no array for the model's input 'image'; its arrays: none"),
        ({"left": np.zeros((2, 2)), "right": np.zeros((3, 3))}, PAIR, "same number of samples: 'left' 2, 'right' 3"),
        ({"image": READY[0]}, NCHW, r"takes \[N, 3, 4, 5\], the data is \[N, 4, 5\].*samples along a first axis"),
        ({"image": READY[:, :, :2]}, NCHW, r"takes \[N, 3, 4, 5\], the data is \[N, 3, 2, 5\]"),
        ({"image": READY.transpose(0, 2, 3, 1)}, NCHW, "transpose the data from NHWC to NCHW"),
        ({"image": READY}, NHWC, "transpose the data from NCHW to NHWC"),
        ({"image": READY.astype(np.int64)}, NCHW, "takes float32, the data is int64"),
        ({"image": READY.astype("U8")}, NCHW, "takes float32, the data is text"),
        ({"x": np.zeros((2, 2))}, [InputInfo("x", ("N", 2), np.dtype(np.int64))], "takes int64, the data is float64"),
        (
            {"x": np.zeros((2, 2), np.int64)},
            [InputInfo("x", ("N", 2), np.dtype(np.int32))],
            "takes int32, the data is int64",
        ),
        ({"image": broken_at(4, np.nan)}, NCHW, "'image' has NaN or Inf in sample 4"),
        ({"image": broken_at(5, -np.inf)}, NCHW, "'image' has NaN or Inf in sample 5"),
        ({"image": broken_at(2, 1e300)}, NCHW, "'image' has a value beyond float32 in sample 2"),
        ({"image": READY[:0]}, NCHW, "the data is empty"),
        ({"image": np.float32(1)}, NCHW, "'image' is a single value"),
    ],
)
def test_wrong_arrays_are_named(arrays: dict[str, np.ndarray], inputs: list[InputInfo], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(arrays, inputs, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:5], r"labels of shape \[5\] do not fit 6 samples"),
        (np.eye(6), r"labels of shape \[6, 6\]"),
        (LABELS / 2, "not class numbers"),
        (LABELS - 5, "not class numbers"),
    ],
)
def test_wrong_labels_matter_where_they_are_asked_for(labels: np.ndarray, message: str) -> None:
    assert open_dataset({"image": READY, "labels": labels}, NCHW, None).labels is None
    with pytest.raises(InputError, match=message):
        open_evaluation({"image": READY, "labels": labels}, NCHW, None)


def test_masks_that_are_added_hold_minus_infinity() -> None:
    mask = np.where(np.arange(12).reshape(6, 2) % 5, np.float32(0), -np.inf)
    dataset = open_dataset({"mask": mask}, [InputInfo("mask", ("N", 2), FLOAT)], None)
    np.testing.assert_array_equal(next(dataset.batches(6))["mask"], mask)


def test_texts_pass_as_they_are() -> None:
    inputs = [InputInfo("word", ("N",), np.dtype(object))]
    dataset = open_dataset({"word": np.array(["one", "two"])}, inputs, None)
    assert next(dataset.batches(2))["word"].tolist() == ["one", "two"]
    assert first_batch_summary(next(dataset.batches(2))) == ["word: [2] text"]
    with pytest.raises(InputError, match="'word' takes text, the data is int64"):
        open_dataset({"word": np.arange(2)}, inputs, None)


def test_broken_sample_keeps_its_number_in_a_random_part() -> None:
    with pytest.raises(InputError, match="NaN or Inf in sample 3"):
        open_dataset({"image": np.where(np.arange(6).reshape(6, 1, 1, 1) == 3, np.nan, READY)}, NCHW, None, samples=5)


@pytest.mark.parametrize(
    ("images", "inputs", "preprocess", "message"),
    [
        (PIXELS, NCHW, None, "no preprocessing.*imagenet, imagenet-norm, tf, raw"),
        (PIXELS, [InputInfo("x", ("N", 60), FLOAT)], "raw", r"takes \[N, 60\], no 1 or 3 channels"),
        (PIXELS, [InputInfo("x", ("N", 4, 8, 8), FLOAT)], "raw", "no 1 or 3 channels in nchw"),
        (PIXELS[..., :2], NCHW, "raw", "neither NHWC nor NCHW with 3 channels"),
        (PIXELS[..., 0], NCHW, "raw", "neither NHWC nor NCHW with 3 channels"),
        (
            PIXELS,
            [InputInfo("x", ("N", 3, 8, 8), FLOAT)],
            "raw",
            r"image of 4x5 is 4x5 .* takes \[8, 8\].*add size=HEIGHT",
        ),
        (PIXELS, [InputInfo("x", ("N", 3, 8, 8), FLOAT)], "raw,size=9", "is 9x9 after.*correct size or crop"),
        (
            PIXELS,
            DYNAMIC,
            "raw,crop=6",
            "an image of 4x5 is smaller than crop=6x6 .*add resize",
        ),
        (PIXELS[..., :1], [InputInfo("x", ("N", 1, 4, 5), FLOAT)], "imagenet-norm", "one channel.*mean=0.5"),
        (PIXELS, NCHW, "imagenet-nrm", "did you mean 'imagenet-norm'"),
    ],
)
def test_wrong_images_are_named(
    images: np.ndarray, inputs: list[InputInfo], preprocess: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_dataset({"images": images}, inputs, preprocess)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", b"not a zip file", "neither .npy nor .npz inside"),
        ("a.npz", b"", "neither .npy nor .npz inside"),
        ("a.npy", b"\x93NUMPY", "cannot read the arrays"),
        ("a.txt", b"1 2 3", "cannot read data from a .txt file; give an .npz"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path / name, NCHW, None)
    text = str(caught.value)
    assert name in text and all(part in text for part in message.split("; "))


def test_damaged_archive_and_pickled_objects(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez_compressed(file, image=READY)
    content = bytearray(file.read_bytes())
    content[200:400] = bytes(200)
    file.write_bytes(content)
    with pytest.raises(InputError, match="cannot read the arrays"):
        open_dataset(file, NCHW, None)
    np.savez(file, image=np.array([{}], object))
    with pytest.raises(InputError, match="cannot read the arrays"):
        open_dataset(file, NCHW, None)


def test_no_data() -> None:
    with pytest.raises(InputError, match=r"the data does not exist.*nowhere/calib.npz"):
        open_dataset("nowhere/calib.npz", NCHW, None)
    with pytest.raises(InputError, match="cannot read data from int"):
        open_dataset(3, NCHW, None)  # type: ignore[arg-type]


def test_evaluation_needs_labels(tmp_path: Path) -> None:
    file = tmp_path / "eval.npz"
    np.savez(file, images=PIXELS, labels=LABELS[:, None])
    data = open_evaluation(file, NCHW, "raw")
    assert data.labels is not None and data.labels.tolist() == LABELS.tolist()
    with pytest.raises(InputError, match=r"no labels.*add an array `labels`"):
        open_evaluation({"images": PIXELS}, NCHW, "raw")


STREAM = [
    InputInfo("x", ("N", 4), FLOAT), InputInfo("state", (2, "N", 3), FLOAT), InputInfo("rate", (), np.dtype(np.int64)),
]  # fmt: skip
CHUNKS = np.arange(20, dtype=np.float32).reshape(5, 4)
STATES = np.arange(30, dtype=np.float32).reshape(5, 2, 1, 3)


@pytest.mark.parametrize(
    ("state", "rate"),
    [
        (STATES.reshape(10, 1, 3), np.arange(5)),  # the rows of all runs
        (STATES, np.arange(5)),  # an axis that counts runs
        (STATES, np.array(7)),
        (STATES[:1], np.array([7])),  # the same in every run
        (STATES[0], np.array(7)),
    ],
)
def test_each_run_gets_its_share_where_samples_cannot_be_stacked(state: np.ndarray, rate: np.ndarray) -> None:
    data = open_dataset({"x": CHUNKS, "state": state, "rate": rate, "labels": np.arange(5)}, STREAM, None)
    feeds = list(data.batches(4))
    assert data.count == len(feeds) == 5 and data.alone
    for number, feed in enumerate(feeds):
        np.testing.assert_array_equal(feed["x"], CHUNKS[number : number + 1])
        np.testing.assert_array_equal(feed["state"], STATES[number if state.size == STATES.size else 0])
        assert feed["rate"].shape == () and feed["rate"] == (number if rate.size == 5 else 7)
    part = data.select(np.array([1, 3]))
    assert [float(feed["x"][0, 0]) for feed in part.batches(1)] == [4, 12]
    assert part.labels is not None and part.labels.tolist() == [1, 3]


def test_the_data_say_how_many_dimensions_there_are_where_the_model_does_not() -> None:
    silent = [InputInfo("x", (), FLOAT, ranked=False)]
    sources: list[Any] = [{"x": CHUNKS}, [{"x": CHUNKS[:2]}, {"x": CHUNKS[2:]}]]
    for source in sources:
        data = open_dataset(source, silent, None)
        assert [batch["x"].shape for batch in data.batches(3)] == [(3, 4), (2, 4)]
    with pytest.raises(InputError, match="input 'x' has no shape: no random data fits"):
        random_dataset(silent, 4, seed=0)


def test_arrays_with_an_axis_of_runs_are_feeds() -> None:
    data = open_dataset({"x": np.zeros((5, 7, 4), np.float32)}, [InputInfo("x", ("T", 4), FLOAT)], None)
    assert [feed["x"].shape for feed in data.batches(8)] == [(7, 4)] * 5


def test_empty_caches_are_values_like_others() -> None:
    inputs = [InputInfo("x", ("N", 4), FLOAT), InputInfo("past", ("N", 2, "P", 3), FLOAT)]
    data = open_dataset({"x": CHUNKS, "past": np.zeros((5, 2, 0, 3), np.float32)}, inputs, None)
    assert [batch["past"].shape for batch in data.batches(3)] == [(3, 2, 0, 3), (2, 2, 0, 3)]


def test_a_cache_without_layers_is_fed_in_every_run() -> None:
    inputs = [InputInfo("x", ("N", 4), FLOAT), InputInfo("past", (0, "N", 3), FLOAT)]
    data = open_dataset({"x": CHUNKS, "past": np.zeros((0, 1, 3), np.float32)}, inputs, None)
    assert [feed["past"].shape for feed in data.batches(3)] == [(0, 1, 3)] * 5


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"state": STATES[:4]}, "same number of samples: 'x' 5, 'state' 4"),
        ({"state": STATES.reshape(10, 1, 3)[:9]}, "'state' takes 2 rows in a run, the data has 9.*counts the runs"),
        ({"state": STATES.reshape(5, 1, 2, 3)}, r"'state' takes \[2, N, 3\], the data is \[1, 2, 3\]"),
        ({"rate": np.arange(5.0)}, "'rate' takes int64, the data is float64"),
        ({"x": np.where(CHUNKS == 9, np.nan, CHUNKS)}, "'x' has NaN or Inf in sample 2"),
        ({"x": CHUNKS[:0]}, "the arrays do not have the same number|the data is empty"),
        ({"labels": np.arange(4)}, "labels of shape .4. do not fit 5 samples"),
    ],
)
def test_wrong_feeds_are_named(arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_dataset({"x": CHUNKS, "state": STATES, "rate": np.arange(5), **arrays}, STREAM, None, labelled=True)

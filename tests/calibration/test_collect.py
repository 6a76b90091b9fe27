"""Collection: observers see every value of their tensor once, whole or reduced inside the graph."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from networks import RESIDUAL, network
from numpy.typing import NDArray

from qcompile.calibration import collect
from qcompile.calibration.collect import REDUCTIONS, batch_size, observe, reduction_name, tap
from qcompile.calibration.observers import Histogram, Largest, MinMax
from qcompile.data.dataset import Dataset
from qcompile.data.inputs import Arrays, Indices
from qcompile.errors import InputError
from qcompile.runtime.session import Session

TENSORS = ("image", "a", "trunk", "c", "s", "y")  # an input, inner ones, an output


def dataset(images: NDArray[np.float32], fixed: int | None = None) -> Dataset:
    def read(numbers: Indices, size: int) -> Iterator[Arrays]:
        for number in numbers:
            yield {"image": images[int(number)][None]}

    return Dataset.over("made up", read, len(images), fixed)


def images(count: int = 10) -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=(count, 3, 8, 8)).astype(np.float32)


def all_values(model: onnx.ModelProto, data: NDArray[np.float32], tensors: tuple[str, ...]) -> Arrays:
    """Return every value of the tensors, taken out by hand and run one sample after the other."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in ("image", "y"))
    session = Session(watched, threads=1)
    runs = [session.run({"image": sample[None]}) | {"image": sample[None]} for sample in data]
    return {name: np.concatenate([run[name] for run in runs]) for name in tensors}


def test_inputs_alone_are_seen_without_a_run() -> None:
    model, data, seen = network(RESIDUAL), images(), Histogram("image")
    del model.graph.node[:], model.graph.output[:]
    observe(model, [("image", seen)], dataset(data), batch=None, threads=1, label="test")
    assert (seen.count, seen.lo, seen.hi) == (data.size, data.min(), data.max())


@pytest.mark.parametrize("batch", [None, 1, 3, 64])
@pytest.mark.parametrize("kind", [MinMax, Histogram])
def test_ranges_are_those_of_numpy(kind: type[MinMax], batch: int | None) -> None:
    model, data = network(RESIDUAL), images()
    observers = {name: kind(name) for name in TENSORS}
    expected = all_values(model, data, TENSORS)
    observe(model, observers.items(), dataset(data), batch=batch, threads=1, label="test")
    for name, observer in observers.items():
        # Batches of other sizes may sum in another order: the last bits of a convolution.
        np.testing.assert_allclose(
            [observer.lo, observer.hi], [expected[name].min(), expected[name].max()], rtol=1e-5, err_msg=name
        )
        if isinstance(observer, Histogram):
            assert observer.count == expected[name].size
            assert observer.counts.sum() == np.count_nonzero(expected[name])


def test_whole_and_reduced_in_one_run() -> None:
    model, data = network(RESIDUAL), images()
    observers = {"trunk": MinMax("trunk"), "s": Histogram("s"), "image": MinMax("image"), "y": MinMax("y")}
    observe(model, observers.items(), dataset(data), batch=4, threads=1, label="test")
    assert observers["trunk"].count == 9 and observers["s"].count == 10 * 4 * 64  # three reductions of three batches
    assert observers["trunk"].lo == 0 and observers["image"].lo == data.min() and observers["image"].hi == data.max()


def test_values_that_are_reduced_never_leave_the_graph() -> None:
    model = network(RESIDUAL)
    tap(model, ["a"], {"trunk": REDUCTIONS[MinMax]})
    assert [item.name for item in model.graph.output] == [
        "y",
        "a",
        *(reduction_name("trunk", op) for op in REDUCTIONS[MinMax]),
    ]
    found = Session(model, threads=1).run({"image": images(2)})
    assert all(found[reduction_name("trunk", op)].shape == () for op in REDUCTIONS[MinMax])
    assert found[reduction_name("trunk", "ReduceMax")] == found["a"].max()


def test_tap_leaves_inputs_and_outputs_as_they_are() -> None:
    model = network(RESIDUAL)
    tap(model, ["y", "image"])
    assert [item.name for item in model.graph.output] == ["y"]


@pytest.mark.parametrize("kind", [MinMax, Largest, Histogram])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("known", [False, True])
def test_tensor_that_is_not_finite_is_named(kind: type[MinMax], value: float, known: bool) -> None:
    """One bad value in the last sample, seen behind operators that pass it on; its shape is known or not."""
    model = network("net (float[N,3,8,8] image) => (float[N,3,8,8] y) { inner = Neg(image)  y = Abs(inner) }")
    model = onnx.shape_inference.infer_shapes(model) if known else model
    data = images()
    data[-1, 1, 2, 3] = value
    with pytest.raises(InputError, match=r"tensor 'inner' holds NaN or infinity \(calibration"):
        observe(model, [("inner", kind("inner"))], dataset(data), batch=4, threads=1, label="test")


def test_nan_that_max_and_min_do_not_show() -> None:
    """ReduceMin and ReduceMax may skip NaN; the mean never does."""
    model = network("net (float[N,2] image) => (float[N,2] y) { inner = Neg(image)  y = Abs(inner) }")
    data = np.array([[1, 2], [np.nan, 3], [4, 5]], np.float32)
    with pytest.raises(InputError, match="'inner' holds NaN"):
        observe(model, [("inner", MinMax("inner"))], dataset(data), batch=3, threads=1, label="test")


def test_batch_is_bounded_by_bytes_and_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(RESIDUAL)
    tap(model, ["a"])
    session = Session(model, threads=1)
    data = dataset(images())  # 768 bytes in, 1024 bytes of `a` out
    assert batch_size(session, data, ["a"]) == 10
    monkeypatch.setattr(collect, "TAP_BYTES", 5000)
    assert batch_size(session, data, ["a"]) == 4
    assert batch_size(session, data, ["a", "y"]) == 2
    monkeypatch.setattr(collect, "INPUT_BYTES", 800)
    assert batch_size(session, data, ["a"]) == 1
    monkeypatch.setattr(collect, "INPUT_BYTES", 10)
    assert batch_size(session, data, ["a"]) == 1


def test_fixed_batch() -> None:
    model = network(RESIDUAL.replace("float[N,3,8,8] image", "float[4,3,8,8] image"))
    data = images(8)
    observers = {"trunk": Histogram("trunk")}
    observe(model, observers.items(), dataset(data, fixed=4), batch=None, threads=1, label="test")
    assert observers["trunk"].count == 8 * 4 * 64


def test_range_does_not_depend_on_the_batch() -> None:
    found = []
    for batch in (1, 4, 10):
        image = Histogram("image")
        observers = {"image": image, "y": MinMax("y")}
        observe(network(RESIDUAL), observers.items(), dataset(images()), batch=batch, threads=1, label="test")
        found.append((image.lo, image.hi, image.counts.tolist()))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("batch", [1, 4])
def test_where_the_least_value_is_not_asked_for_maps_are_pooled(batch: int) -> None:
    model, tensors = onnx.shape_inference.infer_shapes(network(RESIDUAL)), ("trunk", "c", "a")
    expected = all_values(network(RESIDUAL), images(), tensors)
    observers = {name: Largest(name) for name in tensors}
    observe(model, observers.items(), dataset(images()), batch=batch, threads=1, label="test")
    assert [node.op_type for node in model.graph.node].count("GlobalMaxPool") == 3
    for name, observer in observers.items():
        assert observer.lo <= 0 and observer.hi == pytest.approx(expected[name].max(), rel=1e-5)


def test_runs_in_which_a_tensor_has_no_values_are_passed_over() -> None:
    text = """net (float[N,3,8,8] image, float[8,8] W) => (float[K,8] y) {
        limit = Constant<value = float {2.5}>()  none = Constant<value = int64[2] {-1, 8}>()
        f = Reshape(image, none)  m = ReduceMax<axes = [1], keepdims = 0>(f)  kept = Greater(m, limit)
        few = Compress<axis = 0>(f, kept)  p = MatMul(few, W)  y = Relu(p) }"""
    data = images() / 2
    shifted = data + np.where(np.arange(10) == 4, 2, 0)[:, None, None, None].astype(np.float32)  # rows of one sample
    kept = shifted.reshape(-1, 8)[shifted.reshape(-1, 8).max(1) > 2.5]
    observers = {"few": MinMax("few"), "p": Histogram("p"), "y": Largest("y")}
    observe(network(text, opset=17), observers.items(), dataset(shifted), batch=1, threads=1, label="test")
    assert (observers["few"].lo, observers["few"].hi) == (kept.min(), kept.max())
    assert observers["p"].count == kept.size and observers["y"].hi == observers["p"].hi

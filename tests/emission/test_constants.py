"""The initializers of a file: equal arrays once, names that are free, and exactly what was stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from qcompile.emission.constants import Constants


def test_equal_arrays_are_stored_once() -> None:
    constants = Constants(set())
    first = constants.add(np.array([1, 2], np.int64), "shape")
    assert constants.add(np.array([1, 2], np.int64), "other") == first == "shape"
    assert [tensor.name for tensor in constants.protos] == ["shape"]


def test_type_shape_and_sign_of_zero_tell_arrays_apart() -> None:
    arrays: list[Any] = [
        np.array([0, 0], np.int32),
        np.array([0, 0], np.int64),
        np.array([[0, 0]], np.int32),
        np.array([0.0, 0.0], np.float32),
        np.array([-0.0, 0.0], np.float32),
        np.uint8(0),
        np.int8(0),
        np.zeros(1, np.uint8),
        np.array([np.nan], np.float32),
    ]
    constants = Constants(set())
    names = [constants.add(array, "c") for array in arrays]
    assert len(set(names)) == len(arrays)
    for array, tensor in zip(arrays, constants.protos):
        stored = numpy_helper.to_array(tensor)
        assert stored.dtype == array.dtype and stored.shape == array.shape
        np.testing.assert_array_equal(stored, array)


def test_equal_texts_are_stored_once() -> None:
    constants = Constants(set())
    texts = [["cat", "dog"], ["catd", "og"], ["cat", "dog"]]
    assert [constants.add(np.array(words, object), "c") for words in texts] == ["c", "c_2", "c"]
    assert [numpy_helper.to_array(tensor).tolist() for tensor in constants.protos] == texts[:2]


def test_changing_an_array_later_changes_nothing() -> None:
    constants = Constants(set())
    array = np.array([1.0, 2.0], np.float32)
    constants.add(array, "c")
    array[0] = 5
    assert numpy_helper.to_array(constants.protos[0]).tolist() == [1, 2]
    assert constants.add(array, "c") == "c_2"


def test_scalars_have_names_that_say_what_they_are() -> None:
    constants = Constants(set())
    assert [constants.scalar(value, dtype) for value, dtype in ((15, np.uint8), (-8, np.int32), (15, np.uint8))] == [
        "uint8_15", "int32_m8", "uint8_15",
    ]  # fmt: skip
    assert [tensor.dims for tensor in constants.protos] == [[], []]


def test_names_that_are_taken() -> None:
    constants = Constants({"uint8_0", "w", "w_2"})
    assert constants.scalar(0, np.uint8) == "uint8_0_2"
    assert constants.add(np.zeros(3), "w") == "w_3"
    assert constants.unique("w") == "w_4"
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.INT4, [1], b"\x01", raw=True)
    assert constants.proto(tensor) == tensor.name == "w_5"


@given(st.lists(st.sampled_from(["a", "a_2", "a_3", "b"])), st.sets(st.sampled_from(["a", "a_2", "b"])))
def test_unique_names_are_unique(stems: list[str], taken: set[str]) -> None:
    constants = Constants(set(taken))
    names = [constants.unique(stem) for stem in stems]
    assert len(set(names)) == len(names) and taken.isdisjoint(names)

"""Text to Preprocess, and pixels through it: against formulas written out by hand and Pillow called directly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qcompile.data.preprocess import PRESETS, Preprocess, alternatives, parse_preprocess
from qcompile.errors import InputError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # torchvision's ImageNet constants
FORMULAS = {
    "imagenet": lambda x: (x / 255 - MEAN) / STD,
    "imagenet-norm": lambda x: (x / 255 - MEAN) / STD,
    "tf": lambda x: (x - 127.5) / 127.5,
    "raw": lambda x: x,
    "resize=256,crop=224,scale=1,mean=127,std=128": lambda x: (x - 127) / 128,  # EfficientNet-Lite
    "scale=1/255,mean=0.5/0.25/0.125,std=0.5/1/2": lambda x: (x / 255 - [0.5, 0.25, 0.125]) / [0.5, 1, 2],
}


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("text", FORMULAS)
def test_arithmetic_is_the_formula(text: str) -> None:
    images = pixels(2, 5, 4, 3)
    expected = FORMULAS[text](images.astype(np.float64))
    result = parse_preprocess(text).arithmetic(images, "nhwc")
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)  # float32: three roundings of values up to 3


def test_every_preset_has_a_formula_here() -> None:
    assert set(PRESETS) <= set(FORMULAS)


def test_layout_moves_channels_and_order_swaps_them_after_the_normalisation() -> None:
    images = pixels(2, 5, 4, 3)
    rgb = parse_preprocess("imagenet-norm").arithmetic(images, "nhwc")
    bgr = parse_preprocess("imagenet-norm,order=bgr")
    np.testing.assert_array_equal(bgr.arithmetic(images, "nhwc"), rgb[..., ::-1])
    np.testing.assert_array_equal(bgr.arithmetic(images, "nchw"), rgb[..., ::-1].transpose(0, 3, 1, 2))
    assert bgr.arithmetic(images, "nchw").flags.c_contiguous


@pytest.mark.parametrize(
    ("width", "height", "scaled"), [(400, 300, (341, 256)), (301, 500, (256, 425)), (256, 256, None)]
)
def test_imagenet_geometry_is_pillow_resize_and_centre_crop(
    width: int, height: int, scaled: tuple[int, int] | None
) -> None:
    image = Image.fromarray(pixels(height, width, 3))
    expected = image.resize(scaled, Image.Resampling.BILINEAR) if scaled else image
    left, top = round((expected.width - 224) / 2), round((expected.height - 224) / 2)
    result = np.asarray(parse_preprocess("imagenet").move(image))
    np.testing.assert_array_equal(result, np.asarray(expected)[top : top + 224, left : left + 224])


def test_resize_of_a_reduced_image_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # without a widened filter a reduction by 4 picks black or white, with it grey
    moved = np.asarray(parse_preprocess("resize=16").move(Image.fromarray(stripes)))
    assert moved.shape == (16, 16, 3)
    assert ((moved[:, 1:-1] > 110) & (moved[:, 1:-1] < 145)).all()


def test_size_is_exact_whatever_the_aspect() -> None:
    preprocess = parse_preprocess("raw,size=20x30")
    assert preprocess.move(Image.fromarray(pixels(64, 32, 3))).size == (30, 20)  # Pillow says width first
    assert preprocess.output_size((64, 32), "x") == (20, 30)


@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.none() | st.integers(1, 50),
    st.none() | st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.none() | st.tuples(st.integers(1, 50), st.integers(1, 50)),
)
def test_output_size_foretells_the_geometry(
    height: int, width: int, resize: int | None, crop: tuple[int, int] | None, size: tuple[int, int] | None
) -> None:
    preprocess = Preprocess(resize=resize, crop=crop, size=size)
    try:
        foretold = preprocess.output_size((height, width), "x")
    except InputError as error:
        assert crop is not None and "smaller than crop" in str(error)
        return
    moved = preprocess.move(Image.new("L", (width, height)))
    assert (moved.height, moved.width) == foretold


def test_overrides_follow_a_preset() -> None:
    assert parse_preprocess("imagenet, crop=192 ,order=bgr") == Preprocess(
        resize=256, crop=(192, 192), scale=1 / 255, mean=tuple(MEAN), std=tuple(STD), order="bgr"
    )


def test_toml_file_with_overrides(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('size = [48, 320]\nscale = "1/255"\nmean = [0.5, 0.25, 0]\nstd = 0.5\nlayout = "nhwc"\n')
    expected = Preprocess(size=(48, 320), scale=1 / 255, mean=(0.5, 0.25, 0), std=(0.5,), layout="nhwc")
    assert parse_preprocess(str(file)) == expected
    assert parse_preprocess(f"{file},std=1").std == (1,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagnet", "--preprocess imagnet is unknown; did you mean 'imagenet'?"),
        ("", "is unknown"),
        ("scal=1", "unknown key 'scal'.*did you mean 'scale'?"),
        ("imagenet,192", "'192' is not key=value"),
        ("crop=1x2x3", "crop=1x2x3 is not valid"),
        ("resize=0", "resize=0 is not valid"),
        ("scale=1/0", "scale=1/0 is not valid.*ratio such as 1/255"),
        ("scale=nan", "scale=nan is not valid"),
        ("mean=0.1/0.2", "mean=0.1/0.2 is not valid.*one number, or three"),
        ("std=0", "std=0 is not valid.*above 0"),
        ("layout=chw", "layout=chw is not valid.*nchw or nhwc"),
        ("order=gbr", "order=gbr is not valid"),
        ("missing.toml", "cannot read the file of --preprocess: No such file.*missing.toml"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_preprocess(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [("scale = ", "the file of --preprocess is not TOML"), ("sice = 3", "did you mean 'size'")]
)
def test_broken_toml_is_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        parse_preprocess(str(file))
    assert "mine.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "others"),
    [
        ("imagenet", ["tf,resize=256,crop=224x224", "raw,resize=256,crop=224x224", "imagenet,order=bgr"]),
        ("tf", ["imagenet", "imagenet-norm", "raw", "tf,order=bgr"]),
        (
            "resize=292,crop=260,scale=1,mean=127,std=128,order=bgr",
            [
                "imagenet,resize=292,crop=260x260,order=bgr",
                "tf,resize=292,crop=260x260,order=bgr",
                "raw,resize=292,crop=260x260,order=bgr",
                "resize=292,crop=260,scale=1,mean=127,std=128,order=bgr,order=rgb",
            ],
        ),
    ],
)
def test_alternatives_keep_the_geometry(given: str, others: list[str]) -> None:
    assert alternatives(given) == others

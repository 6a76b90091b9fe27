"""Folders of images: order, geometry, memory, labels, broken files."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from qcompile.data import Dataset, InputInfo, open_dataset, open_evaluation
from qcompile.errors import InputError

FLOAT = np.dtype(np.float32)
FIXED = [InputInfo("image", ("N", 3, 6, 8), FLOAT)]
DYNAMIC = [InputInfo("image", ("N", 3, "H", "W"), FLOAT)]


def pixels(seed: int, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def everything(data: Dataset, batch: int = 2) -> np.ndarray:
    return np.concatenate([item["image"] for item in data.batches(batch)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images in two folders, by name: a.png, b/c.bmp, b/d.PNG, e.webp; and files that are none."""
    for seed, name in enumerate(("a.png", "b/c.bmp", "b/d.PNG")):
        save(tmp_path / "images" / name, pixels(seed))
    Image.fromarray(pixels(3)).save(tmp_path / "images/e.webp", lossless=True)
    (tmp_path / "images/notes.txt").write_text("no image")
    (tmp_path / "images/._a.png").write_text("no image either")
    return tmp_path / "images"


def test_all_images_by_name(folder: Path) -> None:
    data = open_dataset(folder, FIXED, "raw")
    expected = np.stack([pixels(seed) for seed in range(4)]).transpose(0, 3, 1, 2)
    assert [len(batch["image"]) for batch in data.batches(3)] == [3, 1]
    np.testing.assert_array_equal(everything(data), expected)
    np.testing.assert_array_equal(everything(data.take(1, 3)), expected[1:3])
    np.testing.assert_array_equal(everything(data), everything(data))


def test_links_are_followed_and_hidden_folders_left_out(tmp_path: Path) -> None:
    for number, name in enumerate(("data/cat/1.png", "data/dog/1.png", "view/.cache/1.png")):
        save(tmp_path / name, pixels(number))
    (tmp_path / "view/x.png").mkdir()  # a folder may have any name
    for name in ("cat", "dog"):
        (tmp_path / "view" / name).symlink_to(tmp_path / "data" / name)
        (tmp_path / "data" / name / "back").symlink_to(tmp_path / "view")  # in a circle
    data = open_evaluation(tmp_path / "view", FIXED, "raw")
    np.testing.assert_array_equal(everything(data), np.stack([pixels(0), pixels(1)]).transpose(0, 3, 1, 2))
    assert data.labels is not None and data.labels.tolist() == [0, 1]


def test_preset_on_a_jpeg_is_pillow_and_the_formula(tmp_path: Path) -> None:
    Image.fromarray(pixels(0, 300, 400)).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        scaled = np.asarray(image.resize((341, 256), Image.Resampling.BILINEAR), np.float64)
    cropped = scaled[16:240, 58:282]  # (341 - 224) / 2 = 58.5, halves to even
    expected = (cropped / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    data = open_dataset(tmp_path, [InputInfo("image", ("N", 3, 224, 224), FLOAT)], "imagenet")
    np.testing.assert_allclose(everything(data)[0], expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)  # float32


def test_grey_palette_and_alpha_become_what_the_model_takes(tmp_path: Path) -> None:
    image = Image.fromarray(pixels(0))
    for number, mode in enumerate(("L", "P", "RGBA", "CMYK")):
        image.convert(mode).save(tmp_path / f"{number}.{'tif' if mode == 'CMYK' else 'png'}")
    assert everything(open_dataset(tmp_path, FIXED, "raw")).shape == (4, 3, 6, 8)
    grey = everything(open_dataset(tmp_path, [InputInfo("image", ("N", 1, 6, 8), FLOAT)], "raw"))
    np.testing.assert_array_equal(grey[0, 0], np.asarray(image.convert("L")))


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [(1, lambda a: a), (3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1)), (8, np.rot90), (5, np.swapaxes)],
)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_images_stand_upright(tmp_path: Path, orientation: int, turned: Any, suffix: str) -> None:
    stored = pixels(0, 6, 8)
    expected = stored.swapaxes(0, 1) if orientation == 5 else turned(stored)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(stored).save(tmp_path / f"a.{suffix}", exif=exif, **options)
    size = [InputInfo("image", ("N", 3, *expected.shape[:2]), FLOAT)]
    np.testing.assert_array_equal(everything(open_dataset(tmp_path, size, "raw"))[0], expected.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparency_is_left_out(tmp_path: Path, mode: str) -> None:
    colours = pixels(0) // 64 * 64
    if mode == "LA":
        colours[...] = colours[..., :1]
    image = Image.fromarray(colours).convert("P" if mode == "P" else "RGB")
    expected = np.asarray(image.convert("RGB"))
    if mode == "P":
        image.info["transparency"] = bytes(range(0, 256, 3))  # one for each of the first colours
    else:
        image = image.convert(mode)
        image.putalpha(Image.fromarray(pixels(1)[..., 0]))
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(everything(open_dataset(tmp_path, FIXED, "raw"))[0], expected.transpose(2, 0, 1))


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(pixels(seed)).convert("P") for seed in range(2)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    expected = np.asarray(frames[0].convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(everything(open_dataset(tmp_path, FIXED, "raw"))[0], expected)


def test_cmyk(tmp_path: Path) -> None:
    ink = np.random.default_rng(0).integers(0, 256, (6, 8, 4), np.uint8)
    Image.fromarray(ink, "CMYK").save(tmp_path / "a.tif")
    light = 255 - ink.astype(np.float64)
    found = everything(open_dataset(tmp_path, FIXED, "raw"))[0].transpose(1, 2, 0)
    np.testing.assert_allclose(found, light[..., :3] * light[..., 3:] / 255, atol=1)


def test_a_model_that_takes_bytes(folder: Path) -> None:
    takes_bytes = [InputInfo("image", ("N", 6, 8, 3), np.dtype(np.uint8))]
    result = everything(open_dataset(folder, takes_bytes, "raw"))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, np.stack([pixels(seed) for seed in range(4)]))
    with pytest.raises(InputError, match=r"takes uint8, the preprocessing makes floats.*raw"):
        open_dataset(folder, takes_bytes, "tf")


def test_images_of_differing_size_need_a_dynamic_model_or_a_size(folder: Path) -> None:
    save(folder / "b/d.PNG", pixels(9, 12, 10))
    with pytest.raises(InputError, match=r"image of 12x10 is 12x10 .* takes \[6, 8\] \(.*d.PNG\); add size="):
        open_dataset(folder, FIXED, "raw")
    assert everything(open_dataset(folder, FIXED, "raw,size=6x8")).shape == (4, 3, 6, 8)
    batches = [batch["image"].shape for batch in open_dataset(folder, DYNAMIC, "raw").batches(4)]
    assert batches == [(2, 3, 6, 8), (1, 3, 12, 10), (1, 3, 6, 8)]


def test_an_image_too_small_to_crop_is_named(folder: Path) -> None:
    save(folder / "b/c.bmp", pixels(9, 3, 3))
    with pytest.raises(InputError, match=r"image of 3x3 is smaller than crop=6x8 \(.*c.bmp\); add resize="):
        open_dataset(folder, FIXED, "raw,crop=6x8")


def test_samples_are_drawn_before_files_are_looked_at(folder: Path) -> None:
    drawn = [open_dataset(folder, FIXED, "raw", samples=2, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert all(data.count == 2 for data in drawn)
    np.testing.assert_array_equal(everything(drawn[0]), everything(drawn[1]))
    assert len({everything(data).tobytes() for data in drawn}) > 1
    for number in {0, 1, 2, 3} - set(drawn[0].numbers.tolist()):
        [folder / "a.png", folder / "b/c.bmp", folder / "b/d.PNG", folder / "e.webp"][number].write_bytes(b"")
    open_dataset(folder, FIXED, "raw", samples=2, seed=0)


@pytest.mark.parametrize("keep", [0, 40], ids=["empty", "head only"])
def test_a_file_that_is_no_image_is_named_on_opening(folder: Path, keep: int) -> None:
    path = folder / "b/d.PNG"
    path.write_bytes(path.read_bytes()[:keep].replace(b"IHDR", b"IHXR"))
    with pytest.raises(InputError, match=r"cannot read the image.*d.PNG"):
        open_dataset(folder, FIXED, "raw")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_damaged_image_is_named_when_it_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"broken.{suffix}"
    save(path, pixels(0, 64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=f"cannot read the image.*broken.{suffix}.*remove or replace"):
        everything(open_dataset(tmp_path, DYNAMIC, "raw"))


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "deep.png", np.full((6, 8), 1000, np.uint16))
    with pytest.raises(InputError, match=r"more than 8 bits.*deep.png.*convert it"):
        open_dataset(tmp_path, FIXED, "raw")


def test_folder_errors(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"neither images nor test_data_set_.*empty.*.jpg"):
        open_dataset(tmp_path / "empty", FIXED, "raw")
    with pytest.raises(InputError, match=r"no preprocessing.*imagenet, imagenet-norm, tf, raw"):
        open_dataset(folder, FIXED, None)
    with pytest.raises(InputError, match="the model has 2 inputs, a folder of images feeds one"):
        open_dataset(folder, FIXED * 2, "raw")


@pytest.mark.parametrize("where", ["inside", "beside", "named", "named inside"])
def test_labels_are_found(folder: Path, where: str) -> None:
    rows = {"inside": "a.png,0\nb/c.bmp,1\nb/d.PNG,2\ne.webp,3\n"}  # as seen from the folder, no heading
    rows["beside"] = "file,label\nimages/e.webp,3\nimages/a.png,0\nimages/b/c.bmp,1\nimages/b/d.PNG,2\nother/a.png,9\n"
    rows["named"] = "\ufeffa.png, 0\nc.bmp,1\nd.PNG,2\n\ne.webp,3\n"  # bare names, as a spreadsheet writes
    rows["named inside"] = "file,label\na.png,0\nb\\c.bmp,1\nb\\d.PNG,2\ne.webp,3\n"
    table = {"inside": folder / "labels.csv", "beside": folder.parent / "labels.csv"}.get(where)
    table = table or (folder if where == "named inside" else folder.parent) / "classes.csv"
    table.write_text(rows[where], encoding="utf-8")
    source = {"named": f"{folder},{table}", "named inside": f"{folder},classes.csv"}.get(where, str(folder))
    data = open_evaluation(source, FIXED, "raw")
    assert data.labels is not None and data.labels.tolist() == [0, 1, 2, 3]
    part = data.take(2, 4)
    assert part.labels is not None and part.labels.tolist() == [2, 3]


def test_every_class_has_a_folder(tmp_path: Path) -> None:
    for number, name in enumerate(("dog/2.png", "cat/1.png", "dog/deep/1.png", "10/a.png")):
        save(tmp_path / "val" / name, pixels(number))
    (tmp_path / "val/ant").mkdir()  # a class without an image here still counts
    (tmp_path / "val/.cache").mkdir()
    data = open_evaluation(tmp_path / "val", FIXED, "raw")
    assert data.labels is not None and data.labels.tolist() == [0, 2, 3, 3]  # 10, ant, cat, dog
    np.testing.assert_array_equal(everything(data)[1], pixels(1).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "the images have no labels.*labels.csv.*folder of its own"),
        ("file,label\na.png,0\n", "image c.bmp has no label .*labels.csv"),
        (f"file,label\na.png,{'9' * 30}\n", "a row is not: file name, class number"),
        ("file,label\na.png,cat\n", "not: file name, class number .*line 2"),
        ("a.png;0\n", "not: file name, class number .*line 1"),
        ("a.png,0\nc.bmp,1\na.png,0\n./a.png,2\n", "a.png has two classes, 0 and 2 .*line 4"),
    ],
)
def test_wrong_labels_are_named(folder: Path, table: str | None, message: str) -> None:
    if table is not None:
        (folder / "labels.csv").write_text(table)
    with pytest.raises(InputError, match=message):
        open_evaluation(folder, FIXED, "raw")


def test_a_bare_name_stands_for_one_image(folder: Path) -> None:
    save(folder / "c.bmp", pixels(4))
    (folder / "labels.csv").write_text("".join(f"{name},0\n" for name in ("a.png", "c.bmp", "d.PNG", "e.webp")))
    with pytest.raises(InputError, match=r"the image c.bmp has no label"):  # b/c.bmp
        open_evaluation(folder, FIXED, "raw")


def test_a_missing_table_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the labels.*classes.csv"):
        open_evaluation(f"{folder},classes.csv", FIXED, "raw")


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    save(tmp_path / "000.png", pixels(0, 64, 64))
    for number in range(1, 96):
        os.link(tmp_path / "000.png", tmp_path / f"{number:03}.png")
    inputs = [InputInfo("image", ("N", 3, 64, 64), FLOAT)]

    def peak(samples: int) -> int:
        data = open_dataset(tmp_path, inputs, "imagenet-norm").take(0, samples)
        tracemalloc.start()
        try:
            for _ in data.batches(4):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(8)  # Pillow loads its plugins
    image = 3 * 64 * 64 * 4
    assert peak(96) < peak(12) + image  # 84 images more
    assert peak(96) < 16 * image  # two batches and what decoding takes


def test_imagenet_folder_with_labels_beside_it(shared_assets: Path) -> None:
    inputs = [InputInfo("image", ("N", 3, 224, 224), FLOAT)]
    data = open_evaluation(shared_assets / "imagenet/val", inputs, "resize=256,crop=224,scale=1,mean=127,std=128")
    assert data.count == 600 and data.labels is not None and data.labels[:5].tolist() == [0, 1, 2, 5, 6]
    batch = next(data.batches(2))["image"]
    assert batch.shape == (2, 3, 224, 224) and batch.min() >= -127 / 128 and batch.max() <= 1

"""8-bit images on their way into one input of the model: from arrays or from files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from qcompile.data.inputs import Arrays, Indices, InputInfo, show_shape
from qcompile.data.preprocess import PRESETS, Layout, Preprocess, Size, show_size
from qcompile.errors import InputError
from qcompile.files import files_below, kind_of_place

IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
SIDEWAYS: Final = range(5, 9)  # EXIF orientations that exchange height and width
MODES: Final = {1: "L", 3: "RGB"}  # channels of the model's input: Pillow's name of that image


@dataclass(frozen=True)
class ImageInput:
    """One input of the model that takes images, with the preprocessing that makes them fit."""

    info: InputInfo
    preprocess: Preprocess
    layout: Layout
    channels: int
    where: str

    @classmethod
    def of(cls, info: InputInfo, preprocess: Preprocess | None, where: str) -> ImageInput:
        """Check that the input can take images and that a preprocessing is named; else raise InputError."""
        if preprocess is None:
            raise InputError(
                f"the data are images, and no preprocessing for the model's input {info.name!r} is named",
                where=where,
                remedy=f"give that of its training: --preprocess {', '.join(PRESETS)}, a .toml file or key=value,...",
            )
        layout = preprocess.layout or shown_layout(info)
        channels = info.shape[1 if layout == "nchw" else -1] if len(info.shape) == 4 else 0
        channels = channels if isinstance(channels, int) else 3
        if channels not in MODES:
            raise InputError(
                f"the model's input {info.name!r} takes {show_shape(info.shape)}, no 1 or 3 channels in {layout}",
                where=where,
                remedy="give ready arrays in an .npz file, or set layout=nchw or nhwc in --preprocess",
            )
        if channels == 1 and max(len(preprocess.mean), len(preprocess.std)) > 1:
            raise InputError(
                f"the model's input {info.name!r} has one channel, the preprocessing has a mean or std for three",
                where=where,
                remedy="give --preprocess one number each, for example mean=0.5,std=0.5",
            )
        if info.dtype.kind != "f" and not preprocess.keeps_values:
            raise InputError(
                f"the model's input {info.name!r} takes {info.dtype}, the preprocessing makes floats",
                where=where,
                remedy="use --preprocess raw",
            )
        return cls(info, preprocess, layout, channels, where)

    @property
    def wanted_size(self) -> tuple[int | str | None, int | str | None]:
        """The (height, width) of the model's input."""
        shape = self.info.shape
        return (shape[2], shape[3]) if self.layout == "nchw" else (shape[1], shape[2])

    def fits(self, size: Size) -> bool:
        """Say whether the model takes images of `size`."""
        return all(have == want or not isinstance(want, int) for have, want in zip(size, self.wanted_size))

    def check(self, size: Size, where: str) -> None:
        """Raise InputError unless an image of `size` fits the model after the geometry."""
        result = self.preprocess.output_size(size, where)
        if not self.fits(result):
            wanted = show_shape(self.wanted_size)
            advice = "add size=HEIGHTxWIDTH, or resize=... and crop=..., to the preprocessing"
            raise InputError(
                f"an image of {show_size(size)} is {show_size(result)} after preprocessing, "
                f"the model's input {self.info.name!r} takes {wanted}",
                where=where,
                remedy="correct size or crop in the preprocessing" if self.preprocess.final_size else advice,
            )

    def from_array(self, array: NDArray[np.uint8]) -> NDArray[Any]:
        """Return images [N, H, W, C], [N, C, H, W] or, for one channel, [N, H, W] as the model's input.

        Images that have the final size already skip the geometry; the others go through it one by one.
        """
        pixels = self._channels_last(array)
        size = (pixels.shape[1], pixels.shape[2])
        fixed = all(isinstance(dim, int) for dim in self.wanted_size)
        if not (self.fits(size) and (fixed or size == self.preprocess.final_size)):
            self.check(size, self.where)
            if self.preprocess.has_geometry:
                pixels = np.stack([self._moved(Image.fromarray(image.squeeze())) for image in pixels])
        return self._finish(pixels)

    def from_file(self, path: Path) -> NDArray[Any]:
        """Return the image in a file as the model's input, one sample; a damaged file is an InputError naming it.

        It is turned as its EXIF orientation says; of several frames the first is taken; transparency is left out.
        """
        with opened(path) as image:
            try:
                turned = ImageOps.exif_transpose(image)
                opaque = turned.convert("RGBA") if "transparency" in turned.info else turned
                pixels = opaque.convert(MODES[self.channels])
            except (OSError, ValueError, SyntaxError) as error:
                raise unreadable(path, error) from error
        self.check((pixels.height, pixels.width), str(path))
        return self._finish(self._moved(pixels)[None])

    def _moved(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return [H, W, C] after the geometry."""
        moved = np.asarray(self.preprocess.move(image))
        return moved.reshape(*moved.shape[:2], self.channels)

    def _finish(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        return self.preprocess.arithmetic(pixels, self.layout).astype(self.info.dtype, copy=False)

    def _channels_last(self, array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if array.ndim == 3 and self.channels == 1:
            return array[..., None]
        if array.ndim == 4 and array.shape[3] == self.channels:
            return array
        if array.ndim == 4 and array.shape[1] == self.channels:
            return array.transpose(0, 2, 3, 1)
        raise InputError(
            f"images of shape {show_shape(array.shape)} are neither NHWC nor NCHW with {self.channels} channels, "
            f"which the model's input {self.info.name!r} takes",
            where=self.where,
            remedy="give uint8 images [N, height, width, channels]",
        )


def shown_layout(info: InputInfo) -> Layout:
    """Return the layout that the position of 1 or 3 channels in the shape shows; ONNX's own, nchw, if nothing shows."""
    if len(info.shape) == 4 and info.shape[1] not in MODES and info.shape[3] in MODES:
        return "nhwc"
    return "nchw"


def opened(path: Path) -> Image.Image:
    """Open an image file: only its head is read."""
    kind_of_place(path, "image")  # a pipe may never end
    try:
        image = Image.open(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise unreadable(path, error) from error
    if image.mode[0] in "IF":  # 16 and 32 bits: Pillow would clip them to 255
        image.close()
        raise InputError(
            f"the image has more than 8 bits per channel (mode {image.mode})",
            where=str(path),
            remedy="convert it to 8 bits",
        )
    return image


def upright_size(image: Image.Image) -> Size:
    """Return the (height, width) of an image that was opened, once it is turned as its EXIF orientation says."""
    sideways = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
    return (image.width, image.height) if sideways else (image.height, image.width)


def unreadable(path: Path, error: Exception) -> InputError:
    """Return the error for a file that is no image, or a damaged one."""
    why = (isinstance(error, OSError) and error.strerror) or str(error).removesuffix(f" {str(path)!r}")
    return InputError(f"cannot read the image: {why}", where=str(path), remedy="remove or replace the file")


def find_images(folder: Path) -> list[Path]:
    """Return the image files in a folder and the folders in it, sorted by name; hidden ones are left out."""
    found = [path for path in files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES]
    files = sorted(found, key=lambda path: path.relative_to(folder).as_posix())
    if not files:
        raise InputError(
            "the folder has neither images nor test_data_set_* folders",
            where=str(folder),
            remedy=f"images end in {', '.join(sorted(IMAGE_SUFFIXES))}; put arrays into one .npz",
        )
    return files


def check_images(files: Sequence[Path], target: ImageInput) -> None:
    """Read the head of every file: raise InputError, naming it, for one that is no image or does not fit."""
    for path in files:
        with opened(path) as image:
            target.check(upright_size(image), str(path))


@dataclass(frozen=True, eq=False)
class ImageReader:
    """A reader that decodes one file after the other."""

    files: Sequence[Path]
    target: ImageInput

    def __call__(self, numbers: Indices, batch: int) -> Iterator[Arrays]:
        """Yield the images of these numbers."""
        for number in numbers:
            yield {self.target.info.name: self.target.from_file(self.files[number])}

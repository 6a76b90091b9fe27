"""Preprocessing: what happens to an 8-bit image before the model sees it, as a small table that text can express."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qcompile.errors import InputError, nearest
from qcompile.files import parse_toml, read_bytes

Layout = Literal["nchw", "nhwc"]
Order = Literal["rgb", "bgr"]
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Preprocess:
    """Geometry, then y = (x * scale - mean) / std on pixels x in 0 .. 255.

    `resize` is the length of the short side in pixels (the aspect ratio stays); `crop` then cuts that (height, width)
    out of the centre; `size` then resizes to exactly that, whatever the aspect. None leaves a step out. `mean` and
    `std` hold one number or three in the order red, green, blue, whatever `order` says: it swaps channels afterwards.
    `layout` None means: the one that the shape of the model's input shows.

    References
    ----------
    torchvision, transforms/functional.py: the lengths of `resize` and the offsets of `center_crop`. Pillow's bilinear
    filter widens as the image shrinks, which is what "antialias" means there.
    """

    resize: int | None = None
    crop: Size | None = None
    size: Size | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Layout | None = None
    order: Order = "rgb"

    @property
    def final_size(self) -> Size | None:
        """The (height, width) that every image gets, or None if it depends on the image."""
        return self.size or self.crop

    @property
    def has_geometry(self) -> bool:
        """Whether any step changes the size of images."""
        return bool(self.resize or self.crop or self.size)

    @property
    def keeps_values(self) -> bool:
        """Whether the arithmetic changes nothing."""
        return (self.scale, set(self.mean), set(self.std)) == (1, {0.0}, {1.0})

    def resized(self, size: Size) -> Size:
        """Return the (height, width) after the short side was brought to `resize`: the long side is rounded down."""
        if self.resize is None:
            return size
        height, width = size
        short = min(size)
        return self.resize * height // short, self.resize * width // short

    def output_size(self, size: Size, where: str) -> Size:
        """Return the (height, width) of an image of `size` after the geometry; InputError if too small to crop."""
        height, width = self.resized(size)
        if self.crop and (self.crop[0] > height or self.crop[1] > width):
            raise InputError(
                f"an image of {height}x{width} is smaller than crop={show_size(self.crop)}",
                where=where,
                remedy="add resize=... to the preprocessing, or crop less",
            )
        return self.final_size or (height, width)

    def move(self, image: Image.Image) -> Image.Image:
        """Return `image` after resize, crop and size. Steps that change nothing keep every pixel."""
        height, width = self.resized((image.height, image.width))
        image = resize_exactly(image, (height, width))
        if self.crop:
            # Python rounds halves to even: so does torchvision, and its offsets are the ones models were scored with.
            top, left = round((height - self.crop[0]) / 2), round((width - self.crop[1]) / 2)
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        return resize_exactly(image, self.size) if self.size else image

    def arithmetic(self, pixels: NDArray[np.uint8], layout: Layout) -> NDArray[np.float32]:
        """Return (x * scale - mean) / std as float32 in `layout`, for pixels [N, H, W, C] of red, green, blue."""
        moved = pixels.transpose(0, 3, 1, 2) if layout == "nchw" else pixels
        result = np.empty(moved.shape, np.float32)
        for channel in range(pixels.shape[3]):
            at = (slice(None), channel) if layout == "nchw" else (..., channel)
            source = pixels.shape[3] - 1 - channel if self.order == "bgr" else channel
            plane = result[at]
            np.multiply(pixels[..., source], np.float32(self.scale), out=plane, dtype=np.float32)
            if mean := self.mean[source % len(self.mean)]:
                plane -= np.float32(mean)
            if (std := self.std[source % len(self.std)]) != 1:
                plane /= np.float32(std)
        return result


def resize_exactly(image: Image.Image, size: Size) -> Image.Image:
    """Return `image` with the given (height, width): bilinear, antialiased when it shrinks."""
    if (image.height, image.width) == size:
        return image
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def show_size(size: Size) -> str:
    """Return a (height, width) the way a user writes it."""
    return f"{size[0]}x{size[1]}"


IMAGENET_NORM: Final = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "imagenet": {"resize": 256, "crop": (224, 224), **IMAGENET_NORM},
    "imagenet-norm": IMAGENET_NORM,
    "tf": {"scale": 1.0, "mean": (127.5,), "std": (127.5,)},
    "raw": {"scale": 1.0},
}


def parse_preprocess(text: str) -> Preprocess:
    """Read a preprocessing from text: a preset or a .toml file, then `key=value` overrides, separated by commas.

    `"imagenet"`, `"imagenet,crop=192"`, `"my.toml"`, `"resize=256,crop=224,scale=1,mean=127,std=128"`. A TOML file has
    the same keys; `mean`, `std`, `size` and `crop` may be lists there. Unknown keys and values are InputErrors.
    """
    values: dict[str, Any] = {}
    for place, part in enumerate(item.strip() for item in text.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if equals:
            values[key] = read_value(key, value, text)
        elif place == 0:
            values.update(read_base(part))
        else:
            raise InputError(
                f"--preprocess: {part!r} is not key=value", where=text, remedy="write for example crop=192"
            )
    return Preprocess(**values)


def alternatives(text: str) -> list[str]:
    """Return what else might have been meant by a preprocessing: other presets, with its geometry, and other order."""
    given = parse_preprocess(text)
    shape = [f"resize={given.resize}"] if given.resize else []
    shape += [f"{key}={show_size(size)}" for key, size in (("crop", given.crop), ("size", given.size)) if size]
    kept = [
        *shape,
        *([f"layout={given.layout}"] if given.layout else []),
        *(["order=bgr"] if given.order == "bgr" else []),
    ]
    texts = [",".join([name, *part]) for name in PRESETS for part in ([], kept)]
    texts.append(f"{text},order={'rgb' if given.order == 'bgr' else 'bgr'}")
    found: dict[Preprocess, str] = {}
    for item in texts:
        meant = parse_preprocess(item)
        same_place = (meant.resize, meant.crop, meant.size) == (given.resize, given.crop, given.size)
        if meant != given and (same_place or not given.has_geometry):
            found.setdefault(meant, item)
    return list(found.values())


def read_base(name: str) -> Mapping[str, Any]:
    """Return the fields that a preset or a TOML file sets."""
    if not name.endswith(".toml"):
        if name not in PRESETS:
            raise InputError(
                f"--preprocess {name} is unknown", remedy=f"{nearest(name, PRESETS)}; or give key=value,..."
            )
        return PRESETS[name]
    data = read_bytes(Path(name), "file of --preprocess")
    try:
        table = parse_toml(data)
    except ValueError as error:
        what = f"the file of --preprocess is not TOML: {error}"
        raise InputError(what, where=name, remedy="correct it there") from error
    return {key: read_value(key, as_text(key, value), name) for key, value in table.items()}


def as_text(key: str, value: Any) -> str:
    """Return a TOML value as it would be written on the command line."""
    separator = "x" if key in ("size", "crop") else "/"
    return separator.join(map(str, value)) if isinstance(value, list) else str(value)


def read_value(key: str, text: str, where: str) -> Any:
    """Return the value of one key."""
    if key not in READERS:
        raise InputError(f"--preprocess: unknown key {key!r}", where=where, remedy=nearest(key, READERS))
    read, form = READERS[key]
    try:
        return read(text)
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"--preprocess: {key}={text} is not valid", where=where, remedy=f"{key} is {form}") from error


def read_length(text: str) -> int:
    """Read a number of pixels, 1 or more."""
    if (length := int(text)) < 1:
        raise ValueError(text)
    return length


def read_size(text: str) -> Size:
    """Read `224` or `224x320` (height x width)."""
    lengths = [read_length(part) for part in text.split("x")]
    if len(lengths) > 2:
        raise ValueError(text)
    return lengths[0], lengths[-1]


def read_number(text: str) -> float:
    """Read a finite number."""
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return number


def read_scale(text: str) -> float:
    """Read `0.0039`, or a ratio such as `1/255`; above 0."""
    above, _, below = text.partition("/")
    if (scale := read_number(above) / read_number(below or "1")) <= 0:
        raise ValueError(text)
    return scale


def read_channels(text: str) -> tuple[float, ...]:
    """Read one number, or three as `0.485/0.456/0.406`."""
    numbers = tuple(read_number(part) for part in text.split("/"))
    if len(numbers) not in (1, 3):
        raise ValueError(text)
    return numbers


def read_std(text: str) -> tuple[float, ...]:
    """Read one number or three, all above 0."""
    numbers = read_channels(text)
    if min(numbers) <= 0:
        raise ValueError(text)
    return numbers


def one_of(kind: Any) -> Callable[[str], str]:
    """Return a reader that accepts the values of a Literal type."""

    def read(text: str) -> str:
        if text not in get_args(kind):
            raise ValueError(text)
        return text

    return read


READERS: Final[Mapping[str, tuple[Callable[[str], Any], str]]] = {
    "resize": (read_length, "the length of the short side in pixels"),
    "crop": (read_size, "a size in pixels such as 224 or 224x320 (height x width)"),
    "size": (read_size, "a size in pixels such as 224 or 224x320 (height x width)"),
    "scale": (read_scale, "a number above 0, or a ratio such as 1/255"),
    "mean": (read_channels, "one number, or three as red/green/blue"),
    "std": (read_std, "one number above 0, or three as red/green/blue"),
    "layout": (one_of(Layout), "nchw or nhwc"),
    "order": (one_of(Order), "rgb or bgr"),
}

"""The models and images of the benchmarks, from the development assets beside the checkout (../shared/assets).

Images are prepared here with numpy and Pillow alone, independently of qcompile: scores and peers do not depend on it.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # tools run without an installation
ASSETS = ROOT.parent / "shared" / "assets"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Case:
    """One model with its data.

    `calibration` and `evaluation` are an npz of uint8 NHWC images (and labels) or a folder of JPEGs whose short side is
    256. `preprocess` is the command-line form of the rest: `scale`, then `mean` and `std`; geometry is a centre crop of
    `crop`, then exactly `size`.
    """

    model: Path
    input: str
    calibration: Path
    evaluation: Path
    preprocess: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: int | None = None
    size: int | None = None

    def command(self, out: Path, images: int, flags: tuple[str, ...] = (), data: Path | None = None) -> list[str]:
        """Return the command line that compiles this model with the first `images` calibration images."""
        source = ["--data", str(data or self.calibration), "--samples", str(images), "--preprocess", self.preprocess]
        return [sys.executable, "-m", "qcompile", str(self.model), "-o", str(out), *source, "-q", *flags]

    def batches(self, source: Path, count: int | None = None, batch: int = 1) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield ready float32 NCHW feeds of the first `count` images."""
        images = _images(source, count)
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            pixels = part if isinstance(part, np.ndarray) else np.stack([self._decode(path) for path in part])
            mean, std = (np.asarray(numbers, np.float32) for numbers in (self.mean, self.std))
            values = (pixels.astype(np.float32) * np.float32(self.scale) - mean) / std
            yield {self.input: np.ascontiguousarray(values.transpose(0, 3, 1, 2))}

    def _decode(self, path: Path) -> NDArray[np.uint8]:
        image = Image.open(path).convert("RGB")
        if self.crop:
            left, top = round((image.width - self.crop) / 2), round((image.height - self.crop) / 2)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        if self.size:
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return np.asarray(image)

    def labels(self, source: Path) -> NDArray[np.int64]:
        """Return the class of each image."""
        if source.suffix == ".npz":
            with np.load(source) as arrays:
                return np.asarray(arrays["labels"], np.int64)
        with (source.parent / "labels.csv").open() as table:
            by_name = {row["file"]: int(row["label"]) for row in csv.DictReader(table)}
        return np.array([by_name[f"{path.parent.name}/{path.name}"] for path in _images(source, None)], np.int64)


def _images(source: Path, count: int | None) -> list[Path] | NDArray[np.uint8]:
    """Return the first `count` images: an array, or the sorted files of a folder."""
    if source.suffix == ".npz":
        with np.load(source) as arrays:
            return np.asarray(arrays["images"][:count])
    return sorted(source.glob("*.jpg"))[:count]


CIFAR, IMAGENET = ASSETS / "cifar10", ASSETS / "imagenet"
LITE0 = Case(
    model=ASSETS / "models" / "efficientnet_lite0.onnx",
    input="image",
    calibration=IMAGENET / "calib",
    evaluation=IMAGENET / "val",
    preprocess="resize=256,crop=224,scale=1,mean=127,std=128",
    scale=1.0,
    mean=(127.0,),
    std=(128.0,),
    crop=224,
)
CASES = {
    "resnet20": Case(
        model=ASSETS / "models" / "resnet20.onnx",
        input="image",
        calibration=CIFAR / "calib.npz",
        evaluation=CIFAR / "test.npz",
        preprocess="imagenet-norm",
        scale=1 / 255,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    "embedded": Case(
        model=ROOT / "models" / "resnet20_cifar10.onnx",
        input="image",
        calibration=ROOT / "models" / "cifar10_calib.npz",
        evaluation=CIFAR / "test.npz",
        preprocess="imagenet-norm",
        scale=1 / 255,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    "lite0": LITE0,
    "lite1": replace(  # made by export_lite1.py
        LITE0,
        model=ROOT / "build" / "efficientnet_lite1.onnx",
        preprocess="resize=256,crop=240,scale=1,mean=127,std=128",
        crop=240,
    ),
    "ppocr": Case(  # a text detector without text images at hand: for speed and kernels, not for accuracy
        model=ASSETS / "models" / "ppocr_v4_det.onnx",
        input="x",
        calibration=IMAGENET / "calib",
        evaluation=IMAGENET / "val",
        preprocess="size=320,mean=0.485/0.456/0.406,std=0.229/0.224/0.225",
        scale=1 / 255,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        size=320,
    ),
}

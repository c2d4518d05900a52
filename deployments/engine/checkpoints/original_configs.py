"""The configs of models whose checkpoints come as one file, as in diffusers' folders of them. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

PredictionType = Literal["epsilon", "v_prediction"]

_UNET_1: Final[Mapping[str, Any]] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
_UNET_2: Final[Mapping[str, Any]] = {
    **_UNET_1,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
_UNET_XL: Final[Mapping[str, Any]] = {
    **_UNET_1,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
    "use_linear_projection": True,
}
VAE: Final[Mapping[str, Any]] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
# In half precision its numbers overflow.
VAE_XL: Final[Mapping[str, Any]] = {**VAE, "force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025}
_TEXT_1: Final[Mapping[str, Any]] = {
    "architectures": ["CLIPTextModel"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "vocab_size": 49408,
}
# OpenCLIP's ViT-H/14 has 24 layers, of which Stable Diffusion 2 takes the last but one's answers.
_TEXT_2: Final[Mapping[str, Any]] = {
    **_TEXT_1,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
# OpenCLIP's ViT-bigG/14, whole.
_SECOND_TEXT: Final[Mapping[str, Any]] = {
    **_TEXT_1,
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
_SCHEDULER: Final[Mapping[str, Any]] = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def with_zero_snr(scheduler: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the config of a `scheduler` whose schedule ends in noise alone, and begins there (Lin et al. 2023).

    PNDM has no such schedule; DDIM takes its place.
    """
    name = scheduler["_class_name"]
    return {
        **scheduler,
        "_class_name": "DDIMScheduler" if name == "PNDMScheduler" else name,
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }


@dataclass(frozen=True, slots=True)
class Family:
    """A file's model, told by its keys and shapes: the Stable Diffusion version, and whether its UNet sees mask and
    image.
    """

    version: Literal[1, 2, "XL"]
    inpainting: bool

    @property
    def title(self) -> str:
        """The name that people use."""
        version = self.version if self.version == "XL" else f"{self.version}.x"
        return f"Stable Diffusion {version}" + (" inpainting" if self.inpainting else "")

    @property
    def pad_token(self) -> str:
        """The token that pads prompts: OpenCLIP's text encoder was trained with token 0."""
        return "!" if self.version == 2 else "<|endoftext|>"

    def configs(self, prediction_type: PredictionType) -> Mapping[str, Mapping[str, Any]]:
        """Returns the config of each part but the tokenizer, which has none.

        2.1 at 768 pixels is the one that predicts v.
        """
        if self.version == "XL":
            return {
                "unet": {**_UNET_XL, "in_channels": 9 if self.inpainting else 4, "sample_size": 128},
                "vae": VAE_XL,
                "text_encoder": _TEXT_1,
                "text_encoder_2": _SECOND_TEXT,
                "scheduler": {
                    **_SCHEDULER,
                    "_class_name": "EulerDiscreteScheduler",
                    "prediction_type": prediction_type,
                    "timestep_spacing": "leading",
                },
            }
        large = self.version == 2 and prediction_type == "v_prediction"
        unet: dict[str, Any] = {
            **(_UNET_1 if self.version == 1 else _UNET_2),
            "in_channels": 9 if self.inpainting else 4,
            "sample_size": 96 if large else 64,
            "upcast_attention": large,
        }
        ddim = large or (self.version == 1 and self.inpainting)
        return {
            "unet": unet,
            "vae": {**VAE, "sample_size": 768 if large else 512},
            "text_encoder": _TEXT_1 if self.version == 1 else _TEXT_2,
            "scheduler": {
                **_SCHEDULER,
                "_class_name": "DDIMScheduler" if ddim else "PNDMScheduler",
                "prediction_type": prediction_type,
            },
        }

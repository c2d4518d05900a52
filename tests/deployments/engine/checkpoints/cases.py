"""Checkpoints as they are met in the wild, made from a tiny one: what is served, what is refused, and by which words.

The rows of `test_checkpoints.py` and of docs/compatibility.md.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch

from tests.deployments.engine.changes import (
    NETWORKS,
    TEXT,
    UNET,
    VAE,
    add_prefix,
    another_vae,
    bfloat16_only,
    cut,
    edit,
    eight_channels,
    folders_beside,
    halves,
    in_dtype,
    index_that_leads_out,
    index_that_promises,
    learnt_tokens,
    merges_cut_off,
    misshapen_first,
    no_tokenizer_files,
    old_attention_names,
    older_shards,
    other_ids,
    pickle_weights,
    projected,
    remake_text_encoder,
    remake_unet,
    remake_vae,
    remove,
    rename,
    replace_file,
    rewrite,
    set_key,
    shards,
    spoilt_first,
    token_rows,
    tokenizer_files,
    without_a_shard,
    without_first,
)

Change = Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class Case:
    """`what` is so about a folder. It is served, or `refused` with a sentence that has these words.

    `variant` is what diffusers must be told to load the folder.
    """

    what: str
    change: Change
    refused: tuple[str, ...] = ()
    variant: str | None = None


_LFS: Final = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 492265168\n"
_PAGE: Final = b"<!DOCTYPE html><html><body>Please sign in</body></html>"

_FIRST: Final = {
    "unet": "conv_in.bias",
    "vae": "decoder.conv_in.bias",
    "text_encoder": "embeddings.position_embedding.weight",
}

WEIGHTS: Final = (
    Case("weights in float64", partial(in_dtype, file=UNET, dtype=torch.float64)),
    Case("weights in bfloat16", partial(in_dtype, file=UNET, dtype=torch.bfloat16)),
    Case("weights in float16, by the plain name", partial(in_dtype, file=TEXT, dtype=torch.float16)),
    Case("a VAE whose attention has the names of diffusers' first versions",
         partial(rewrite, file=VAE, change=old_attention_names)),
    Case("a text encoder without the prefix `text_model.`, as transformers 5 saves it",
         partial(rewrite, file=TEXT, change=lambda s: {k.removeprefix("text_model."): v for k, v in s.items()})),
    Case("a text encoder with the prefix `text_model.`, as transformers 4 saved it",
         partial(rewrite, file=TEXT, change=lambda s: add_prefix("text_model.", {
             k.removeprefix("text_model."): v for k, v in s.items()}))),
    Case("`position_ids` that older versions saved",
         partial(rewrite, file=TEXT, change=lambda s: s | {
             "text_model.embeddings.position_ids": torch.arange(77)[None]})),
    Case("a text encoder under a doubled prefix",
         partial(rewrite, file=TEXT, change=lambda s: add_prefix("text_model.text_model.", {
             k.removeprefix("text_model."): v for k, v in s.items()})),
         ("its text_encoder", "lacks weights", "embeddings.position_embedding.weight")),
    *(Case(f"a {part} that was saved compiled (`_orig_mod.`)",
           partial(rewrite, file=file, change=partial(add_prefix, "_orig_mod.")), (f"its {part}", "_orig_mod."))
      for part, file in NETWORKS.items()),
    *(Case(f"a {part} with a tensor missing", partial(rewrite, file=file, change=without_first),
           (f"its {part}", "lacks weights", _FIRST[part])) for part, file in NETWORKS.items()),
    *(Case(f"a {part} with a tensor of another shape", partial(rewrite, file=file, change=misshapen_first),
           (f"its {part}", "another shape", _FIRST[part])) for part, file in NETWORKS.items()),
    *(Case(f"a {part} with a tensor that it does not know",
           partial(rewrite, file=file, change=lambda s: s | {"adapter.weight": torch.zeros(2)}),
           (f"its {part}", "does not know", "adapter.weight")) for part, file in NETWORKS.items()),
    *(Case(f"a {part} with weights that are not finite", partial(rewrite, file=file, change=spoilt_first),
           (f"its {part}", "not finite", _FIRST[part])) for part, file in NETWORKS.items()),
    Case("weights in integers, quantised by whom ever", partial(in_dtype, file=UNET, dtype=torch.int8),
         ("its unet", "not floating-point", "conv_in.bias")),
)  # fmt: skip

FILES: Final = (
    Case("half precision only (`fp16`)", halves, variant="fp16"),
    Case("half precision only, and variants of other weights (`ema`, `non_ema`)",
         partial(halves, others=("ema", "non_ema")), variant="fp16"),
    Case("half precision only (`bf16`)", bfloat16_only, variant="bf16"),
    Case("shards and their index", shards),
    Case("shards of half precision and their index", partial(shards, variant="fp16"), variant="fp16"),
    Case("shards of half precision by the names of older versions", older_shards, variant="fp16"),
    Case("folders beside the parts, such as `safety_checker` and `image_encoder`",
         folders_beside),
    Case("a shard missing", without_a_shard, ("its unet", "-00002-of-", "not there")),
    Case("an index that lists a weight which its shard has not", index_that_promises, ("its unet", "conv_in.bias")),
    Case("an index that leads out of its folder", index_that_leads_out, ("its unet", "own folder", "weight_map")),
    Case("weights of another variant only (`non_ema`)",
         partial(rename, file=UNET, to="diffusion_pytorch_model.non_ema.safetensors"), ("its unet", "non_ema")),
    Case("weights as a pickle only", pickle_weights, ("its unet", "pickle", "darkroom convert", "FOLDER")),
    Case("a pickle by the name of safetensors",
         partial(replace_file, file=UNET, content=b"PK\x03\x04" + bytes(90)), ("its unet", "pickle")),
    *(Case(f"a Git LFS pointer for the {part}'s weights", partial(replace_file, file=file, content=_LFS),
           (f"its {part}", Path(file).name, "git lfs pull")) for part, file in NETWORKS.items()),
    *(Case(f"a web page for the {part}'s weights", partial(replace_file, file=file, content=_PAGE),
           (f"its {part}", Path(file).name, "web page")) for part, file in NETWORKS.items()),
    *(Case(f"the {part}'s weights cut off", partial(cut, file=file), (f"its {part}", Path(file).name, "cut off"))
      for part, file in NETWORKS.items()),
    Case("weights cut off in their header", partial(cut, file=UNET, to=1000), ("its unet", "cut off")),
    Case("an empty file for weights", partial(cut, file=UNET, to=0), ("its unet", "empty")),
    Case("nothing but noise for weights",
         partial(replace_file, file=UNET, content=bytes(range(256)) * 9), ("its unet", "not a safetensors file")),
    *(Case(f"{file} cut off", partial(cut, file=file, to=40), ("not valid JSON", file.rpartition("/")[2])) for file in (
        "unet/config.json", "vae/config.json", "text_encoder/config.json", "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")),
    Case("a Git LFS pointer for a config", partial(replace_file, file="unet/config.json", content=_LFS),
         ("its unet", "config.json", "git lfs pull")),
    Case("a list for a config", partial(replace_file, file="vae/config.json", content=b"[]"), ("its vae", "object")),
    Case("a part's folder missing", partial(remove, files=("vae",)), ("vae/",)),
    Case("a config missing", partial(remove, files=("text_encoder/config.json",)), ("its text_encoder", "config.json")),
)  # fmt: skip

_SETTINGS: Final = "tokenizer/tokenizer_config.json"

TOKENIZERS: Final = (
    Case("tokenizer.json only", partial(tokenizer_files, keep=("tokenizer.json",))),
    Case("vocab.json and merges.txt only", partial(tokenizer_files, keep=("vocab.json", "merges.txt"))),
    Case("a `model_max_length` below the text encoder's length", partial(edit, file=_SETTINGS, model_max_length=20)),
    Case("another padding token", partial(edit, file=_SETTINGS, pad_token="a</w>")),
    Case("learnt tokens that the tokenizer calls special", learnt_tokens),
    Case("learnt tokens that it does not", partial(learnt_tokens, special=False)),
    Case("a concept that was learnt as several tokens", partial(learnt_tokens, tokens=("<s0>", "<s0>_1"))),
    Case("no files in its folder", no_tokenizer_files,
         ("its tokenizer", "tokenizer.json", "merges.txt")),
    Case("no merges.txt", partial(tokenizer_files, keep=("vocab.json",)), ("its tokenizer", "merges.txt")),
    Case("no vocab.json", partial(tokenizer_files, keep=("merges.txt",)), ("its tokenizer", "vocab.json")),
    Case("merges.txt cut off", merges_cut_off, ("its tokenizer", "merges")),
    Case("tokens beyond the text encoder's `vocab_size`", other_ids, ("its tokenizer", "vocab_size")),
    Case("a text encoder of many more tokens", token_rows, ("its tokenizer", "vocab_size")),
    Case("no `model_max_length`", partial(edit, file=_SETTINGS, model_max_length=...),
         ("its tokenizer", "model_max_length")),
    Case("a `model_max_length` above the text encoder's length", partial(edit, file=_SETTINGS, model_max_length=512),
         ("its tokenizer", "model_max_length", "max_position_embeddings")),
    Case("padding on the left", partial(edit, file=_SETTINGS, padding_side="left"), ("its tokenizer", "padding_side")),
    Case("no padding token", partial(edit, file=_SETTINGS, pad_token=None), ("its tokenizer", "pad_token")),
    Case("the class of another tokenizer", partial(edit, file=_SETTINGS, tokenizer_class="BertTokenizer"),
         ("its tokenizer", "BertTokenizer")),
)  # fmt: skip

PIPELINES: Final = (
    *(Case(f"`{kind}` in model_index.json", partial(edit, file="model_index.json", _class_name=kind))
      for kind in ("StableDiffusionInpaintPipeline", "LatentConsistencyModelPipeline")),
    Case("no model_index.json entry for what makes no picture",
         partial(edit, file="model_index.json", safety_checker=..., feature_extractor=..., image_encoder=...,
                 requires_safety_checker=...)),
    Case("entries that StableDiffusionPipeline does not know",
         partial(edit, file="model_index.json", force_zeros_for_empty_prompt=True, text_encoder_2=[None, None])),
    *(Case(f"`{kind}` in model_index.json", partial(edit, file="model_index.json", _class_name=kind), (kind,))
      for kind in (
          "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "StableUnCLIPPipeline",
          "StableDiffusionUpscalePipeline", "StableDiffusionDepth2ImgPipeline",
          "StableDiffusionInstructPix2PixPipeline", "AltDiffusionPipeline", "OnnxStableDiffusionPipeline")),
    *(Case(f"a {part} of class `{library}.{kind}` in model_index.json",
           partial(set_key, file="model_index.json", key=part, value=[library, kind]), (f"its {part}", kind))
      for part, library, kind in (
          ("unet", "diffusers", "UNetMotionModel"), ("unet", "my_code", "UNet2DConditionModel"),
          ("vae", "diffusers", "AutoencoderTiny"), ("text_encoder", "transformers", "CLIPTextModelWithProjection"),
          ("tokenizer", "transformers", "T5Tokenizer"))),
    *(Case(f"no {part} in model_index.json", partial(set_key, file="model_index.json", key=part, value=[None, None]),
           ("model_index.json", part)) for part in ("unet", "vae", "text_encoder", "tokenizer")),
    Case("an AutoencoderTiny in the folder of the VAE", another_vae, ("its vae", "AutoencoderTiny")),
    Case("a CLIPTextModelWithProjection in the folder of the text encoder", projected,
         ("its text_encoder", "CLIPTextModelWithProjection")),
    Case("a UNet2DModel by its config.json", partial(edit, file="unet/config.json", _class_name="UNet2DModel"),
         ("its unet", "UNet2DModel")),
    Case("a text encoder of another architecture by its config.json",
         partial(edit, file="text_encoder/config.json", architectures=["T5EncoderModel"], model_type="t5"),
         ("its text_encoder", "T5EncoderModel")),
)  # fmt: skip

_IN: Final = "unet/config.json"

KEYS: Final = (
    Case("`center_input_sample`, `flip_sin_to_cos`, `freq_shift`, `norm_eps`, `mid_block_scale_factor`",
         partial(remake_unet, center_input_sample=True, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-3,
                 mid_block_scale_factor=2.0)),
    Case("`only_cross_attention`, `upcast_attention`, `use_linear_projection`",
         partial(remake_unet, only_cross_attention=True, upcast_attention=True, use_linear_projection=True)),
    Case("lists for `layers_per_block`, `transformer_layers_per_block`, `attention_head_dim`, `cross_attention_dim`",
         partial(remake_unet, layers_per_block=[1, 2], transformer_layers_per_block=[1, 2],
                 attention_head_dim=[2, 4], cross_attention_dim=[32, 32])),
    Case("`time_embedding_type` `fourier`, `time_embedding_dim`, `time_embedding_act_fn`, `timestep_post_act`",
         partial(remake_unet, time_embedding_type="fourier", time_embedding_dim=64, time_embedding_act_fn="silu",
                 timestep_post_act="silu")),
    Case("`conv_in_kernel`, `conv_out_kernel`, `resnet_time_scale_shift`, `resnet_skip_time_act`, "
         "`resnet_out_scale_factor`, `act_fn`, `norm_num_groups`",
         partial(remake_unet, conv_in_kernel=5, conv_out_kernel=1, resnet_time_scale_shift="scale_shift",
                 resnet_skip_time_act=True, resnet_out_scale_factor=1.5, act_fn="gelu", norm_num_groups=8)),
    Case("no `mid_block_type`", partial(remake_unet, mid_block_type=None)),
    Case("`mid_block_type` `UNetMidBlock2D`", partial(remake_unet, mid_block_type="UNetMidBlock2D")),
    Case("a VAE with `use_quant_conv` and `mid_block_add_attention` off, another `scaling_factor`, a `shift_factor`",
         partial(remake_vae, use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False,
                 scaling_factor=0.5, shift_factor=0.1, force_upcast=False)),
    Case("a UNet and a VAE of eight latent channels", eight_channels),
    Case("a VAE of other latent channels than the UNet's", partial(remake_vae, latent_channels=8),
         ("`in_channels` is 4", "`latent_channels`")),
    Case("another `hidden_act` and `layer_norm_eps` of the text encoder, and no word of ids that mean nothing here",
         partial(remake_text_encoder, hidden_act="gelu", layer_norm_eps=1e-3, eos_token_id=2, bos_token_id=0,
                 pad_token_id=1)),
    Case("`use_attention_mask` of the text encoder", partial(edit, file="text_encoder/config.json",
                                                             use_attention_mask=True)),
    Case("a dtype in a config", partial(edit, file="text_encoder/config.json", dtype="float16", torch_dtype="float16")),
    Case("tuples asked for in a config", partial(edit, file="text_encoder/config.json", return_dict=False)),
    Case("more channels in: `in_channels` 7, as upscalers have", partial(remake_unet, in_channels=7),
         ("`in_channels` is 7",)),
    Case("more channels out: `out_channels` 8", partial(remake_unet, out_channels=8), ("`out_channels` is 8",)),
    Case("a width that is not the text encoder's", partial(remake_unet, cross_attention_dim=48),
         ("`cross_attention_dim` is 48", "`hidden_size` 32")),
    *(Case(f"`{key}` {json.dumps(value)} of the UNet", partial(set_key, file=_IN, key=key, value=value),
           ("its unet", f"`{key}`"))
      for key, value in (
          ("addition_embed_type", "text_image"), ("encoder_hid_dim", 64), ("encoder_hid_dim_type", "text_proj"),
          ("class_embed_type", "timestep"), ("num_class_embeds", 1000), ("attention_type", "gated"),
          ("class_embeddings_concat", True), ("dual_cross_attention", True), ("cross_attention_norm", "layer_norm"),
          ("num_attention_heads", 4), ("mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
          ("down_block_types", ["DownBlock2D", "SimpleCrossAttnDownBlock2D"]),
          ("up_block_types", ["KCrossAttnUpBlock2D", "UpBlock2D"]), ("cross_attention_dim", [32, 64]))),
    *(Case(f"`{key}` {json.dumps(value)} of the VAE", partial(set_key, file="vae/config.json", key=key, value=value),
           ("its vae", f"`{key}`"))
      for key, value in (("in_channels", 4), ("out_channels", 6), ("scaling_factor", 0), ("scaling_factor", None))),
    *(Case(f"`quantization_config` of the {part}",
           partial(edit, file=f"{part}/config.json", quantization_config={"quant_method": "bitsandbytes"}),
           (f"its {part}", "`quantization_config`", "quantised")) for part in NETWORKS),
)  # fmt: skip

SECTIONS: Final = {
    "The kind of the checkpoint and of its parts": PIPELINES,
    "Files": FILES,
    "Weights": WEIGHTS,
    "Tokenizers": TOKENIZERS,
    "Configs": KEYS,
}

"""Changes a tiny checkpoint's folder into checkpoints as they are found in the wild."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tests.deployments.engine.tiny import tiny_text_encoder, tiny_tokenizer, tiny_unet, tiny_vae

State = dict[str, Tensor]

UNET: Final = "unet/diffusion_pytorch_model.safetensors"
VAE: Final = "vae/diffusion_pytorch_model.safetensors"
TEXT: Final = "text_encoder/model.safetensors"
NETWORKS: Final = {"unet": UNET, "vae": VAE, "text_encoder": TEXT}


def edit(folder: Path, *, file: str, **entries: Any) -> None:
    """Sets `entries` of a JSON file, takes those out that are `...`."""
    config = json.loads((folder / file).read_text())
    config = {key: value for key, value in (config | entries).items() if value is not ...}
    (folder / file).write_text(json.dumps(config))


def set_key(folder: Path, *, file: str, key: str, value: Any) -> None:
    edit(folder, file=file, **{key: value})


def rewrite(folder: Path, *, file: str, change: Callable[[State], State]) -> None:
    """Changes the tensors of a safetensors file."""
    state = {key: tensor.clone().contiguous() for key, tensor in change(load_file(folder / file)).items()}
    save_file(state, folder / file, metadata={"format": "pt"})


def cut(folder: Path, *, file: str, to: int | None = None) -> None:
    """Leaves the first `to` bytes, or all but the last hundred."""
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) - 100 if to is None else to])


def replace_file(folder: Path, *, file: str, content: bytes) -> None:
    (folder / file).write_bytes(content)


def overwrite(file: Path) -> None:
    """Writes other weights of the same shapes into a safetensors file, in place, as `cp` does over an old file."""
    others = {name: tensor.flip(0) + 1 for name, tensor in load(file.read_bytes()).items()}
    file.write_bytes(save(others, metadata={"format": "pt"}))


def remove(folder: Path, *, files: tuple[str, ...]) -> None:
    for file in files:
        path = folder / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def rename(folder: Path, *, file: str, to: str) -> None:
    (folder / file).rename(folder / file.rpartition("/")[0] / to)


def save_again(folder: Path, *, part: str, network: Any, **how: Any) -> None:
    shutil.rmtree(folder / part)
    network.save_pretrained(folder / part, **how)


def remake_unet(folder: Path, **entries: Any) -> None:
    """The UNet with other config entries: its weights where they fit, seeded ones elsewhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        unet = UNet2DConditionModel.from_config({**tiny_unet().config, **entries})
    save_again(folder, part="unet", network=unet)


def remake_vae(folder: Path, **entries: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        vae = AutoencoderKL.from_config({**tiny_vae().config, **entries})
    save_again(folder, part="vae", network=vae)


def eight_channels(folder: Path) -> None:
    """A UNet and a VAE of more latent channels than Stable Diffusion's."""
    remake_unet(folder, in_channels=8, out_channels=8)
    remake_vae(folder, latent_channels=8)


def remake_text_encoder(folder: Path, **entries: Any) -> None:
    encoder = tiny_text_encoder(tiny_tokenizer())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        made = CLIPTextModel(type(encoder.config)(**(encoder.config.to_dict() | entries)))
    save_again(folder, part="text_encoder", network=made)


def in_dtype(folder: Path, *, file: str, dtype: torch.dtype) -> None:
    rewrite(folder, file=file, change=lambda state: {key: tensor.to(dtype) for key, tensor in state.items()})


def add_prefix(prefix: str, state: State) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def without_first(state: State) -> State:
    return {key: tensor for key, tensor in state.items() if key != min(state)}


def spoilt_first(state: State) -> State:
    return state | {min(state): torch.full_like(state[min(state)], float("nan"))}


def misshapen_first(state: State) -> State:
    return state | {min(state): torch.zeros(3, 5)}


def old_attention_names(state: State) -> State:
    """As diffusers named the attention of a VAE in its first versions."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    pattern = re.compile(r"(?<=attentions\.0\.)(to_q|to_k|to_v|to_out\.0)")
    renamed = {pattern.sub(lambda found: old[found[0]], key): tensor for key, tensor in state.items()}
    assert set(renamed) != set(state)
    return renamed


def halves(folder: Path, *, others: tuple[str, ...] = ()) -> None:
    """All weights in half precision, under that name only; beside them `others`, other weights of those variants."""
    for file in NETWORKS.values():
        in_dtype(folder, file=file, dtype=torch.float16)
        stem = Path(file).name.removesuffix(".safetensors")
        for other in others:
            (folder / Path(file).parent / f"{stem}.{other}.safetensors").write_bytes(b"other weights")
        rename(folder, file=file, to=f"{stem}.fp16.safetensors")


def bfloat16_only(folder: Path) -> None:
    """The UNet by that name only."""
    in_dtype(folder, file=UNET, dtype=torch.bfloat16)
    rename(folder, file=UNET, to="diffusion_pytorch_model.bf16.safetensors")


def folders_beside(folder: Path) -> None:
    for name in ("safety_checker", "image_encoder"):
        (folder / name).mkdir()


def no_tokenizer_files(folder: Path) -> None:
    for path in (folder / "tokenizer").iterdir():
        path.unlink()


def shards(folder: Path, *, variant: str | None = None) -> None:
    """Every network in several files, as `save_pretrained` cuts them."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float16 if variant else None)
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float16 if variant else torch.float32)
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float16 if variant else None)
    for part, network in (("unet", unet), ("text_encoder", encoder), ("vae", vae)):
        save_again(folder, part=part, network=network, max_shard_size="100KB", variant=variant)


def older_shards(folder: Path) -> None:
    """A UNet's shards of a variant by the names of older versions: the variant behind the number."""
    shards(folder, variant="fp16")
    unet = folder / "unet"
    index = unet / "diffusion_pytorch_model.safetensors.index.fp16.json"
    listed = json.loads(index.read_text())
    older = {name: re.sub(r"\.fp16(-\d+-of-\d+)", r"\1.fp16", name) for name in set(listed["weight_map"].values())}
    for name, other in older.items():
        (unet / name).rename(unet / other)
    listed["weight_map"] = {key: older[name] for key, name in listed["weight_map"].items()}
    index.write_text(json.dumps(listed))


def without_a_shard(folder: Path) -> None:
    shards(folder)
    next((folder / "unet").glob("*-00002-of-*")).unlink()


def index_that_promises(folder: Path) -> None:
    """A weight that the index has and no shard."""
    shards(folder)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    listed = json.loads(index.read_text())
    shard = listed["weight_map"]["conv_in.bias"]
    rewrite(folder / "unet", file=shard, change=lambda state: {k: v for k, v in state.items() if k != "conv_in.bias"})


def index_that_leads_out(folder: Path) -> None:
    shards(folder)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    listed = json.loads(index.read_text())
    listed["weight_map"]["conv_in.bias"] = "../vae/diffusion_pytorch_model.safetensors"
    index.write_text(json.dumps(listed))


def pickle_weights(folder: Path) -> None:
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / UNET).unlink()


def another_vae(folder: Path) -> None:
    save_again(folder, part="vae", network=AutoencoderTiny())


def projected(folder: Path) -> None:
    config = tiny_text_encoder(tiny_tokenizer()).config
    save_again(folder, part="text_encoder", network=CLIPTextModelWithProjection(config))


def learnt_tokens(folder: Path, *, special: bool = True, tokens: tuple[str, ...] = ("<s0>", "<s1>")) -> None:
    """Tokens of a concept, as DreamBooth and textual inversion leave them."""
    tokenizer = tiny_tokenizer()
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    tokenizer.add_tokens(list(tokens), special_tokens=special)
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    weight = encoder.get_input_embeddings().weight.data
    for i in range(1, len(tokens) + 1):
        weight[-i] = weight[100 + 7 * i] * 2
    save_again(folder, part="tokenizer", network=tokenizer)
    save_again(folder, part="text_encoder", network=encoder)


def tokenizer_files(folder: Path, *, keep: tuple[str, ...]) -> None:
    """The tokenizer in the files `keep` only, of those that its several versions write."""
    at = folder / "tokenizer"
    whole = json.loads((at / "tokenizer.json").read_text())["model"]
    (at / "vocab.json").write_text(json.dumps(whole["vocab"]))
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in whole["merges"]]
    (at / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]))
    for name in {path.name for path in at.iterdir()} - {*keep, "tokenizer_config.json"}:
        (at / name).unlink()


def merges_cut_off(folder: Path) -> None:
    tokenizer_files(folder, keep=("vocab.json", "merges.txt"))
    path = folder / "tokenizer" / "merges.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:5]))


def other_ids(folder: Path) -> None:
    """A tokenizer that knows more than its text encoder."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    save_again(folder, part="tokenizer", network=tokenizer)


def token_rows(folder: Path) -> None:
    """A text encoder of many more tokens than the tokenizer has."""
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    encoder.resize_token_embeddings(2000, mean_resizing=False)
    save_again(folder, part="text_encoder", network=encoder)

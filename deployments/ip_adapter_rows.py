"""The IP-Adapters that models of the registry have, by the names that callers use: files of one repository at its pin.

Their authors published more. These two kinds are what is asked for, and share one image encoder, CLIP ViT-H.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from deployments.engine.protocol.spec import IpAdapterSpec
from deployments.pins import PINS

_SOURCE: Final = "h94/IP-Adapter"


def _row(file: str) -> IpAdapterSpec:
    revision = PINS[_SOURCE].revision
    return IpAdapterSpec(
        source=_SOURCE,
        image_encoder=_SOURCE,
        revision=revision,
        file=file,
        image_encoder_revision=revision,
        subfolder="models/image_encoder",
        licence="Apache-2.0",
    )


SD15_IP_ADAPTERS: Mapping[str, IpAdapterSpec] = MappingProxyType(
    {
        "ip-adapter": _row("models/ip-adapter_sd15.safetensors"),
        "ip-adapter-plus": _row("models/ip-adapter-plus_sd15.safetensors"),
    }
)

SDXL_IP_ADAPTERS: Mapping[str, IpAdapterSpec] = MappingProxyType(
    {
        "ip-adapter": _row("sdxl_models/ip-adapter_sdxl_vit-h.safetensors"),
        "ip-adapter-plus": _row("sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors"),
    }
)

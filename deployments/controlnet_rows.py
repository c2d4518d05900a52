"""The ControlNets that models of the registry have: for each type that callers name, a repository at its pin."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from deployments.engine.protocol.spec import PartSpec
from deployments.pins import pin_part

# By the type that callers name. The repository's name says the rest: p is production, e experimental. `tile` is not
# among them, since its repository has pickled weights only: a configuration adds the folder that it was converted to.
SD15_CONTROLNETS: Mapping[str, PartSpec] = MappingProxyType(
    {
        kind: pin_part(f"lllyasviel/{name}", "CreativeML Open RAIL-M")
        for kind, name in {
            "canny": "control_v11p_sd15_canny",
            "depth": "control_v11f1p_sd15_depth",
            "pose": "control_v11p_sd15_openpose",
            "segmentation": "sd-controlnet-seg",
            "scribble": "control_v11p_sd15_scribble",
            "lineart": "control_v11p_sd15_lineart",
            "softedge": "control_v11p_sd15_softedge",
            "normal": "control_v11p_sd15_normalbae",
            "lines": "sd-controlnet-mlsd",
            "shuffle": "control_v11e_sd15_shuffle",
            "instruct": "control_v11e_sd15_ip2p",
        }.items()
    }
)

# Pickled weights only: `check_source` says how to convert them.
SD21_CONTROLNETS: Mapping[str, PartSpec] = MappingProxyType(
    {
        kind: pin_part(f"thibaud/controlnet-sd21-{name}-diffusers", "other (see the repository)")
        for kind, name in {
            "canny": "canny",
            "depth": "depth",
            "pose": "openpose",
            "segmentation": "ade20k",
        }.items()
    }
)

SDXL_CONTROLNETS: Mapping[str, PartSpec] = MappingProxyType(
    {
        kind: pin_part(f"diffusers/controlnet-{kind}-sdxl-1.0", "OpenRAIL (see the repository)")
        for kind in ("canny", "depth")
    }
)

# One network for all of them, by the numbers that its authors gave the kinds.
SDXL_UNION: Mapping[str, PartSpec] = MappingProxyType(
    {
        kind: replace(pin_part("xinsir/controlnet-union-sdxl-1.0", "Apache-2.0"), mode=mode)
        for kind, mode in {
            "pose": 0,
            "depth": 1,
            "softedge": 2,
            "scribble": 2,
            "canny": 3,
            "lineart": 3,
            "lines": 3,
            "normal": 4,
            "segmentation": 5,
        }.items()
    }
)

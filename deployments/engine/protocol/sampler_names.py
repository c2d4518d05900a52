"""The table of samplers, without torch, so that the HTTP side can use it. Adding a sampler is adding a row.

A row names the diffusers scheduler class that does the mathematics, and its settings. Settings that describe the
model's training (betas, prediction type, spacing of timesteps) are not here: they come from the model's config. If a
caller names no sampler, the checkpoint's own is used: the class and the settings that its files name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final

from deployments.engine.protocol.errors import InvalidParameter

Setting = bool | int | str

_SONG = "Song, Meng and Ermon, 2021, arXiv:2010.02502"
_HO = "Ho, Jain and Abbeel, 2020, arXiv:2006.11239"
_LIU = "Liu et al., 2022, arXiv:2202.09778"
_KARRAS = "Karras et al., 2022, arXiv:2206.00364"
_CROWSON = "Crowson, 2022, k-diffusion"
_LU = "Lu et al., 2022, arXiv:2211.01095"
_DPM2 = "Lu et al., 2022, arXiv:2206.00927, in the form of Crowson, k-diffusion"
_ZHANG = "Zhang and Chen, 2023, arXiv:2204.13902"
_ZHAO = "Zhao et al., 2023, arXiv:2302.04867"
_LUO = "Luo et al., 2023, arXiv:2310.04378"


def _settings(**settings: Setting) -> Mapping[str, Setting]:
    return MappingProxyType(settings)


_KARRAS_SIGMAS = _settings(use_karras_sigmas=True)


@dataclass(frozen=True, slots=True)
class Sampler:
    """One sampler: its canonical name, diffusers' scheduler class, its label in A1111's web UI, its paper.

    `order` is diffusers' stride: how many evaluations a whole step takes, except the last, which always takes one.
    `warm_up` evaluations are added when there is more than one step. `draws_noise` says whether it takes noise from the
    row's generator during the run. `steps_limited_by` names the entry of the scheduler's config that bounds the steps.
    """

    name: str
    scheduler: str
    label: str
    paper: str
    settings: Mapping[str, Setting] = field(default_factory=_settings)
    aliases: tuple[str, ...] = ()
    order: int = 1
    warm_up: int = 0
    draws_noise: bool = False
    steps_limited_by: str | None = None

    def evaluations(self, num_inference_steps: int, strength: float | None = None) -> int:
        """Returns the model's evaluations, before guidance, for a row of that many steps (at least 1), as progress
        counts them.

        With `strength` only those that image-to-image leaves.
        """
        more = num_inference_steps - 1
        skipped = 0 if strength is None else self.start(num_inference_steps, strength)
        return max(1, 1 + self.order * more + min(self.warm_up, more) - skipped)

    def start(self, num_inference_steps: int, strength: float) -> int:
        """Returns the index of the first evaluation for image-to-image at `strength` (0 to 1), as diffusers' pipelines
        count it.
        """
        kept = min(int(num_inference_steps * strength), num_inference_steps)
        return (num_inference_steps - kept) * self.order


_ROWS = (
    Sampler("ddim", "DDIMScheduler", "DDIM", _SONG),
    Sampler("ddpm", "DDPMScheduler", "DDPM", _HO, draws_noise=True),
    # Without `skip_prk_steps` it would be the Runge-Kutta start of the paper, which no Stable Diffusion config uses.
    Sampler("pndm", "PNDMScheduler", "PLMS", _LIU, _settings(skip_prk_steps=True), warm_up=1),
    Sampler("euler", "EulerDiscreteScheduler", "Euler", _KARRAS),
    # What SDXL-Lightning was distilled with (Lin, Wang and Yang, 2024): steps that begin at the last training timestep.
    Sampler(
        "euler_trailing", "EulerDiscreteScheduler", "Euler trailing", _KARRAS, _settings(timestep_spacing="trailing")
    ),
    Sampler("euler_karras", "EulerDiscreteScheduler", "Euler Karras", _KARRAS, _KARRAS_SIGMAS),
    Sampler(
        "euler_a",
        "EulerAncestralDiscreteScheduler",
        "Euler a",
        _CROWSON,
        aliases=("euler ancestral",),
        draws_noise=True,
    ),
    Sampler("heun", "HeunDiscreteScheduler", "Heun", _KARRAS, order=2),
    Sampler("heun_karras", "HeunDiscreteScheduler", "Heun Karras", _KARRAS, _KARRAS_SIGMAS, order=2),
    Sampler("lms", "LMSDiscreteScheduler", "LMS", _CROWSON),
    Sampler("lms_karras", "LMSDiscreteScheduler", "LMS Karras", _CROWSON, _KARRAS_SIGMAS),
    Sampler("dpmpp_2m", "DPMSolverMultistepScheduler", "DPM++ 2M", _LU),
    Sampler("dpmpp_2m_karras", "DPMSolverMultistepScheduler", "DPM++ 2M Karras", _LU, _KARRAS_SIGMAS),
    Sampler(
        "dpmpp_2m_sde",
        "DPMSolverMultistepScheduler",
        "DPM++ 2M SDE",
        _LU,
        _settings(algorithm_type="sde-dpmsolver++"),
        draws_noise=True,
    ),
    Sampler(
        "dpmpp_2m_sde_karras",
        "DPMSolverMultistepScheduler",
        "DPM++ 2M SDE Karras",
        _LU,
        _settings(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True),
        draws_noise=True,
    ),
    Sampler("dpmpp_3m", "DPMSolverMultistepScheduler", "DPM++ 3M", _LU, _settings(solver_order=3)),
    Sampler(
        "dpmpp_3m_sde",
        "DPMSolverMultistepScheduler",
        "DPM++ 3M SDE",
        _LU,
        _settings(algorithm_type="sde-dpmsolver++", solver_order=3),
        draws_noise=True,
    ),
    # The labels follow diffusers' own table of A1111 names, though this solver draws no noise. The class switches
    # `lower_order_final` on by itself, with a warning each time.
    Sampler(
        "dpmpp_sde_single",
        "DPMSolverSinglestepScheduler",
        "DPM++ SDE",
        _LU,
        _settings(lower_order_final=True),
        aliases=("dpmpp_sde", "dpmpp_2s"),
    ),
    Sampler(
        "dpmpp_sde_single_karras",
        "DPMSolverSinglestepScheduler",
        "DPM++ SDE Karras",
        _LU,
        _settings(lower_order_final=True, use_karras_sigmas=True),
        aliases=("dpmpp_sde_karras",),
    ),
    Sampler("deis", "DEISMultistepScheduler", "DEIS", _ZHANG),
    Sampler("unipc", "UniPCMultistepScheduler", "UniPC", _ZHAO, aliases=("uni_pc",)),
    Sampler("unipc_karras", "UniPCMultistepScheduler", "UniPC Karras", _ZHAO, _KARRAS_SIGMAS),
    Sampler("kdpm2", "KDPM2DiscreteScheduler", "DPM2", _DPM2, order=2),
    Sampler("kdpm2_karras", "KDPM2DiscreteScheduler", "DPM2 Karras", _DPM2, _KARRAS_SIGMAS, order=2),
    Sampler(
        "kdpm2_a",
        "KDPM2AncestralDiscreteScheduler",
        "DPM2 a",
        _DPM2,
        aliases=("dpm2 ancestral",),
        order=2,
        draws_noise=True,
    ),
    Sampler(
        "kdpm2_a_karras",
        "KDPM2AncestralDiscreteScheduler",
        "DPM2 a Karras",
        _DPM2,
        _KARRAS_SIGMAS,
        order=2,
        draws_noise=True,
    ),
    Sampler("lcm", "LCMScheduler", "LCM", _LUO, draws_noise=True, steps_limited_by="original_inference_steps"),
)

SAMPLERS: Mapping[str, Sampler] = MappingProxyType({row.name: row for row in _ROWS})

CHECKPOINT: Final = "checkpoint"
"""The name of a checkpoint's own sampler: the scheduler class and all settings that its files name. It has no row,
since it differs from model to model.
"""


def own_sampler(scheduler: str, order: int, steps_limited_by: str | None) -> Sampler:
    """Returns the row of a checkpoint's own sampler, whose scheduler class is `scheduler`."""
    named = next((row for row in _ROWS if row.scheduler == scheduler), None)
    warm_up = named.warm_up if named else 0
    return Sampler(CHECKPOINT, scheduler, "", "", order=order, warm_up=warm_up, steps_limited_by=steps_limited_by)


def _key(name: str) -> str:
    """Normalises a name: case, spaces, hyphens and underscores make no difference."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def _names() -> Mapping[str, str]:
    """Maps every spelling's key to the canonical name.

    A class name means the first row of that class: its plain settings.
    """
    names: dict[str, str] = {}
    for row in _ROWS:
        names.setdefault(_key(row.scheduler), row.name)
        names.setdefault(_key(row.scheduler.removesuffix("Scheduler")), row.name)
    for row in _ROWS:
        names.update({_key(name): row.name for name in (row.name, row.label, *row.aliases)})
    names[_key(CHECKPOINT)] = CHECKPOINT
    return MappingProxyType(names)


_CANONICAL = _names()


def resolve_sampler(name: str) -> str:
    """Returns the canonical name for a canonical name, a diffusers class name, an A1111 label or another alias; any
    case.

    CHECKPOINT is one of the canonical names. Raises InvalidParameter, which suggests the nearest names, for an unknown
    one.
    """
    key = _key(name)
    if key in _CANONICAL:
        return _CANONICAL[key]
    near = dict.fromkeys(_CANONICAL[match] for match in get_close_matches(key, _CANONICAL, n=3))
    hint = f"did you mean {' or '.join(near)}?" if near else f"known samplers: {', '.join((*SAMPLERS, CHECKPOINT))}"
    raise InvalidParameter("sampler", f"there is no such sampler; {hint}")


class SamplerNotLinear(InvalidParameter):
    """With this model's scheduler config the sampler cannot be written as a table, so it is refused."""

    code = "sampler_not_supported"

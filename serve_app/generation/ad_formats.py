"""The sizes of advertisements by name: one row each. Adding a format is adding a row."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.spec import ModelSpec
from serve_app.generation.sizes import native_sides


@dataclass(frozen=True, slots=True)
class AdFormat:
    """A named size in pixels. `use` says where it is common."""

    name: str
    width: int
    height: int
    use: str


_IAB: Final = "IAB display"

_ROWS = (
    AdFormat("medium_rectangle", 300, 250, _IAB),
    AdFormat("large_rectangle", 336, 280, _IAB),
    AdFormat("leaderboard", 728, 90, _IAB),
    AdFormat("large_leaderboard", 970, 90, _IAB),
    AdFormat("billboard", 970, 250, _IAB),
    AdFormat("half_page", 300, 600, _IAB),
    AdFormat("wide_skyscraper", 160, 600, _IAB),
    AdFormat("skyscraper", 120, 600, _IAB),
    AdFormat("portrait", 300, 1050, _IAB),
    AdFormat("square", 250, 250, _IAB),
    AdFormat("small_square", 200, 200, _IAB),
    AdFormat("mobile_leaderboard", 320, 50, _IAB),
    AdFormat("large_mobile_banner", 320, 100, _IAB),
    AdFormat("mobile_interstitial", 320, 480, _IAB),
    AdFormat("instagram_square", 1080, 1080, "Instagram feed"),
    AdFormat("instagram_portrait", 1080, 1350, "Instagram feed"),
    AdFormat("story", 1080, 1920, "stories and reels of Instagram, Facebook and TikTok"),
    AdFormat("facebook_link", 1200, 628, "Facebook feed"),
    AdFormat("linkedin_link", 1200, 627, "LinkedIn feed"),
    AdFormat("x_post", 1600, 900, "X feed"),
    AdFormat("youtube_thumbnail", 1280, 720, "YouTube"),
    AdFormat("pinterest_pin", 1000, 1500, "Pinterest"),
)

AD_FORMATS: Final[Mapping[str, AdFormat]] = MappingProxyType({row.name: row for row in _ROWS})

WIDEST: Final = 2.5
"""The widest shape that is asked of a model, width by height, or its inverse: wider ones are cut out of it."""


def apply_ad_format(params: GenerationParams, spec: ModelSpec) -> GenerationParams:
    """Returns `params` with the size of its ad format, and the size that the model makes well for what is asked.

    Raises InvalidParameter for a format that is not known, or beside an `output_size`.
    """
    changes: dict[str, object] = {}
    size = params.output_size
    if params.ad_format is not None:
        found = find_ad_format(params.ad_format)
        if size not in (None, (found.width, found.height)):
            raise InvalidParameter("output_size", "cannot be there beside an ad_format of another size")
        size = changes["output_size"] = (found.width, found.height)
    if size is not None and params.width is None and params.height is None:
        changes["width"], changes["height"] = native_sides(min(max(size[0] / size[1], 1 / WIDEST), WIDEST), spec)
    return params.model_copy(update=changes) if changes else params


def find_ad_format(name: str) -> AdFormat:
    """Returns the format of that name. Raises InvalidParameter, which suggests the nearest."""
    if name in AD_FORMATS:
        return AD_FORMATS[name]
    near = get_close_matches(name, AD_FORMATS, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known formats: {', '.join(AD_FORMATS)}"
    raise InvalidParameter("ad_format", f"there is no such format; {hint}")

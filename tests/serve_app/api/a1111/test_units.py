"""A1111's names of networks and annotators mean the ControlNet that they mean there."""

import pytest

from deployments.registry import SD15_CONTROLNETS
from serve_app.api.a1111.units import type_of

TYPES = [*SD15_CONTROLNETS, "tile"]


@pytest.mark.parametrize("types", [TYPES, TYPES[::-1]])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("canny", "canny"),
        ("control_v11f1p_sd15_depth [cfd03158]", "depth"),
        ("depth_midas", "depth"),
        ("openpose_full", "pose"),
        ("seg_ofade20k", "segmentation"),
        ("lineart_standard (from white bg & black line)", "lineart"),
        ("scribble_xdog", "scribble"),
        ("scribble_hed", "scribble"),
        ("scribble_pidinet", "scribble"),
        ("softedge_pidisafe", "softedge"),
        ("control_v11p_sd15_softedge", "softedge"),
        ("mlsd", "lines"),
        ("control_v11e_sd15_ip2p", "instruct"),
        ("tile_resample", "tile"),
        ("shuffle", "shuffle"),
        ("normal_bae", "normal"),
        ("reference_only", None),
        ("", None),
    ],
)
def test_a_name_means_one_type_whatever_their_order(name: str, kind: str | None, types: list[str]) -> None:
    assert type_of(name, types) == kind

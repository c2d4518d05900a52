"""Uploads are refused by their headers, before anything is decoded."""

import io

import pytest
from PIL import Image

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.params import GenerationParams
from serve_app.generation.uploads import check_uploads


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def test_an_image_that_waits_whole_in_memory_has_a_limit_of_its_own() -> None:
    large = png(2048, 2056)
    uploads, params = Uploads(image=large, mask=large), GenerationParams(prompt="a cup")
    check_uploads(uploads, params)
    with pytest.raises(InvalidParameter, match="4194304 pixels"):
        check_uploads(uploads, params.model_copy(update={"padding_mask_crop": 32}))

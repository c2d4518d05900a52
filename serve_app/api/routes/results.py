"""The endpoint behind the addresses of finished images, which need no key: they are signed, and expire."""

from collections.abc import Sequence
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Path, Query, Request, Response

from deployments.engine.protocol.events import ImageDone
from serve_app.api.problems import Problem
from serve_app.api.responses.delivery import FORMATS
from serve_app.api.responses.openapi import PICTURE, errors
from serve_app.store.result_files import BadAddress, FileAddress, ResultFile, ResultFiles

router = APIRouter(prefix="/results", tags=["diffusion"])

_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The image.", "content": {f"image/{name}": {"schema": PICTURE} for name in FORMATS}},
    **errors(403, 404, 422, 503),
}

FileId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Expires = Annotated[int, Query(ge=0, le=2**40)]
Signature = Annotated[str, Query(max_length=64)]


def files_of(request: Request) -> ResultFiles | None:
    """The application's store of finished images; None where none is configured."""
    files: ResultFiles | None = request.app.state.result_files
    return files


async def keep_images(request: Request, files: ResultFiles, images: Sequence[ImageDone]) -> list[str]:
    """Keeps images, all of them or none, and returns their addresses. Raises Overloaded."""
    base = (files.public_url or str(request.base_url)).rstrip("/")
    kept = await files.put_all([ResultFile(image.data, image.format) for image in images])
    queries = [urlencode({"expires": each.expires, "signature": each.signature}) for each in kept]
    return [f"{base}{router.prefix}/{each.file_id}?{query}" for each, query in zip(kept, queries, strict=True)]


@router.get("/{file_id}", response_class=Response, responses=_ANSWERS)
async def fetch(request: Request, file_id: FileId, expires: Expires, signature: Signature) -> Response:
    """Returns a finished image by the address that an answer had, until it expires."""
    files = files_of(request)
    if files is None:
        raise Problem(404, "not_found", "this server keeps no images")
    try:
        address = FileAddress(file_id, expires, signature)
        found = await files.get(address)
    except BadAddress:
        raise Problem(403, "invalid_address", "this address was not given out, or has expired") from None
    if found is None:
        raise Problem(404, "not_found", "the image is not there any more")
    headers = {
        # No longer than the address leads there.
        "Cache-Control": f"private, max-age={files.seconds_left(address)}, immutable",
        "Content-Disposition": f'inline; filename="{file_id}.{found.format}"',
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(found.data, media_type=f"image/{found.format}", headers=headers)

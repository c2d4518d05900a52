"""`darkroom upscale`: enlarges a finished picture."""

from pathlib import Path
from typing import Annotated

import typer

from deployments.engine.protocol.errors import InvalidParameter
from serve_app.cli.exits import exit_on_errors
from serve_app.cli.options import ApiKey, AsJson, Url
from serve_app.cli.progress import check_url, output_format
from serve_app.cli.results import save, say
from serve_app.client import DarkroomClient
from serve_app.client.messages import DEFAULT_URL


def upscale(
    image: Annotated[Path, typer.Argument(help="The picture.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A .png, .webp or .jpg file.")],
    scale: Annotated[float, typer.Option(help="How many times as wide and high it becomes.")] = 2.0,
    upscaler: Annotated[str | None, typer.Option(help="A name of `darkroom list upscalers`.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Enlarge a picture, by a network that the server has or by interpolation."""
    with exit_on_errors(as_json=as_json, url=url):
        check_url(url)
        try:
            file = image.read_bytes()
        except OSError as error:
            raise InvalidParameter("image", f"{image.name!r} cannot be read: {error.strerror}") from None
        with DarkroomClient(url, api_key=api_key) as client:
            enlarged = client.upscale(file, scale=scale, upscaler=upscaler, output_format=output_format(output))
        save(output, enlarged)
        say(str(output), {"path": str(output), "bytes": len(enlarged)} if as_json else None)

"""`darkroom list`: what a server has, by name."""

from typing import Annotated

import typer

from serve_app.cli.exits import exit_on_errors
from serve_app.cli.options import ApiKey, AsJson, Url
from serve_app.cli.progress import check_url
from serve_app.cli.results import say
from serve_app.client import DarkroomClient
from serve_app.client.answers import reading_answer
from serve_app.client.messages import DEFAULT_URL, Listed


def list_names(
    what: Annotated[Listed, typer.Argument(help="What to list.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """The models, samplers, styles, ... that a server has, one name a line."""
    with exit_on_errors(as_json=as_json, url=url):
        check_url(url)
        with DarkroomClient(url, api_key=api_key) as client:
            rows = client.list_of(what)
        if as_json:
            say("", {what: rows})
            return
        with reading_answer():
            names = [row["name"] for row in rows]
        for name in names:
            print(name)

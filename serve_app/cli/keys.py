"""`darkroom keys`: the commands for API keys."""

import secrets
from typing import Annotated

import typer
from pydantic import ValidationError

from serve_app.cli.exits import EXIT_USAGE, exit_with
from serve_app.config.errors import describe_errors
from serve_app.gateway.api_keys import Key, generate_key, hash_of

app = typer.Typer(help="API keys.", no_args_is_help=True)


@app.callback()
def keys() -> None:
    """API keys: who may use a server, for what, and how much."""


@app.command()
def new(
    tenant: Annotated[str, typer.Option(help="Whose key it is. Keys of one tenant share what they have.")],
    scopes: Annotated[
        str, typer.Option(help="What for: generate, train, operate, or several with commas.")
    ] = "generate",
    priority: Annotated[str, typer.Option(help="The highest that it may ask for: low, normal or high.")] = "normal",
    id: Annotated[str | None, typer.Option(help="Its name in the file and in logs; made up if not given.")] = None,
) -> None:
    """Draw a key. Prints the key, this once, and below it the line for the file of keys, which has its hash only."""
    key = generate_key()
    try:
        entry = Key.model_validate(
            {
                "id": f"{tenant}-{secrets.token_hex(4)}" if id is None else id,
                "hash": hash_of(key),
                "tenant": tenant,
                "scopes": [scope.strip() for scope in scopes.split(",")],
                "priority": priority,
            }
        )
    except ValidationError as error:
        raise exit_with(next(describe_errors(error)), EXIT_USAGE) from None
    typer.secho("The key, for its user; nobody can show it again. Then the line for the file of keys:", err=True)
    print(key)
    print(entry.to_line())

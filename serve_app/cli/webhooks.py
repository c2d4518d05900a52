"""`darkroom webhooks`: secrets, and a message to try a receiver with."""

import asyncio
import base64
import json
import secrets
import time
import uuid
from typing import Annotated

import typer

from serve_app.callbacks.addresses import AddressRefused, AddressRules
from serve_app.callbacks.payload import format_time
from serve_app.callbacks.sender import Reply, Sender, SendError
from serve_app.callbacks.signing import PREFIX, WebhookSigner
from serve_app.cli.exits import EXIT_FAILED, EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_USAGE, exit_on_errors, exit_with
from serve_app.cli.options import AsJson
from serve_app.cli.results import say
from serve_app.config.callbacks import CallbacksConfig
from serve_app.config.errors import ConfigError
from serve_app.config.server import load_config

app = typer.Typer(help="Webhooks: docs/callbacks.md.", no_args_is_help=True)

SECRET_BYTES = 32

Config = Annotated[str, typer.Option(help="The configuration with `callbacks: webhook_secrets`.")]
Tenant = Annotated[str, typer.Option(help="Whose messages; without keys there is one tenant, which has no name.")]


@app.command("new-secret")
def new_secret() -> None:
    """Draw a secret for the configuration."""
    print(PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode())


@app.command()
def secret(config: Config, tenant: Tenant = "") -> None:
    """Print what a tenant's receivers check messages with: one line for each configured secret, in their order."""
    with exit_on_errors():
        for line in WebhookSigner(_section_of(config).webhook_secrets).secrets_of(tenant):
            print(line)


@app.command("test")
def send_test(
    url: Annotated[str, typer.Argument(help="The receiver.")],
    config: Config,
    tenant: Tenant = "",
    as_json: AsJson = False,
) -> None:
    """Send one signed message of the type `test` from here, by the configuration's rules, and say what came back."""
    with exit_on_errors(as_json=as_json):
        section = _section_of(config)
        signer = WebhookSigner(section.webhook_secrets)
        try:
            reply = asyncio.run(_send(url, section, signer, tenant))
        except AddressRefused as error:
            raise exit_with(f"url: {error}", EXIT_USAGE) from None
        except SendError as error:
            if as_json:
                say("", {"delivered": False, "reason": error.code})
            raise exit_with(error.code, EXIT_REFUSED if error.final else EXIT_UNREACHABLE) from None
    delivered = 200 <= reply.status < 300
    say(f"answered {reply.status}", {"delivered": delivered, "status": reply.status} if as_json else None)
    if not delivered:
        raise exit_with(f"the receiver answered {reply.status}, not 2xx", EXIT_FAILED)


async def _send(url: str, config: CallbacksConfig, signer: WebhookSigner, tenant: str) -> Reply:
    rules = AddressRules(config)
    rules.check_url(url)
    body = json.dumps({"type": "test", "timestamp": format_time(time.time()), "data": {}})
    headers = signer.headers(f"msg_test_{uuid.uuid4().hex}", body, tenant)
    sender = Sender(rules, 1)
    try:
        return await sender.send("POST", url, headers, body.encode(), config.timeout_s)
    finally:
        await sender.close()
        rules.close()


def _section_of(config: str) -> CallbacksConfig:
    section = load_config(config).callbacks
    if section is None or not section.webhook_secrets:
        raise ConfigError(f"{config}: it has no `callbacks: webhook_secrets`")
    return section

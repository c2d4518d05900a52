"""`darkroom webhooks`: secrets, and a message to try a receiver with."""

import asyncio
import base64
import json
import secrets
import time
import uuid
from typing import Annotated

import typer

from deployments.engine.protocol.errors import InvalidParameter
from serve_app.callbacks.addresses import AddressRefused, AddressRules
from serve_app.callbacks.payload import format_time
from serve_app.callbacks.sender import Reply, Sender, SendError
from serve_app.callbacks.signing import PREFIX, WebhookSigner
from serve_app.cli.exits import EXIT_FAILED, EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_USAGE, exit_on_errors, exit_with
from serve_app.cli.options import AsJson
from serve_app.cli.results import say
from serve_app.config.callbacks import CallbacksConfig
from serve_app.config.errors import ConfigError, suggest
from serve_app.config.server import AppConfig, load_config
from serve_app.gateway.api_keys import parse_keys

app = typer.Typer(help="Webhooks: docs/callbacks.md.", no_args_is_help=True)

SECRET_BYTES = 32

Config = Annotated[str, typer.Option(help="The configuration with `callbacks: webhook_secrets`.")]
Tenant = Annotated[
    str, typer.Option(help="Whose messages; with `keys` one of theirs, without them there is one, which has no name.")
]


@app.command("new-secret")
def new_secret() -> None:
    """Draw a secret for the configuration."""
    print(PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode())


@app.command()
def secret(config: Config, tenant: Tenant = "") -> None:
    """Print what a tenant's receivers check messages with: one line for each configured secret, in their order."""
    with exit_on_errors():
        for line in WebhookSigner(_section_of(config, tenant).webhook_secrets).secrets_of(tenant):
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
        section = _section_of(config, tenant)
        signer = WebhookSigner(section.webhook_secrets)
        try:
            reply = asyncio.run(_send(url, section, signer, tenant))
        except AddressRefused as error:
            if as_json:
                say("", {"delivered": False, "reason": "address_refused"})
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


def _section_of(config: str, tenant: str) -> CallbacksConfig:
    """Returns what webhooks are sent by. Raises ConfigError, and InvalidParameter for a tenant that there is not."""
    settings = load_config(config)
    if settings.callbacks is None or not settings.callbacks.webhook_secrets:
        raise ConfigError(f"{config}: it has no `callbacks: webhook_secrets`")
    _check_tenant(settings, tenant)
    return settings.callbacks


def _check_tenant(settings: AppConfig, tenant: str) -> None:
    if settings.keys is None:
        if tenant:
            raise InvalidParameter("tenant", "is not for a configuration without `keys`: its one tenant has no name")
        return
    if not tenant:
        # The secret of no tenant is the one that all tenants' are derived from.
        raise InvalidParameter("tenant", "must be given: the configuration has `keys`, and each tenant its own secret")
    try:
        text = settings.keys.read("keys")
    except ConfigError as error:
        typer.echo(f"{error}; whether there is such a tenant was not checked", err=True)
        return
    known = {key.tenant for key in parse_keys(text)}
    if tenant not in known:
        raise InvalidParameter("tenant", f"there is no tenant {tenant!r}{suggest(tenant, known)}")

"""Signs webhooks as https://www.standardwebhooks.com says: HMAC-SHA256 over message id, time and body."""

import base64
import binascii
import hmac
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from standardwebhooks import Webhook

from serve_app.config.errors import ConfigError
from serve_app.config.secret import Secret

PREFIX: Final = "whsec_"

# The specification's bounds.
MIN_SECRET_BYTES: Final = 24
MAX_SECRET_BYTES: Final = 64

_PURPOSE: Final = b"darkroom webhooks of "


class WebhookSigner:
    """Signs with every one of `secrets`, so that receivers may know any of them while one takes another's place.

    A tenant's secrets are derived from them: who can check its own messages cannot forge another tenant's. Raises
    ConfigError for what is no secret.
    """

    def __init__(self, secrets: Sequence[Secret]) -> None:
        self._secrets = [_decode(each, place) for place, each in enumerate(secrets)]

    def secrets_of(self, tenant: str) -> list[str]:
        """Returns what the tenant's receivers check messages with, in the configuration's order."""
        return [PREFIX + base64.b64encode(_derive(secret, tenant)).decode() for secret in self._secrets]

    def headers(self, message_id: str, body: str, tenant: str, now: datetime | None = None) -> dict[str, str]:
        """Returns the headers of a message that is sent now."""
        sent = now or datetime.now(UTC)
        signatures = [Webhook(_derive(secret, tenant)).sign(message_id, sent, body) for secret in self._secrets]
        return {
            "Content-Type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(sent.timestamp())),
            "webhook-signature": " ".join(signatures),
        }


def _derive(secret: bytes, tenant: str) -> bytes:
    return hmac.digest(secret, _PURPOSE + tenant.encode(), "sha256") if tenant else secret


def _decode(secret: Secret, place: int) -> bytes:
    what = f"callbacks: webhook_secrets[{place}]"
    text = secret.read(what).removeprefix(PREFIX)
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        decoded = b""
    if not MIN_SECRET_BYTES <= len(decoded) <= MAX_SECRET_BYTES:
        raise ConfigError(f"{what}: must be {PREFIX} and {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes as base64")
    return decoded

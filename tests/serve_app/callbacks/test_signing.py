"""Secrets for webhooks are long enough, and a tenant's are its own."""

import base64
from pathlib import Path

import pytest

from serve_app.callbacks.signing import WebhookSigner
from serve_app.config.errors import ConfigError
from serve_app.config.secret import Secret
from tests.serve_app.callbacks.ingresses import OLD_SECRET, SECRET, secret_file


def secret(folder: Path, text: str) -> Secret:
    return Secret.model_validate(secret_file(folder, f"secret-{abs(hash(text))}", text))


@pytest.mark.parametrize(
    "text", ["whsec_", "whsec_c2hvcnQ=", "whsec_not base64 at all, but long enough to be one", "whsec_" + "A" * 200]
)
def test_what_is_no_secret_is_refused_by_its_place(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"webhook_secrets\[1\]: must be whsec_ and 24 to 64 bytes") as caught:
        WebhookSigner([secret(tmp_path, SECRET), secret(tmp_path, text)])
    assert text.removeprefix("whsec_")[:8] not in str(caught.value) or text == "whsec_"


def test_a_secret_may_lack_its_prefix_and_padding(tmp_path: Path) -> None:
    bare = SECRET.removeprefix("whsec_").rstrip("=")
    assert WebhookSigner([secret(tmp_path, bare)]).secrets_of("") == [SECRET]


def test_tenants_have_secrets_of_their_own_for_each_that_is_configured(tmp_path: Path) -> None:
    signer = WebhookSigner([secret(tmp_path, SECRET), secret(tmp_path, OLD_SECRET)])
    assert signer.secrets_of("") == [SECRET, OLD_SECRET]
    found = [*signer.secrets_of("a"), *signer.secrets_of("b"), SECRET, OLD_SECRET]
    assert len(set(found)) == 6
    assert {len(base64.b64decode(each.removeprefix("whsec_"))) for each in signer.secrets_of("a")} == {32}

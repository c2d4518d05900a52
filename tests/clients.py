"""Writes docs/clients.md: which clients are served as they are, at which versions, and what holds that."""

import ast
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "clients.md"


@dataclass(frozen=True)
class Client:
    """A client, the package that the tests run unmodified (or "" where its calls are replayed), and the tests."""

    name: str
    package: str
    calls: str
    tests: str
    page: str
    only: str = ""


_A1111: Final = "tests/serve_app/api/a1111"
_OPENAI: Final = "tests/serve_app/api/openai"

CLIENTS: Final = (
    Client(
        "OpenAI's Python package",
        "openai",
        "`images.generate`, `images.edit`, `models`; sync, async, streams, errors, retries, addresses",
        f"{_OPENAI}/test_sdk.py",
        "openai.md",
    ),
    Client(
        "LibreChat, with OpenAI's API", "", "generations, edits", f"{_OPENAI}/test_replays.py", "openai.md", "librechat"
    ),
    Client(
        "Open WebUI, with OpenAI's API", "", "generations, edits", f"{_OPENAI}/test_replays.py", "openai.md", "webui"
    ),
    Client(
        "webuiapi",
        "webuiapi",
        "text, image, inpainting, ControlNet, hires fix, progress, interrupt, options, extras, png-info, lists",
        f"{_A1111}/test_webuiapi.py",
        "a1111.md",
    ),
    Client(
        "SillyTavern", "", "lists, options, txt2img, interrupt", f"{_A1111}/test_replays.py", "a1111.md", "sillytavern"
    ),
    Client(
        "Open WebUI, with A1111's API", "", "options, models, txt2img", f"{_A1111}/test_replays.py", "a1111.md", "webui"
    ),
    Client("LibreChat, with A1111's API", "", "txt2img", f"{_A1111}/test_replays.py", "a1111.md", "librechat"),
    Client(
        "Auto-Photoshop-StableDiffusion-Plugin",
        "",
        "config, lists, options, img2img, extras, interrupt",
        f"{_A1111}/test_replays.py",
        "a1111.md",
        "photoshop",
    ),
    Client(
        "Hugging Face's InferenceClient",
        "huggingface_hub",
        "`text_to_image`, `image_to_image`",
        "tests/serve_app/api/huggingface/test_inference_client.py",
        "huggingface.md",
    ),
)

_TOP: Final = """# Clients that are served as they are

Each row is held by the tests beside it: packages run unmodified, over real HTTP; of other programs the calls that their
sources make are replayed. `python -m tests.clients` writes this page.

| client | version | calls | tests |
|---|---|---|---|
"""


def page() -> str:
    """The page as it should be."""
    return _TOP + "".join(_row(client) for client in CLIENTS)


def find_tests(client: Client) -> list[str]:
    """The names of the tests that hold a client's row."""
    tree = ast.parse((ROOT / client.tests).read_text())
    names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [name for name in names if name.startswith("test_") and client.only in name.replace("_", "")]


def _row(client: Client) -> str:
    which = version(client.package) if client.package else "replayed"
    tests = f"`{client.tests}`"
    return f"| [{client.name}]({client.page}) | {which} | {client.calls} | {tests} |\n"


if __name__ == "__main__":
    PAGE.write_text(page())

"""The laws of the house: imports run one way, the HTTP side stays slim, files stay readable."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "serve_app").rglob("*.py"), *(ROOT / "deployments").rglob("*.py")])
ENGINE = [path for path in SOURCES if path.is_relative_to(ROOT / "deployments" / "engine")]
HTTP_SIDE = [path for path in SOURCES if path.is_relative_to(ROOT / "serve_app")]
MODELS_SIDE = [path for path in SOURCES if path.is_relative_to(ROOT / "deployments")]

TORCH = {"torch", "torchvision", "diffusers", "transformers", "safetensors", "tokenizers", "xformers"}
SERVING = {"ray", "fastapi", "starlette", "uvicorn", "httpx", "requests", "aiohttp"}
TORCH_FREE_ENGINE = (
    "protocol/params",
    "protocol/errors",
    "protocol/events",
    "heartbeat",
    "protocol/inputs",
    "locked",
    "protocol/numerics",
    "row",
    "scheduling/running",
    "scheduling/queue",
    "scheduling/bucket_share",
    "protocol/spec",
    "checkpoints/original_configs",
    "checkpoints/original_layout",
    "checkpoints/safetensors_header",
    "protocol/sampler_names",
    "conditioning/prompt_syntax",
)
DOOR = {"engine_worker.py", "mailbox.py"}
RAY_SIDE = {"app.py", "ingress.py", "local_cluster.py", "serve_schema.py"}
MAX_FILE_LINES = 320


def imports(path: Path, *, at_import_time_only: bool = False) -> Iterator[str]:
    """The modules that a file imports, as dotted names. TYPE_CHECKING blocks do not count."""
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending.extend(node.orelse)
        elif not (at_import_time_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            pending.extend(ast.iter_child_nodes(node))


def top_levels(path: Path, *, at_import_time_only: bool = False) -> set[str]:
    return {name.partition(".")[0] for name in imports(path, at_import_time_only=at_import_time_only)}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODELS_SIDE, ids=named)
def test_deployments_never_import_the_http_side(path: Path) -> None:
    assert "serve_app" not in top_levels(path)


@pytest.mark.parametrize("path", ENGINE, ids=named)
def test_the_engine_imports_nothing_from_above(path: Path) -> None:
    ours = {name for name in imports(path) if name.startswith("deployments.")}
    assert all(name.startswith("deployments.engine") for name in ours)


@pytest.mark.parametrize("path", ENGINE, ids=named)
def test_the_engine_knows_neither_ray_nor_http_nor_asyncio(path: Path) -> None:
    forbidden = SERVING if path.name in DOOR else SERVING | {"asyncio"}
    assert not top_levels(path) & forbidden


@pytest.mark.parametrize("path", HTTP_SIDE, ids=named)
def test_the_http_side_never_imports_torch(path: Path) -> None:
    assert not top_levels(path) & TORCH


@pytest.mark.parametrize("name", TORCH_FREE_ENGINE)
def test_the_plain_half_of_the_engine_has_no_torch(name: str) -> None:
    path = ROOT / "deployments" / "engine" / f"{name}.py"
    assert not top_levels(path, at_import_time_only=True) & TORCH


@pytest.mark.parametrize("path", [path for path in MODELS_SIDE if "torch" in top_levels(path)], ids=named)
def test_no_handler_keeps_it_to_itself_that_the_device_is_lost(path: Path) -> None:
    """A handler of everything asks first, or what it handles has been asked."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Try) and any("Exception" in ast.unparse(each.type or node) for each in node.handlers):
            (handler,) = [each for each in node.handlers if "Exception" in ast.unparse(each.type or node)]
            first, guarded = ast.unparse(handler.body[0]), ast.unparse(node.body[0])
            assert first.startswith(("raise_if_sticky(", "raise DeviceLost(")) or guarded.startswith(
                "with telling_device_lost()"
            ), f"line {handler.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_files_can_be_read_in_one_go(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_there_is_no_drawer_for_odds_and_ends(path: Path) -> None:
    assert path.name not in {"utils.py", "util.py", "helpers.py", "common.py", "misc.py", "base.py"}


def test_the_policy_can_be_pickled_by_value() -> None:
    """Ray takes this one module into its controller, and nothing of ours besides."""
    assert top_levels(ROOT / "deployments" / "autoscaling.py") <= sys.stdlib_module_names


@pytest.mark.parametrize("path", [path for path in HTTP_SIDE if path.name not in RAY_SIDE], ids=named)
def test_ray_stays_in_the_files_that_are_about_it(path: Path) -> None:
    """The service, the API and the client work without Ray."""
    assert "ray" not in top_levels(path)


def test_the_builder_keeps_its_annotations() -> None:
    """A postponed annotation makes Serve pass `build_app` a dict instead of an AppConfig."""
    assert "__future__" not in top_levels(ROOT / "serve_app" / "app.py")


@pytest.mark.parametrize(
    "modules",
    [
        "serve_app, serve_app.app, serve_app.api.application, serve_app.cli.main, serve_app.client",
        "serve_app.launch.local_cluster",
        "deployments.model_deployment, deployments.registry, deployments.autoscaling",
    ],
)
def test_the_process_that_speaks_http_has_no_torch_in_it(modules: str) -> None:
    """What a static look cannot see: an import of an import."""
    code = f"import sys, {modules}; print(sorted({TORCH!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module", ["serve_app.cli.main", "serve_app.launch.local_cluster", "deployments.model_deployment"]
)
def test_ray_is_not_imported_before_its_settings_are_made(module: str) -> None:
    """It reads them while it is imported. And refusing, and `--help`, should not cost the seconds that this takes."""
    code = f"import sys, {module}; print('ray' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "False"

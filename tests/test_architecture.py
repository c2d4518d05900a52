"""The laws of the house: imports run one way, the HTTP side stays slim, files and folders stay readable.

Folders say what may be imported in them, and imports are followed through files of ours, not only looked at.
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "serve_app").rglob("*.py"), *(ROOT / "deployments").rglob("*.py")])
BENCHES = sorted((ROOT / "bench").rglob("*.py"))
FOLDERS = sorted({path.parent for path in (*SOURCES, *BENCHES)})

TORCH = {"torch", "torchvision", "diffusers", "transformers", "safetensors", "tokenizers", "xformers"}
SERVING = {"ray", "fastapi", "starlette", "uvicorn", "httpx", "requests", "aiohttp", "redis"}

RAY_SIDE = (
    "serve_app/app.py",
    "serve_app/backends/ray_serve.py",
    "serve_app/serving",
    "serve_app/trainings/ray_tasks.py",
    "serve_app/launch",
    "serve_app/kubernetes",
    "deployments/model_deployment.py",
    "deployments/ray_metrics.py",
    "deployments/replica_port.py",
    "deployments/autoscaling.py",
    "deployments/serve_log.py",
)
LAZY = ("serve_app/backends/local.py", "deployments.engine.worker.engine_worker")
"""The one import from serve_app into the engine besides its protocol: done when an engine is wanted in the process."""

MAX_FILE_LINES = 320
MAX_FOLDER_FILES = 15


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def within(*folders: str) -> list[Path]:
    return [path for path in SOURCES if any(path.is_relative_to(ROOT / folder) for folder in folders)]


ENGINE = within("deployments/engine")
HTTP_SIDE = within("serve_app")
MODELS_SIDE = within("deployments")
TORCH_FREE = within("deployments/engine/protocol", "deployments/engine/scheduling", "serve_app")


@cache
def imports(path: Path, *, at_import_time_only: bool = False) -> frozenset[str]:
    """The modules that a file imports, as dotted names. TYPE_CHECKING blocks do not count."""
    return frozenset(_imports(path, at_import_time_only))


def _imports(path: Path, at_import_time_only: bool) -> Iterator[str]:
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


def file_of(module: str) -> Path | None:
    """The file of a module of ours; None for what is not one."""
    place = ROOT.joinpath(*module.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path in _SOURCES), None)


_SOURCES = frozenset(SOURCES)


def loaded_files(path: Path) -> dict[Path, str]:
    """All files of ours that importing `path` loads, each with the way there."""
    ways = {path: named(path)}
    pending = [path]
    while pending:
        current = pending.pop()
        for module in sorted(imports(current, at_import_time_only=True)):
            # A package is loaded before what is in it.
            parts = module.split(".")
            for end in range(1, len(parts) + 1):
                found = file_of(".".join(parts[:end]))
                if found is not None and found not in ways:
                    ways[found] = f"{ways[current]} -> {named(found)}"
                    pending.append(found)
    return ways


def top_levels(path: Path, *, at_import_time_only: bool = False) -> set[str]:
    return {name.partition(".")[0] for name in imports(path, at_import_time_only=at_import_time_only)}


@pytest.mark.parametrize("path", MODELS_SIDE, ids=named)
def test_deployments_never_import_the_http_side(path: Path) -> None:
    assert "serve_app" not in top_levels(path)


@pytest.mark.parametrize("path", ENGINE, ids=named)
def test_the_engine_imports_nothing_from_above(path: Path) -> None:
    ours = {name for name in imports(path) if name.startswith("deployments.")}
    assert all(name.startswith("deployments.engine") for name in ours)


@pytest.mark.parametrize("path", ENGINE, ids=named)
def test_the_engine_knows_neither_ray_nor_http_and_asyncio_only_in_its_worker(path: Path) -> None:
    is_worker = path.is_relative_to(ROOT / "deployments" / "engine" / "worker")
    assert not top_levels(path) & (SERVING if is_worker else SERVING | {"asyncio"})


@pytest.mark.parametrize("path", HTTP_SIDE, ids=named)
def test_the_http_side_sees_of_the_engine_only_its_protocol(path: Path) -> None:
    seen = {name for name in imports(path) if name.startswith("deployments.engine.")}
    if named(path) == LAZY[0]:
        seen -= {name for name in seen if name.startswith(LAZY[1])}
        assert not any(name.startswith(LAZY[1]) for name in imports(path, at_import_time_only=True))
    assert not {name for name in seen if not name.startswith("deployments.engine.protocol")}


@pytest.mark.parametrize("path", TORCH_FREE, ids=named)
def test_no_torch_is_loaded_by_the_http_side_the_protocol_and_scheduling(path: Path) -> None:
    loads = {way: top_levels(file, at_import_time_only=True) & TORCH for file, way in loaded_files(path).items()}
    assert not {way: found for way, found in loads.items() if found}


@pytest.mark.parametrize("folder", ["deployments/engine", "serve_app", "serve_app/api", "bench"])
def test_rooms_import_one_another_in_one_direction(folder: str) -> None:
    """Of the folders and files in `folder`, as they lie there, none needs one that needs it."""
    place = ROOT / folder
    rooms: dict[str, set[str]] = {}
    for path in sorted(place.rglob("*.py")):
        needed = (_place_of(module, place) for module in imports(path))
        rooms.setdefault(_room_of(path, place), set()).update(each for each in needed if each is not None)
    for room, needs in rooms.items():
        needs.discard(room)
    while free := [room for room, needs in rooms.items() if not needs & rooms.keys()]:
        for room in free:
            del rooms[room]
    assert not rooms


def _room_of(path: Path, folder: Path) -> str:
    return path.relative_to(folder).parts[0]


def _place_of(module: str, folder: Path) -> str | None:
    """The room in `folder` that a module lies in; None for one that lies elsewhere, or is a name in a module."""
    place = ROOT.joinpath(*module.split("."))
    found = next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)
    return _room_of(found, folder) if found is not None and found.is_relative_to(folder) else None


@pytest.mark.parametrize("path", [path for path in MODELS_SIDE if "torch" in top_levels(path)], ids=named)
def test_no_handler_keeps_it_to_itself_that_the_device_is_lost(path: Path) -> None:
    """A handler of everything asks first, or what it handles has been asked."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Try) and any("Exception" in ast.unparse(each.type or node) for each in node.handlers):
            (handler,) = [each for each in node.handlers if "Exception" in ast.unparse(each.type or node)]
            first, guarded = ast.unparse(handler.body[0]), ast.unparse(node.body[0])
            assert first.startswith(("raise_if_sticky(", "raise DeviceLost(")) or guarded.startswith(
                "with convert_device_errors()"
            ), f"line {handler.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_files_can_be_read_in_one_go(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("folder", FOLDERS, ids=named)
def test_a_folder_can_be_seen_at_one_look(folder: Path) -> None:
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MAX_FOLDER_FILES


def test_two_classes_do_not_share_a_name() -> None:
    """One word has one meaning: whoever reads it need not ask where it comes from."""
    classes = Counter(
        node.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in classes.items() if count > 1] == []


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_there_is_no_drawer_for_odds_and_ends(path: Path) -> None:
    assert path.name not in {"utils.py", "util.py", "helpers.py", "common.py", "misc.py", "base.py"}


def test_the_policy_can_be_pickled_by_value() -> None:
    """Ray takes this one module into its controller, and nothing of ours besides."""
    assert top_levels(ROOT / "deployments" / "autoscaling.py") <= sys.stdlib_module_names


@pytest.mark.parametrize("path", [path for path in SOURCES if path not in within(*RAY_SIDE)], ids=named)
def test_ray_stays_in_the_files_that_are_about_it(path: Path) -> None:
    """The service, the API and the client work without Ray."""
    assert "ray" not in top_levels(path)


def test_the_page_names_every_place_where_ray_is_imported() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    (rule,) = re.findall(r"^- Ray is imported only in (.*?)^- ", page, re.MULTILINE | re.DOTALL)
    named = {path.rstrip("/") for path in re.findall(r"`([\w/.]+)`", rule)}
    assert named - {"deployments"} == {place.removeprefix("deployments/") for place in RAY_SIDE}


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

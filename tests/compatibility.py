"""Writes docs/compatibility.md from the tables that the engine checks by and the folders that the tests load.

python -m tests.compatibility      writes the page
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from deployments.engine.checkpoints.config_keys import ANY_NETWORK, NETWORKS
from deployments.engine.checkpoints.config_rules import ConfigRules
from deployments.engine.checkpoints.original_layout import OTHER_CHANNELS, OTHERS
from deployments.engine.checkpoints.pipeline_index import CLASSES, PIPELINES, XL_PIPELINES
from tests.deployments.engine.checkpoints.cases import SECTIONS, Case
from tests.deployments.engine.sampling.schedulers import REFUSED, SERVED

PAGE: Final = Path(__file__).parents[1] / "docs" / "compatibility.md"

_LONGEST: Final = 4

_HEAD: Final = """\
# Which checkpoints are served

For any folder or repository that `from_pretrained` of diffusers' `StableDiffusionPipeline` or
`StableDiffusionXLPipeline` loads, Darkroom makes that pipeline's images, to within 1/255, or refuses it at load with a
sentence that names the part, the key or file, and what to do. Missing weights are never replaced by random ones.

This page is made by `python -m tests.compatibility`, and a test fails if it is out of date. The first tables are
folders that the tests make and load; what is served there was compared with diffusers. The tables of config keys are
what is checked at load, and tests check that they have every key that diffusers' and transformers' classes read.
"""


def page() -> str:
    """The whole page."""
    sections = [
        _HEAD,
        _section("Kinds of checkpoints", _kinds()),
        *(_section(title, _cases(cases)) for title, cases in SECTIONS.items()),
        _section("scheduler_config.json", _schedulers()),
        _section("A file in the original layout", _single_files()),
        *(_section(f"config.json of a {name}", _keys(rules)) for name, rules in NETWORKS.items()),
        _section("config.json of every network", _keys(ANY_NETWORK)),
    ]
    return "\n".join(sections)


def _section(title: str, lines: Iterable[str]) -> str:
    return "\n".join([f"## {title}", "", *lines, ""])


def _kinds() -> Iterator[str]:
    yield (
        "model_index.json may name these pipelines: "
        + ", ".join(f"`{name}`" for name in (*PIPELINES, *XL_PIPELINES))
        + "."
    )
    yield ""
    yield from _table(
        ("part", "its class"),
        ((f"`{part}`", " or ".join(f"`{name}`" for name in names)) for part, names in CLASSES.items()),
    )


def _cases(cases: Iterable[Case]) -> Iterator[str]:
    # What is served first; within, the order of the tests.
    rows = sorted(cases, key=lambda case: bool(case.refused))
    return _table(("a folder with", "is"), ((case.what, _outcome(case)) for case in rows))


def _outcome(case: Case) -> str:
    if not case.refused:
        return "served"
    return _refused(case.refused)


def _refused(words: Iterable[str]) -> str:
    return "refused, naming " + ", ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    return f"“{word}”"


def _schedulers() -> Iterator[str]:
    yield "The scheduler that the files name is the default sampler, with all its settings. Here they are added to"
    yield "Stable Diffusion's own `beta_start`, `beta_end` and `beta_schedule`. A scheduler that cannot be reproduced"
    yield "exactly is refused; `default_sampler` in the configuration names another."
    yield ""
    served = ((f"`{name}`", _settings(settings), "served") for name, settings in SERVED)
    refused = ((f"`{name}`", _settings(settings), _refused((word,))) for name, settings, word in REFUSED)
    yield from _table(("scheduler", "settings", "is"), (*served, *refused))


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}: {_short(value)}`" for key, value in settings.items()) or "its defaults"


def _short(value: Any) -> str:
    return "[...]" if isinstance(value, list) and len(value) > _LONGEST else json.dumps(value)


def _single_files() -> Iterator[str]:
    yield "`source` may be a `.safetensors` file of Stable Diffusion 1.x, 2.x or XL with 4 or 9 input channels, in"
    yield "any precision; see [weights.md](weights.md). Other models are recognised and refused:"
    yield ""
    rows = {what: f"its tensor `{key}`" for key, what in OTHERS}
    rows |= {what: f"{channels} input channels" for channels, what in OTHER_CHANNELS.items()}
    yield from _table(("model", "recognised by"), rows.items())


def _keys(rules: ConfigRules) -> Iterator[str]:
    return _table(
        ("key", "served", "why nothing else"), ((f"`{key}`", rule.served, rule.why) for key, rule in rules.items())
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for row in (head, ("---",) * len(head), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


if __name__ == "__main__":
    PAGE.write_text(page())

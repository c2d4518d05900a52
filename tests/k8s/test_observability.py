"""Dashboard and alerts speak of metrics and labels that exist, and every alert has a page that says what to do."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from deployments import metrics
from deployments.engine.protocol import errors
from deployments.metrics import Metric
from serve_app.kubernetes.dashboard import PANELS, render_dashboard
from serve_app.launch.local_cluster import APP_NAME
from tests.k8s.queries import FOLDER, QUERIES, rules, used

ROOT: Final = Path(__file__).parents[2]
RUNBOOKS: Final = ROOT / "docs" / "runbooks"

# As Ray's agents export them: deployments/ray_metrics.py tells Ray, which adds its prefix.
KINDS: Final = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
OURS: Final[dict[str, Metric]] = {
    f"ray_{metric.name}{suffix}": metric
    for metric in vars(metrics).values()
    if isinstance(metric, Metric)
    for suffix in KINDS[metric.kind]
}
# Of Serve's proxies (ray/serve/_private/request_ingress_metrics.py).
PROXYS: Final = ("route", "method", "application", "status_code")
KNOWN: Final = {name: metric.labels for name, metric in OURS.items()} | {"ray_serve_num_http_requests_total": PROXYS}
OUTCOMES: Final = {"finished", "refused", "cancelled", "broken"}


ALERTS: Final = [rule for rule in rules() if "alert" in rule]
RECORDS: Final = {rule["record"] for rule in rules() if "record" in rule}


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_asks_for_what_is_there(query: str) -> None:
    found = list(used(query))
    assert found or any(record in query for record in RECORDS), query
    for name, asked in found:
        assert name in KNOWN, name
        labels = {*KNOWN[name], *(("le",) if name.endswith("_bucket") else ())}
        assert asked.keys() <= labels, (name, asked)
        assert asked.get("application", APP_NAME) == APP_NAME
        if "le" in asked:
            assert float(asked["le"]) in OURS[name].bounds
    by = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")}
    assert by <= {"le", *(label for name, _ in found for label in KNOWN[name])}


def test_a_query_for_what_is_not_there_would_be_found() -> None:
    assert "ray_diffusion_unet_row_total" not in KNOWN
    assert list(used('sum(rate(ray_diffusion_oom_total{action="split", model=~"sd.*"}[5m]))')) == [
        ("ray_diffusion_oom_total", {"action": "split", "model": "sd.*"})
    ]


def test_outcomes_and_codes_in_rules_are_those_that_are_counted() -> None:
    outcomes = OUTCOMES | {"accepted", "expired"} | {outcome for _, outcome in metrics.CALLBACK_OUTCOMES}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.code for kind in kinds if issubclass(kind, errors.EngineError)}
    for query in QUERIES:
        for _, asked in used(query):
            if "outcome" in asked:
                assert set(asked["outcome"].split("|")) <= outcomes
            if asked.get("code"):
                assert set(asked["code"].split("|")) <= codes


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_an_alert_says_how_bad_it_is_and_where_to_read_on(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert {"summary", "description"} <= alert["annotations"].keys()
    page = RUNBOOKS / f"{alert['alert']}.md"
    assert alert["annotations"]["runbook_url"].endswith(f"docs/runbooks/{page.name}")
    text = page.read_text()
    assert text.startswith(f"# {alert['alert']}\n")
    parts = ("**What it means.**", "**What callers see.**", "## Find the cause", "## What to do")
    assert all(part in text for part in parts)


def test_what_pages_say_is_in_a_log_is_what_the_code_logs() -> None:
    said = {
        words: page.name
        for page in RUNBOOKS.glob("*.md")
        for words in re.findall(r" log: `([^`]+)`", " ".join(page.read_text().split()))
    }
    assert len(said) >= 2
    logged = [
        text
        for folder in ("serve_app", "deployments")
        for path in (ROOT / folder).rglob("*.py")
        for text in re.findall(r"log\.\w+\(\s*\"([^\"]+)", path.read_text())
    ]
    for words, page in said.items():
        assert any(words in text for text in logged), f"{page}: nobody logs {words!r}"


def test_every_page_has_its_alert_and_every_link_its_place() -> None:
    assert {page.stem for page in RUNBOOKS.glob("*.md")} == {alert["alert"] for alert in ALERTS}
    titles = {panel.title for panel in PANELS}
    for page in RUNBOOKS.glob("*.md"):
        text = page.read_text()
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert (page.parent / link).is_file(), f"{page.name}: {link}"
        for panel in re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", " ".join(text.split())):
            assert any(title.startswith(panel) for title in titles), f"{page.name}: there is no panel {panel!r}"


def test_the_first_of_what_is_rare_is_seen() -> None:
    """`increase` needs a sample from before, which a counter that has just appeared does not have."""
    rare = {name for query in QUERIES for name in re.findall(r"last_over_time\((ray_\w+)", query)}
    assert {"ray_diffusion_replays_total", "ray_diffusion_oom_total", "ray_diffusion_cache_errors_total"} <= rare
    for panel in PANELS:
        for _, query in panel.queries:
            assert not rare & set(re.findall(r"increase\((ray_\w+)", query)), panel.title


def test_the_dashboard_is_one_that_grafana_reads() -> None:
    board = json.loads(render_dashboard())
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places) == len(PANELS)
    assert {variable["name"] for variable in board["templating"]["list"]} == {"source", "gpu_hour"}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, for `kubectl kustomize`")
def test_it_can_be_applied() -> None:
    built = subprocess.run(["kubectl", "kustomize", str(FOLDER)], capture_output=True, text=True, check=True).stdout
    kinds = [document["kind"] for document in yaml.safe_load_all(built)]
    assert sorted(kinds) == ["ConfigMap", "PodMonitor", "PrometheusRule"]

"""Renders the Grafana dashboard from a table of its panels; Grafana's JSON is nothing to maintain by hand."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

SOURCE: Final = {"type": "prometheus", "uid": "${source}"}
COLUMNS: Final = 3
WIDTH: Final = 24 // COLUMNS
HEIGHT: Final = 8


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `queries` are legends and PromQL; `unit` is a Grafana unit."""

    title: str
    unit: str
    queries: Sequence[tuple[str, str]]
    description: str = ""


def _sum(metric: str, by: str = "", of: str = "", window: str = "5m") -> str:
    """PromQL for the rate of a counter, summed over everything except `by`."""
    labels = f" by ({by})" if by else ""
    return f"sum{labels} (rate(ray_diffusion_{metric}{of}[{window}]))"


def _count(metric: str, by: str = "", window: str = "5m") -> str:
    """PromQL for how often something rare was counted, the first time included: rules.yaml beside it says why."""
    labels, name = f" by ({by})" if by else "", f"ray_diffusion_{metric}"
    scraped_without = (
        f"count_over_time({name}[{window}]) < on (job, instance) group_left () sum_over_time(up[{window}])"
    )
    return f"sum{labels} ({name} - (last_over_time({name}[1h] offset {window}) or 0 * ({scraped_without})))"


def _quantile(share: float, metric: str, by: str = "") -> str:
    return f"histogram_quantile({share}, {_sum(f'{metric}_bucket', f'le, {by}' if by else 'le')})"


_DONE: Final = '{status="done"}'
_OUR_ROWS: Final = _sum("unet_rows_total", "model", '{padding="no"}')
_PADDING: Final = _sum("unet_rows_total", "model", '{padding="yes"}')
_HITS: Final = _sum("cache_requests_total", "tier", '{result="hit"}')
_READY: Final = "sum(ray_diffusion_engine_ready)"

PANELS: Final = (
    Panel("Requests", "reqps", [("{{outcome}}", _sum("requests_total", "outcome", window="1m"))]),
    Panel("Refused, by why", "reqps", [("{{code}}", _sum("requests_total", "code", '{code!=""}', window="1m"))]),
    Panel(
        "Answers of the proxies, by status",
        "reqps",
        [
            (
                "{{status_code}}",
                'sum by (status_code) (rate(ray_serve_num_http_requests_total{application="darkroom"}[1m]))',
            )
        ],
        "As Ray's proxies count, requests included that reached no ingress. Callers get 504 where it says 408.",
    ),
    Panel("Images a second", "short", [("{{model}}", _sum("images_total", "model", _DONE, window="1m"))]),
    Panel(
        "Whole requests",
        "s",
        [(f"p{share * 100:.0f}", _quantile(share, "request_duration_seconds")) for share in (0.5, 0.9, 0.99)],
    ),
    Panel("Wait in the queue", "s", [("p95 {{model}}", _quantile(0.95, "queue_wait_seconds", "model"))]),
    Panel("Time by stage, p95", "s", [("{{stage}}", _quantile(0.95, "inference_seconds", "stage"))]),
    Panel(
        "Rows of a UNet call",
        "short",
        [("{{model}}", f"{_OUR_ROWS} / {_sum('unet_calls_total', 'model')}")],
        "What batching brings: the work of so many pictures is one call.",
    ),
    Panel(
        "Rows that were padding",
        "percentunit",
        [("{{model}}", f"{_PADDING} / {_sum('unet_rows_total', 'model')}")],
    ),
    Panel(
        "Trays: running, and room",
        "short",
        [
            ("images that run", "sum(ray_diffusion_running_images)"),
            ("UNet rows that may", "sum(ray_diffusion_capacity_rows)"),
        ],
    ),
    Panel(
        "Work, in full devices",
        "short",
        [
            ("being done", _sum("work_seconds_total")),
            ("that waits, in devices for a minute", "sum(ray_diffusion_backlog_seconds) / 60"),
        ],
        "What the autoscaler adds up. It wants replicas for the sum, so full as `target_fill` says.",
    ),
    Panel("Queue by priority", "short", [("{{priority}}", "sum by (priority) (ray_diffusion_queue_depth)")]),
    Panel(
        "Device memory: plan and reality",
        "bytes",
        [("{{kind}}", "sum by (kind) (ray_diffusion_device_memory_bytes)")],
        "`held` is in use between calls, `planned` that and the largest call that may come; both stay below `budget`.",
    ),
    Panel("Out of memory", "short", [("{{model}} {{action}}", _count("oom_total", "model, action"))]),
    Panel(
        "Cache",
        "percentunit",
        [
            (
                "hits, {{tier}}",
                f"{_HITS} / {_sum('cache_requests_total', 'tier')}",
            )
        ],
    ),
    Panel("Cache: what went wrong", "short", [("{{kind}}", _count("cache_errors_total", "kind"))]),
    Panel("Seconds that the cache saved, each second", "short", [("", _sum("cache_saved_seconds_total"))]),
    Panel(
        "GPU share: time in UNet calls",
        "percentunit",
        [("", f"{_sum('denoise_seconds_total')} / {_READY}")],
        "Of all engines that are ready. Beside it there is encoding, decoding, and having nothing to do.",
    ),
    Panel(
        "Steps for nothing",
        "percentunit",
        [("", f"{_sum('wasted_steps_total', window='15m')} / {_sum('steps_total', window='15m')}")],
        "Of images that nobody got: their callers left, or they were made twice.",
    ),
    Panel(
        "Cost of 1,000 images",
        "currencyUSD",
        [("", f"1000 * $gpu_hour / 3600 * {_READY} / {_sum('images_total', of=_DONE, window='15m')}")],
        "Engines that are ready, at the price of a GPU hour that is set above, over the images that they made.",
    ),
    Panel("Engines that are ready", "short", [("", _READY)]),
    Panel("Requests repeated: a replica was lost", "short", [("", _count("replays_total"))]),
    Panel("Over their limits", "reqps", [("", _sum("rate_limited_total"))]),
)


def render_dashboard() -> str:
    """Renders the dashboard as JSON."""
    variables = [
        {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        {"name": "gpu_hour", "type": "textbox", "query": "1.00", "label": "A GPU hour costs"},
    ]
    board = {
        "title": "Darkroom",
        "uid": "darkroom",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": variables},
        "panels": [_render_panel(number, panel) for number, panel in enumerate(PANELS)],
    }
    return json.dumps(board, indent=1) + "\n"


def _render_panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, COLUMNS)
    targets = [
        {"refId": chr(ord("A") + i), "expr": query, "legendFormat": legend, "datasource": SOURCE}
        for i, (legend, query) in enumerate(panel.queries)
    ]
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": targets,
    }

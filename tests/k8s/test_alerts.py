"""Alerts are raised by what they are for and by nothing less, as Prometheus' own promtool plays them through."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.k8s.queries import FOLDER

# Of one process, in promtool's words: nothing for ten minutes, or a value every minute from there on.
REPLAYS = 'ray_diffusion_replays_total{WorkerId="a", job="j", instance="i"}'
QUARANTINED = 'ray_diffusion_quarantined_total{WorkerId="a", job="j", instance="i"}'
FAILED = 'ray_diffusion_images_total{WorkerId="a", job="j", instance="i", model="sd15", status="failed"}'
HIT = 'ray_diffusion_oom_total{{WorkerId="{}", job="j", instance="i", model="sd15", action="hit"}}'
SPLIT = 'ray_diffusion_oom_total{WorkerId="a", job="j", instance="i", model="sd15", action="split"}'
SKIPPED = 'ray_diffusion_cache_errors_total{WorkerId="a", job="j", instance="i", kind="redis_skipped"}'
READY = 'ray_diffusion_engine_ready{WorkerId="a", job="j", instance="i"}'
ENDED = 'ray_diffusion_requests_total{{WorkerId="a", job="j", instance="i", model="sd15", outcome="{}", code="{}"}}'
BROKEN = ENDED.format("broken", "internal_error")
LOST = ENDED.format("cancelled", "")
GIVEN_UP = 'ray_diffusion_callbacks_total{WorkerId="a", job="j", instance="i", kind="webhook", outcome="failed"}'
DELIVERED = 'ray_diffusion_callbacks_total{WorkerId="a", job="j", instance="i", kind="webhook", outcome="delivered"}'
INFLIGHT = 'ray_diffusion_inflight_requests{WorkerId="a", job="j", instance="i"}'
ANSWERED = 'ray_serve_num_http_requests_total{{application="darkroom", method="POST", status_code="{}"}}'
FINISHED = ENDED.format("finished", "")
SLOW = 'ray_diffusion_request_duration_seconds_count{WorkerId="a", job="j", instance="i", model="sd15"}'
IN_TIME = 'ray_diffusion_request_duration_seconds_bucket{WorkerId="a", job="j", instance="i", model="sd15", le="32.0"}'
UP = 'up{job="j", instance="i"}'
RENAMED = 'ray_diffusion_quarantined_total{WorkerId="a", job="j", instance="other"}'


def answered(well: str, otherwise: dict[str, str]) -> dict[str, str]:
    """What the proxies have answered, by status."""
    return {ANSWERED.format(status): values for status, values in {"200": well, **otherwise}.items()}


@pytest.mark.parametrize(
    ("alert", "series", "at", "raised"),
    [
        # A counter is not there before it counts, so the first time nothing has increased.
        ("DarkroomRequestsKillReplicas", {QUARANTINED: "_x9 1x60"}, "11m", True),
        ("DarkroomRequestsKillReplicas", {QUARANTINED: "_x9 1x120"}, "90m", False),
        ("DarkroomRequestsKillReplicas", {QUARANTINED: "_x30 1x60", UP: "_x25 1x60"}, "33m", True),
        # A Prometheus that was blind, or sees old counters under other labels, tells nothing new.
        ("DarkroomRequestsKillReplicas", {QUARANTINED: "1x120 _x10 1x120", UP: "1x120 _x10 1x120"}, "188m", False),
        ("DarkroomRequestsKillReplicas", {QUARANTINED: "1x120 _x10 2x120", UP: "1x120 _x10 1x120"}, "188m", True),
        ("DarkroomRequestsKillReplicas", {QUARANTINED: "1x120 _x10 1x120", UP: "1x120 0x10 1x120"}, "188m", False),
        (
            "DarkroomRequestsKillReplicas",
            {QUARANTINED: "1x60", RENAMED: "_x60 1x60", UP: "1x60", UP.replace('"i"', '"other"'): "_x60 1x60"},
            "70m",
            False,
        ),
        ("DarkroomReplicasAreLost", {REPLAYS: "8x120 _x10 8x120", UP: "1x120 _x10 1x120"}, "143m", False),
        ("DarkroomReplicasAreLost", {REPLAYS: "_x9 8x60"}, "11m", True),
        ("DarkroomReplicasAreLost", {REPLAYS: "8x60 16x60"}, "62m", True),
        ("DarkroomReplicasAreLost", {REPLAYS: "_x9 5x60"}, "11m", False),
        ("DarkroomReplicasAreLost", {REPLAYS: "_x9 8x60"}, "30m", False),
        ("DarkroomOutOfMemory", {HIT.format("a"): "_x9 2x60", HIT.format("b"): "_x9 2x60"}, "11m", True),
        # Each time is counted as the hit that it was, and as the split that followed.
        ("DarkroomOutOfMemory", {HIT.format("a"): "_x9 3x60", SPLIT: "_x9 3x60"}, "11m", False),
        ("DarkroomPicturesAreNotFinite", {FAILED: "_x9 6x60"}, "11m", True),
        ("DarkroomPicturesAreNotFinite", {FAILED: "6x60"}, "40m", False),
        ("DarkroomCacheBreakerOpen", {SKIPPED: "0+50x60"}, "30m", True),
        ("DarkroomCacheBreakerOpen", {SKIPPED: "0+50x10 500x60"}, "40m", False),
        ("DarkroomCallbacksFail", {GIVEN_UP: "_x9 12x60"}, "11m", True),
        ("DarkroomCallbacksFail", {GIVEN_UP: "_x9 12x60", DELIVERED: "_x9 13x60"}, "11m", False),
        ("DarkroomCallbacksFail", {GIVEN_UP: "_x9 9x60"}, "11m", False),
        ("DarkroomCallbacksFail", {GIVEN_UP: "_x9 12x120"}, "90m", False),
        ("DarkroomNoEngine", {READY: "1x10 0x30"}, "20m", True),
        ("DarkroomNoEngine", {READY: "1x10 _x30"}, "20m", True),
        ("DarkroomNoEngine", {READY: "1x30"}, "20m", False),
        ("DarkroomAvailabilityBurnsFast", {FINISHED: "0+90x120", BROKEN: "0+10x120"}, "90m", True),
        ("DarkroomAvailabilityBurnsFast", {FINISHED: "0+990x120", BROKEN: "0+10x120"}, "90m", False),
        ("DarkroomAvailabilityBurnsFast", {FINISHED: "0+95x120", BROKEN: "0+5x120"}, "90m", False),
        ("DarkroomAvailabilityBurnsFast", {FINISHED: "0+90x120"}, "90m", False),
        # Whom the proxy let wait too long, or had no ingress for: to the engines they have left, or never came.
        ("DarkroomAvailabilityBurnsFast", {LOST: "0+9x120", **answered("0+90x120", {"408": "0+10x120"})}, "90m", True),
        ("DarkroomAvailabilityBurnsFast", answered("0+90x120", {"503": "0+10x120"}), "90m", True),
        ("DarkroomAvailabilityBurnsFast", answered("0+90x120", {"504": "0+9x120", "422": "0+9x120"}), "90m", False),
        # Callers who leave are neither.
        ("DarkroomAvailabilityBurnsFast", answered("0+10x120", {"499": "0+90x120", "503": "0+1x120"}), "90m", True),
        # In a quiet hour one failure is a large share.
        ("DarkroomAvailabilityBurnsFast", answered("0+0.2x120", {"408": "0x85 1x60"}), "88m", False),
        ("DarkroomAvailabilityBurnsFast", {FINISHED: "0+0.2x120", BROKEN: "0x85 1x60"}, "88m", False),
        ("DarkroomAvailabilityBurnsSlowly", answered("0+0.02x400", {"408": "0x370 1x60"}), "392m", False),
        ("DarkroomAvailabilityBurnsFast", answered("0+0.2x120", {"408": "0x80 0+2x60"}), "88m", True),
        ("DarkroomLatencyBurnsFast", {SLOW: "0x85 1x60", IN_TIME: "0x145"}, "88m", False),
        ("DarkroomLatencyBurnsSlowly", {SLOW: "0x370 1x60", IN_TIME: "0x430"}, "392m", False),
        ("DarkroomLatencyBurnsFast", {SLOW: "0+10x120", IN_TIME: "0+1x120"}, "90m", True),
        ("DarkroomNoIngress", {INFLIGHT: "0x10 _x30"}, "20m", True),
        ("DarkroomNoIngress", {INFLIGHT: "0x30"}, "20m", False),
    ],
)
def test_an_alert_is_raised_when_it_should_be(
    alert: str, series: dict[str, str], at: str, raised: bool, tmp_path: Path
) -> None:
    rules = yaml.safe_load((FOLDER / "rules.yaml").read_text())["spec"]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    scene = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": name, "values": values} for name, values in {UP: "1x430", **series}.items()
                ],
                "alert_rule_test": [{"alertname": alert, "eval_time": at, "exp_alerts": []}],
            }
        ],
    }
    (tmp_path / "scene.yml").write_text(yaml.safe_dump(scene))
    command = ["promtool", "test", "rules", "scene.yml"]
    played = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    # No alert is what is expected: where promtool complains, it says which one it got.
    assert ("got:" in played.stdout + played.stderr) == raised, played.stdout + played.stderr
    assert (played.returncode != 0) == raised

"""What a rehearsal says of a cluster follows from what was seen of it."""

from pathlib import Path

import pytest

from bench.cluster.__main__ import ELASTIC, TWO, Scene, main
from bench.cluster.nodes import Nodes
from bench.redis_server import RedisServer
from serve_app.config.server import AppConfig
from serve_app.kubernetes.rendering import serve_config


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(Nodes(RedisServer(()), tmp_path), lambda: 0.0)


def test_a_cluster_is_whole_again_when_it_stays_so(scene: Scene) -> None:
    scene.whole = [(0.0, True), (10.0, False), (20.0, True), (21.0, False), (30.0, True), (31.0, True)]
    assert scene.whole_again() == 30.0


def test_a_cluster_that_nobody_saw_broken_was_always_whole(scene: Scene) -> None:
    scene.whole = [(0.0, True), (1.0, True)]
    assert scene.whole_again() == 0.0


def test_a_cluster_that_ends_broken_is_not_whole(scene: Scene) -> None:
    scene.whole = [(0.0, True), (10.0, False)]
    assert scene.whole_again() is None


def test_a_change_is_counted_from_when_it_was_waited_for(scene: Scene) -> None:
    scene.seen = [(0.0, {"a": 1}), (12.5, {"a": 1, "b": 1}), (80.0, {"a": 1})]
    assert scene.first(lambda now: len(now) == 2) == 12.5
    assert scene.first(lambda now: len(now) == 1, after=70.0) == 10.0
    assert scene.first(lambda now: not now) is None


@pytest.mark.parametrize("config", [TWO, ELASTIC], ids=["two", "elastic"])
def test_what_is_rehearsed_is_what_the_manifests_would_say(config: AppConfig) -> None:
    (application,) = serve_config(config)["applications"]
    (demo,) = application["args"]["deployments"]
    assert (demo["name"], demo["num_gpus"]) == ("demo", 1.0)


def test_a_row_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "earthquake"])
    assert "there is no earthquake" in capsys.readouterr().err

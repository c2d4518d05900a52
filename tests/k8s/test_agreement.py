"""What the configuration reads and writes is where it can be read and written, on every pod that may do so."""

import copy
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from serve_app.kubernetes.agreement import find_disagreements
from serve_app.kubernetes.manifests import Manifests, build
from tests.k8s.changes import GPU, WORKER, Change, argument, at, in_application

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, for `kubectl kustomize`")

OVERLAYS = Path(__file__).parents[2] / "k8s" / "overlays"


@pytest.fixture(scope="module")
def production() -> Manifests:
    return build(OVERLAYS / "production")


def found_in(manifests: Manifests, *changes: Change) -> list[str]:
    documents = copy.deepcopy(list(manifests.documents))
    for change in changes:
        change(documents)
    return list(find_disagreements(Manifests(documents)))


def args(**sections: Any) -> Change:
    return in_application(lambda said: said["applications"][0]["args"].update(sections))


def secrets_of(spec: dict[str, Any]) -> set[tuple[str, str, str]]:
    """The secrets of a pod: the kind of place, the place, and the Secret's name."""
    (main,) = spec["containers"]
    volumes = {each["name"]: each["secret"]["secretName"] for each in spec["volumes"] if "secret" in each}
    env = {each["name"]: each["valueFrom"]["secretKeyRef"]["name"] for each in main["env"] if "valueFrom" in each}
    mounts = {each["mountPath"]: volumes[each["name"]] for each in main["volumeMounts"] if each["name"] in volumes}
    return {("env", *each) for each in env.items()} | {("file", *each) for each in mounts.items()}


@pytest.mark.parametrize("overlay", sorted(folder.name for folder in OVERLAYS.iterdir()))
def test_every_worker_has_the_same_secrets(overlay: str) -> None:
    """A replica of the ingress, which reads them, may land on any worker."""
    first, *others = [secrets_of(pod.spec) for pod in build(OVERLAYS / overlay).worker_pods()]
    assert len(first) == 5
    assert all(each == first for each in others)


def test_what_the_configuration_page_offers_of_secrets_is_there(production: Manifests) -> None:
    """As the comments of production.yaml have it."""
    certificate = {"file": "/etc/darkroom-c2pa/tls.crt"}, {"file": "/etc/darkroom-c2pa/tls.key"}
    offered = args(
        labels={"c2pa": dict(zip(("certificate", "private_key"), certificate, strict=True))},
        callbacks={"webhook_secrets": [{"env": "DARKROOM_WEBHOOK_SECRET"}]},
    )
    assert found_in(production, offered) == []


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"keys": {"file": "/etc/keys.yaml"}}, "keys is read from /etc/keys.yaml, where nothing is mounted"),
        (
            {"callbacks": {"webhook_secrets": [{"env": "ELSEWHERE"}]}},
            r"callbacks.webhook_secrets\[0\] is read from ELSEWHERE, which is not in its environment",
        ),
        (
            {"labels": {"c2pa": {"certificate": {"file": "/a.crt"}, "private_key": {"file": "/a.key"}}}},
            "labels.c2pa.private_key is read from /a.key, where nothing is mounted",
        ),
        (
            {"redis": {"url": "redis://redis", "key": {"env": "A"}, "password": {"env": "B"}}},
            "redis.password is read from B, which is not in its environment",
        ),
        ({"blocklist": [{"name": "a", "words_from": {"file": "/a.txt"}}]}, r"blocklist\[0\].words_from is read from"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_every_secret_of_the_configuration_must_be_on_every_worker(
    sections: dict[str, Any], words: str, production: Manifests
) -> None:
    found = found_in(production, args(**sections))
    groups = {match[1] for fault in found if (match := re.match(f"group (\\w+): {words}", fault))}
    assert groups == {"cpu", "l4", "a100", "h100"}, found


def test_trainings_have_a_place_to_write_to(production: Manifests) -> None:
    training = args(training={"folder": "/data/trainings", "num_gpus": 1})
    assert found_in(production, training, at(f"{GPU}/maxReplicas", 26)) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ([args(training={"folder": "/models/trainings"})], "l4: trainings write to training.folder, /models/trainings"),
        ([args(training={"folder": "/trainings"})], "l4: trainings write to /trainings, where nothing is mounted"),
        (
            [args(training={"folder": "/data/t"}), argument("loras", "folder", "/models/loras")],
            "l4: trainings write to loras.folder, /models/loras, and /models is mounted readOnly",
        ),
        (
            [
                args(training={"folder": "/data/t"}),
                at(f"{WORKER}/volumeMounts/0", {"name": "data", "mountPath": "/data/t", "readOnly": True}),
            ],
            "l4: trainings write to training.folder, /data/t, and /data/t is mounted readOnly",
        ),
        ([args(training={"folder": "/data/t", "num_gpus": 2})], "training: no worker has the 2 GPUs of a training"),
        (
            [args(training={"folder": "/data/t", "num_gpus": 1}), at(f"{GPU}/maxReplicas", 25)],
            "room: deployments and trainings may want 50 GPUs, and all groups together may have 49",
        ),
    ],
)
def test_trainings_that_could_not_write_or_run_are_found(
    changes: list[Change], fault: str, production: Manifests
) -> None:
    found = found_in(production, *changes)
    assert any(fault in each for each in found), found


def test_loras_that_nobody_trains_may_lie_where_only_reading_is_possible(production: Manifests) -> None:
    assert found_in(production, argument("loras", "folder", "/models/loras")) == []


def test_a_model_on_a_volume_must_say_its_size(production: Manifests) -> None:
    """It is read where the application is built, which may be the head, where no volume is."""

    def mine(**more: Any) -> Change:
        def change(said: dict[str, Any]) -> None:
            arguments = said["applications"][0]["args"]
            arguments["models"] = [{"name": "mine", "source": "/models/mine", **more}]
            arguments["deployments"][0]["models"] = ["mine"]

        return in_application(change)

    (fault,) = found_in(production, mine())
    assert fault.startswith("models: mine: give its `native_size`")
    assert found_in(production, mine(native_size=512)) == []


@pytest.mark.parametrize(
    "change",
    [
        at(f"{GPU}/rayStartParams", {}),
        at(f"{GPU}/rayStartParams", {"object-store-memory": str(4 * 2**30)}),
        at(f"{GPU}/template/spec/volumes/0", {"name": "shared-memory", "emptyDir": {}}),
    ],
)
def test_rays_object_store_fits_in_shared_memory(production: Manifests, change: Change) -> None:
    assert found_in(production) == []
    (found,) = found_in(production, change)
    assert "object-store-memory" in found

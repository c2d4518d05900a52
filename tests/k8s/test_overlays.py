"""Every overlay that is shipped would run, as far as can be seen without a cluster; and each check can fail."""

import copy
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployments.weights import fetching
from serve_app.cli.main import app
from serve_app.config.server import load_config
from serve_app.kubernetes.checks import find_faults
from serve_app.kubernetes.manifests import Manifests, Unbuildable, build
from serve_app.kubernetes.rendering import render_files
from tests.k8s.changes import CLUSTER, GPU, HEAD, WORKER, Change, argument, at, budget, in_application

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, for `kubectl kustomize`")

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(folder.name for folder in (K8S / "overlays").iterdir())
CRD = ROOT.parent / "shared" / "kuberay" / "ray.io_rayservices.yaml"


@pytest.fixture(scope="module")
def production() -> Manifests:
    return build(K8S / "overlays" / "production")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_is_wrong_with_an_overlay(overlay: str) -> None:
    assert list(find_faults(build(K8S / "overlays" / overlay))) == []


def test_weights_that_nobody_has_pinned_are_named_one_by_one() -> None:
    documents = copy.deepcopy(list(build(K8S / "overlays" / "production").documents))
    models = [
        {"name": "sd21", "source": "maker/b"},
        {"name": "sd15", "controlnets": {"canny": {"source": "maker/a"}}},
        {"name": "sd21-base", "source": str(K8S), "parts": {"vae": {"source": "openmmlab/upernet-convnext-small"}}},
    ]
    in_application(lambda said: said["applications"][0]["args"].update(models=models))(documents)
    found = list(find_faults(Manifests(documents)))
    assert found[0].startswith("weights: openmmlab/upernet-convnext-small has pickled weights only; `darkroom convert ")
    assert found[1:] == [f"weights: pin maker/{x} to a commit, as its `revision` in darkroom.yaml" for x in "ab"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberays_own_schema_has_nothing_against_it(overlay: str) -> None:
    if not CRD.is_file():
        pytest.skip("KubeRay's CRD is not here; all other checks are made without it")
    assert list(find_faults(build(K8S / "overlays" / overlay), CRD)) == []


def test_what_is_rendered_is_what_stands_there() -> None:
    for file, text in render_files(K8S):
        assert file.read_text() == text, f"{file.relative_to(ROOT)}: run `darkroom k8s render`"


def test_drift_is_found_and_put_right(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "observability").mkdir()
    overlay = tmp_path / "overlays" / "mine"
    overlay.mkdir(parents=True)
    (overlay / "darkroom.yaml").write_text("extends: demo\n")

    def run(*more: str) -> int:
        return CliRunner().invoke(app, ["k8s", "render", "--folder", str(tmp_path), *more]).exit_code

    assert run("--check") == 1
    assert not (overlay / "serve-config.yaml").exists()
    assert run() == 0
    assert run("--check") == 0
    (overlay / "darkroom.yaml").write_text("extends: demo\nwithout_keys: true\n")
    assert run("--check") == 1
    (overlay / "darkroom.yaml").write_text("extends: demo\nwithout_key: true\n")
    assert run("--check") == 2


CONFIGURATION = "darkroom-configuration"

BROKEN: dict[str, tuple[Change, str]] = {
    "a field of no pod": (at(f"{WORKER}/imagePullPolice", "Always"), "group l4 .*imagePullPolice"),
    "a port of words": (at(f"{WORKER}/ports/0/containerPort", "many"), "group l4 .*containerPort"),
    "a field of no policy": (lambda all_: all_[0].update(specs={}), "specs"),
    "a name too long": (at("metadata/name", "d" * 48), "RayService name"),
    "a name twice": (at(f"{GPU}/groupName", "cpu"), "group cpu: the name is taken"),
    "more than the most": (at(f"{GPU}/replicas", 99), "group l4: minReplicas <= replicas"),
    "replicas on the head": (at(f"{HEAD}/rayStartParams/num-cpus", "4"), "head: rayStartParams must have num-cpus"),
    "no autoscaler": (at(f"{CLUSTER}/enableInTreeAutoscaling", False), "autoscaler: enableInTreeAutoscaling"),
    "the old autoscaler": (at(f"{CLUSTER}/autoscalerOptions/version", "v1"), "autoscaler: .*version v2"),
    "pods that restart": (at(f"{GPU}/template/spec/restartPolicy", "Always"), "group l4: .*restartPolicy Never"),
    "a head that is not remembered": (at(f"{CLUSTER}/gcsFaultToleranceOptions", None), "dies with its head"),
    "one namespace for all": (
        at(f"{CLUSTER}/gcsFaultToleranceOptions/externalStorageNamespace", "x"),
        "a namespace of its own",
    ),
    "steps without a way": (
        at("spec/upgradeStrategy", {"type": "NewClusterWithIncrementalUpgrade"}),
        "clusterUpgradeOp",
    ),
    "steps larger than the surge": (
        at(
            "spec/upgradeStrategy",
            {
                "type": "NewClusterWithIncrementalUpgrade",
                "clusterUpgradeOptions": {
                    "gatewayClassName": "istio",
                    "stepSizePercent": 50,
                    "intervalSeconds": 9,
                    "maxSurgePercent": 20,
                },
            },
        ),
        "stepSizePercent <= maxSurgePercent",
    ),
    "a proxy on the head alone": (in_application(lambda said: said.update(proxy_location="HeadOnly")), "EveryNode"),
    "what Serve drops": (
        in_application(lambda said: said.update(proxy_locations="x")),
        "proxy_locations: Ray Serve",
    ),
    "another such field, deeper": (
        in_application(lambda said: said["applications"][0].update(route="/")),
        "applications/route: Ray",
    ),
    "what Serve refuses": (
        in_application(lambda said: said["http_options"].update(port="x")),
        "http_options/port",
    ),
    "a builder that is not there": (
        in_application(lambda said: said["applications"][0].update(import_path="serve_app.app:built")),
        "there is no 'serve_app.app:built'",
    ),
    "a folder of LoRAs that is not mounted": (
        at(f"{WORKER}/volumeMounts", []),
        "group l4: loras are read from /data/loras, where nothing is mounted",
    ),
    "arguments of no builder": (argument("ingress", "replica", 3), "args: .*replica"),
    "a model that nobody knows": (
        in_application(lambda said: said["applications"][0]["args"]["deployments"][0].update(models=["sd99"])),
        "args: .*sd99",
    ),
    "another Ray": (at(f"{CLUSTER}/rayVersion", "2.50.0"), "rayVersion: it says 2.50.0"),
    "GPUs without a limit": (
        at(f"{WORKER}/resources/limits", {"cpu": "6", "memory": "24Gi"}),
        "group l4: it asks for 1 GPUs and its limit is None",
    ),
    "a replica larger than a worker": (
        in_application(lambda said: said["applications"][0]["args"]["deployments"][0].update(num_gpus=2)),
        "no worker has the 2 GPUs",
    ),
    "more replicas than GPUs": (at(f"{GPU}/maxReplicas", 1), "room: deployments and trainings may want"),
    "a request longer than its replica": (
        argument("ingress", "request_timeout_s", 245),
        "drain: ingress.request",
    ),
    "a request that a cold start outlasts": (
        argument("ingress", "request_timeout_s", 180),
        "min_replicas is 0, so ingress.request_timeout_s .180.0. must be more than 190",
    ),
    "an ingress that goes first": (
        argument("ingress", "graceful_shutdown_timeout_s", 200),
        "drain: the longest",
    ),
    "all ingresses on one node": (argument("ingress", "max_replicas_per_node", None), "ingress: without max_repl"),
    "no time to drain": (at(f"{GPU}/template/spec/terminationGracePeriodSeconds", 30), "group l4: terminationGrace"),
    "a drain that nobody set": (at(f"{WORKER}/env", []), "drain: .*group l4: RAY_GRACEFUL"),
    "a cluster that goes at once": (at("spec/rayClusterDeletionDelaySeconds", 60), "rayClusterDeletionDelaySeconds"),
    "a proxy that is not found": (at(f"{WORKER}/ports/1/name", "http"), "must be named `serve`"),
    "metrics that are not found": (at(f"{WORKER}/ports/0/name", "m"), "a port named `metrics`"),
    "nodes without our settings": (at(f"{WORKER}/envFrom", []), "from the ConfigMap darkroom-nodes"),
    "memory beyond what was asked for": (
        at(f"{WORKER}/resources/requests/memory", "1Gi"),
        "memory asked for",
    ),
    "a probe of one's own": (at(f"{WORKER}/readinessProbe", {"tcpSocket": {"port": 8000}}), "KubeRay's own probes"),
    "a hook that ends Ray": (
        at(f"{WORKER}/lifecycle", {"preStop": {"exec": {"command": ["ray", "stop"]}}}),
        "a preStop hook",
    ),
    "a budget that lets no pod go": (budget(maxUnavailable=1), "only `minAvailable`, as a number"),
    "a budget of a share": (budget(minAvailable="50%"), "only `minAvailable`, as a number"),
    "weights that are not pinned": (
        in_application(lambda said: said["applications"][0]["args"].update(models=[{"name": "sd21", "source": "a/b"}])),
        "weights: pin a/b to",
    ),
    "keys that are not mounted": (at(f"{WORKER}/volumeMounts", []), "keys is read from /etc/darkroom/keys.yaml"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_manifest_is_found(what: str, production: Manifests) -> None:
    change, words = BROKEN[what]
    documents = copy.deepcopy(list(production.documents))
    change(documents)
    found = list(find_faults(Manifests(documents)))
    assert any(re.search(words, fault) for fault in found), found


def test_the_crd_knows_what_no_other_check_does(production: Manifests) -> None:
    if not CRD.is_file():
        pytest.skip("KubeRay's CRD is not here")
    documents = copy.deepcopy(list(production.documents))
    at(f"{CLUSTER}/autoscalerOptions/upscalingMod", "Default")(documents)
    assert any("upscalingMod" in fault for fault in find_faults(Manifests(documents), CRD))


def test_what_is_no_overlay_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(Unbuildable, match="kustomization"):
        build(tmp_path)
    with pytest.raises(Unbuildable, match="here are 0"):
        list(find_faults(Manifests([])))


def test_init_containers_fetch_by_the_configuration_that_is_served(
    production: Manifests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What their command does with a hub: tests/serve_app/cli/test_fetch.py."""
    overlay = K8S / "overlays" / "production"
    (given,) = (each["data"] for each in production.of_kind("ConfigMap") if each["metadata"]["name"] == CONFIGURATION)
    assert given == {"darkroom.yaml": (overlay / "darkroom.yaml").read_text()}
    caches = set()
    wanted: list[str] = []
    monkeypatch.setattr(fetching, "fetch", lambda hosted, *_, **__: wanted.extend(spec.name for spec, *_ in hosted))
    for pod in (each for each in production.worker_pods() if "initContainers" in each.spec):
        (container,) = pod.spec["initContainers"]
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        command, config = container["command"], Path(container["command"][3])
        assert mounts[str(config.parent)]["configMap"]["name"] == CONFIGURATION
        # The command line takes it, and finds every model pinned.
        wanted.clear()
        done = CliRunner().invoke(app, [*command[1:3], str(overlay / config.name), *command[4:]])
        assert (command[0], done.exit_code) == ("darkroom", 0)
        assert wanted == [name for each in load_config("production").deployments for name in each.models]
        for each in (container, pod.main):
            (cache,) = (given["value"] for given in each["env"] if given["name"] == "HF_HUB_CACHE")
            volume = {mount["mountPath"]: volumes[mount["name"]] for mount in each["volumeMounts"]}[cache]
            caches.add((cache, volume["persistentVolumeClaim"]["claimName"]))
    assert caches == {("/models", "darkroom-weights")}


def test_compiled_kernels_outlive_the_pods_that_compiled_them(production: Manifests) -> None:
    """Else every new pod would compile for minutes before it serves."""
    claims = {each["metadata"]["name"] for each in production.of_kind("PersistentVolumeClaim")}
    kept: set[str] = set()
    for pod in (each for each in production.worker_pods() if "nvidia.com/gpu" in each.main["resources"]["limits"]):
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        (volume,) = (volumes[each["name"]] for each in pod.main["volumeMounts"] if each["mountPath"] == "/cache")
        kept.add(volume["persistentVolumeClaim"]["claimName"])
        set_here = {each["name"]: each.get("value") for each in pod.main["env"]}
        for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
            assert str(set_here[variable]).startswith("/cache/")
    assert kept == {"darkroom-compiled"} <= claims


def test_secrets_are_named_and_never_shipped() -> None:
    for overlay in OVERLAYS:
        manifests = build(K8S / "overlays" / overlay)
        assert manifests.of_kind("Secret") == []
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    for name in set(re.findall(r"secretName: ([\w-]+)|secretKeyRef: {name: ([\w-]+)", _text_of_all())):
        assert f"secret generic {''.join(name)}" in page


def _text_of_all() -> str:
    return "".join(file.read_text() for file in K8S.rglob("*.yaml"))

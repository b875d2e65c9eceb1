"""The manifests for Kubernetes: they are valid, they fit each other and the image, and what they run, runs."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from deployment.promql import assert_answerable
from feedmill import keys
from feedmill.cli import main
from feedmill_server.config import parse_size
from feedmill_server.pictures import write_shards
from integration.processes import Served, environment, wait_until

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "kubernetes"
COMPOSE = ROOT / "docker-compose.yml"
NO_MANIFESTS = {"kustomization.yaml", "prometheus-adapter.yaml"}
Manifest = dict[str, Any]


def parse(path: Path) -> Manifest:
    (manifest,) = yaml.safe_load_all(path.read_text())
    assert isinstance(manifest, dict)
    return manifest


PATHS = sorted(path for path in FOLDER.rglob("*.yaml") if path.name not in NO_MANIFESTS)
MANIFESTS = {path.stem: parse(path) for path in PATHS}
PODS = {
    name: manifest["spec"]["template"] for name, manifest in MANIFESTS.items() if "template" in manifest.get("spec", {})
}
SERVER, TRAINER = (PODS[name]["spec"]["containers"][0] for name in ("deployment", "trainer"))
PORTS = {port["name"]: port["containerPort"] for port in SERVER["ports"]}


def option(container: Manifest, name: str) -> str:
    (value,) = [arg.removeprefix(f"--{name}=") for arg in container["args"] if arg.startswith(f"--{name}=")]
    return str(value)


@pytest.mark.parametrize("release", ["1.25", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.stem))
def test_manifests_are_what_kubernetes_knows(path: Path, release: str) -> None:
    """By its own schemas, old and new; a key that nobody knows is an error."""
    kubernetes_validate.validate(parse(path), release, strict=True)


def test_one_command_applies_all_but_the_examples() -> None:
    """``kubectl apply -k`` knows of each file."""
    listed = parse(FOLDER / "kustomization.yaml")["resources"]
    assert sorted(listed) == sorted(path.name for path in FOLDER.glob("*.yaml") if path.name not in NO_MANIFESTS)


def test_everything_that_means_the_servers_selects_them() -> None:
    """By labels that their pods have; a trainer has what the network policy asks for, and servers have not."""
    labels = PODS["deployment"]["metadata"]["labels"]
    policy = MANIFESTS["networkpolicy"]["spec"]
    for selector in (
        MANIFESTS["deployment"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["service"]["spec"]["selector"],
        MANIFESTS["disruption"]["spec"]["selector"]["matchLabels"],
        policy["podSelector"]["matchLabels"],
        *(c["labelSelector"]["matchLabels"] for c in PODS["deployment"]["spec"]["topologySpreadConstraints"]),
    ):
        assert selector.items() <= labels.items()
    (trainers,) = policy["ingress"][0]["from"][0]["podSelector"]["matchExpressions"]
    assert trainers == {"key": "feedmill-client", "operator": "Exists"}
    assert trainers["key"] in PODS["trainer"]["metadata"]["labels"]
    assert trainers["key"] not in labels
    target = MANIFESTS["autoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", MANIFESTS["deployment"]["metadata"]["name"])


def test_ports_are_those_that_the_server_listens_on() -> None:
    """For the Service, its headless name, probes, Prometheus, the network policy, and the trainer."""
    listens = {"batches": option(SERVER, "bind"), "http": option(SERVER, "http")}
    assert {name: int(address.rpartition(":")[2]) for name, address in listens.items()} == PORTS
    service = MANIFESTS["service"]
    assert service["spec"]["clusterIP"] == "None"
    (port,) = service["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (PORTS["batches"], "batches")
    assert TRAINER["args"][0] == f"tcp://{service['metadata']['name']}:{PORTS['batches']}"
    policy = MANIFESTS["networkpolicy"]["spec"]
    assert [[p["port"] for p in rule["ports"]] for rule in policy["ingress"]] == [[PORTS["batches"]], [PORTS["http"]]]
    annotations = PODS["deployment"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(PORTS["http"])
    assert {SERVER[f"{kind}Probe"]["httpGet"]["port"] for kind in ("liveness", "readiness")} == {"http"}


def test_the_autoscaler_asks_for_what_the_adapter_makes_of_metrics() -> None:
    """Of such that servers export, by PromQL."""
    (metric,) = MANIFESTS["autoscaler"]["spec"]["metrics"]
    (rule,) = parse(FOLDER / "prometheus-adapter.yaml")["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    (series,) = assert_answerable(rule["seriesQuery"])
    query = rule["metricsQuery"]
    for variable, value in (
        ("<<.GroupBy>>", "pod"),
        ("<<.LabelMatchers>>", 'namespace="training",pod=~"feedmill-0|feedmill-1"'),
        ("<<.Series>>", series),
    ):
        assert variable in query
        query = query.replace(variable, value)
    assert_answerable(query)


def test_what_a_server_may_take_is_within_its_pods_limits() -> None:
    """Batches and 0.1 GiB for each worker, as the document says, in memory; inflated shards on disk."""
    memory, shared = (
        parse_size("memory", size) for size in (SERVER["resources"]["limits"]["memory"], option(SERVER, "memory"))
    )
    workers = int(SERVER["resources"]["requests"]["cpu"])
    assert shared + 2**30 + workers * 2**30 / 10 <= memory
    (scratch,) = [v["emptyDir"] for v in PODS["deployment"]["spec"]["volumes"] if "emptyDir" in v]
    assert parse_size("cache_bytes", option(SERVER, "cache-bytes")) < parse_size("sizeLimit", scratch["sizeLimit"])


@pytest.mark.parametrize("name", PODS)
def test_pods_have_no_rights(name: str) -> None:
    """Nor a way to get any, nor anything to write to but what they name."""
    pod = PODS[name]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert "memory" in container["resources"]["limits"]


def test_images_are_those_that_compose_builds() -> None:
    """So that there is one way to build them."""
    if not COMPOSE.exists():
        pytest.skip("there is no docker-compose.yml")
    built = {service.get("image", "") for service in yaml.safe_load(COMPOSE.read_text())["services"].values()}
    used = {pod["spec"]["containers"][0]["image"].partition(":")[0] for pod in PODS.values()}
    assert used <= {image.partition(":")[0] for image in built}


def mounts(pod: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Return where the volumes of a pod are mounted, and folders for them. Secrets hold what the document says."""
    made = folder / "keys"
    if not made.exists():
        keys.generate(made)
    secrets = {
        name: re.findall(r"--from-file=(\S+)", files)
        for name, files in re.findall(
            r"^kubectl create secret generic (\S+) (.*)$", (ROOT / "docs" / "kubernetes.md").read_text(), re.MULTILINE
        )
    }
    spec = PODS[pod]["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for mount in spec["containers"][0]["volumeMounts"]:
        place = folder / pod / mount["name"]
        place.mkdir(parents=True)
        if secret := volumes[mount["name"]].get("secret"):
            for file in secrets[secret["secretName"]]:
                shutil.copy(folder / file, place)
        if claim := volumes[mount["name"]].get("persistentVolumeClaim"):
            assert claim["claimName"] == MANIFESTS["shards"]["metadata"]["name"]
            for number, shard in enumerate(write_shards(place, shards=1, samples=20, sides=(96, 160))):
                shard.rename(place / f"train-{number:06d}.tar")
        yield mount["mountPath"], place


def mounted(container: Manifest, places: dict[str, Path]) -> list[str]:
    """Return a container's arguments so that they mean the same outside, but for its ports."""
    args = [part for arg in container["args"] for part in arg.split("=", 1)]
    paths = re.compile(rf"({'|'.join(places)})(?=/|$)")
    args = [re.sub(paths, lambda found: str(places[found[1]]), arg, count=1) for arg in args]
    return [re.sub(r"\b0\.0\.0\.0:\d+$", "0.0.0.0:*", arg) for arg in args]


def is_well(address: str, path: str) -> bool:
    with closing(HTTPConnection(address, timeout=10)) as connection:
        connection.request("GET", path)
        return connection.getresponse().status == HTTPStatus.OK


def test_what_the_manifests_run_runs(tmp_path: Path, serve: Callable[..., Served]) -> None:
    """A server with its Secret is ready by its probes, a trainer with its own trains on it; the server ends in time."""
    assert SERVER["command"] == ["feedmill", "serve"]
    places = dict(mounts("deployment", tmp_path))
    workers, *others = SERVER["env"]
    assert workers == {"name": "FEEDMILL_WORKERS", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}}
    env = {entry["name"]: str(places.get(entry["value"], entry["value"])) for entry in others}
    served = serve(*mounted(SERVER, places), **env, FEEDMILL_WORKERS="1")
    assert "with 1 workers" in served.log

    (page,) = re.findall(r"page and metrics at http://(\S+)/", served.log)
    annotations = PODS["deployment"]["metadata"]["annotations"]
    probes = {SERVER[f"{kind}Probe"]["httpGet"]["path"] for kind in ("liveness", "readiness")}
    for path in (*probes, annotations["prometheus.io/path"]):
        wait_until(partial(is_well, page, path), 5, f"{path} says that all is well")

    own = dict(mounts("trainer", tmp_path))
    url, *args = mounted(TRAINER, own)
    _, script = TRAINER["command"]
    trained = subprocess.run(
        [sys.executable, f"{ROOT}{script}", url.replace("feedmill:7880", f"127.0.0.1:{served.port}"), *args],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env=environment(tmp_path),
        cwd=ROOT,
    )
    assert trained.returncode == 0, trained.stderr
    assert "epoch 0: loss" in trained.stdout

    served.signal(signal.SIGTERM)
    grace = PODS["deployment"]["spec"]["terminationGracePeriodSeconds"]
    wait_until(lambda: served.process.poll() == 0, grace, "the server has ended")


def test_the_shards_are_indexed_beside_them(tmp_path: Path) -> None:
    """By the Job that does it once."""
    places = dict(mounts("index", tmp_path))
    (index,) = PODS["index"]["spec"]["containers"]
    program, *command = index["command"]
    assert program == "feedmill"
    assert main([*command, *mounted(index, places)]) == 0
    assert list((places["/shards"] / ".feedmill").glob("*.index"))

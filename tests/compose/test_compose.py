"""docker-compose.yml, on a real engine."""

import json
from collections import Counter
from dataclasses import replace
from http.client import HTTPConnection
from urllib.parse import quote

import pytest

from compose.project import Project, docker

pytestmark = pytest.mark.timeout(1800)  # the first test builds the images

SAMPLES = 1024  # of the demo's dataset

WITHOUT_A_KEY = "import feedmill; feedmill.connect('tcp://server:7880', timeout=4)"


def senders(project: Project) -> set[str]:
    """Return who sent the last fifty batches."""
    return {batch["server"] for batch in project.batches()[-50:]}


def test_a_trainer_gets_every_sample_once_while_servers_come_and_are_killed(project: Project, prometheus: str) -> None:
    """From nothing to two servers, a third, and back to two; Prometheus sees them all."""
    project = replace(project, settings={"FEEDMILL_PROMETHEUS_IMAGE": prometheus, "FEEDMILL_PROMETHEUS_PORT": "0"})
    project.compose("up", "--detach")
    project.wait_until(lambda: len(senders(project)) == 2, "batches of two servers")

    project.compose(
        "--profile", "monitoring", "up", "--detach", "--no-recreate", "--scale", "server=3", "server", "prometheus"
    )
    project.wait_until(lambda: len(senders(project)) == 3, "batches of three servers")
    project.wait_until(lambda: len(asked(project, "feedmill_ready == 1")) == 3, "three servers in Prometheus")
    assert len(asked(project, "feedmill_samples_total > 0")) == 3

    before = project.batches()[-1]["epoch"]
    docker("kill", "--signal", "SIGKILL", project.containers("server")[1])
    project.wait_until(lambda: project.batches()[-1]["epoch"] >= before + 3, "three more epochs")
    assert len(senders(project)) == 2
    project.compose("kill", "--signal", "SIGUSR1", "trainer")
    [trainer] = project.containers("trainer")
    assert docker("wait", trainer).strip() == "0"

    epochs: dict[int, Counter[str]] = {}
    for batch in project.batches():
        epochs.setdefault(batch["epoch"], Counter()).update(batch["keys"])
    assert len(epochs) > before
    for epoch, keys in epochs.items():
        assert len(keys) == SAMPLES, f"epoch {epoch}"
        assert set(keys.values()) == {1}, f"epoch {epoch}"


def asked(project: Project, query: str) -> list[object]:
    """Return what Prometheus answers to a query."""
    host, _, port = project.compose("port", "prometheus", "9090").stdout.strip().rpartition(":")
    connection = HTTPConnection(host, int(port), timeout=10)
    try:
        connection.request("GET", f"/api/v1/query?query={quote(query)}")
        answer = json.load(connection.getresponse())
    except OSError:  # it is about to start
        return []
    finally:
        connection.close()
    return list(answer["data"]["result"])


def test_containers_can_do_little(project: Project) -> None:
    """Neither root nor write access nor a port that other machines reach."""
    project.compose("up", "--detach", "--wait", "--scale", "server=1", "server")
    tries = "import os; print(os.getuid()); open('/opt/feedmill/x', 'w')"
    ended = project.python("server", tries, check=False)
    assert ended.stdout.split() == ["10001"]
    assert "Read-only file system" in ended.stderr
    assert "Read-only file system" in project.python("server", "open('/data/x', 'w')", check=False).stderr
    [inspected] = json.loads(docker("inspect", *project.containers("server")))
    assert inspected["HostConfig"]["CapDrop"] == ["ALL"]
    published = [port for ports in inspected["NetworkSettings"]["Ports"].values() for port in ports or []]
    assert {port["HostIp"] for port in published} == {"127.0.0.1"}

    # Servers that run without keys do not get any behind their backs: they would pass for secure.
    ended = project.compose("run", "--rm", "--no-TTY", "keygen", check=False)
    assert ended.returncode == 1
    assert "servers run already, without keys" in ended.stderr

    # A server that is told to end has said goodbye in time.
    project.compose("stop", "server")
    [inspected] = json.loads(docker("inspect", *project.containers("server")))
    assert inspected["State"]["ExitCode"] == 0


def test_with_keys_nobody_gets_anything_without_them(project: Project) -> None:
    """The profile "secure" from nothing; then a stranger; then a server whose key is gone."""
    project = replace(project, settings={"FEEDMILL_EPOCHS": "1"})
    project.compose("--profile", "secure", "up", "--detach", "--scale", "server=1")
    [trainer] = project.containers("trainer")
    assert docker("wait", trainer).strip() == "0"
    assert len(project.batches()) == 32

    stranger = project.compose(
        "run", "--rm", "--no-deps", "--no-TTY", "trainer", "python", "-c", WITHOUT_A_KEY, check=False
    )
    assert stranger.returncode
    assert "ServerUnavailable" in stranger.stderr
    assert "one side has keys" in stranger.stderr

    code = "import os; print(os.listdir('/keys'))"
    listed = project.compose("run", "--rm", "--no-deps", "--no-TTY", "trainer", "python", "-c", code).stdout
    assert "client.key_secret" in listed
    assert "server.key_secret" not in listed

    # Where keys are wanted and cannot be had, nothing runs, with the profile or without.
    project.compose("run", "--rm", "--no-TTY", "keygen", "rm", "/keygen/server/server.key_secret")
    assert project.compose("--profile", "secure", "up", "--detach", check=False).returncode
    ended = project.compose("run", "--rm", "--no-deps", "--no-TTY", "server", check=False)
    assert ended.returncode == 2
    assert "server.key_secret" in ended.stderr

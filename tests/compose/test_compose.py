"""The fleet of docker-compose.yml, on a real container engine: it trains, survives, encrypts, and is watched."""

import json
import subprocess
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from compose import fleet
from compose.fleet import Fleet, docker, wait_for

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(missing := fleet.engine()), reason=missing),
]

SAMPLES = 1024
"""Of the demo's pictures, which compose draws where there are no others."""

SECONDS = 120.0
"""For a container to do what it does in ten seconds on a machine with nothing else to do."""


@pytest.fixture(scope="module", autouse=True)
def _images() -> None:
    fleet.build("server")
    fleet.build("trainer")


def test_an_epoch_is_whole_while_servers_come_and_die() -> None:
    """Two servers, then three, of which one is killed: every epoch has every sample once. Prometheus sees them all."""
    prometheus = "feedmill-test-prometheus"
    docker("build", "--tag", prometheus, "--file", "tests/compose/prometheus.Dockerfile", "tests/compose")
    with Fleet("feedmill-test", "monitoring", PROMETHEUS_IMAGE=prometheus, PROMETHEUS_PORT="0") as compose:
        compose.up("trainer", "prometheus", servers=2)
        wait_for("two servers are used", lambda: any(len(e["servers"]) == 2 for e in compose.epochs()), SECONDS)
        compose.up("server", servers=3)
        wait_for("a third is", lambda: any(len(e["servers"]) == 3 for e in compose.epochs()), SECONDS)
        where = compose.compose("port", "prometheus", "9090").strip()
        rates = 'count(feedmill_samples_total > 0) and sum(rate(feedmill_stage_seconds_total{stage="decode"}[1m])) > 0'
        wait_for("Prometheus has all three", lambda: _ask(where, rates) == ["3"], SECONDS)
        docker("kill", "--signal", "KILL", compose.containers("server")[0])
        wait_for("the trainer is done", lambda: compose.ended("trainer"), SECONDS)
        epochs = compose.epochs()
        assert len(epochs) >= 4
        assert {(epoch["came"], epoch["distinct"]) for epoch in epochs} == {(SAMPLES, SAMPLES)}
        assert "lost the connection" in compose.log("trainer")
        for server in compose.containers("server"):
            state = json.loads(docker("inspect", "--format", "{{json .State}}", server))
            assert state["Health"]["Status"] == "healthy"


def test_with_keys_a_stranger_gets_nothing() -> None:
    """The profile "secure" makes keys once; a trainer without one is told what is wrong, and the others train on."""
    with Fleet("feedmill-test-secure", "secure") as compose:
        compose.up("keys", "trainer", servers=1)
        wait_for("the trainer trains", compose.epochs, SECONDS)
        stranger = ["run", "--rm", "--no-deps", "--entrypoint", "python", "trainer", "/tests/trainer.py"]
        with pytest.raises(AssertionError, match="perhaps one side has keys that the other lacks"):
            compose.compose(*stranger, "tcp://server:7880", "--timeout", "5")
        before = docker("exec", compose.containers("server")[0], "sha256sum", "/keys/server.key_secret")
        compose.compose("up", "--no-build", "keys")  # again: keys stay what they are
        assert docker("exec", compose.containers("server")[0], "sha256sum", "/keys/server.key_secret") == before
        files = docker("exec", compose.containers("trainer")[0], "ls", "/keys").split()
        assert files == ["client.key", "client.key_secret", "server.key"]
        assert {epoch["distinct"] for epoch in compose.epochs()} == {SAMPLES}
        (trainer,) = compose.containers("trainer")
        docker("stop", trainer)
        assert docker("inspect", "--format", "{{.State.ExitCode}}", trainer).strip() == "130"  # KeyboardInterrupt


def test_the_server_is_refused_a_network_that_nobody_called_safe() -> None:
    """The image alone listens to no stranger."""
    run = ["docker", "run", "--rm", "feedmill-server", "feedmill", "serve", "/data/a.tar", "--preset=imagenet-train"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "anybody who reaches this address could use the server" in done.stderr


def _ask(address: str, query: str) -> list[str]:
    """Return the values that Prometheus has for a query; none if it does not answer yet."""
    try:
        with urlopen(f"http://{address}/api/v1/query?{urlencode({'query': query})}", timeout=5) as answer:
            return [series["value"][1] for series in json.load(answer)["data"]["result"]]
    except OSError:
        return []

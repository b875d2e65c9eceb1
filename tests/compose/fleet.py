"""docker-compose.yml, run as a user would run it: with ``docker compose``, in a project of its own."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

__all__ = ["Fleet", "build", "docker", "engine", "wait_for"]

_ROOT = Path(__file__).parents[2]

_COMMAND_SECONDS = 180.0
_BUILD_SECONDS = 1200.0
"""On two cores, with torch to be downloaded."""

_Found = TypeVar("_Found")


def engine() -> str:
    """Say why there is no engine with compose, or "" if there is."""
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"no container engine: {error}"
        if done.returncode:
            return f"no container engine: {' '.join(command)}: {(done.stderr or done.stdout).strip()[-200:]}"
    return ""


def docker(*args: str | Path, timeout: float = _COMMAND_SECONDS, env: Mapping[str, str] | None = None) -> str:
    """Run a command, and return what it wrote to stdout; it must succeed."""
    done = subprocess.run(
        ["docker", *args],  # noqa: S607 # wherever it is installed
        cwd=_ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"docker {' '.join(map(str, args))} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout


def build(target: str) -> None:
    """Build an image of docker/Dockerfile.

    Where torch's index for processors cannot be reached, COMPOSE_TEST_WHEELS names a folder with its wheels, and with
    the constraints.txt that has pip take these.
    """
    wheels: list[str | Path] = []
    if folder := os.environ.get("COMPOSE_TEST_WHEELS"):
        wheels = ["--build-context", f"wheels={folder}", "--build-arg", "PIP_EXTRA_INDEX_URL="]
        wheels += ["--build-arg", "PIP_CONSTRAINT=/wheels/constraints.txt"]
    image = ["--file", "docker/Dockerfile", "--target", target, "--tag", f"feedmill-{target}"]
    docker("build", *image, *wheels, ".", timeout=_BUILD_SECONDS)


class Fleet:
    """A project of docker-compose.yml and the tests' addition to it. Leaving the context takes down all of it."""

    def __init__(self, project: str, *profiles: str, **variables: str) -> None:
        self._compose = ["compose", "--project-name", project, "-f", "docker-compose.yml"]
        self._compose += ["-f", "tests/compose/compose.yml", *(f"--profile={profile}" for profile in profiles)]
        self._env = {key: value for key, value in os.environ.items() if not key.startswith("FEEDMILL_")} | variables

    def __enter__(self) -> Self:
        self.take_down()  # what an interrupted run has left
        return self

    def __exit__(self, *_: object) -> None:
        self.take_down()

    def take_down(self) -> None:
        """Remove containers, networks and volumes."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "10")

    def compose(self, *args: str) -> str:
        """Run a command of compose's; it must succeed."""
        return docker(*self._compose, *args, env=self._env)

    def up(self, *services: str, servers: int) -> None:
        """Start what is not running yet, of images that are there."""
        self.compose("up", "--detach", "--no-build", "--no-recreate", f"--scale=server={servers}", *services)

    def containers(self, service: str) -> list[str]:
        """Return the containers of a service that run."""
        return self.compose("ps", "--quiet", service).split()

    def log(self, service: str) -> str:
        """Return what all containers of a service have written."""
        return self.compose("logs", "--no-log-prefix", "--no-color", service).replace("\x1b[2K", "")

    def epochs(self) -> list[dict[str, Any]]:
        """Return what the trainer has said of its epochs so far."""
        return [json.loads(line) for line in self.log("trainer").splitlines() if line.startswith("{")]

    def ended(self, service: str) -> bool:
        """Tell whether the only container of a service has ended well; it must not have ended otherwise."""
        (container,) = self.compose("ps", "--all", "--quiet", service).split()
        state = json.loads(docker("inspect", "--format", "{{json .State}}", container))
        assert state["Running"] or state["ExitCode"] == 0, self.log(service)
        return not state["Running"]


def wait_for(what: str, found: Callable[[], _Found], seconds: float) -> _Found:
    """Wait until something is found that is not empty, and return it."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.5)
    return result

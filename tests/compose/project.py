"""A project of docker compose: what is in docker-compose.yml, under a name of its own."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["CODE", "ROOT", "TAG", "Ended", "Project", "docker"]

ROOT = Path(__file__).parents[2]
CODE = Path(__file__).with_name("code")
TAG = "test"

Ended = subprocess.CompletedProcess[str]


def docker(*args: str, stderr: int = subprocess.PIPE) -> str:
    """Run ``docker``; return what it wrote."""
    return subprocess.run(
        ["docker", *args], check=True, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60
    ).stdout


@dataclass(frozen=True)
class Project:
    """The project ``name``, with ``settings`` for the variables of docker-compose.yml."""

    name: str
    settings: dict[str, str] = field(default_factory=dict)

    def compose(self, *args: str, timeout: float = 120.0, check: bool = True) -> Ended:
        """Run ``docker compose``; return what it wrote."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("COMPOSE_")}
        environment |= {"FEEDMILL_TAG": TAG, "FEEDMILL_CODE": str(CODE), "FEEDMILL_EPOCHS": "1000"} | self.settings
        files = [ROOT / "docker-compose.yml"]
        if os.environ.get("TEST_WHEELS"):
            files.append(Path(__file__).with_name("wheels.yml"))
        command = ["docker", "compose", "--project-name", self.name, "--project-directory", str(ROOT)]
        command += [option for file in files for option in ("--file", str(file))]
        ended = subprocess.run(
            [*command, *args], check=False, env=environment, capture_output=True, text=True, timeout=timeout
        )
        if check and ended.returncode:
            raise AssertionError(f"{' '.join(args)}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}\n{self.logs()}")
        return ended

    def logs(self) -> str:
        """Return the last lines of all services, cut to what one can read."""
        written = self.compose("logs", "--no-color", "--tail", "20", check=False).stdout
        return "\n".join(line[:200] for line in written.splitlines())

    def written(self, service: str) -> str:
        """Return what the only container of a service wrote."""
        [container] = self.containers(service)
        return docker("logs", container, stderr=subprocess.STDOUT)

    def batches(self) -> list[dict[str, Any]]:
        """Return what the trainer has had until now."""
        return [json.loads(line) for line in self.written("trainer").splitlines() if line.startswith("{")]

    def containers(self, service: str) -> list[str]:
        """Return the ids of a service's containers, those that have ended too."""
        return self.compose("ps", "--all", "--quiet", service).stdout.split()

    def python(self, service: str, code: str, *, check: bool = True) -> Ended:
        """Run Python in a container that runs."""
        return self.compose("exec", "--no-TTY", service, "python", "-c", code, check=check)

    def wait_until(self, happened: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
        """Wait for something to be true."""
        deadline = time.monotonic() + seconds
        while not happened():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds:g} s: {what}\n{self.logs()}")
            time.sleep(0.5)

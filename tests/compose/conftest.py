"""Docker, and the images, which are built once."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from compose.project import ROOT, TAG, Project

BUILD_SECONDS = 1500.0
"""Without a cache of layers, on a slow line."""


def _missing() -> str:
    """Return why there is no engine to test with; empty where there is one."""
    if shutil.which("docker") is None:
        return "there is no docker"
    for command in ("info", "compose version"):
        try:
            subprocess.run(["docker", *command.split()], check=True, capture_output=True, timeout=30)
        except (subprocess.SubprocessError, OSError):
            return f"'docker {command}' fails: no engine, or none for this user"
    return ""


@pytest.fixture(scope="session")
def images() -> None:
    """Build the images of docker-compose.yml, with the tag of the tests."""
    if reason := _missing():
        pytest.skip(reason)
    Project("feedmill-build").compose("--profile", "secure", "build", "--quiet", timeout=BUILD_SECONDS)


@pytest.fixture(scope="session")
def prometheus(images: None) -> str:
    """Return the name of an image of Prometheus."""
    name = f"feedmill-prometheus:{TAG}"
    file = Path(__file__).with_name("prometheus.Dockerfile")
    command = ["docker", "build", "--quiet", "--file", str(file), "--tag", name, str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=BUILD_SECONDS)
    return name


@pytest.fixture
def project(images: None) -> Iterator[Project]:
    """Return a project that has nothing yet, and is down, with its volumes, when the test is over."""
    project = Project(f"feedmill-test-{os.getpid()}")
    try:
        yield project
    finally:
        project.compose("--profile", "*", "down", "--volumes", "--timeout", "5", "--remove-orphans")

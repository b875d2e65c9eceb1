"""A server's page in a real browser. Skipped where there is no Chromium with its driver (Debian's, for example)."""

import io
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import feedmill
from feedmill_server.pictures import draw
from integration.epochs import TIMEOUT
from integration.processes import Served, stop, wait_until
from shardmaker import write_tar

webdriver = pytest.importorskip("selenium.webdriver")

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no Chromium with chromedriver")

HOSTILE = "<img src=x onerror=document[`title`]=`pwned`>"
"""The key of a sample, and so text on the page."""

SOON = 15.0
"""Seconds for what a page does within two; a machine that does other things takes longer."""

Serve = Callable[..., Served]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless", "disable-gpu", "no-first-run", "disable-background-networking", "disable-sync"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER)) as driver:
        yield driver


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Return a shard of pictures, one of which is none and has a hostile key."""
    samples = []
    for number in range(48):
        jpeg = io.BytesIO()
        draw(number % 8, 160, 120, np.random.default_rng(number)).save(jpeg, "JPEG")
        samples.append((f"{number:04d}", {"jpg": jpeg.getvalue(), "cls": b"1"}))
    samples[7] = HOSTILE, {"jpg": b"no picture", "cls": b"1"}
    return write_tar(tmp_path / "pictures.tar", samples)


@pytest.fixture
def url() -> str:
    """Return where a page can be, and be again."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/"


@pytest.fixture
def start(serve: Serve, shard: Path, url: str) -> Callable[[], Served]:
    """Start a server of the shard, with a page."""
    port = url.rstrip("/").rpartition(":")[2]
    return lambda: serve(shard, "--preset", "imagenet-train", "--batch-size", "8", "--workers", "1", "--http", port)


@pytest.fixture
def trained(start: Callable[[], Served]) -> Iterator[Served]:
    """Return a server that a trainer trains from."""
    served, over = start(), threading.Event()

    def train() -> None:
        with feedmill.connect(served.url, on_error="skip", timeout=TIMEOUT) as feed, suppress(feedmill.FeedmillError):
            while not over.is_set():
                for _ in feed.batches():
                    if over.wait(0.05):
                        break

    trainer = threading.Thread(target=train)
    trainer.start()
    yield served
    over.set()
    trainer.join(30)


def text(chromium: Any, selector: str) -> str:
    return str(chromium.execute_script("return document.querySelector(arguments[0]).innerText", selector))


def number(chromium: Any, selector: str) -> float:
    try:
        return float(text(chromium, selector).replace(",", ""))
    except ValueError:  # nothing yet
        return 0.0


def look(chromium: Any, width: int, scheme: str) -> None:
    """Make the window as wide as a phone, say, and prefer light or dark."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def complaints(chromium: Any) -> list[str]:
    return [entry["message"] for entry in chromium.get_log("browser")]


@pytest.mark.usefixtures("trained")
def test_the_page_shows_a_server_at_work(chromium: Any, url: str) -> None:
    """Figures move, the picture is loaded and renewed, and the browser has nothing to complain of."""
    look(chromium, 1200, "light")
    complaints(chromium)
    chromium.get(url)
    wait_until(lambda: number(chromium, "#samples") > 0, SOON, "samples are sent")
    assert text(chromium, "#state") == "serving"
    totals = "#figures div:nth-child(2) dd"
    first = number(chromium, totals)
    wait_until(lambda: number(chromium, totals) > first, SOON, "the totals move")
    picture = "return document.querySelector('#picture').naturalWidth"
    wait_until(lambda: chromium.execute_script(picture) > 1000, SOON, "the picture is there")
    source = "return document.querySelector('#picture').src"
    before = chromium.execute_script(source)
    wait_until(lambda: chromium.execute_script(source) != before, SOON, "it is renewed")
    curve = "return document.querySelector('#curve').getAttribute('d')"
    wait_until(lambda: chromium.execute_script(curve), SOON, "the curve is drawn")
    assert "127.0.0.1" in text(chromium, "#clients")
    assert "decode" in text(chromium, "#legend")
    assert complaints(chromium) == []


@pytest.mark.usefixtures("trained")
def test_names_that_data_and_clients_chose_are_text(chromium: Any, url: str) -> None:
    """A key that looks like HTML is read, not run."""
    look(chromium, 1200, "light")
    chromium.get(url)
    wait_until(lambda: HOSTILE in text(chromium, "#bad-samples"), SOON, "the bad sample is told")
    assert "cannot identify image file" in text(chromium, "#bad-samples")
    assert "pwned" not in chromium.title
    assert chromium.execute_script("return document.querySelectorAll('td img').length") == 0
    script = "const s = document.createElement('script'); s.text = 'document.title = 1'; document.body.append(s)"
    chromium.execute_script(script)
    assert any("Content Security Policy" in message for message in complaints(chromium))


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_fits_its_window_in_light_and_dark(chromium: Any, url: str, width: int) -> None:
    """Nothing has to be scrolled sideways, and text stands out from its background."""
    chromium.get(url)
    grounds = []
    for scheme in ("light", "dark"):
        look(chromium, width, scheme)
        wait_until(lambda: number(chromium, "#samples") > 0, SOON, "samples are sent")
        assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
        colours = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        ink, ground = (_luminance(colour) for colour in chromium.execute_script(colours))
        assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) > 7  # WCAG's AAA
        grounds.append(ground)
    assert grounds[0] > 0.8
    assert grounds[1] < 0.05


def test_the_page_survives_a_restart_of_its_server(chromium: Any, url: str, start: Callable[[], Served]) -> None:
    """It says that nobody answers, goes on asking, and shows the new one."""
    served = start()
    look(chromium, 1200, "dark")
    chromium.get(url)
    wait_until(lambda: text(chromium, "#state") == "serving", SOON, "it serves")
    stop(served)
    wait_until(lambda: text(chromium, "#state") == "no answer", SOON, "that nobody answers is told")
    assert "goes on asking" in text(chromium, "#verdict")
    start()
    wait_until(lambda: text(chromium, "#verdict") == "No trainer is connected.", SOON, "the new one is shown")


def _luminance(colour: str) -> float:
    """Return the relative luminance of rgb(…), as WCAG has it."""
    channels = np.array(json.loads(f"[{colour[colour.index('(') + 1 : -1]}]"))[:3] / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))

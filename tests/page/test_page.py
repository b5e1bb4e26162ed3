"""The page in a real browser: headless Chromium uploads, outpaints, cancels, plays and downloads."""

import json
import os
import shutil
import socket
import time
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest

from m3ddm_jax.page.server import serving
from m3ddm_jax.video import FrameSink, FrameSource

gr = pytest.importorskip("gradio", reason="the page needs gradio")
webdriver = pytest.importorskip("selenium.webdriver", reason="the browser is driven by selenium")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("chromium and chromium-driver are not installed", allow_module_level=True)

pytestmark = pytest.mark.slow

_ARGUMENTS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "window-size=1280,1400",
)


class Tab:
    """The page in a browser. folder: for its profile."""

    def __init__(self, address: str, folder: Path):
        options = webdriver.ChromeOptions()
        for argument in (*_ARGUMENTS, f"user-data-dir={folder / 'profile'}"):
            options.add_argument(f"--{argument}")
        options.binary_location = shutil.which("chromium")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        self.driver.get(address)
        self.wait("#sample")

    def find(self, selector: str):
        return self.driver.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        return self.find(selector)[0].text

    def wait(self, selector: str, text: str = "", seconds: float = 20) -> str:
        """The text of the element, once it is there and contains `text`."""
        return until(lambda: next((e.text for e in self.find(selector) if text in e.text), None), seconds)

    def click(self, selector: str) -> None:
        """Click the element once it is enabled; also where a message floats above it."""
        found = until(lambda: next((e for e in self.find(selector) if e.is_enabled()), None))
        self.driver.execute_script("arguments[0].click()", found)

    def enter(self, field, value: float) -> None:
        """Enter a number in a field."""
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
        self.driver.execute_script(script, field, value)

    def upload(self, path: Path) -> None:
        if self.find("#video button[aria-label=Clear]"):
            self.click("#video button[aria-label=Clear]")
        until(lambda: self.find("#video input[type=file]"))[0].send_keys(str(path))

    def videos(self, what: str) -> list:
        return self.driver.execute_script(f"return [...document.querySelectorAll('#player video')].map(v => {what})")

    def hosts(self) -> set[str]:
        """Hosts that the browser has asked for anything."""
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return {urlparse(url).netloc for url in urls if url.startswith(("http", "ws"))}


def until(look, seconds=20.0):
    """What `look` returns, once that is true or a text."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            found = look()
        except Exception as error:
            if type(error).__name__ != "StaleElementReferenceException":
                raise
            found = None
        if found or found == "":
            return found
        time.sleep(0.05)
    raise AssertionError(f"nothing came in {seconds:g} s")


@pytest.fixture(scope="module")
def looked_up():
    """Names of hosts that the server's process looks up."""
    names, look_up = set(), socket.getaddrinfo

    def record(host, *arguments, **options):
        names.add(host)
        return look_up(host, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", record)
        yield names


@pytest.fixture(scope="module")
def page(tmp_path_factory, looked_up):
    """The page's address and its folder, and a tab that shows it."""
    folder = tmp_path_factory.mktemp("browser")
    with serving("127.0.0.1", 0, megabytes=1) as address:
        tab = Tab(address, folder)
        try:
            yield address, Path(os.environ["GRADIO_TEMP_DIR"]).parent, tab
        finally:
            tab.driver.quit()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    frames = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8).repeat(12, 1).repeat(12, 2)
    for name, count in (("short", 24), ("long", 1500)):
        with FrameSink(folder / f"{name}.mp4", 24, 192, 192) as sink:
            for _ in range(count):
                sink.write(frames)
    (folder / "bad.mp4").write_text("no video")
    (folder / "big.mp4").write_bytes(bytes(2 << 20))
    return folder


def choose_method(tab, name):
    field = tab.find("#method input")[0]
    field.click()
    field.send_keys("\ue009a\ue000" + name + "\ue007")  # all of it, and Enter


def test_bad_files_are_one_line(page, clips):
    _, folder, tab = page
    tab.upload(clips / "bad.mp4")
    assert tab.wait("#status .problem").startswith("bad.mp4 is no readable video")
    tab.upload(clips / "big.mp4")
    assert 'File(s) exceed the maximum allowed size of 1.0 Mb: "big.mp4"' in tab.wait("body", "exceed")
    assert not tab.find("#start")[0].is_enabled()
    assert not list(folder.rglob("b*.mp4"))
    tab.driver.refresh()
    tab.wait("#sample")


def test_the_picture_follows_the_controls_and_a_drag(page, clips):
    _, _, tab = page
    tab.upload(clips / "long.mp4")
    tab.wait("#picture", "192x192 to 342x192, adds 75 left, 75 right")
    tab.click("#choice input[value='9:16']")
    tab.wait("#picture", "192x192 to 192x342, adds 75 top, 75 bottom")
    drag = webdriver.ActionChains(tab.driver).click_and_hold(tab.find("image.source")[0])
    drag.move_by_offset(0, -200).release().perform()
    tab.wait("#picture", "adds 150 bottom")
    tab.click("#choice input[value='Pixels']")
    field = until(lambda: next((e for e in tab.find("#width input") if e.get_attribute("value") == "342"), None))
    tab.enter(field, 100)
    tab.wait("#picture", "the canvas only grows")
    assert not tab.find("#start")[0].is_enabled()
    tab.click("#choice input[value='16:9']")
    tab.wait("#picture", "192x192 to 342x192")


def test_progress_and_cancel(page):
    _, folder, tab = page
    choose_method(tab, "telea")
    tab.click("#start")
    assert " s left" in tab.wait("#status", "of 1500, about", 30)
    tab.click("#cancel")
    tab.wait("#status", "Cancelled", 5)
    until(lambda: not list(folder.rglob("results/*/*")), 5)
    until(lambda: tab.find("#start")[0].is_enabled())


def test_play_and_download(page, clips, tmp_path):
    _, folder, tab = page
    tab.upload(clips / "short.mp4")
    tab.wait("#status", "short.mp4: 192x192, 24 frames, 1.0 s")
    tab.click("#start")
    tab.wait("#status", "Done: 24 frames", 30)
    until(lambda: tab.videos("v.readyState") == [4, 4])
    tab.find(".play")[0].click()  # a browser plays sound only where a user has clicked
    until(lambda: min(tab.videos("v.currentTime")) > 0.2)
    source, result = tab.videos("v.currentTime")
    assert abs(source - result) < 0.1
    tab.find(".play")[0].click()
    assert tab.videos("v.paused") == [True, True]
    tab.enter(tab.find(".seek")[0], 0.5)
    until(lambda: tab.videos("Math.abs(v.currentTime - 0.5) < 0.05") == [True, True])
    tab.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    tab.find("#player .download")[0].click()
    until(lambda: (tmp_path / "short_16x9.mp4").is_file())
    made = FrameSource(tmp_path / "short_16x9.mp4")
    assert (made.width, made.height, len(made)) == (342, 192, 24)


def test_nothing_else_is_called_and_files_go_with_the_tab(page, looked_up):
    address, folder, tab = page
    assert tab.hosts() == {urlparse(address).netloc}
    assert looked_up <= {"127.0.0.1", "localhost", b"127.0.0.1", b"localhost"}
    assert list(folder.rglob("*.mp4"))
    tab.driver.get("about:blank")
    until(lambda: not list(folder.rglob("results/*")) and not list(folder.rglob("uploads/*")))

"""A real headless Chromium for tests of HTML pages, by Selenium; `from browser import headless` gives `browser`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--window-size=1400,1300",
)


def _missing(reason: str) -> None:
    if os.environ.get("CLIPSIGHT_REQUIRE_BROWSER") == "1":
        pytest.fail(f"CLIPSIGHT_REQUIRE_BROWSER=1, but {reason}", pytrace=False)
    pytest.skip(reason)


class Browser:
    """A Selenium driver with what the tests of one page need."""

    def __init__(self, driver) -> None:
        self.driver = driver

    def open(self, path: Path) -> None:
        """Opens a file and waits until its script has put `data-ready` on the body."""
        from selenium.webdriver.support.ui import WebDriverWait

        self.driver.get("about:blank")
        self.console(), self.requests()  # forget the page before
        self.driver.get(path.resolve().as_uri())
        WebDriverWait(self.driver, 20).until(lambda d: d.execute_script("return document.body.dataset.ready"))

    def __call__(self, script: str, *arguments):
        """The value of some JavaScript, its arguments as `arguments[i]`."""
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def click(self, selector: str) -> None:
        """A click of the mouse in the middle of the element, scrolled to the middle of the window."""
        element = self.find(selector)
        self("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def press(self, key: str) -> None:
        """A key for whatever has the focus."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(key).perform()

    def dark(self, on: bool) -> None:
        value = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [value]})

    def screenshot(self) -> bytes:
        """The window as PNG."""
        return self.driver.get_screenshot_as_png()

    def console(self) -> list[str]:
        """Messages since the last call or `open`: errors of scripts, blocked or failed requests."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that the page asked for since the last call or `open`, data inside the page left out."""
        entries = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [
            entry["params"]["request"]["url"] for entry in entries if entry["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in sent if not url.startswith("data:")]


@pytest.fixture(scope="session", name="browser")
def headless(tmp_path_factory):
    """A `Browser`; skipped where none is installed. CLIPSIGHT_REQUIRE_BROWSER=1 makes that a failure."""
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    chromedriver = shutil.which("chromedriver")
    if not chromium or not chromedriver:
        _missing(f"no browser: {'chromedriver' if chromium else 'chromium'} is not on the PATH")
    try:
        from selenium import webdriver
    except ImportError:
        _missing("no browser: the package selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    yield Browser(driver)
    driver.quit()

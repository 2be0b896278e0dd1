"""The page in a real browser: type, click, see both lists change, forget a click, filter. Slow: it starts a server."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gensar_hf import GenSARPipeline

pytest.importorskip("gradio", reason="needs the extra [serve]")
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
from live_server import live_server  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium")]

HOSTILE = "<img src=x onerror=\"document.title='owned'\"> ${document.title='owned'} {{this}} `"


@pytest.fixture(scope="module")
def address(tiny_run: Path) -> Iterator[str]:
    """A running server of a model whose items have a genre, and the second one a title that is a program."""
    pipe = GenSARPipeline.from_pretrained(tiny_run / "model", device="cpu")
    table = pipe.tokenizer.identifiers
    titles = [HOSTILE if row == 1 else title for row, title in enumerate(table.titles)]
    texts = [f"{title}. {('Bath', 'Kitchen')[row % 2]}" for row, title in enumerate(titles)]
    pipe.set_catalogue(replace(table, titles=titles, texts=texts))
    with live_server(pipe) as address:
        yield address


class Browser:
    """What the tests do and see on the page."""

    def __init__(self, driver) -> None:
        self.driver = driver

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def titles(self, rail: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(each => each.textContent)"
        return self.driver.execute_script(script, f"#{rail} .g-title")

    def wait(self, condition: Callable[[], object], what: str) -> None:
        end = time.monotonic() + 240
        while not condition():
            assert time.monotonic() < end, f"{what} did not happen"
            time.sleep(0.1)

    def do(self, action: Callable[[], object]) -> None:
        """Act, then wait until the status line has been written anew."""
        self.driver.execute_script("document.querySelector('.g-status').textContent = 'waiting'")
        action()
        self.wait(lambda: self.all(".g-status")[0].text not in ("waiting", ""), "an answer")

    def search(self, query: str) -> None:
        box = self.all("#query input, #query textarea")[0]
        box.clear()
        self.do(lambda: box.send_keys(query + "\n"))


@pytest.fixture(params=[1180, 390], ids=["desktop", "phone"])
def browser(request: pytest.FixtureRequest, address: str) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(word)
    service = webdriver.ChromeService(shutil.which("chromedriver")) if shutil.which("chromedriver") else None
    driver = webdriver.Chrome(options=options, service=service)
    metrics = {"width": request.param, "height": 1000, "deviceScaleFactor": 1, "mobile": request.param < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        driver.get(address)
        browser = Browser(driver)
        browser.wait(lambda: browser.all("#recommended .g-card"), "the first answer")
        yield browser
        assert driver.title.startswith("GenSAR")  # no title has run as a program
        errors = [each["message"] for each in driver.get_log("browser") if each["level"] == "SEVERE"]
        assert not [error for error in errors if "manifest" not in error and "favicon" not in error]
    finally:
        driver.quit()


def test_type_click_forget_and_filter(browser: Browser) -> None:
    assert browser.titles("found") == []
    browser.search("blue soap")
    assert "blue soap" in browser.all("#found h2")[0].text
    before = browser.titles("recommended"), browser.titles("found")
    assert len(before[0]) == len(before[1]) == 8

    browser.do(browser.all("#found .g-card")[0].click)
    chips = browser.all("li.g-chip")
    assert len(chips) == 1
    assert before[1][0] in chips[0].text
    after = browser.titles("recommended"), browser.titles("found")
    assert after[0] != before[0]  # the clicked item is known, and no longer recommended
    assert before[1][0] not in after[0]

    browser.do(browser.all("#recommended .g-card")[0].click)
    assert len(browser.all("li.g-chip")) == 2
    browser.do(browser.all("li.g-chip button")[1].click)
    browser.do(browser.all("li.g-chip button")[0].click)
    assert (browser.titles("recommended"), browser.titles("found")) == before

    browser.all("#filter input")[0].click()
    browser.wait(lambda: browser.all("[role=option]"), "the list of the filter")
    kitchen = next(each for each in browser.all("[role=option]") if "Kitchen" in each.text)
    browser.do(kitchen.click)
    for rail in ("recommended", "found"):
        attributes = [each.text for each in browser.all(f"#{rail} .g-attributes")]
        assert attributes
        assert all("Kitchen" in text for text in attributes)


def test_the_page_fits_the_screen_and_is_usable_by_keyboard(browser: Browser) -> None:
    width = browser.driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]
    lefts = [each.rect["x"] for each in browser.all(".g-rails > section")]
    assert (lefts[0] == lefts[1]) == (width[1] < 500)
    browser.search("red")
    keys, active = webdriver.Keys, browser.driver.switch_to
    for _ in range(60):
        active.active_element.send_keys(keys.TAB)
        if active.active_element.get_attribute("data-rail") == "recommend":
            break
    browser.do(lambda: active.active_element.send_keys(keys.ENTER))
    assert len(browser.all("li.g-chip")) == 1
    names = [each.get_attribute("aria-label") or each.text for each in browser.all("button[data-act]")]
    assert all(names)


def test_titles_and_queries_are_text(browser: Browser) -> None:
    browser.search(HOSTILE)
    assert HOSTILE in browser.all("#found h2")[0].text
    assert not browser.all("#board img")
    assert re.search(r"\{\{this\}\}", browser.driver.find_element("id", "found").text)

"""The page of a record in a real browser: it opens without an error, sorts, filters and tells.

Debian has it as `chromium` and `chromium-driver`; it is started by each test, and gone after it.
"""

from __future__ import annotations

import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from conftest import wait_until

from pynisher_exec import Report, Status
from pynisher_exec.page import build
from pynisher_exec.report import Enforced
from pynisher_exec.searches.reader import read
from pynisher_exec.searches.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

PROGRAMS = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
HOSTILE = (
    "</script><script>document.title='taken'</script><img src=x onerror=document.title='taken'>"
)
STATUSES = (Status.OK, Status.OK, Status.MEMORY, Status.EXCEPTION, Status.WALL_TIME)

if None in PROGRAMS:
    pytest.skip("chromium and chromedriver are not installed", allow_module_level=True)


def make_page(folder: Path, count: int) -> str:
    """Make the page of a search of so many tasks, and give its address."""
    record = Record(folder / "search.db", "mine.train", 4)
    record.write([(f"train({n}, {HOSTILE})", (n,), report(n)) for n in range(count)])
    record.close(ended=True)
    with read(folder / "search.db") as reader:
        text = build(reader.tasks(), reader.searches(), name="search.db", going_on=False)
    (folder / "report.html").write_text(text)
    return (folder / "report.html").as_uri()


def report(number: int) -> Report:
    """One of each kind, in turn."""
    status = STATUSES[number % len(STATUSES)]
    return Report(
        status,
        result=number / 7 if status is Status.OK else None,
        message="" if status is Status.OK else f"it was too much: {HOSTILE}",
        traceback="Traceback\n" + HOSTILE if status is Status.EXCEPTION else None,
        stderr="last words " + HOSTILE,
        wall_time=0.1 + number % 13,
        cpu_time=0.1 + number % 11,
        peak_memory=(number * 7919 % 500 + 1) << 20,
        limits={"memory": Enforced(500 << 20, "one"), "cpu_time": Enforced(11.0, "other")},
        started_at=1.7e9 + number // 4 * 14,
    )


@contextmanager
def opened(address: str, *, width: int = 1200, dark: bool = False) -> Iterator[Any]:
    """Open a page in a browser of its own; no error may have come to its console by the end."""
    options = webdriver.ChromeOptions()
    options.binary_location = PROGRAMS[0]
    for flag in FLAGS:
        options.add_argument(flag)
    service = webdriver.ChromeService(PROGRAMS[1])
    browser = webdriver.Chrome(options=options, service=service)
    try:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        browser.get(address)
        yield browser
        assert browser.get_log("browser") == []
        assert browser.title == "mine.train – search"  # noqa: RUF001  (and not what tasks wrote)
    finally:
        browser.quit()


def column(browser: Any, place: int) -> list[str]:
    """What stands in a column of the table."""
    script = "return [...document.querySelectorAll(`#rows td:nth-child(${arguments[0]})`)]"
    found: list[str] = browser.execute_script(script + ".map((each) => each.textContent)", place)
    return found


def press(browser: Any, selector: str) -> None:
    """Press the button that this selects."""
    browser.find_element("css selector", selector).click()


def test_table_is_sorted_filtered_and_searched(tmp_path: Path) -> None:
    """By pressing what stands there, and by typing."""
    with opened(make_page(tmp_path, 250)) as browser:
        assert column(browser, 1)[:3] == ["1", "2", "3"]
        press(browser, "#columns th:nth-child(6) button")  # largest first
        assert column(browser, 6)[0] == "499 MiB"
        head = browser.find_element("css selector", "#columns th:nth-child(6)")
        assert head.get_attribute("aria-sort") == "descending"
        press(browser, "#legend button[data-status=memory]")
        assert set(column(browser, 2)) == {"memory"}
        assert browser.find_element("id", "found").text == "50 of 250 tasks"
        browser.find_element("id", "query").send_keys("train(2,")
        wait_until(lambda: column(browser, 1) == ["3"])


def test_failure_is_shown_with_what_it_wrote(tmp_path: Path) -> None:
    """Message, last lines of stderr and traceback, as text."""
    with opened(make_page(tmp_path, 10)) as browser:
        press(browser, "#legend button[data-status=exception]")
        press(browser, "#failures summary")
        shown = browser.find_element("css selector", "#failures details[open]").text
        assert "it was too much" in shown
        assert "last words " + HOSTILE in shown
        assert "Traceback" in shown
        assert not browser.find_elements("css selector", "#failures img, #rows img")


@pytest.mark.parametrize(("width", "dark"), [(400, False), (400, True), (1200, True)])
def test_page_fits_a_phone_and_both_themes(tmp_path: Path, width: int, *, dark: bool) -> None:
    """Nothing has to be scrolled sideways, but for the table in its frame."""
    with opened(make_page(tmp_path, 60), width=width, dark=dark) as browser:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        hidden = "const each = document.querySelector('.scroll'); "
        hidden += "return each.scrollWidth - each.clientWidth"
        assert browser.execute_script(hidden) <= 0  # of the table
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        brightness = [int(each) for each in ground[4:-1].split(",")]
        assert max(brightness) < 60 if dark else min(brightness) > 200


def test_timeline_is_for_the_keyboard_as_well(tmp_path: Path) -> None:
    """The arrow keys pick a task, which is told to who does not see it; Enter shows it."""
    with opened(make_page(tmp_path, 250)) as browser:
        timeline = browser.find_element("id", "timeline")
        timeline.send_keys("\ue014", "\ue014", "\ue014")  # arrow right
        told = browser.find_element("id", "picked").text
        assert told.startswith("3: memory")
        timeline.send_keys("\ue010")  # end
        timeline.send_keys("\ue007")  # enter
        row = browser.find_element("css selector", "#rows tr.picked td").text
        assert row == "250"


def test_twenty_thousand_tasks_are_shown_without_delay(tmp_path: Path) -> None:
    """The page opens, and sorts and filters, in a moment each."""
    address = make_page(tmp_path, 20_000)
    with opened(address) as browser:
        took = browser.execute_script(
            "const entry = performance.getEntriesByType('navigation')[0];"
            "return entry.domComplete - entry.responseEnd"
        )
        assert took < 5000
        began = time.monotonic()
        press(browser, "#columns th:nth-child(4) button")
        press(browser, "#legend button[data-status=memory]")
        assert browser.find_element("id", "found").text == "4000 of 20000 tasks"
        assert time.monotonic() - began < 5

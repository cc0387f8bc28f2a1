"""The page in a real browser: offline, from a file, with and without JavaScript."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stores

from mtlbench.leaderboard.board import Row, Table, build
from mtlbench.leaderboard.page import page
from mtlbench.results import Summary

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None and not os.environ.get("CI"):
    pytest.skip("needs chromium (on Debian: apt-get install chromium)", allow_module_level=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "CI installs chromium, and it is not here"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    store = stores.fill(folder / "results")
    stores.fill(folder / "results", data="streets", fingerprint="f" * 16, archs=["hps"])
    hostile = '<script>alert("x")</script>'
    store.add(stores.record("cgc", "nash", 0, None, status="failed", reason=hostile), stores.cost(1))
    path = folder / "index.html"
    path.write_text(page(build(store)), encoding="utf-8")
    return path


Open = Callable[..., Any]


@pytest.fixture
def visit(browser: Any, file: Path) -> Iterator[Open]:
    """Open the page; at the end, nothing may have been asked of a network or said on the console."""
    contexts, said = [], []

    def go(path: Path = file, fragment: str = "", **settings: Any) -> Any:
        context = browser.new_context(offline=True, **settings)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on(
            "request",
            lambda request: said.append(request.url) if request.url[:5] not in ("file:", "blob:") else None,
        )
        tab.goto(path.as_uri() + fragment)
        return tab

    yield go
    for context in contexts:
        context.close()
    assert said == []


def names(tab: Any, place: int = 0) -> list[str]:
    found: list[str] = (
        tab.locator("section.board").nth(place).locator("tbody tr > th.name > a").all_inner_texts()
    )
    return found


def test_headers_sort_and_say_so(visit: Open) -> None:
    tab = visit()
    section = tab.locator("section.board").first
    before = names(tab)
    head = section.locator(".scroll thead th").nth(1)
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    # Rows without a Δ-MTL stand last, whichever way.
    assert names(tab)[-1] == before[-1] == "cgc+nash"
    assert names(tab)[:-1] == before[:-1][::-1]
    error = section.locator(".scroll thead th", has_text="abs ↓")
    error.locator("button").focus()
    tab.keyboard.press("Enter")
    assert error.get_attribute("aria-sort") == "ascending"
    assert head.get_attribute("aria-sort") is None
    column = error.evaluate("e => e.cellIndex")
    cells = section.locator(f".scroll tbody > tr > :nth-child({column + 1})")
    values = [float(v) for v in cells.evaluate_all("cells => cells.map(c => c.dataset.v).filter(v => v)")]
    assert values == sorted(values)
    tab.keyboard.press("Enter")
    assert error.get_attribute("aria-sort") == "descending"


def test_filter_counts_and_the_state_is_in_the_address(visit: Open) -> None:
    tab = visit()
    section = tab.locator("section.board").first
    section.locator("input").fill("mmoe")
    assert names(tab)
    assert all(name.startswith("mmoe") for name in names(tab))
    assert section.locator("[aria-live]").inner_text() == "3 of 11 rows"
    section.locator("thead button").nth(0).click()
    section.locator("tbody th a").nth(1).click()
    fragment = tab.evaluate("location.hash")
    again = visit(fragment=fragment)
    assert names(again) == names(tab) == sorted(names(tab))
    assert again.locator("section.board").first.locator("input").input_value() == "mmoe"
    opened = again.locator("tr.open details").get_attribute("id")
    assert opened == tab.locator("tr.open details").get_attribute("id")


def test_a_row_unfolds_to_every_seed_and_the_command_can_be_copied(visit: Open) -> None:
    tab = visit()
    link = tab.locator("section.board").first.locator("tbody th a").first
    link.focus()
    tab.keyboard.press("Enter")
    opened = tab.locator("tr.open")
    assert opened.count() == 1
    assert opened.locator("tbody tr").count() == 3
    assert opened.locator("svg").count() == 3
    assert "mtlbench run --arch" in opened.locator("code").last.inner_text()
    opened.locator("button.copy").click()
    opened.locator("button.copy", has_text="Copied").wait_for()
    tab.keyboard.press("Escape")
    link.click()
    assert tab.locator("tr.open").count() == 0


def test_figures_shown_are_the_figures_embedded(visit: Open) -> None:
    tab = visit()
    for row in tab.locator("section.board").first.locator("tbody > tr").all()[:5]:
        cell = row.locator("td").first
        shown = cell.inner_text().split()[0]
        assert float(shown.replace("−", "-")) == pytest.approx(float(cell.get_attribute("data-v")), abs=0.005)


def test_download_gives_the_rows_as_csv(visit: Open) -> None:
    tab = visit()
    with tab.expect_download() as download:
        tab.locator("section.board").first.locator("button.csv").click()
    lines = Path(download.value.path()).read_text(encoding="utf-8").strip().splitlines()
    assert len(lines) == 1 + 11
    assert lines[0].startswith("method,Δ-MTL")


def test_without_javascript_everything_is_there(visit: Open) -> None:
    plain, scripted = visit(java_script_enabled=False), visit()
    assert names(plain) == names(scripted)
    assert plain.locator("details").count() == scripted.locator("details").count() > 0
    assert not plain.locator(".tools").first.is_visible()
    assert plain.locator("thead button").count() == 0
    plain.locator("section.board summary").first.click()
    assert plain.locator("section.board details").first.locator("tbody tr").count() == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(visit: Open, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    tab = visit(bypass_csp=True, color_scheme=scheme)
    tab.locator("section.board").first.locator("tbody th a").first.click()
    found = Axe().run(tab)
    assert found.violations_count == 0, found.generate_report()


def test_the_theme_can_be_switched(visit: Open) -> None:
    tab = visit(color_scheme="light")
    before = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.locator("button.theme").click()
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_a_narrow_screen_scrolls_tables_and_not_the_page(visit: Open) -> None:
    tab = visit(viewport={"width": 320, "height": 640})
    tab.locator("section.board").first.locator("tbody th a").first.click()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 320


def test_points_of_the_plot_lead_to_their_rows(visit: Open) -> None:
    tab = visit()
    point = tab.locator("svg.pareto").first.locator("a").first
    assert "%" in point.get_attribute("aria-label")
    target = point.get_attribute("href")
    assert tab.locator(f"details{target}").count() == 1
    # What the filter hides is shown when a point asks for it.
    tab.locator("section.board").first.locator("input").fill("no such row")
    assert names(tab) == []
    point.focus()
    tab.keyboard.press("Enter")
    assert tab.locator(f"tr.open details{target}").is_visible()
    assert tab.evaluate("document.activeElement.getAttribute('href')") == target


def test_five_thousand_rows_sort_in_time(visit: Open, tmp_path: Path) -> None:
    store = stores.fill(tmp_path / "results", archs=["hps"], weights=["ew"], seeds=[0])
    board = build(store)
    table: Table = board.tables[0]
    template = next(row for row in table.rows if row.kind == "run")
    draw = random.Random(0)
    for i in range(5000):
        cells = {key: Summary(draw.random(), 0.01, 3) for key in template.cells}
        delta = Summary(draw.gauss(0, 3), 1.0, 3)
        table.rows.append(Row("run", f"arch{i}+w{i % 7}", template.spec, template.seeds, cells, delta))
    path = tmp_path / "index.html"
    path.write_text(page(board), encoding="utf-8")
    tab = visit(path)
    spent = tab.evaluate(
        """async () => {
          const times = [];
          for (let i = 0; i < 5; i++) {
            const start = performance.now();
            document.querySelectorAll("thead button")[1].click();
            document.body.getBoundingClientRect();
            times.push(performance.now() - start);
          }
          return times.sort((a, b) => a - b)[0];
        }"""
    )
    assert spent < 300  # the best of five: this is about the page, not about a busy machine
    assert tab.locator("section.board .scroll > table > tbody > tr").count() == 200
    tab.locator("button.more").click()
    assert tab.locator("section.board .scroll > table > tbody > tr").count() == len(table.rows)

"""Reports in a real browser: Chromium without a window, opened from a file, no network."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepflow.report import selection
from report_cases import HARMFUL, TRAINING, TWO_MACHINES, column, reported

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium in the PATH")

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDE, NARROW = {"width": 1600, "height": 1000}, {"width": 400, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield running
        running.close()


@pytest.fixture(scope="module")
def reports(
    tmp_path_factory: pytest.TempPathFactory, repository: Path
) -> dict[str, tuple[dict[str, Any], Path]]:
    """Content and page of three sweeps: of one machine, of two, and sampled, by name."""
    folder = tmp_path_factory.mktemp("reports")
    harmful = f"description: {json.dumps('Which multiplication? ' + HARMFUL)}\n" + TWO_MACHINES
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        made = {
            "training": reported(folder, TRAINING, "training"),
            "machines": reported(folder, harmful, "machines"),
        }
        patch.setattr(selection, "SHOWN", 20)
        patch.setattr(selection, "BEST", 5)
        made["sampled"] = reported(folder, TRAINING, "sampled")
    return made


class Visit:
    """A page in a window of its own, and what it complained of or asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": WIDE, **options})
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(f"{said.type}: {said.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *failure: object) -> None:
        found = (self.complaints, [url for url in self.requests if not url.startswith("file:")])
        self.context.close()
        if failure[0] is None:
            assert found == ([], [])

    def draw_all(self) -> None:
        """Bring every figure into view, which draws it."""
        for drawing in self.page.locator(".drawing").all():
            drawing.scroll_into_view_if_needed()
            self.page.wait_for_function("e => e.dataset.drawn", arg=drawing.element_handle())


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", ["training", "machines"])
def test_everything_is_drawn_and_fits_the_window(browser, reports, name, size):
    content, path = reports[name]
    visit = Visit(browser, path, viewport=size)
    with visit as page:
        visit.draw_all()
        assert page.locator(".drawing .main-svg").count() >= len(content["figures"]) + 1
        overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert overflow <= 0
        assert len(visit.requests) == 1
        headings = page.locator("h2").all_inner_texts()
        assert {"Best points", "Pareto front", "Figures", "All points"} <= set(headings)


def test_texts_of_a_sweep_are_shown_and_not_run(browser, reports):
    _, path = reports["machines"]
    with Visit(browser, path) as page:
        assert HARMFUL in page.locator("h1").inner_text()
        assert page.evaluate("window.harmed") is None
        assert page.locator("h1 img").count() == 0


def test_the_table_is_sorted_by_its_headings(browser, reports):
    content, path = reports["training"]
    times = column(content, "time_s")
    with Visit(browser, path) as page:
        points = page.locator("#points tbody tr")
        assert points.count() == len(times)
        first = int(points.first.get_attribute("data-row"))
        assert first == content["best"][0]
        for order in ("ascending", "descending"):
            page.locator('#points [data-sort="time_s"]').click()
            rows = [int(row.get_attribute("data-row")) for row in points.all()]
            known = [times[row] for row in rows if times[row] is not None]
            assert known == sorted(known, reverse=order == "descending")
            assert [times[row] for row in rows][len(known) :] == [None] * (len(rows) - len(known))
            assert page.locator(f'#points th[aria-sort="{order}"]').count() == 1


def test_the_table_is_filtered_by_text_and_by_numbers_with_units(browser, reports):
    content, path = reports["training"]
    times, statuses = column(content, "time_s"), column(content, "status")
    tensor = column(content, "tensor")
    known = sorted(time for time in times if time is not None)
    limit = (known[9] + known[10]) / 2
    with Visit(browser, path) as page:

        def shown() -> set[int]:
            rows = page.locator("#points tbody tr").all()
            return {int(row.get_attribute("data-row")) for row in rows}

        def filter_by(name: str, text: str) -> Any:
            box = page.locator(f'#points [data-filter="{name}"]')
            box.fill(text)
            return box

        filter_by("time_s", f"<= {limit * 1e3!r} ms")
        expected = {row for row, time in enumerate(times) if time is not None and time <= limit}
        assert shown() == expected
        filter_by("status", "!ok")
        assert shown() == {row for row in expected if statuses[row] != "ok"}
        filter_by("status", "")
        filter_by("time_s", "")
        filter_by("tensor", "2..4")
        assert shown() == {row for row, value in enumerate(tensor) if value in (2, 4)}
        assert filter_by("tensor", "< nonsense").get_attribute("aria-invalid") == "true"
        page.get_by_role("button", name="Clear filters").click()
        assert len(shown()) == len(times)


def test_a_point_is_opened_by_keyboard_and_closed_again(browser, reports):
    content, path = reports["training"]
    words, lines = content["commands"]["words"], content["commands"]["lines"]
    best = content["best"][0]
    with Visit(browser, path) as page:
        button = page.locator("#best tbody button").first
        button.focus()
        page.keyboard.press("Enter")
        panel = page.locator("#panel")
        assert panel.is_visible()
        command = panel.locator("pre").first.inner_text()
        assert shlex.split(command) == shlex.split(" ".join(words[code] for code in lines[best]))
        assert f"points/{column(content, 'point')[best]}.json" in panel.inner_text()
        assert "matrix" in panel.locator("th[title]").first.get_attribute("title")
        bar = panel.locator(".stack").first
        widths = [part.bounding_box()["width"] for part in bar.locator("span").all()]
        assert sum(widths) == pytest.approx(bar.bounding_box()["width"], rel=0.05)
        page.keyboard.press("Escape")
        assert not panel.is_visible()
        assert button.evaluate("e => e === document.activeElement")


def test_points_of_a_figure_show_themselves_and_open(browser, reports):
    content, path = reports["training"]
    visit = Visit(browser, path)
    with visit as page:
        figure = page.locator('[data-figure="4-scatter"]')
        figure.scroll_into_view_if_needed()
        page.wait_for_selector('[data-figure="4-scatter"] [data-drawn]')
        place = figure.locator(".point").nth(0).bounding_box()
        x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
        page.mouse.move(x, y, steps=3)
        page.wait_for_selector('[data-figure="4-scatter"] .hovertext')
        hovered = figure.locator(".hovertext").inner_html()
        assert "micro" not in hovered
        assert all(text in hovered for text in ("tensor", "pipeline", "recompute", "GiB"))
        page.mouse.click(x, y)
        page.wait_for_selector("#panel:not([hidden])")
        opened = page.locator("#panel h2").inner_text()
        assert opened in column(content, "point")


def test_chosen_points_stand_side_by_side(browser, reports):
    content, path = reports["machines"]
    with Visit(browser, path) as page:
        machines = column(content, "hardware")
        pair = [machines.index(name) for name in sorted(set(machines))]
        for row in pair:
            page.locator(f'#points [data-choose="{row}"]').check()
        comparison = page.locator("#compare")
        assert comparison.locator("thead th").count() == 2
        text = comparison.inner_text()
        assert "hardware.tech_param.DRAM.bandwidth" in text
        assert "TB/s" in text
        page.locator(f'#points [data-choose="{pair[0]}"]').uncheck()
        assert comparison.locator("table").count() == 0


def test_the_explorer_draws_chosen_columns_of_filtered_points(browser, reports):
    content, path = reports["training"]
    visit = Visit(browser, path)
    with visit as page:
        visit.draw_all()
        page.locator('[data-explorer="x"]').select_option("peak_memory_bytes")
        page.locator('[data-explorer="y"]').select_option("energy_j")
        page.locator('[data-explorer="filtered"]').check()
        page.locator('#points [data-filter="recompute"]').fill("=full")
        wanted = sum(
            status == "ok" and recompute == "full"
            for status, recompute in zip(
                column(content, "status"), column(content, "recompute"), strict=True
            )
        )
        page.wait_for_function(
            "n => document.querySelectorAll('#explorer .scatterlayer .point').length === n",
            arg=wanted,
        )
        assert "peak memory" in page.locator("#explorer .xtitle").inner_html()


def test_dark_systems_get_a_dark_page(browser, reports):
    _, path = reports["machines"]
    brightness = {}
    for scheme in ("light", "dark"):
        visit = Visit(browser, path, color_scheme=scheme)
        with visit as page:
            visit.draw_all()
            for what, selector in (("page", "body"), ("text", "h1"), ("tick", ".xtick text")):
                property_name = "fill" if what == "tick" else "color"
                name = "backgroundColor" if what == "page" else property_name
                colour = page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{name}")
                parts = colour.removeprefix("rgb(").removesuffix(")").split(",")
                brightness[scheme, what] = sum(map(float, parts)) / 3
    assert brightness["light", "page"] > 200 > 100 > brightness["light", "text"]
    assert brightness["dark", "page"] < 60 < 200 < brightness["dark", "text"]
    assert brightness["light", "tick"] < 100
    assert brightness["dark", "tick"] > 200


def test_a_sampled_page_says_so(browser, reports):
    content, path = reports["sampled"]
    assert content["shown"] < content["points"]
    with Visit(browser, path) as page:
        notice = page.locator("#sampled").inner_text()
        shown, total = content["shown"], content["points"]
        assert notice.startswith(f"Showing {shown} of {total} points, sampled")
        assert "Sampled points" in page.locator("h2").all_inner_texts()
    with Visit(browser, reports["training"][1]) as page:
        assert page.locator("#sampled").count() == 0

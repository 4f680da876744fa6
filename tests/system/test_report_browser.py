"""How reports look and behave in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from headless_chromium import BROWSER, Chromium
from report_runs import make_run

from recipe.provenance import write_environment
from recipe.run_folder import append_json, read_json_lines
from report.page import write_comparison, write_report

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


def test_pages_in_a_browser(browser: Chromium, tmp_path: Path) -> None:
    """Light and dark, wide and narrow: no complaint, no request, nothing wider than the window."""
    runs = [make_run(tmp_path / f"{'long' * 9}{seed}", seed) for seed in range(2)]
    runs.append(make_run(tmp_path / "other", 0, "learner.objective.beta=0", steps=9))
    write_environment(runs[0], [])
    for page in (write_report(runs[0]), write_comparison(runs)):
        for width in (1280, 400):
            visit = browser.visit(page, width, dark=width == 400)
            assert visit.complaints == [] and visit.requests == []
            assert visit.page_width <= visit.window_width == width
            assert browser.value("[...document.images].every((one) => one.complete && one.naturalWidth)")
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 29)"


@pytest.mark.parametrize("count", [2, 6])
def test_comparisons_need_no_scrolling_at_1280(browser: Chromium, tmp_path: Path, count: int) -> None:
    """Runs of different configs and long names, each with seeds, many rewards of long names."""
    names = [f"{kind}_{rest}" for kind in ("grounded_detector", "preference", "visual_question_answering", "judge")
             for rest in ("of_the_paper", "of_the_code")]  # fmt: skip
    runs = []
    for number in range(count):
        for seed in range(2):
            run = make_run(
                tmp_path / f"janus_pro_7b_staleness_{number}_seed_{seed}",
                seed,
                f"learner.optimizer.lr={number + 1}e-4",
            )
            for row in read_json_lines(run.metrics):
                append_json(
                    run.metrics, {**row, "step": row["step"] + 20} | {f"reward/{name}": 0.5 for name in names}
                )
            write_environment(run, [])
            runs.append(run)
    browser.visit(write_comparison(runs), 1280)
    wide = "[...document.querySelectorAll('.scroll, .strip')].filter((one) => one.scrollWidth > one.clientWidth)"
    assert browser.value(f"{wide}.map((one) => one.ariaLabel + ' ' + one.scrollWidth)") == []
    assert browser.value("document.querySelectorAll('.scroll').length") >= 4


def test_a_chart_tells_values_under_the_pointer(browser: Chromium, tmp_path: Path) -> None:
    browser.visit(write_report(make_run(tmp_path / "run", steps=10, of=10)), 1280)
    card = "[...document.querySelectorAll('.card')].find((one) => one.textContent.includes('Reward'))"
    before = browser.value(f"{card}.innerText")
    browser.value(f"{card}.scrollIntoView()")
    x, y = browser.value(f"(() => {{ const box = {card}.querySelector('svg').getBoundingClientRect();"
                         "return [box.right - 12, box.top + 40]; })()")  # fmt: skip
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    told = browser.value(f"{card}.innerText")
    assert "step 10" in told and "0.60" in told and "step 10" not in before
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=5)
    assert browser.value(f"{card}.innerText") == before


def test_the_browser_sees_what_is_wrong(browser: Chromium, tmp_path: Path) -> None:
    page = tmp_path / "wrong.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><div style='width: 900px'>.</div><script>lost()</script>")
    visit = browser.visit(page, 400)
    assert visit.requests == ["http://127.0.0.1:9/x.png"] and visit.page_width > visit.window_width
    assert any("lost is not defined" in one for one in visit.complaints)

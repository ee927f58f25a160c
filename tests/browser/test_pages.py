"""The pages in Chromium: nothing fails, nothing overflows, sorting and hover work, no script but ours runs, text is legible.

`make browser`. Skipped, with the reason, where Playwright or Chromium is not installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lifelong.records import ProbePoint, Sample, TrainPoint
from lifelong.report import matrix_json
from lifelong.report.compare import compare_runs
from lifelong.report.compare_page import comparison_html
from lifelong.report.html import page as run_page
from tests.report.test_compare import run, seeds
from tests.report.test_report import EVIL

pytestmark = pytest.mark.browser
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip
SIZES = [(width, scheme) for width in (1400, 400) for scheme in ("light", "dark")]
SMALLEST_CONTRAST = 4.5  # WCAG 2.1, level AA, for text of usual size
INJECTED = '<img src=x onerror="window.broken=1"><script>window.broken=1</script>'


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install 'lifelong[browser]'"
    )
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed: apt-get install chromium, or name it in $CHROMIUM")
    with api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A run page, a comparison and the start of the documentation, with names that are attacks in the first two."""
    folder = tmp_path_factory.mktemp("pages")
    history = run(f"evil {INJECTED}", rise=0.1)
    history = replace(
        history,
        stages=tuple(replace(s, shape={"layers": 2 + i, "hidden_size": 64}, replay={"wiki": 100}) for i, s in enumerate(history.stages)),
        train=(tuple(TrainPoint("train", i, 100 * i, 5 - i / 10, 5 - i / 10, 0.1, 0.5 - i / 20, 1e-3 / i, 1.0) for i in range(1, 10)),) * 3,
        probes=tuple(tuple(ProbePoint(s, 100 * s, d, 5.0 - s / 10) for d in history.matrix.domains for s in (0, 3, 10)) for _ in range(3)),
        samples=(Sample(-1, "wiki", EVIL, INJECTED), Sample(2, "wiki", EVIL, INJECTED)),
        sources={"wiki": {"licence": INJECTED, "citation": "x" * 200}},
        notes=(INJECTED,),
    )  # fmt: skip
    groups = [*seeds("replay", 0.1), *seeds(f"plain {INJECTED}", 0.5), *seeds("a-method-with-quite-a-long-name", 0.11)]
    (folder / "run.html").write_text(run_page(history, matrix_json(history)))
    (folder / "comparison.html").write_text(comparison_html(compare_runs(groups)))
    return {path.stem: path.as_uri() for path in folder.glob("*.html")}


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    """The documentation, as `make docs` builds it."""
    pytest.importorskip("furo", reason="the documentation needs pip install 'lifelong[docs]'")
    out = tmp_path_factory.mktemp("docs")
    source = Path(__file__).parents[2] / "docs"
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-b", "html", source, out], check=True)
    return (out / "index.html").as_uri()


def opened(browser, address, width=1400, scheme="light"):
    """The page, and what went wrong in it."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=width < 600)
    shown, faults = context.new_page(), []
    shown.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    shown.on("pageerror", lambda error: faults.append(str(error)))
    shown.goto(address)
    return shown, faults


# the contrast of every text with what is behind it, and of what a page paints itself in SVG with the page's card
CONTRASTS = """() => {
  const channels = c => (c.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const over = (top, under) => { const a = top[3] ?? 1; return [0, 1, 2].map(i => top[i] * a + under[i] * (1 - a)); };
  const light = c => { const [r, g, b] = c.map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { const layers = []; for (let n = e; n; n = n.parentElement) layers.unshift(channels(getComputedStyle(n).backgroundColor));
    return layers.reduce((under, top) => over(top, under), matchMedia("(prefers-color-scheme:dark)").matches ? [18, 18, 18] : [255, 255, 255]); };
  const found = [];
  for (const e of document.querySelectorAll("main *")) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || ["SCRIPT", "STYLE"].includes(e.tagName)) continue;
    const s = getComputedStyle(e), ground = behind(e);
    const ink = over([...channels(e.closest("svg") ? s.fill : s.color).slice(0, 3), Number(s.opacity)], ground);
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), e.tagName, e.textContent.trim().slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]).slice(0, 5);
}"""


@pytest.mark.parametrize(("width", "scheme"), SIZES)
@pytest.mark.parametrize("name", ["run", "comparison"])
def test_a_page_is_whole_legible_and_runs_no_script_of_others(browser, pages, name, width, scheme):
    page, faults = opened(browser, pages[name], width, scheme)
    assert faults == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("window.broken") is None
    (worst, *_), *_ = contrasts = page.evaluate(CONTRASTS)
    assert worst >= SMALLEST_CONTRAST, contrasts
    narrow = "cells => cells.filter(c => c.offsetWidth && c.offsetWidth < 56 && c.textContent.length > 8).length"
    assert page.locator("td:first-child").evaluate_all(narrow) == 0, "names are not broken letter by letter"
    if width < 600:
        assert page.locator(".scroll.more").count() > 0, "what scrolls says so"
        assert page.get_by_text("swipe for more").count() == 0  # it is written by the style sheet, not into the text


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_the_start_of_the_documentation_is_whole(browser, docs, width, scheme):
    page, faults = opened(browser, docs, width, scheme)
    assert faults == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("h1").count() == 1


def test_a_click_on_a_heading_sorts_by_value_and_again_turns_it_around(browser, pages):
    page, _ = opened(browser, pages["run"])
    table = page.locator('table[data-name="matrix"]')

    def first():
        cells = table.locator("tbody tr td:nth-child(2)")
        return [float(text) for text in cells.evaluate_all("cells => cells.map(c => c.dataset.v)")]

    head = table.locator("thead th").nth(1)
    for order, reverse in (("ascending", False), ("descending", True)):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        assert first() == sorted(first(), reverse=reverse)


def test_the_pointer_shows_the_values_of_all_lines(browser, pages):
    page, _ = opened(browser, pages["run"])
    tip, chart = page.locator("#tip"), page.locator('svg[data-name="domains"]')
    assert tip.is_hidden()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    assert all(word in tip.inner_text() for word in ("tokens of training", "wiki", "news", "code", "ppl"))
    page.mouse.move(2, 2)
    assert tip.is_hidden()
    page.locator('table[data-name="matrix"] td[data-tip]').last.hover()
    assert "nats per token" in tip.inner_text()


@pytest.mark.parametrize(("button", "name", "content"), [
    ("save matrix as CSV", "matrix.csv", "after,wiki,news,code"),
    ("save matrix as LaTeX", "matrix.tex", r"\begin{tabular}{lrrr}"),
    ("save domains as SVG", "domains.svg", "<svg"),
])  # fmt: skip
def test_what_is_shown_can_be_saved(browser, pages, button, name, content):
    page, faults = opened(browser, pages["run"])
    with page.expect_download() as saved:
        page.get_by_label(button, exact=True).click()
    assert saved.value.suggested_filename == name
    text = Path(saved.value.path()).read_text()
    assert content in text
    if name.startswith("matrix"):
        rows = [re.split(r"\s*[,&]\s*", line.removesuffix(r" \\")) for line in text.splitlines()]
        [initial] = [row[1:] for row in rows if row[0] == "initial"]
        assert all(float(figure) > 1 for figure in initial), "figures that a program reads"
    assert faults == []


def test_matrix_json_is_in_the_page(browser, pages):
    import json

    page, _ = opened(browser, pages["run"])
    with page.expect_download() as saved:
        page.locator('button[data-save="matrix.json"]').click()
    assert json.loads(Path(saved.value.path()).read_text())["domains"] == ["wiki", "news", "code"]


def test_a_page_can_be_read_without_any_script(browser, pages):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["run"])
    assert page.locator("table").count() > 3
    assert page.locator("svg").count() > 2

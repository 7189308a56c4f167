"""The report in a browser: cells open, filters filter, the keyboard suffices, nothing is loaded.

Needs Chromium (Debian's package chromium), and is skipped without it.
"""

import shutil

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright import sync_api as api

import headstart

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)

MARKS = (
    "<script>window.hit=1<-script>",
    "<img src=x onerror=window.hit=1>",
    "<svg onload=window.hit=1>",
    "{{7*7}}",
    "{%raw%}",
    "${7*7}",
    "\x1b[2J\x1b[31m",
    "\u202egpj",
    "\u2066\u200f",
    "' onfocus='window.hit=1",
    '" autofocus onfocus="window.hit=1',
    "-->&lt;!--",
    "]]>",
    "javascript:window.hit=1",
    "\\u003cscript>",
)
NAMES = tuple(f"{a}{b}" for a in ("", "x", "é", "\u05d0") for b in MARKS)


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tiny, tiny_run, network, advice, tmp_path_factory, paint):
    """{name: page} of reports: of generated pictures, and of 60 hostile names in each kind of page."""
    root = tmp_path_factory.mktemp("browser")
    for number in range(12):
        place = root / "data" / f"{NAMES[5 * number]}"
        place.mkdir(parents=True)
        for k in range(5):
            picture = paint(("plain", "blobs", "stripes")[number % 3], 100 * number + k)
            Image.fromarray(picture).save(place / f"{NAMES[5 * number + k]}.png")
    hostile = headstart.fit(root / "data", root / "run", **tiny)
    other = headstart.fit(root / "data", root / NAMES[0], **{**tiny, "strategy": "shallow-probe"})
    audited = headstart.audit(root / "data", **network)
    return {
        "comparison": headstart.report([hostile, other], None, root / "comparison.html").page,
        "audit": headstart.report(audited, None, root / "audit.html").page,
        "advice": headstart.report(advice, None, root / "advice.html").page,
        "hostile": headstart.report(hostile, None, root / "hostile.html").page,
        "tiny": headstart.report(tiny_run, None, root / "tiny.html").page,
    }


@pytest.fixture
def opened(browser, pages):
    """A function (name, width, theme) that opens a report; it fails on any message or request."""
    troubles, contexts = [], []

    def start(name="tiny", width=1280, theme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: troubles.append(m.text))
        page.on("pageerror", lambda e: troubles.append(str(e)))
        address = pages[name].as_uri()
        page.on(
            "request",
            lambda r: r.url.startswith("data:") or r.url == address or troubles.append(r.url),
        )
        page.goto(address)
        return page

    yield start
    for context in contexts:
        context.close()
    assert troubles == []


def test_a_cell_opens_the_pictures_behind_it(opened):
    page = opened()
    cell = page.locator("#confusion button").first
    cell.click()
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    i, j = cell.get_attribute("data-cell").split("-")
    assert dialog.locator("figure").count() == min(int(cell.inner_text()), 4 if i == j else 8)
    shown = dialog.locator("img").evaluate_all(
        "all => all.map(i => i.complete && i.naturalWidth > 0)"
    )
    assert shown
    assert all(shown)
    page.locator("#close").click()
    assert not dialog.is_visible()


def test_the_keyboard_alone_suffices(opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(60):
        if page.evaluate("!!document.activeElement.closest('#confusion td')"):
            break
        page.keyboard.press("Tab")
    first = page.evaluate("document.activeElement.dataset.cell")
    page.keyboard.press("ArrowDown")
    second = page.evaluate("document.activeElement.dataset.cell")
    assert first != second
    page.keyboard.press("Enter")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    assert page.evaluate("document.activeElement.dataset.cell") == second


def test_filters_show_what_is_sought(opened):
    page = opened()
    rows = page.locator("#class-table tbody tr")
    page.fill("#filter-classes", "stri")
    assert [rows.nth(k).is_visible() for k in range(rows.count())].count(True) == 1
    assert page.locator("output[for=filter-classes]").inner_text() == "1 of 3"
    page.fill("#filter-pictures", "nothing is called so")
    assert page.locator("#mistakes .shot:visible").count() == 0
    page.fill("#filter-pictures", "")
    assert page.locator("#mistakes .shot:visible").count() > 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_theme_is_the_system_s_until_it_is_switched(opened, theme):
    page = opened(theme=theme)

    def is_dark():
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return np.mean([int(v) for v in colour[4:-1].split(",")]) < 128

    assert is_dark() == (theme == "dark")
    page.click("#theme")
    assert is_dark() != (theme == "dark")


PAGES = ("tiny", "hostile", "comparison", "audit", "advice")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_never_wider_than_the_screen(opened, name, width):
    page = opened(name, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_hostile_names_are_shown_as_text(opened):
    page = opened("hostile")
    for cell in page.locator("#confusion button").all()[:12]:
        cell.focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Escape")
    assert page.evaluate("window.hit") is None
    text = page.inner_text("#class-table")
    assert NAMES[0] in text
    assert "\\x1b" in page.content()
    for forbidden in ("\x1b", "\u202e", "\u2066"):
        assert forbidden not in page.content()
    assert page.locator("main script, main iframe, main [onerror], main [onfocus]").count() == 0


@pytest.mark.parametrize("name", ["comparison", "audit"])
def test_hostile_names_are_text_on_the_other_pages(opened, name):
    page = opened(name)
    assert page.evaluate("window.hit") is None
    assert NAMES[0] in page.inner_text("main")
    for forbidden in ("\x1b", "\u202e", "\u2066"):
        assert forbidden not in page.content()
    assert page.locator("main script, main iframe, main [onerror], main [onfocus]").count() == 0


def test_tables_are_sorted_by_a_column(opened):
    page = opened()
    heads = page.locator("#class-table thead th")
    names = [head.inner_text() for head in heads.all()]
    column = next(k for k, name in enumerate(names) if name.startswith("recall"))
    for order, sign in (("ascending", 1), ("descending", -1)):
        heads.nth(column).locator("button").press("Enter")
        assert heads.nth(column).get_attribute("aria-sort") == order
        cells = page.locator(f"#class-table tbody tr > :nth-child({column + 1})").all()
        figures = [float(cell.inner_text().split()[0]) for cell in cells]
        assert figures == sorted(figures, key=lambda v: sign * v)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_prints_whole(opened, name):
    """Nothing that scrolls on a screen is cut off on paper, and what only a screen has is left out."""
    page = opened(name, 718)  # as A4 between its margins
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert not page.locator("#theme").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    heights = "all => all.map(e => getComputedStyle(e).maxHeight)"
    assert set(page.locator(".tall").evaluate_all(heights)) <= {"none"}
    assert page.pdf(format="A4")[:5] == b"%PDF-"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(opened, name, theme):
    page = opened(name, theme=theme)
    # The policy lets no script in; axe is run by the browser itself.
    found = Axe().run(page).response["violations"]
    assert [
        f"{v['id']}: {v['nodes'][0]['html'][:200]}"
        for v in found
        if v["impact"] in ("serious", "critical")
    ] == []

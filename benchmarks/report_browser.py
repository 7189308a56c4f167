"""Opens reports of real data in a browser, does what people do there, and counts what is wrong.

    python benchmarks/report_browser.py ../shared/data/hymenoptera ../shared/data/gtsrb-small
    python benchmarks/report_browser.py DATA --pictures screens     # and keeps screenshots

On each data set a linear probe and a shallow probe are trained; the report of the first, the comparison of
both, the advice and the audit are opened in Chromium at 1280 and 390 pixels, light and dark. There every cell
that has a button is opened (at most `CELLS`), a name is filtered for, a table sorted, the theme switched, and
the matrix walked by keyboard alone. Counted are cells whose pictures do not load, messages on the console,
requests that leave the page, pages wider than the screen, and what axe calls serious. Needs Chromium,
Playwright and axe-playwright-python.
"""

import argparse
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from extract import describe
from playwright import sync_api as api

import headstart

CELLS = 40
VIEWS = [(width, theme) for width in (1280, 390) for theme in ("light", "dark")]


def write_pages(data: Path, folder: Path) -> dict[str, Path]:
    """Train, and write a page of each kind."""
    runs = []
    for strategy in ("linear-probe", "shallow-probe"):
        runs.append(headstart.fit(data, folder / strategy, strategy=strategy))
    began = time.perf_counter()
    pages = {"report": headstart.report(runs[0]).page}
    print(f"{data.name}: report written in {time.perf_counter() - began:.1f} s", flush=True)
    found = {
        "comparison": runs,
        "advice": headstart.advise(data),
        "audit": headstart.audit(data),
    }
    for kind, what in found.items():
        pages[kind] = headstart.report(what, None, folder / f"{kind}.html").page
    return pages


def open_page(browser: api.Browser, path: Path, width: int, theme: str, seen: Counter) -> api.Page:
    """Open a page; what it says on the console and asks for is counted."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce"
    )
    page = context.new_page()

    def note(kind: str) -> None:
        seen[kind] += 1

    page.on("console", lambda message: note("messages"))
    page.on("pageerror", lambda error: note("messages"))
    page.on(
        "request",
        lambda r: r.url.startswith("data:") or r.url == path.as_uri() or note("requests"),
    )
    began = time.perf_counter()
    page.goto(path.as_uri())
    seen["opened in ms"] = max(seen["opened in ms"], round(1000 * (time.perf_counter() - began)))
    return page


def open_cells(page: api.Page, seen: Counter) -> None:
    """Open cells with the mouse: each shows pictures, all of which load."""
    for cell in page.locator("#confusion button").all()[:CELLS]:
        cell.click()
        images = page.locator("#cell-pictures img")
        loaded = images.evaluate_all("all => all.every(i => i.complete && i.naturalWidth > 0)")
        seen["cells"] += 1
        seen["cells without pictures"] += not (images.count() and loaded)
        page.keyboard.press("Escape")


def use_keyboard(page: api.Page, seen: Counter) -> None:
    """Come to the matrix, walk in it, open a cell and close it, by keyboard alone."""
    page.keyboard.press("Tab")
    for _ in range(80):
        if page.evaluate("!!document.activeElement.closest('#confusion td')"):
            break
        page.keyboard.press("Tab")
    first = page.evaluate("document.activeElement.dataset.cell")
    page.keyboard.press("ArrowDown")
    second = page.evaluate("document.activeElement.dataset.cell")
    page.keyboard.press("Enter")
    is_open = page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    back = page.evaluate("document.activeElement.dataset.cell")
    seen["keyboard fails"] += not (first != second == back and is_open)


def use_controls(page: api.Page, seen: Counter) -> None:
    """Filter, sort and switch the theme, where the page has these."""
    for field in page.locator("[data-filter]").all():
        if field.is_visible():
            field.fill("no file is called so")
            items = page.locator(field.get_attribute("data-filter") or "")
            seen["filters fail"] += any(item.is_visible() for item in items.all()[:50])
            field.fill("")
    for head in page.locator(".sort").all()[:3]:
        head.click()
        kept = head.evaluate("e => e.closest('th').getAttribute('aria-sort')")
        seen["sorting fails"] += kept != "ascending"
    colour = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(colour)
    page.click("#theme")
    seen["theme fails"] += page.evaluate(colour) == before
    page.click("#theme")


def judge(browser: api.Browser, kind: str, path: Path, name: str, pictures: Path | None) -> None:
    """Open a page in all views, and print what was wrong."""
    seen: Counter = Counter()
    for width, theme in VIEWS:
        page = open_page(browser, path, width, theme, seen)
        wide = page.evaluate("document.documentElement.scrollWidth") > width
        seen["wider than the screen"] += wide
        found = Axe().run(page).response["violations"]
        seen["axe"] += sum(v["impact"] in ("serious", "critical") for v in found)
        if pictures is not None:
            page.screenshot(path=pictures / f"{name}-{kind}-{width}-{theme}.png", full_page=True)
        if kind == "report":
            use_keyboard(page, seen)
            open_cells(page, seen)
        use_controls(page, seen)
        page.context.close()
    size = path.stat().st_size / 1e6
    told = {k: n for k, n in seen.items() if n and k not in ("cells", "opened in ms")}
    cells = f", {seen['cells']} cells opened" if seen["cells"] else ""
    print(
        f"{name} {kind}: {size:.2f} MB, opened in at most {seen['opened in ms']} ms{cells}; "
        f"wrong: {', '.join(f'{n} {k}' for k, n in told.items()) or 'nothing'}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    print(describe())
    if arguments.pictures is not None:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
    with api.sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for data in arguments.data:
            pages = write_pages(data, Path(folder) / data.name)
            for kind, path in pages.items():
                judge(browser, kind, path, data.name, arguments.pictures)
        browser.close()


if __name__ == "__main__":
    main()

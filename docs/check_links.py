"""Looks at every link of the built site: its file and its place are there, and nothing comes from elsewhere.

    python docs/check_links.py FOLDER

Links that lead to other sites are left to `scripts/docs --links`.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

# What a page loads by itself, by element and attribute; a link may lead anywhere.
LOADED = {("img", "src"), ("script", "src"), ("link", "href"), ("source", "src"), ("iframe", "src")}
LINKS = {*LOADED, ("a", "href")}
# Relations of <link> that name a page and load nothing.
NAMING = {"canonical", "index", "search", "next", "prev", "genindex"}


class Page(HTMLParser):
    """The ids of a page, and its links as (is loaded, address)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[tuple[bool, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        for name, value in found.items():
            if (tag, name) in LINKS and value:
                loaded = (tag, name) in LOADED and found.get("rel") not in NAMING
                self.links.append((loaded, value))


def find_faults(folder: Path) -> list[str]:
    """Say of every link that leads nowhere, and of all that a page would load from elsewhere."""
    pages = {p: Page(p.read_text(encoding="utf-8")) for p in sorted(folder.rglob("*.html"))}
    faults = []
    for path, page in pages.items():
        here = path.relative_to(folder).as_posix()
        for loaded, link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if loaded and parts.scheme != "data":
                    faults.append(f"{here}: loads {link}")
                continue
            place, anchor = urldefrag(urljoin(here, link))
            target = folder / unquote(urlsplit(place).path)
            if not target.is_file():
                faults.append(f"{here}: {link} leads nowhere")
            elif anchor and target in pages and unquote(anchor) not in pages[target].ids:
                faults.append(f"{here}: {link} has no such place")
    for path in sorted(folder.rglob("*.css")):
        if "url(http" in path.read_text(encoding="utf-8").replace("'", "").replace('"', ""):
            faults.append(f"{path.relative_to(folder)}: loads from elsewhere")
    return faults


if __name__ == "__main__":
    [folder] = sys.argv[1:]
    faults = find_faults(Path(folder))
    print("\n".join(faults) or "every link leads somewhere, and nothing is loaded from elsewhere")
    sys.exit(bool(faults))

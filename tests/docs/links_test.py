"""Relative links and anchors of the Markdown pages point at files and headings that exist."""

import re
import unittest
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r'\[[^\]]*\]\(([^)\s]+)(?: "[^"]*")?\)|<img[^>]*? src="([^"]+)"')
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def pages():
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def without_code(text):
    """The text without fenced blocks and code spans, whose brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", FENCED.sub("", text))


def anchors(path):
    """Identifiers of a page's headings, as GitHub makes them."""
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    found = set()
    for heading in re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        base = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        name, copies = base, 0
        while name in found:
            copies += 1
            name = f"{base}-{copies}"
        found.add(name)
    return found


def broken_links(page):
    text = without_code(page.read_text(encoding="utf-8"))
    for match in LINK.finditer(text):
        target = match.group(1) or match.group(2)
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / unquote(path)).resolve() if path else page
        if not file.exists() or (file != ROOT and ROOT not in file.parents):
            yield f"{target}: there is no such file"
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            yield f"{target}: there is no such heading"


class Links(unittest.TestCase):
    def test_there_are_pages(self):
        names = {page.relative_to(ROOT).as_posix() for page in pages()}
        self.assertLessEqual({"README.md", "CHANGELOG.md", "docs/policies.md"}, names)

    def test_links_point_somewhere(self):
        for page in pages():
            with self.subTest(page=page.relative_to(ROOT).as_posix()):
                self.assertEqual(list(broken_links(page)), [])

    def test_every_picture_is_used(self):
        text = "".join(page.read_text(encoding="utf-8") for page in pages())
        for picture in (ROOT / "docs" / "pictures").glob("*.svg"):
            with self.subTest(picture=picture.name):
                self.assertIn(f"pictures/{picture.name}", text)


if __name__ == "__main__":
    unittest.main()

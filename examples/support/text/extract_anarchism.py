#!/usr/bin/env python3
"""Write the sections of "An Anarchist FAQ" as one plain text file.

usage: extract_anarchism.py HTML_DIR OUT.txt

HTML_DIR is `usr/share/doc/anarchism/html` of the Debian package anarchism. Its files sec*.html are
taken in the order of their names: prose of essays, without tags, paragraphs apart by an empty line.
"""

import html.parser
import pathlib
import re
import sys

BREAKS = {"p", "br", "h1", "h2", "h3", "h4", "li", "tr", "div", "ul", "ol", "blockquote"}
SILENT = {"head", "script", "style"}


class Text(html.parser.HTMLParser):
    """The words of a page, with a line break where a paragraph begins or ends."""

    def __init__(self):
        super().__init__()
        self.parts = []
        self.silent = 0

    def handle_starttag(self, tag, attributes):
        self.silent += tag in SILENT
        if tag in BREAKS:
            self.parts.append("\n\n")

    def handle_endtag(self, tag):
        self.silent -= tag in SILENT and self.silent > 0
        if tag in BREAKS:
            self.parts.append("\n\n")

    def handle_data(self, data):
        if not self.silent:
            self.parts.append(data)

    def text(self):
        paragraphs = re.split(r"\n\s*\n", "".join(self.parts))
        words = (" ".join(paragraph.split()) for paragraph in paragraphs)
        return "\n\n".join(paragraph for paragraph in words if paragraph)


def main():
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    pages = sorted(pathlib.Path(sys.argv[1]).glob("sec*.html"))
    if not pages:
        print(f"extract_anarchism: no sec*.html in {sys.argv[1]}", file=sys.stderr)
        return 2
    texts = []
    for page in pages:
        parser = Text()
        parser.feed(page.read_text(encoding="utf-8", errors="replace"))
        parser.close()
        texts.append(parser.text())
    pathlib.Path(sys.argv[2]).write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

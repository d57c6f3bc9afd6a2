"""Checks that code quoted in Markdown is the code of the file it names.

    check_quotes.py ROOT [FILE.md ...]      default: README.md and docs/**/*.md

A quote is a comment line and the fence after it:

    <!-- quote: examples/02_user_quantizer.cpp [quantizer], under 50 lines of code -->
    ```cpp
    ...
    ```

The fence must equal what lies between the two lines `// [quantizer]` of the file, less the common
indentation. Without a region it must be some consecutive lines of the file, indented as one likes.
"under N lines of code" counts lines that are neither blank nor comments.
"""

import pathlib
import re
import sys
import textwrap

QUOTE = re.compile(r"<!--\s*quote:\s*(?P<file>[^\s\[,]+)(\s*\[(?P<region>\w+)\])?"
                   r"(,\s*under (?P<limit>\d+) lines of code)?\s*-->")
COMMENT = re.compile(r"\s*(//.*)?$")


def region_of(text, name):
    """The lines between two marker lines, or None."""
    marker = re.compile(rf"\s*(//|#)\s*\[{name}\]\s*$")
    lines = text.splitlines()
    marks = [i for i, line in enumerate(lines) if marker.match(line)]
    if len(marks) != 2:
        return None
    return textwrap.dedent("\n".join(lines[marks[0] + 1:marks[1]])) + "\n"


def fence_after(lines, at):
    """The text of the fence that begins on line `at`, or None."""
    if at >= len(lines) or not lines[at].startswith("```"):
        return None
    for end in range(at + 1, len(lines)):
        if lines[end].rstrip() == "```":
            return "\n".join(lines[at + 1:end]) + "\n"
    return None


def is_part(text, quoted):
    """Whether `quoted` is consecutive lines of `text`, but for a common indentation."""
    wanted = textwrap.dedent(quoted).splitlines()
    lines = text.splitlines()
    return bool(wanted) and any(
        textwrap.dedent("\n".join(lines[i:i + len(wanted)])).splitlines() == wanted
        for i in range(len(lines) - len(wanted) + 1))


def code_lines(text):
    return sum(1 for line in text.splitlines() if not COMMENT.match(line))


def faults_of(root, path):
    """Pairs (line number, what is wrong), and the number of quotes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    faults, quotes = [], 0
    for i, line in enumerate(lines):
        match = QUOTE.search(line)
        if not match:
            if "<!-- quote" in line:
                faults.append((i + 1, "a quote line that cannot be read"))
            continue
        quotes += 1
        name, region = match["file"], match["region"]
        source = root / name
        if not source.is_file():
            faults.append((i + 1, f"no file {name}"))
            continue
        text = source.read_text(encoding="utf-8")
        quoted = fence_after(lines, i + 1)
        wanted = region_of(text, region) if region else None
        if region and wanted is None:
            faults.append((i + 1, f"{name} has no two lines // [{region}]"))
        elif quoted is None:
            faults.append((i + 1, "no code fence on the next line"))
        elif quoted != wanted if region else not is_part(text, quoted):
            faults.append((i + 1, f"the code is not that of {name}"))
        elif match["limit"] and code_lines(quoted) >= int(match["limit"]):
            faults.append((i + 1, f"{code_lines(quoted)} lines of code"))
    return faults, quotes


def main(arguments):
    if not arguments:
        print(__doc__)
        return 2
    root = pathlib.Path(arguments[0])
    paths = [pathlib.Path(name) for name in arguments[1:]]
    if not paths:
        paths = [p for p in [root / "README.md"] if p.exists()]
        paths += sorted((root / "docs").rglob("*.md"))
    wrong = total = 0
    for path in paths:
        faults, quotes = faults_of(root, path)
        total += quotes
        wrong += len(faults)
        for line, text in faults:
            print(f"{path}:{line}: {text}")
    print(f"{total} quotes, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

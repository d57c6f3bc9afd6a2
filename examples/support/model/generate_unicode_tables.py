#!/usr/bin/env python3
"""Write the ranges of code points that the pre-tokenisers' regular expressions distinguish.

usage: generate_unicode_tables.py > unicode_tables.inc

Letters are the general categories L*, numbers N*. Surrogates are in none of them.
"""

import sys
import unicodedata

WIDTH = 100


def ranges(prefix):
    """[first, last] of every run of code points whose general category starts with `prefix`."""
    found = []
    for code in range(0x110000):
        if unicodedata.category(chr(code)).startswith(prefix):
            if found and found[-1][1] == code - 1:
                found[-1][1] = code
            else:
                found.append([code, code])
    return found


def table(name, rows):
    lines = [f"constexpr std::array<Range, {len(rows)}> {name} = {{{{"]
    line = "   "
    for first, last in rows:
        entry = f" {{0x{first:x}, 0x{last:x}}},"
        if len(line) + len(entry) > WIDTH:
            lines.append(line)
            line = "   "
        line += entry
    lines += [line, "}};"]
    return "\n".join(lines)


def main():
    print(f"// Written by generate_unicode_tables.py from Unicode {unicodedata.unidata_version}.")
    print(table("letters", ranges("L")))
    print()
    print(table("numbers", ranges("N")))
    return 0


if __name__ == "__main__":
    sys.exit(main())

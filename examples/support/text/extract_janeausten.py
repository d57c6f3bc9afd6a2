#!/usr/bin/env python3
"""Write the six novels of the R package janeaustenr as plain text files.

usage: extract_janeausten.py RDATA.rdb OUT_DIR

RDATA.rdb is `data/Rdata.rdb` of the package (Debian: r-cran-janeaustenr). It is a sequence of
records [uncompressed length, 4 bytes, big endian][zlib stream]; each stream holds one R character
vector in R's XDR serialisation ("R Internals", section 1.8). One file a novel, lines joined by a
line feed.
"""

import pathlib
import struct
import sys
import zlib

TITLES = {
    "EMMA": "emma",
    "MANSFIELD PARK": "mansfield_park",
    "NORTHANGER ABBEY": "northanger_abbey",
    "PERSUASION": "persuasion",
    "PRIDE AND PREJUDICE": "pride_and_prejudice",
    "SENSE AND SENSIBILITY": "sense_and_sensibility",
}
CHARSXP, STRSXP = 9, 16


class InputError(Exception):
    pass


def records(data):
    """The inflated records of an .rdb file, in file order."""
    while data:
        if len(data) < 5:
            raise InputError("a record is cut short")
        (length,) = struct.unpack_from(">I", data)
        inflater = zlib.decompressobj()
        record = inflater.decompress(data[4:], length)
        if len(record) != length:
            raise InputError("a record is cut short")
        # The stream's checksum may still be unread when the output is complete.
        if inflater.decompress(inflater.unconsumed_tail, 1) or not inflater.eof:
            raise InputError("a record does not end where its length says")
        yield record
        data = inflater.unused_data


def character_vector(record):
    """The strings of a serialised R character vector; None where the record is something else."""
    if record[:2] != b"X\n":
        raise InputError("a record is not in R's XDR serialisation")
    position = 2

    def integer():
        nonlocal position
        (value,) = struct.unpack_from(">i", record, position)
        position += 4
        return value

    version = integer()
    position += 8  # the versions of R that wrote it and that can read it
    if version == 3:
        encoding_bytes = integer()
        position += encoding_bytes
    elif version != 2:
        raise InputError(f"serialisation version {version} is unknown")
    if integer() & 0xFF != STRSXP:
        return None
    lines = []
    for _ in range(integer()):
        if integer() & 0xFF != CHARSXP:
            raise InputError("a character vector holds something else than strings")
        length = max(integer(), 0)  # -1 marks a missing value
        if position + length > len(record):
            raise InputError("a string is cut short")
        lines.append(record[position : position + length].decode("utf-8"))
        position += length
    return lines


def title(lines):
    """The file name of the novel whose title is the first non-empty line; None if it is unknown."""
    first = next((line.strip() for line in lines if line.strip()), "")
    return TITLES.get(first.upper())


def main(arguments):
    if len(arguments) != 2:
        sys.stderr.write(__doc__)
        return 2
    source, target = map(pathlib.Path, arguments)
    try:
        found = {}
        for record in records(source.read_bytes()):
            lines = character_vector(record)
            name = title(lines) if lines is not None else None
            if name is not None:
                found[name] = "\n".join(lines)
        missing = sorted(set(TITLES.values()) - set(found))
        if missing:
            raise InputError("not found: " + ", ".join(missing))
        target.mkdir(parents=True, exist_ok=True)
        for name, text in sorted(found.items()):
            path = target / f"{name}.txt"
            path.write_text(text, encoding="utf-8", newline="\n")
            print(f"{path}: {len(text)} characters")
    except (InputError, OSError, zlib.error, struct.error, UnicodeDecodeError) as error:
        sys.stderr.write(f"{source}: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

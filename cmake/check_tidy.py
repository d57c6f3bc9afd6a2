"""Runs clang-tidy on translation units of a build tree; findings in the repository's headers count.

    check_tidy.py --build BUILD_DIR [--jobs N] [FILTER ...]

A FILTER is part of a source path, such as `examples/` or `all_first.cpp` (the unit that includes
every header); without one, all units are checked. Exit code: 0 clean, 1 findings, 2 bad input,
77 no clang-tidy 14.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys

from source_files import ROOT

SKIPPED = 77


def tidy(program, build, source):
    # The configuration by name: found by folder, it would not reach findings without a location.
    # The database may be g++'s, whose warnings clang does not all know.
    run = subprocess.run(
        [program, "--quiet", f"--config-file={ROOT / '.clang-tidy'}",
         "--extra-arg=-Wno-unknown-warning-option", "-p", str(build), source],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    return source, run.returncode, run.stdout + (run.stderr if run.returncode else "")


def main(arguments):
    parser = argparse.ArgumentParser(description="clang-tidy over a build tree")
    parser.add_argument("--build", required=True, type=pathlib.Path)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("filter", nargs="*")
    options = parser.parse_args(arguments)

    program = shutil.which("clang-tidy-14")
    if program is None:
        print("clang-tidy 14 not found (Debian 12: clang-tidy-14)")
        return SKIPPED
    database = options.build / "compile_commands.json"
    if not database.is_file():
        print(f"{database}: not found; configure the build tree first")
        return 2
    sources = sorted({entry["file"] for entry in json.loads(database.read_text(encoding="utf-8"))})
    if options.filter:
        sources = [s for s in sources if any(part in s for part in options.filter)]
    if not sources:
        print("no source matches")
        return 2

    dirty = 0
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        runs = [pool.submit(tidy, program, options.build, source) for source in sources]
        for number, run in enumerate(concurrent.futures.as_completed(runs), start=1):
            source, code, output = run.result()
            dirty += code != 0
            print(f"[{number}/{len(runs)}] {source}: {'findings' if code else 'clean'}", flush=True)
            if code:
                print(output, flush=True)
    print(f"clang-tidy: {len(runs)} units, {dirty} with findings")
    return 1 if dirty else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

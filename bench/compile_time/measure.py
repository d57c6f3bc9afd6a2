"""Shows what terse costs to compile, beside the budget: CPU seconds of the compiler, the least of a
few runs.

    measure.py [--cxx COMPILER] [--nvcc NVCC] [--runs N] [--headers]

Units: every header alone (--headers), terse.hpp, and one pair of layout and policy with all its
operations, on the host with -O3, without attention's kernels, which are the same for all pairs
(TERSE_SEPARATE_KERNELS), and with them, and on the device for sm_80 and sm_90a. Without nvcc the device's
are left out. Exit code: 0 all within the budget, 1 one is not, 2 a unit does not compile.
"""

import argparse
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
INCLUDE = HERE.parents[1] / "include"
HEADER_SECONDS, ALL_HEADERS_SECONDS = 0.5, 1.5
PAIR_SECONDS, KERNELS_SECONDS = 20.0, 20.0


def cpu_seconds(command):
    def used():
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    before = used()
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         check=False)
    if run.returncode != 0:
        print(" ".join(command), run.stdout, sep="\n", file=sys.stderr)
        sys.exit(2)
    return used() - before


def units(options, folder):
    """Yields (name, budget in seconds, command)."""
    flags = [f"-I{INCLUDE}", "-c", "-o", os.devnull]
    host = [options.cxx, "-std=c++20", *flags]

    def including(header):
        source = folder / "one_include.cpp"
        source.write_text(f"#include <{header}>\n", encoding="utf-8")
        return [*host, str(source)]

    if options.headers:
        for path in sorted(INCLUDE.rglob("*.hpp")):
            header = path.relative_to(INCLUDE)
            if header.name != "terse.hpp" and header.parts[1] != "interop":
                yield str(header), HEADER_SECONDS, including(header)
    yield "terse/terse.hpp", ALL_HEADERS_SECONDS, including("terse/terse.hpp")
    pair = [*host, "-O3", str(HERE / "host_pair.cpp")]
    yield "host pair, -O3", PAIR_SECONDS, [*pair, "-DTERSE_SEPARATE_KERNELS"]
    yield "host pair with the kernels, -O3", PAIR_SECONDS + KERNELS_SECONDS, pair
    if options.nvcc:
        for architecture in ("80", "90a"):
            yield f"device pair, sm_{architecture}", PAIR_SECONDS, [
                options.nvcc, "-std=c++20", "-O3",
                f"-gencode=arch=compute_{architecture},code=sm_{architecture}", f"-I{INCLUDE}",
                "-c", "-o", str(folder / "pair.o"), str(HERE / "device_pair.cu")]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cxx", default=os.environ.get("CXX", "c++"))
    parser.add_argument("--nvcc", default=shutil.which("nvcc"))
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--headers", action="store_true")
    options = parser.parse_args()
    over = 0
    print("| unit | CPU s | budget | share |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for name, budget, command in units(options, pathlib.Path(folder)):
            least = min(cpu_seconds(command) for _ in range(max(options.runs, 1)))
            over += least > budget
            print(f"| {name} | {least:.2f} | {budget:.1f} | {100 * least / budget:.0f} % |",
                  flush=True)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())

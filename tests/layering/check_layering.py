"""Checks the arrows between the folders of include/terse.

    check_layering.py INCLUDE_DIR     the folder that holds terse/
    check_layering.py --self-test SAMPLE_DIR

core <- layout, policy <- quant | evict | lowrank <- cache <- cpu, cuda, interop, testing, and cpu <-
check. An arrow means "may be included by"; a folder may include itself and everything before it, but
not its neighbours between the same arrows. A .hpp never includes CUDA, CUB or another .cuh; Eigen is for
interop/eigen.hpp alone. In a sample, each line that must be reported ends in `// wrong`.
"""

import pathlib
import re
import sys

BASE = {"core"}
CONTRACT = BASE | {"layout", "policy"}
METHODS = {"quant", "evict", "lowrank"}
WHOLE = CONTRACT | METHODS | {"cache"}

MAY_INCLUDE = {
    "core": set(),
    "layout": BASE,
    "policy": BASE,
    "quant": CONTRACT,
    "evict": CONTRACT,
    "lowrank": CONTRACT,
    "cache": CONTRACT | METHODS,
    "cpu": WHOLE,
    "check": WHOLE | {"cpu"},
    "cuda": WHOLE,
    "interop": WHOLE,
    "testing": WHOLE,
}
# Files directly in terse/ that every folder may include.
ROOT_FILES = {"config.hpp", "version.hpp"}
# What terse.hpp leaves to those who ask for it.
NOT_IN_UMBRELLA = {"check", "cuda", "interop", "testing"}

INCLUDE = re.compile(r'\s*#\s*include\s*([<"])([^>"]+)[>"]')
CUDA = re.compile(r"(cuda|cub|thrust|nv|cooperative_groups|cutlass|cute)/|"
                  r"(cuda|cooperative_groups|nvtx|mma\.h|device_launch|curand|cublas|vector_types)")
EIGEN = re.compile(r"(unsupported/)?Eigen/")


def target_of(path, root, quote, name):
    """The included file's path below terse/, or None for a file of others."""
    if name.startswith("terse/"):
        return pathlib.PurePosixPath(name).relative_to("terse")
    if quote == '"':
        beside = (path.parent / name).resolve()
        if beside.is_relative_to(root.resolve()):
            return pathlib.PurePosixPath(beside.relative_to(root.resolve()))
    return None


def folder_of(relative):
    return relative.parts[0] if len(relative.parts) > 1 else ""


def fault(path, root, quote, name):
    relative = pathlib.PurePosixPath(path.relative_to(root))
    folder = folder_of(relative)
    device = path.suffix == ".cuh" and (folder == "cuda" or str(relative) == "terse.cuh")
    target = target_of(path, root, quote, name)
    if target is None:
        if CUDA.match(name) and not device:
            return "CUDA and CUB are for .cuh files in cuda/"
        if EIGEN.match(name) and str(relative) != "interop/eigen.hpp":
            return "Eigen is for interop/eigen.hpp"
        return None
    if target.suffix == ".cuh" and not device:
        return "only a .cuh in cuda/ includes a .cuh"
    to = folder_of(target)
    if folder == "":
        if str(relative) in ROOT_FILES:
            return None if str(target) in ROOT_FILES else f"{relative} includes nothing of terse"
        if str(relative) == "terse.hpp" and to in NOT_IN_UMBRELLA:
            return f"terse.hpp does not include {to}/"
        return None
    if to == "":
        return None if str(target) in ROOT_FILES else f"{folder}/ must not include {target}"
    if to != folder and to not in MAY_INCLUDE[folder]:
        return f"{folder}/ must not include {to}/"
    return None


def check(root):
    """[(path, line number, message)] for the headers below `root`, the terse folder."""
    found = []
    for path in sorted(root.rglob("*")):
        if path.suffix not in (".hpp", ".cuh"):
            continue
        relative = path.relative_to(root)
        folder = relative.parts[0] if len(relative.parts) > 1 else ""
        if folder and folder not in MAY_INCLUDE:
            found.append((path, 1, f"folder {folder}/ is not in the layering table"))
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            match = INCLUDE.match(line)
            if match:
                message = fault(path, root, match.group(1), match.group(2))
                if message:
                    found.append((path, number, message))
    return found


def self_test(sample):
    root = sample / "terse"
    wanted = set()
    for path in root.rglob("*"):
        if path.suffix in (".hpp", ".cuh"):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                if line.rstrip().endswith("// wrong"):
                    wanted.add((path, number))
    found = {(path, number) for path, number, _ in check(root)}
    for path, number in sorted(wanted - found):
        print(f"{path}:{number}: not reported")
    for path, number in sorted(found - wanted):
        print(f"{path}:{number}: reported, though right")
    return 0 if wanted and wanted == found else 1


def main(arguments):
    if len(arguments) == 2 and arguments[0] == "--self-test":
        return self_test(pathlib.Path(arguments[1]))
    if len(arguments) != 1:
        print(__doc__)
        return 2
    root = pathlib.Path(arguments[0]) / "terse"
    if not any(root.rglob("*.hpp")):
        print(f"{root}: no headers")
        return 2
    found = check(root)
    for path, number, message in found:
        print(f"{path}:{number}: {message}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

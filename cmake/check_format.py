"""Checks (or with --fix, applies) .clang-format on all C++ files of the repository.

Exit code: 0 clean, 1 not clean, 77 no clang-format 14 (other versions format differently).
"""

import shutil
import subprocess
import sys

from source_files import source_files

SKIPPED = 77


def find_clang_format():
    for name in ("clang-format-14", "clang-format"):
        program = shutil.which(name)
        if program:
            version = subprocess.run([program, "--version"], stdout=subprocess.PIPE, text=True,
                                     check=False).stdout
            if "version 14." in version:
                return program
    return None


def main(arguments):
    program = find_clang_format()
    if program is None:
        print("clang-format 14 not found (Debian 12: clang-format-14)")
        return SKIPPED
    mode = ["-i"] if arguments == ["--fix"] else ["--dry-run", "-Werror"]
    files = [str(path) for path in source_files()]
    code = subprocess.run([program, *mode, "--style=file", *files], check=False).returncode
    if code != 0:
        print("to mend: python3 cmake/check_format.py --fix")
    return 0 if code == 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Checks that a file compiles, and that with TERSE_EXPECT_FAIL it does not, with the expected text.

    check_compile_fail.py CASE.cpp -- COMPILER [FLAG ...]
    check_compile_fail.py --self-test SANITY_DIR -- COMPILER [FLAG ...]

A case names parts of the message in comment lines `// expect: text`; all must appear on lines of
the compiler's output that report an error. With --self-test, every file of a folder must be
rejected for the reason that its `// verdict: text` line states.
"""

import pathlib
import re
import subprocess
import sys


def comments(path, key):
    pattern = re.compile(rf"\s*//\s*{key}:\s*(.+?)\s*$")
    matches = (pattern.match(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [match.group(1) for match in matches if match]


def compile_case(command, path, bad):
    # No source lines in the output: they would repeat the text of a static_assert that held.
    quiet = "-fno-caret-diagnostics" if is_clang(command) else "-fno-diagnostics-show-caret"
    macro = ["-DTERSE_EXPECT_FAIL"] if bad else []
    return subprocess.run(
        [*command, "-fsyntax-only", "-fmessage-length=0", quiet, *macro, str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


def is_clang(command):
    version = subprocess.run([command[0], "--version"], stdout=subprocess.PIPE, text=True,
                             check=False)
    return "clang" in version.stdout


def judge(command, path):
    """None if the case holds, else (why not, the compiler's output)."""
    expected = comments(path, "expect")
    if not expected:
        return "no expect line", ""
    good = compile_case(command, path, bad=False)
    if good.returncode != 0:
        return "the good version does not compile", good.stdout
    bad = compile_case(command, path, bad=True)
    if bad.returncode == 0:
        return "the bad version compiles", bad.stdout
    errors = [line for line in bad.stdout.splitlines() if "error:" in line]
    for text in expected:
        if not any(text in line for line in errors):
            return f"no error says: {text}", bad.stdout
    return None


def self_test(command, folder):
    cases = sorted(folder.glob("*.cpp"))
    wrong = 0 if cases else 1
    for path in cases:
        verdicts = comments(path, "verdict")
        found = judge(command, path)
        seen = "holds" if found is None else found[0]
        if verdicts != [seen]:
            wrong += 1
            print(f"{path}: judged '{seen}', should be {verdicts}")
    print(f"{len(cases)} sanity cases, {wrong} judged wrongly")
    return 1 if wrong else 0


def main(arguments):
    if "--" not in arguments:
        print(__doc__)
        return 2
    split = arguments.index("--")
    command = arguments[split + 1:]
    if arguments[0] == "--self-test":
        return self_test(command, pathlib.Path(arguments[1]))
    path = pathlib.Path(arguments[0])
    found = judge(command, path)
    if found is None:
        return 0
    print(f"{path}: {found[0]}\n{found[1]}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

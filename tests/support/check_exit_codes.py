"""Runs the harness probe's test cases and compares what ctest would see with what it should."""

import os
import subprocess
import sys

PASSED, SKIPPED, FAILED = "passed", "skipped", "failed"


def outcome(program, tests, ci):
    environment = {k: v for k, v in os.environ.items() if k != "CI"}
    if ci:
        environment["CI"] = "true"
    code = subprocess.run([program, *tests], env=environment, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, check=False).returncode
    return {0: PASSED, 77: SKIPPED}.get(code, FAILED)


def main():
    program = sys.argv[1]
    cases = [
        (["[pass]"], False, PASSED),
        (["[fail]"], False, FAILED),
        (["[skip]"], False, SKIPPED),
        (["[skip]"], True, SKIPPED),
        (["[skip],[pass]"], False, SKIPPED),
        (["[skip],[fail]"], False, FAILED),
        (["[model]"], False, SKIPPED),
        (["[model]"], True, FAILED),
        ([], False, FAILED),  # every case is hidden: no test runs
        (["[no_such_tag]"], False, FAILED),
    ]
    wrong = 0
    for tests, ci, expected in cases:
        seen = outcome(program, tests, ci)
        if seen != expected:
            wrong += 1
            print(f"tests {tests} with CI={'true' if ci else ''}: {seen}, not {expected}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

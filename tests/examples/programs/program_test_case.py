"""What the tests of the programs share. A test file is run as

    check_NAME.py PROGRAM [TESTCASE...]

Test cases on the real model are skipped without TERSE_TEST_MODEL and TERSE_TEST_TEXT_DIR; in CI
(CI set) that is a failure."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

from small_model import small_model

SKIPPED = 77
NOVEL = ("It was a fine day, and nobody said a word. The garden, 3 miles from here, was empty; "
         "who would have thought so? Anne walked on.\n")


class ProgramTestCase(unittest.TestCase):
    program = ""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        cls.model = cls.written("tiny.gguf", small_model())
        cls.novel = cls.written("novel.txt", (NOVEL * 400).encode())
        cls.note = cls.written("note.txt", b"Too short a text.")
        cls.empty = cls.written("empty.txt", b"")

    @classmethod
    def written(cls, name, data):
        path = cls.folder / name
        path.write_bytes(data)
        return str(path)

    def path(self, name):
        return str(self.folder / name)

    def run_program(self, *arguments):
        result = subprocess.run([self.program, *map(str, arguments)], capture_output=True,
                                check=False, timeout=280)
        result.stdout = result.stdout.decode("utf-8")
        result.stderr = result.stderr.decode("utf-8")
        return result

    def assert_runs(self, *arguments):
        result = self.run_program(*arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result

    def assert_refused(self, named, *arguments):
        """Exit code 2, nothing on standard output, and one line that names the problem."""
        result = self.run_program(*arguments)
        with self.subTest(arguments=arguments):
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertEqual(result.stdout, "")
            self.assertIn(named, result.stderr)
            self.assertTrue(result.stderr.startswith(pathlib.Path(self.program).name + ": "))
            self.assertEqual(result.stderr.count("\n"), 1, result.stderr)

    def assert_help_is_complete(self, options):
        result = self.assert_runs("--help")
        self.assertEqual(result.stderr, "")
        self.assertEqual(self.assert_runs("-h").stdout, result.stdout)
        explained = re.findall(r"^  --([a-z-]+)", result.stdout, re.MULTILINE)
        self.assertEqual(sorted(explained), sorted([*options, "help"]))
        self.assertLessEqual(max(map(len, result.stdout.splitlines())), 100)

    def damaged_models(self):
        """The small model cut at places inside its header, its tensor list and its data, and with
        a header that lies."""
        whole = pathlib.Path(self.model).read_bytes()
        for size in (1, 3, 8, 23, 60, 700, 2500, len(whole) // 2, len(whole) - 1):
            yield self.written(f"cut_{size}.gguf", whole[:size])
        yield self.written("magic.gguf", b"GGML" + whole[4:])
        yield self.written("version.gguf", whole[:4] + b"\x63" + whole[5:])
        yield self.written("count.gguf", whole[:8] + b"\xff" * 8 + whole[16:])
        yield self.written("text.gguf", b"this is no model at all\n" * 20)


class RealModelTestCase(ProgramTestCase):
    def setUp(self):
        model, texts = os.environ.get("TERSE_TEST_MODEL"), os.environ.get("TERSE_TEST_TEXT_DIR")
        if not model or not texts:
            message = "set TERSE_TEST_MODEL and TERSE_TEST_TEXT_DIR"
            if os.environ.get("CI"):
                self.fail("must not be skipped in CI: " + message)
            self.skipTest(message)
        self.real_model = model
        self.persuasion = str(pathlib.Path(texts) / "persuasion.txt")
        self.emma = str(pathlib.Path(texts) / "emma.txt")


def main():
    if len(sys.argv) < 2:
        sys.exit("usage: check_NAME.py PROGRAM [TESTCASE...]")
    ProgramTestCase.program = sys.argv[1]
    program = unittest.main(module="__main__", argv=[sys.argv[0], *sys.argv[2:]], exit=False)
    result = program.result
    if not result.wasSuccessful() or result.testsRun == 0:
        sys.exit(1)
    sys.exit(SKIPPED if result.skipped else 0)

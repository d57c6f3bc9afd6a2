"""Quoted code in README.md and docs/ is that of the sources; and the check finds what it should."""

import contextlib
import io
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import check_quotes  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]

SOURCE = """int a;
  // [part]
  /// A comment.
  int b;

  int c;
  // [part]
"""


class Quotes(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        (self.root / "source.cpp").write_text(SOURCE, encoding="utf-8")

    def faults(self, markdown):
        page = self.root / "page.md"
        page.write_text(markdown, encoding="utf-8")
        return [text for _, text in check_quotes.faults_of(self.root, page)[0]]

    def test_the_projects_own_pages(self):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            code = check_quotes.main([str(ROOT)])
        self.assertEqual(code, 0, output.getvalue())

    def test_the_walk_through_quotes_both_parts(self):
        page = ROOT / "docs" / "adding_a_policy.md"
        text = page.read_text(encoding="utf-8")
        for wanted in ("02_user_quantizer.cpp [quantizer], under 50 lines of code",
                       "03_user_evictor.cpp [evictor], under 50 lines of code"):
            self.assertIn(f"<!-- quote: examples/{wanted} -->", text)

    def test_an_exact_quote_passes(self):
        self.assertEqual(self.faults("<!-- quote: source.cpp [part], under 3 lines of code -->\n"
                                     "```cpp\n/// A comment.\nint b;\n\nint c;\n```\n"), [])
        self.assertEqual(self.faults(f"<!-- quote: source.cpp -->\n```cpp\n{SOURCE}```\n"), [])

    def test_a_quote_without_a_region_is_consecutive_lines(self):
        quote = "<!-- quote: source.cpp -->\n```cpp\n{}```\n"
        for good in ("int b;\n", "    int b;\n\n    int c;\n", "int a;\n  // [part]\n"):
            self.assertEqual(self.faults(quote.format(good)), [])
        for bad in ("int b;\nint c;\n", "int b\n", "", "int a;\n// [part]\n"):
            self.assertEqual(self.faults(quote.format(bad)), ["the code is not that of source.cpp"])

    def test_changed_code_is_found(self):
        self.assertEqual(self.faults("<!-- quote: source.cpp [part] -->\n"
                                     "```cpp\n/// A comment.\nint b;\nint c;\n```\n"),
                         ["the code is not that of source.cpp"])

    def test_too_many_lines_are_found(self):
        self.assertEqual(self.faults("<!-- quote: source.cpp [part], under 2 lines of code -->\n"
                                     "```cpp\n/// A comment.\nint b;\n\nint c;\n```\n"),
                         ["2 lines of code"])

    def test_what_is_missing_is_found(self):
        self.assertEqual(self.faults("<!-- quote: none.cpp -->\n```\n```\n"), ["no file none.cpp"])
        self.assertEqual(self.faults("<!-- quote: source.cpp [other] -->\n```\n```\n"),
                         ["source.cpp has no two lines // [other]"])
        self.assertEqual(self.faults("<!-- quote: source.cpp [part] -->\ntext\n"),
                         ["no code fence on the next line"])
        self.assertEqual(self.faults("<!-- quote source.cpp -->\n"),
                         ["a quote line that cannot be read"])


if __name__ == "__main__":
    unittest.main()

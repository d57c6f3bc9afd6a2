"""examples/support/text/extract_anarchism.py on pages made here."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "examples" / "support" / "text" / "extract_anarchism.py"


class ExtractAnarchism(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.pages = pathlib.Path(folder.name)
        self.target = self.pages / "out.txt"

    def extract(self):
        return subprocess.run([sys.executable, "-B", SCRIPT, self.pages, self.target],
                              capture_output=True, text=True, check=False)

    def test_words_of_sections_in_order(self):
        (self.pages / "secB.html").write_text("<p>Second &amp; last</p>")
        (self.pages / "secA.html").write_text(
            "<html><head><title>Not this</title></head><body><h1>First</h1>"
            "one <b>two</b>\n  three<p>four<script>nor this</script></body></html>")
        (self.pages / "index.html").write_text("<p>Nor an index</p>")
        self.assertEqual(self.extract().returncode, 0)
        self.assertEqual(self.target.read_text(), "First\n\none two three\n\nfour\n\nSecond & last\n")

    def test_a_folder_without_sections(self):
        result = self.extract()
        self.assertEqual(result.returncode, 2)
        self.assertIn("no sec*.html", result.stderr)
        self.assertFalse(self.target.exists())


if __name__ == "__main__":
    unittest.main()

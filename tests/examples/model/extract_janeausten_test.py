"""examples/support/text/extract_janeausten.py on files made here."""

import pathlib
import struct
import subprocess
import sys
import tempfile
import unittest
import zlib

ROOT = pathlib.Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "examples" / "support" / "text" / "extract_janeausten.py"
TITLES = ["Emma", "MANSFIELD PARK", "Northanger Abbey", "PERSUASION", "PRIDE AND PREJUDICE",
          "SENSE AND SENSIBILITY"]


def record(lines, version=3):
    """One record of an .rdb file that holds a character vector."""
    data = b"X\n" + struct.pack(">3i", version, 0x40201, 0x30500)
    if version == 3:
        data += struct.pack(">i", 5) + b"UTF-8"
    data += struct.pack(">2i", 16, len(lines))
    for line in lines:
        text = line.encode()
        data += struct.pack(">2i", 0x00040009, len(text)) + text
    return struct.pack(">I", len(data)) + zlib.compress(data)


class ExtractJaneAusten(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.source = pathlib.Path(self.folder.name) / "Rdata.rdb"
        self.target = pathlib.Path(self.folder.name) / "out"

    def extract(self, data):
        self.source.write_bytes(data)
        return subprocess.run([sys.executable, "-B", SCRIPT, self.source, self.target],
                              capture_output=True, text=True, check=False)

    def test_writes_each_novel(self):
        records = [record(["", title, "", f"caf\u00e9 {i}"], version=2 + i % 2)
                   for i, title in enumerate(TITLES)]
        run = self.extract(b"".join(records))
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual(len(list(self.target.iterdir())), 6)
        text = (self.target / "persuasion.txt").read_bytes()
        self.assertEqual(text, "\nPERSUASION\n\ncaf\u00e9 3".encode())

    def test_refuses_what_is_damaged_or_missing(self):
        whole = b"".join(record([title]) for title in TITLES)
        wrong_length = bytearray(whole)
        wrong_length[3] -= 1
        for data in (b"", b"abc", whole[:-1], whole[:-40], whole + b"\0\0\0\1", bytes(wrong_length),
                     record(["EMMA"]), b"".join(record([title]) for title in TITLES[:5])):
            run = self.extract(data)
            self.assertEqual(run.returncode, 2, run.stdout)
            self.assertIn("Rdata.rdb: ", run.stderr)
            self.assertNotIn("Traceback", run.stderr)
            self.assertFalse(self.target.exists())


if __name__ == "__main__":
    unittest.main()

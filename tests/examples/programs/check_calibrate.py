"""calibrate as its users run it."""

import pathlib

from program_test_case import ProgramTestCase, RealModelTestCase, main

OPTIONS = ["model", "text", "skip-chars", "tokens", "tail", "threads", "output"]


class CommandLine(ProgramTestCase):
    def test_help_explains_every_option(self):
        self.assert_help_is_complete(OPTIONS)

    def test_bad_options(self):
        model = ["--model", self.model]
        self.assert_refused("--model")
        self.assert_refused("--text", *model)
        self.assert_refused("--output", *model, "--text", self.novel)
        self.assert_refused("--tokens", *model, "--tokens=1")

    def test_bad_files(self):
        out = ["--output", self.path("out.calibration")]
        self.assert_refused("too short", "--model", self.model, "--text", self.note, *out)
        for bad in (self.path("none-such"), self.empty):
            self.assert_refused(bad, "--model", bad, "--text", self.novel, *out)
            self.assert_refused(bad, "--model", self.model, "--text", bad, *out)
        self.assertFalse(pathlib.Path(out[1]).exists())

    def test_no_input_is_overwritten_and_nothing_is_computed_for_nothing(self):
        same = str(self.folder / "." / "tiny.gguf")
        for target in (self.model, same, self.novel):
            self.assert_refused("overwrite", "--model", self.model, "--text", self.novel,
                                "--output", target)
        self.assert_refused("cannot write", "--model", self.model, "--text", self.novel,
                            "--output", self.path("no-such-folder/out"))


class SmallModel(ProgramTestCase):
    def calibrate(self, name, *arguments):
        self.assert_runs("--model", self.model, "--text", self.novel, "--skip-chars", "0",
                         "--tokens", "3000", "--output", self.path(name), *arguments)
        return pathlib.Path(self.path(name)).read_bytes()

    def test_the_file_does_not_depend_on_threads(self):
        one = self.calibrate("one", "--threads", "1")
        self.assertEqual(one[:8], b"TRSCAL01")
        self.assertEqual(self.calibrate("three", "--threads", "3"), one)

    def test_a_tail_changes_what_counts(self):
        self.assertEqual(self.calibrate("default"), self.calibrate("tail", "--tail", "64"))
        self.assertNotEqual(self.calibrate("default"), self.calibrate("none", "--tail", "0"))


    def test_a_tail_of_whole_windows_leaves_nothing(self):
        arguments = ["--model", self.model, "--text", self.novel, "--skip-chars", "0",
                     "--output", self.path("nothing")]
        self.assert_refused("windows of 1024 tokens", *arguments, "--tokens", "3000",
                            "--tail", "1024")
        self.assert_refused("windows of 300 tokens", *arguments, "--tokens", "300",
                            "--tail", "300")
        self.assertFalse(pathlib.Path(self.path("nothing")).exists())


class RealModel(RealModelTestCase):
    def test_the_real_model(self):
        path = self.path("real.calibration")
        self.assert_runs("--model", self.real_model, "--text", self.emma, "--tokens", "256",
                         "--output", path)
        # 30 layers of 2 x 3 streams of 64 channels.
        self.assertEqual(pathlib.Path(path).stat().st_size, 48 + 180 * (512 + 2 * 6112))


if __name__ == "__main__":
    main()

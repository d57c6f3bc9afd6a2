"""check_model as its users run it."""

import pathlib

from program_test_case import ProgramTestCase, RealModelTestCase, main

OPTIONS = ["model", "text", "skip-chars", "tokens", "calibration", "key-bias", "policy", "held-out",
           "windows", "threads", "layers", "markdown"]


class CommandLine(ProgramTestCase):
    def test_help_explains_every_option(self):
        self.assert_help_is_complete(OPTIONS)

    def test_bad_options(self):
        model = ["--model", self.model]
        self.assert_refused("--model")
        self.assert_refused("--text", *model)
        self.assert_refused("--policy", *model, "--text", self.novel)
        self.assert_refused("h2o-50", *model, "--text", self.novel, "--policy", "h2o-50")
        self.assert_refused("--calibration", *model, "--text", self.novel, "--policy", "shaped-4")
        self.assert_refused("--tokens", *model, "--tokens=127")

    def test_bad_files(self):
        rest = ["--policy", "int8"]
        self.assert_refused("too short", "--model", self.model, "--text", self.note, *rest)
        for bad in (self.path("none-such"), self.empty):
            self.assert_refused(bad, "--model", bad, "--text", self.novel, *rest)
            self.assert_refused(bad, "--model", self.model, "--text", bad, *rest)
        self.assert_refused("overwrite", "--model", self.model, "--text", self.novel, *rest,
                            "--markdown", self.novel)


class SmallModel(ProgramTestCase):
    def table(self, name, *arguments):
        self.assert_runs("--model", self.model, "--text", self.novel, "--skip-chars", "0",
                         "--policy", "int8,kivi-4", "--tokens", "256", "--markdown",
                         self.path(name), *arguments)
        return pathlib.Path(self.path(name)).read_text(encoding="utf-8")

    def test_results_do_not_depend_on_threads(self):
        one = self.table("one.md", "--threads", "1", "--layers")
        self.assertEqual(len(one.splitlines()), 4)
        self.assertEqual(self.table("three.md", "--threads", "3"), one)


class RealModel(RealModelTestCase):
    def test_the_real_model(self):
        path = self.path("table.md")
        self.assert_runs("--model", self.real_model, "--text", self.emma, "--tokens", "128",
                         "--policy", "int8", "--key-bias", "1000", "--markdown", path)
        self.assertIn("| no", pathlib.Path(path).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

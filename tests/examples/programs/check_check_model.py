"""check_model as its users run it."""

import pathlib

from program_test_case import ProgramTestCase, RealModelTestCase, main
from small_model import small_model

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
        self.assert_refused("aligned-kv-0.1", *model, "--policy", "aligned-kv-0.1")
        rest = [*model, "--text", self.novel, "--policy", "int8"]
        self.assert_refused("context of 1024", *rest, "--tokens", "1025")
        self.assert_refused("context of 1024", *rest, "--held-out", self.novel)
        self.assert_refused("tokens needed (256)", *model, "--text", self.novel, "--skip-chars",
                            "0", "--tokens=128", "--policy", "kivi-2")

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

    def test_all_without_a_calibration_leaves_out_what_needs_one(self):
        path = self.path("all.md")
        result = self.assert_runs("--model", self.model, "--text", self.novel, "--skip-chars", "0",
                                  "--policy", "int8,all", "--tokens", "256", "--markdown", path)
        rows = pathlib.Path(path).read_text(encoding="utf-8")
        for name in ("int8", "kivi-2", "kvarn-2", "kvquant-3", "shaped-2-uncalibrated"):
            self.assertEqual(rows.count(f"`{name}`") + rows.count(f"| {name} "), 1, rows)
        self.assertNotIn("shaped-4", rows)
        self.assertIn("shaped-4", result.stderr)

    def test_held_out_windows_are_measured(self):
        model = self.written("long.gguf", small_model(context_tokens=2048))
        path = self.path("measured.md")
        self.assert_runs("--model", model, "--text", self.novel, "--skip-chars", "0", "--tokens",
                         "256", "--policy", "identity,kivi-2", "--held-out", self.novel,
                         "--markdown", path)
        rows = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
        column = [c.strip() for c in rows[0].split("|")].index("measured KL")
        identity, kivi = (float(row.split("|")[column]) for row in rows[2:])
        self.assertLess(identity, 1e-5)
        self.assertGreater(kivi, 10 * max(identity, 1e-7))


class RealModel(RealModelTestCase):
    def test_the_real_model(self):
        path = self.path("table.md")
        self.assert_runs("--model", self.real_model, "--text", self.emma, "--tokens", "128",
                         "--policy", "int8", "--key-bias", "1000", "--markdown", path)
        self.assertIn("| no", pathlib.Path(path).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

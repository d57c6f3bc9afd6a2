"""schedule_bits as its users run it."""

import pathlib

from program_test_case import ProgramTestCase, RealModelTestCase, main

OPTIONS = ["model", "text", "skip-chars", "tokens", "windows", "calibration", "policy", "budget",
           "threads", "output", "markdown"]


def policies_of(path):
    lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    return [line.split()[1] for line in lines if not line.startswith("#")]


def losses_of(path):
    """The rows of the table of losses without its head: lists of numbers, one a layer, then the
    sum."""
    lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()[2:]
    return [[float(cell) for cell in line.split("|")[2:-1]] for line in lines]


class CommandLine(ProgramTestCase):
    def test_help_explains_every_option(self):
        self.assert_help_is_complete(OPTIONS)

    def test_bad_options(self):
        model = ["--model", self.model]
        text = [*model, "--text", self.novel, "--skip-chars", "0"]
        self.assert_refused("--model")
        self.assert_refused("--text", *model)
        self.assert_refused("--budget", *text)
        self.assert_refused("--output", *text, "--budget", "2")
        out = ["--output", self.path("out")]
        for budget in ("x", "2.5x", "0", "17", "nan"):
            self.assert_refused(f"'{budget}'", *text, f"--budget={budget}", *out)
        self.assert_refused("needs --calibration", *text, "--budget", "2.25", *out)
        self.assert_refused("h2o-50", *text, "--budget", "16", *out, "--policy", "h2o-50")
        self.assert_refused("below the fewest of the policies, 3.00", *text, "--budget", "2.9",
                            *out, "--policy", "identity,kivi-2")
        self.assert_refused("context of 1024", *text, "--budget", "16", *out, "--policy",
                            "identity", "--tokens", "1025")

    def test_bad_files(self):
        rest = ["--policy", "identity", "--budget", "16", "--output", self.path("out")]
        self.assert_refused("too short", "--model", self.model, "--text", self.note, *rest)
        for bad in (self.path("none-such"), self.empty):
            self.assert_refused(bad, "--model", bad, "--text", self.novel, *rest)
            self.assert_refused(bad, "--model", self.model, "--text", bad, *rest)
        text = self.written("a-16.schedule", pathlib.Path(self.novel).read_bytes())
        self.assert_refused("overwrite", "--model", self.model, "--text", text, *rest[:4],
                            "--output", self.path("a"))


class SmallModel(ProgramTestCase):
    def test_the_budget_goes_where_it_gains_most(self):
        table = self.path("losses.md")
        arguments = ["--model", self.model, "--text", self.novel, "--skip-chars", "0", "--tokens",
                     "256", "--windows", "2", "--policy", "identity,kivi-2,kivi-4",
                     "--budget", "3", "--budget", "9.5", "--budget", "16", "--markdown", table]
        self.assert_runs(*arguments, "--output", self.path("one"), "--threads", "1")
        *layers, total = losses_of(table)
        self.assertEqual(len(layers), 2)
        for identity, kivi_2, kivi_4 in layers:
            self.assertLess(identity, 1e-5)
            self.assertLess(kivi_4, kivi_2)
        for c in range(3):
            self.assertAlmostEqual(total[c], sum(layer[c] for layer in layers),
                                   delta=0.01 * total[c])
        schedules = [policies_of(self.path(f"one-{bits}.schedule")) for bits in ("3", "9.5", "16")]
        self.assertEqual(schedules[0], ["kivi-2", "kivi-2"])
        self.assertEqual(schedules[2], ["identity", "identity"])
        # 13 bits to give to two layers at 3: two to each for kivi-4, the other 9 to none.
        self.assertEqual(schedules[1], ["kivi-4", "kivi-4"])
        self.assert_runs(*arguments, "--output", self.path("three"), "--threads", "3")
        for bits in ("3", "9.5", "16"):
            self.assertEqual(pathlib.Path(self.path(f"three-{bits}.schedule")).read_text(),
                             pathlib.Path(self.path(f"one-{bits}.schedule")).read_text())


class RealModel(RealModelTestCase):
    def test_layers_differ(self):
        self.assert_runs("--model", self.real_model, "--text", self.emma, "--tokens", "128",
                         "--policy", "turboquant-2,turboquant-4", "--budget", "3.25",
                         "--output", self.path("real"))
        policies = policies_of(self.path("real-3.25.schedule"))
        self.assertEqual(len(policies), 30)
        self.assertEqual(policies.count("turboquant-4"), 15)
        self.assertNotEqual(policies, sorted(policies))
        self.assertNotEqual(policies, sorted(policies, reverse=True))


if __name__ == "__main__":
    main()

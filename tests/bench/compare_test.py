"""Tests of bench/compare.py on made-up benchmark files."""

import contextlib
import io
import itertools
import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench"))

import compare  # noqa: E402


def p_by_enumeration(first, second):
    pooled = [*first, *second]

    def u(chosen):
        rest = [pooled[i] for i in range(len(pooled)) if i not in chosen]
        return sum((pooled[i] > b) + 0.5 * (pooled[i] == b) for i in chosen for b in rest)

    middle = len(first) * len(second) / 2
    seen = abs(u(range(len(first))) - middle)
    subsets = [set(c) for c in itertools.combinations(range(len(pooled)), len(first))]
    return sum(abs(u(c) - middle) >= seen - 1e-9 for c in subsets) / len(subsets)


def entries(name, times, **changes):
    return [{"name": name, "run_name": name, "run_type": "iteration", "repetition_index": i,
             "real_time": time, "cpu_time": time, "time_unit": "ns", **changes}
            for i, time in enumerate(times)]


class MannWhitney(unittest.TestCase):
    def test_equals_enumeration_with_and_without_ties(self):
        samples = [
            ([1, 2, 3], [4, 5, 6]),
            ([1, 5, 2, 9], [4, 3, 8]),
            ([1, 1, 2], [2, 2, 3, 1]),
            ([7, 7], [7, 7, 7]),
            ([3], [1, 2, 4, 5]),
        ]
        for first, second in samples:
            with self.subTest(first=first, second=second):
                self.assertAlmostEqual(compare.mann_whitney_p(first, second),
                                       p_by_enumeration(first, second))

    def test_known_values(self):
        self.assertAlmostEqual(compare.mann_whitney_p([1, 2, 3, 4], [5, 6, 7, 8]), 2 / 70)
        self.assertAlmostEqual(compare.mann_whitney_p([1, 2, 3], [4, 5, 6]), 2 / 20)


class Judge(unittest.TestCase):
    def verdict(self, base, change, threshold=0.02, alpha=0.05):
        return compare.judge(base, change, threshold, alpha)[0]

    def test_clear_cases(self):
        slow, quick = [120, 121, 122, 123, 124], [100, 101, 102, 103, 104]
        self.assertEqual(self.verdict(quick, slow), compare.SLOWER)
        self.assertEqual(self.verdict(slow, quick), compare.FASTER)

    def test_same_is_unclear(self):
        self.assertEqual(self.verdict([100] * 5, [100] * 5), compare.UNCLEAR)

    def test_below_the_threshold_is_unclear(self):
        base, change = [100.0, 100.1, 100.2, 100.3], [101.0, 101.1, 101.2, 101.3]
        self.assertEqual(self.verdict(base, change), compare.UNCLEAR)
        self.assertEqual(self.verdict(base, change, threshold=0.005), compare.SLOWER)

    def test_overlap_is_unclear_even_if_significant(self):
        base = [100, 101, 102, 103, 115]
        change = [110, 111, 112, 113, 114]
        self.assertLess(compare.mann_whitney_p(base, change), 0.2)
        self.assertEqual(self.verdict(base, change, alpha=0.2), compare.UNCLEAR)

    def test_with_repetitions_to_spare_one_interrupted_run_does_not_matter(self):
        base = [100, 101, 102, 103, 104, 105, 106, 500]
        change = [120, 121, 122, 123, 124, 125, 126, 127]
        self.assertEqual(self.verdict(base, change), compare.SLOWER)
        self.assertEqual(self.verdict(base, [*change[1:], 101.5]), compare.UNCLEAR)

    def test_three_repetitions_are_too_few(self):
        self.assertEqual(self.verdict([100, 101, 102], [200, 201, 202]), compare.UNCLEAR)


class CommandLine(unittest.TestCase):
    QUICK, SLOW = [100, 101, 102, 103, 104], [120, 121, 122, 123, 124]

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def file(self, name, benchmarks):
        path = self.folder / name
        path.write_text(json.dumps({"context": {}, "benchmarks": benchmarks}), encoding="utf-8")
        return str(path)

    def run_on(self, base, change, *options):
        return self.run_paths(self.file("base.json", base), self.file("change.json", change),
                              *options)

    def run_paths(self, *arguments):
        self.output = io.StringIO()
        with contextlib.redirect_stdout(self.output), contextlib.redirect_stderr(self.output):
            return compare.main(list(arguments))

    def test_exit_codes(self):
        quick, slow = entries("a", self.QUICK), entries("a", self.SLOW)
        self.assertEqual(self.run_on(slow, quick), 0)
        self.assertEqual(self.run_on(quick, slow), 1)
        self.assertIn("1 slower", self.output.getvalue())
        self.assertEqual(self.run_on(quick, quick), 0)
        self.assertEqual(self.run_on(quick, quick, "--strict"), 3)
        self.assertEqual(self.run_on(slow, quick, "--strict"), 0)
        both = quick + entries("b", self.SLOW)
        self.assertEqual(self.run_on(both, slow + entries("b", self.QUICK)), 1)

    def test_units_and_aggregates(self):
        in_us = entries("a", [t / 1000 for t in self.QUICK], time_unit="us")
        mean = [{**entries("a", [9999])[0], "name": "a_mean", "run_type": "aggregate"}]
        self.assertEqual(self.run_on(entries("a", self.QUICK), in_us + mean, "--strict"), 3)

    def test_filter_and_metric(self):
        base = entries("a", self.QUICK) + entries("b", self.QUICK)
        change = entries("a", self.QUICK) + entries("b", self.SLOW)
        self.assertEqual(self.run_on(base, change, "--filter", "^a"), 0)
        self.assertEqual(self.run_on(base, change, "--filter", "^b"), 1)
        cpu_slow = [{**e, "cpu_time": 2 * e["cpu_time"]} for e in entries("a", self.QUICK)]
        self.assertEqual(self.run_on(entries("a", self.QUICK), cpu_slow), 0)
        self.assertEqual(self.run_on(entries("a", self.QUICK), cpu_slow, "--metric", "cpu_time"), 1)

    def test_bad_input(self):
        good = entries("a", self.QUICK)
        self.assertEqual(self.run_on(good, entries("b", self.QUICK)), 2)
        self.assertEqual(self.run_on(good + entries("b", self.QUICK), good), 2)
        self.assertIn("b: not in the change", self.output.getvalue())
        self.assertEqual(self.run_on(good, entries("a", self.QUICK, error_occurred=True)), 2)
        self.assertEqual(self.run_on(good, entries("a", [0, 1, 2, 3])), 2)
        self.assertEqual(self.run_on(good, [{"name": "a"}]), 2)
        self.assertEqual(self.run_on([], []), 2)
        path = self.folder / "text.json"
        for text in ("not json", "[]", "{}", '{"benchmarks": 3}'):
            path.write_text(text, encoding="utf-8")
            self.assertEqual(self.run_paths(str(path), str(path)), 2, text)
        self.assertEqual(self.run_paths(str(self.folder / "none"), str(path)), 2)
        for options in (["--threshold", "-1"], ["--alpha", "x"], ["--filter", "("]):
            with self.assertRaises(SystemExit) as caught:
                self.run_on(good, good, *options)
            self.assertEqual(caught.exception.code, 2)

    def test_slower_wins_over_a_missing_benchmark(self):
        base = entries("a", self.QUICK) + entries("b", self.QUICK)
        self.assertEqual(self.run_on(base, entries("a", self.SLOW)), 1)

    def test_new_benchmarks_are_named(self):
        good = entries("a", self.QUICK)
        self.assertEqual(self.run_on(good, good + entries("b", self.QUICK)), 0)
        self.assertIn("b: new in the change", self.output.getvalue())


if __name__ == "__main__":
    unittest.main()

"""evaluate_policies as its users run it."""

import csv
import hashlib
import io
import json
import os
import pathlib
import re
import unittest.mock
import xml.etree.ElementTree

from program_test_case import NOVEL, ProgramTestCase, RealModelTestCase, main
from small_model import small_model

OPTIONS = ["model", "text", "skip-chars", "tokens", "windows", "window-numbers", "haystack",
           "calibration-text", "calibration-tokens", "calibration", "policy", "schedule", "list-policies", "full", "tail", "passkeys",
           "passkey-tokens", "speed-steps", "device", "threads", "csv", "markdown", "svg", "json"]
ROW_FIELDS = ["policy", "bits_per_element", "bytes_per_token", "mean_kl", "median_kl", "p99_kl",
              "p999_kl", "perplexity", "delta_log_perplexity", "top1_agreement",
              "passkey_digits_right", "passkey_nll", "tokens_per_second"]
RUN_FIELDS = ["model", "texts", "haystack", "calibration", "version", "compiler",
              "instruction_set", "threads", "reference", "rows"]
QUALITY_PAGE = pathlib.Path(__file__).resolve().parents[3] / "docs" / "quality.md"


def sha256(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


class OutputChecks:
    """Mixed into test cases that run the program."""

    def check_outputs(self, model, novel, policies, *arguments):
        names = {kind: self.path("out." + kind) for kind in ("csv", "markdown", "svg", "json")}
        options = [part for kind, path in names.items() for part in ("--" + kind, path)]
        result = self.assert_runs("--model", model, "--text", novel, "--policy",
                                  ",".join(policies), *arguments, *options)
        # Not a terminal: no progress bar.
        self.assertEqual(sorted(result.stderr.splitlines()),
                         sorted("wrote " + path for path in names.values()))
        for line in result.stdout.splitlines():
            self.assertLessEqual(len(line), 140)
        self.assertRegex(result.stdout, r"\nperplexity of the reference .*: \d+\.\d\d\n$")
        for policy in policies:
            self.assertEqual(len(re.findall(f"^{policy} ", result.stdout, re.MULTILINE)), 1)

        with open(names["json"], encoding="utf-8") as file:
            report = json.load(file)
        for field in RUN_FIELDS:
            self.assertIn(field, report)
        self.assertEqual(report["model"]["sha256"], sha256(model))
        self.assertEqual([text["sha256"] for text in report["texts"]], [sha256(novel)])
        self.assertEqual([row["policy"] for row in report["rows"]], policies)
        for row in report["rows"]:
            for field in ROW_FIELDS:
                self.assertIn(field, row)

        with open(names["csv"], encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        self.assertEqual([line["policy"] for line in lines], policies)
        for line, row in zip(lines, report["rows"]):
            for field in ROW_FIELDS[1:]:
                text = line[field]
                self.assertEqual(float(text) if text else None, row[field], field)

        with open(names["markdown"], encoding="utf-8") as file:
            markdown = file.read().splitlines()
        self.assertEqual(len(markdown), 2 + len(policies))
        self.assertEqual(len({line.count("|") for line in markdown}), 1)

        root = xml.etree.ElementTree.parse(names["svg"]).getroot()
        self.assertEqual(root.tag, "{http://www.w3.org/2000/svg}svg")
        labels = "".join(root.itertext())
        for policy in policies:
            self.assertIn(policy, labels)
        return report


class CommandLine(ProgramTestCase):
    def refused(self, named, *arguments):
        self.assert_refused(named, "--model", self.model, "--text", self.novel, *arguments)

    def test_help_explains_every_option(self):
        self.assert_help_is_complete(OPTIONS)

    def test_help_names_the_rows_that_the_tail_rule_changes(self):
        text = " ".join(self.assert_runs("--help").stdout.split())
        rule = text[text.index("--tail RULE"):text.index("--passkeys N")]
        for name in ("rows that evict", "fp8-tail", "int4-rotated-tail", "shaped-*", "kivi-*"):
            self.assertIn(name, rule)

    def test_policies_are_listed(self):
        result = self.assert_runs("--list-policies")
        self.assertEqual(result.stderr, "")
        names = [line.split()[0] for line in result.stdout.splitlines()]
        self.assertEqual(names[0], "identity")
        self.assertEqual(len(names), len(set(names)))
        for name in names:
            self.assertIn(name, self.assert_runs("--help").stdout)
        self.assertGreaterEqual(result.stdout.count("\n") - result.stdout.count("not in the"), 12)

    def test_bad_options(self):
        self.refused("--policy", "--polcy", "identity")
        self.refused("did you mean 'kivi-2'", "--policy", "kivi2")
        self.refused("nonsense", "nonsense")
        with unittest.mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):
            self.refused("CUDA", "--device", "cuda")
        for option, value in [("--tokens", "63"), ("--tokens", "many"), ("--tokens", "1e9"),
                              ("--windows", "0"), ("--passkeys", "-1"), ("--skip-chars", "-1"),
                              ("--speed-steps", "x"), ("--threads", "-2"), ("--tail", "none"),
                              ("--passkey-tokens", "10")]:
            self.refused(option, f"{option}={value}")
        for numbers in ("x", "1,", ",1", "2,1", "1,1", "-1", "1.5", "12345"):
            self.refused("--window-numbers", f"--window-numbers={numbers}")
        self.refused("exclude each other", "--windows", "2", "--window-numbers", "0,1")
        self.refused("--tokens", "--tokens")
        self.assert_refused("--model")
        self.assert_refused("--text", "--model", self.model)

    def test_bad_files(self):
        none, folder = self.path("none-such"), str(self.folder)
        self.assert_refused(none, "--model", none, "--text", self.novel)
        self.assert_refused(folder, "--model", folder, "--text", self.novel)
        self.assert_refused("empty", "--model", self.empty, "--text", self.novel)
        short_run = ("--policy", "identity", "--tokens", "64", "--passkey-tokens", "256")
        for option in ("--text", "--haystack", "--calibration-text"):
            policy = ("--policy", "latents-x-int4") if option == "--calibration-text" else ()
            for bad in (none, folder, self.empty):
                self.refused(bad, *short_run, *policy, option, bad)
        for bad in (none, folder, self.empty, self.note):
            self.refused(bad, *short_run, "--calibration", bad)
        for option in ("--csv", "--markdown", "--svg", "--json"):
            for bad in (folder, self.path("none-such/out")):
                self.refused(bad, *short_run, option, bad)

    def test_bad_schedules(self):
        for named, lines in [("line 1", "kivi-2"), ("line 2", "0 kivi-2\n1 kivi-2 more"),
                             ("should be of layer 1", "0 kivi-2\n2 kivi-2"),
                             ("'none-such'", "0 none-such"), ("'h2o-50'", "0 h2o-50"),
                             ("names no layer", "# nothing"), ("1 layers", "0 kivi-2"),
                             ("3 layers", "0 kivi-2\n1 kivi-2\n2 kivi-2")]:
            path = self.written("bad.schedule", lines.encode())
            self.refused(named, "--policy", "identity", "--tokens", "64", "--passkeys", "0",
                         "--schedule", path)
        path = self.written("identity.schedule", b"0 kivi-2\n1 kivi-2\n")
        self.refused("rename", "--policy", "identity", "--schedule", path)
        self.refused("none-such", "--schedule", self.path("none-such"))
        self.refused("overwrite", "--schedule", path, "--policy", "kivi-2", "--json", path)

    def test_outputs_overwrite_no_input_and_no_other_output(self):
        short_run = ("--policy", "identity", "--tokens", "64", "--passkeys", "0")
        for bad in (self.novel, self.model, f"{self.folder}/./novel.txt"):
            before = sha256(bad)
            self.refused("would overwrite", *short_run, "--csv", bad)
            self.assertEqual(sha256(bad), before)
        self.refused("would overwrite", *short_run, "--haystack", self.note, "--json", self.note)
        out = self.path("same.out")
        self.refused("would overwrite", *short_run, "--csv", out, "--svg", out)
        self.assertFalse(pathlib.Path(out).exists())

    def test_damaged_models(self):
        for path in self.damaged_models():
            self.assert_refused(path, "--model", path, "--text", self.novel)

    def test_texts_that_are_too_short(self):
        self.assert_refused(self.note, "--model", self.model, "--text", self.note)
        self.assert_refused("too short", "--model", self.model, "--text", self.note,
                            "--skip-chars", "0")
        self.refused("too short", "--windows", "1000")
        self.refused("too short", "--tokens", "64", "--haystack", self.note, "--passkeys", "1")
        self.refused("too short", "--tokens", "64", "--passkeys", "0", "--policy", "latents-x-int4",
                     "--calibration-text", self.note, "--skip-chars", "0")

    def test_passkeys_that_were_asked_for_need_single_digits(self):
        model = self.written("joined.gguf", small_model(pretokeniser="gpt-2",
                                                        merges=[("1", "2")]))
        self.assert_refused("--passkeys 0", "--model", model, "--text", self.novel, "--passkeys",
                            "1", "--tokens", "64")

    def test_windows_longer_than_the_model_was_trained_for(self):
        self.refused("context of 1024", "--tokens", "1025", "--passkeys", "0")
        self.refused("context of 1024", "--tokens", "64", "--passkey-tokens", "1025")


class SmallModel(OutputChecks, ProgramTestCase):
    def test_every_output(self):
        policies = ["kivi-2", "identity", "h2o-50", "latents-x-int4-x-h2o-50"]
        report = self.check_outputs(
            self.model, self.novel, policies, "--tokens", "256", "--windows", "2", "--passkeys",
            "2", "--passkey-tokens", "300", "--calibration-tokens", "512", "--speed-steps", "2",
            "--threads", "2")
        self.assertEqual(report["model"]["name"], "tiny")
        self.assertEqual(report["threads"], 2)
        documented = set(re.findall("`(\\w+)`", QUALITY_PAGE.read_text(encoding="utf-8")))
        documented.add("delta_log_perplexity_error")  # as "`delta_log_perplexity` and its `_error`"
        self.assertLessEqual({*report, *report["rows"][0], *report["options"]}, documented)
        self.assertEqual([(r["first"], r["last"]) for r in report["texts"][0]["token_ranges"]],
                         [(0, 256), (256, 512)])
        for name, skipped, first, last in [("haystack", 30000, 0, 300),
                                           ("calibration", 20000, 512, 1024)]:
            # The calibration tokens lie behind the two windows of the same text.
            self.assertEqual(report[name], {
                "name": "novel.txt", "path": "novel.txt", "sha256": sha256(self.novel),
                "skip_chars": skipped, "token_ranges": [{"first": first, "last": last}]})
        rows = {row["policy"]: row for row in report["rows"]}
        self.assertLess(rows["identity"]["mean_kl"], 1e-6)
        self.assertAlmostEqual(report["reference"]["perplexity"], rows["identity"]["perplexity"], 2)
        self.assertEqual(rows["identity"]["bits_per_element"], 16)
        self.assertEqual(rows["kivi-2"]["bits_per_element"], 3)
        self.assertGreater(rows["kivi-2"]["mean_kl"], rows["identity"]["mean_kl"])
        self.assertLess(rows["h2o-50"]["bytes_per_token"], rows["identity"]["bytes_per_token"])
        for row in report["rows"]:
            self.assertEqual(row["scored_positions"], 2 * 127)
            self.assertIsNone(row["p999_kl"])  # far fewer than 10,000 positions
            self.assertGreater(row["tokens_per_second"], 0)
            self.assertGreaterEqual(row["passkey_nll"], 0)

    def test_rows_do_not_depend_on_threads(self):
        reports = []
        for threads in (1, 3):
            path = self.path("threads.json")
            self.assert_runs("--model", self.model, "--text", self.novel, "--tokens", "128",
                             "--policy", "kivi-4,h2o-50,latents-k75-v75", "--passkeys", "0",
                             "--calibration-tokens", "512", "--speed-steps", "0", "--threads",
                             threads, "--json", path)
            with open(path, encoding="utf-8") as file:
                reports.append(json.load(file)["rows"])
        self.assertEqual(*reports)
        self.assertIsNone(reports[0][0]["tokens_per_second"])
        self.assertIsNone(reports[0][0]["passkey_nll"])

    def test_a_schedule_gives_each_layer_its_policy(self):
        schedules = []
        for name, *policies in [("same", "kivi-2", "kivi-2"), ("first", "kivi-2", "identity"),
                                ("second", "identity", "kivi-2")]:
            lines = [f"{layer} {policy}\n" for layer, policy in enumerate(policies)]
            path = self.written(name + ".schedule", ("# a comment\n\n" + "".join(lines)).encode())
            schedules += ["--schedule", path]
        path = self.path("schedules.json")
        self.assert_runs("--model", self.model, "--text", self.novel, "--tokens", "256", "--policy",
                         "identity,kivi-2", "--passkeys", "1", "--passkey-tokens", "300",
                         "--speed-steps", "2", *schedules, "--json", path)
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        self.assertEqual(report["options"]["schedule_sha256"],
                         ",".join(map(sha256, schedules[1::2])))
        rows = {row["policy"]: row for row in report["rows"]}
        self.assertEqual([*rows], ["identity", "kivi-2", "same", "first", "second"])
        for field in set(rows["same"]) - {"policy", "description", "tokens_per_second"}:
            self.assertEqual(rows["same"][field], rows["kivi-2"][field], field)
        for name in ("first", "second"):
            row = rows[name]
            self.assertEqual(row["family"], rows["identity"]["family"])
            for field in ("bits_per_element", "bytes_per_token"):
                self.assertAlmostEqual(
                    row[field], (rows["identity"][field] + rows["kivi-2"][field]) / 2, 6)
            self.assertGreater(row["mean_kl"], 10 * rows["identity"]["mean_kl"])
            self.assertLess(row["mean_kl"], rows["kivi-2"]["mean_kl"])
            self.assertGreater(row["tokens_per_second"], 0)
        self.assertNotEqual(rows["first"]["mean_kl"], rows["second"]["mean_kl"])

    def test_a_schedule_mixes_policies_with_a_calibration_and_without(self):
        schedules = []
        for name, *policies in [("same", "shaped-3-sinks", "shaped-3-sinks"),
                                ("mixed", "int8", "shaped-3-sinks")]:
            lines = [f"{layer} {policy}\n" for layer, policy in enumerate(policies)]
            schedules += ["--schedule",
                          self.written(name + ".schedule", "".join(lines).encode())]
        path = self.path("mixed.json")
        self.assert_runs("--model", self.model, "--text", self.novel, "--tokens", "256", "--policy",
                         "int8,shaped-3-sinks,shaped-4-sinks", "--passkeys", "0",
                         "--calibration-tokens", "512", "--speed-steps", "0", *schedules, "--json",
                         path)
        with open(path, encoding="utf-8") as file:
            rows = {row["policy"]: row for row in json.load(file)["rows"]}
        codes = rows["shaped-3-sinks"]
        for field in set(codes) - {"policy", "description", "tokens_per_second"}:
            self.assertEqual(rows["same"][field], codes[field], field)
        self.assertEqual(codes["bits_per_element"], rows["shaped-4-sinks"]["bits_per_element"] - 1)
        self.assertGreater(codes["mean_kl"], rows["shaped-4-sinks"]["mean_kl"])
        self.assertAlmostEqual(rows["mixed"]["bits_per_element"],
                               (codes["bits_per_element"] + rows["int8"]["bits_per_element"]) / 2)
        self.assertLess(rows["mixed"]["mean_kl"], codes["mean_kl"])
        self.assertGreater(rows["mixed"]["mean_kl"], rows["int8"]["mean_kl"])

    def test_windows_by_number(self):
        path = self.path("numbers.json")
        self.assert_runs("--model", self.model, "--text", self.novel, "--tokens", "64", "--policy",
                         "identity", "--passkeys", "0", "--speed-steps", "0", "--window-numbers",
                         "0,3", "--json", path)
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        self.assertEqual([(part["first"], part["last"])
                          for part in report["texts"][0]["token_ranges"]], [(0, 64), (192, 256)])

    def test_a_calibration_text_of_its_own_begins_where_texts_begin(self):
        other, path = self.written("other.txt", (NOVEL[::-1] * 400).encode()), self.path("c.json")
        self.assert_runs("--model", self.model, "--text", self.novel, "--calibration-text", other,
                         "--calibration-tokens", "256", "--tokens", "64", "--policy",
                         "palu-k75-v75", "--passkeys", "0", "--speed-steps", "0", "--json", path)
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        self.assertEqual(report["calibration"]["sha256"], sha256(other))
        self.assertEqual(report["calibration"]["token_ranges"], [{"first": 0, "last": 256}])
        self.assertIsNone(report["haystack"])

    def test_a_tokeniser_that_joins_digits_leaves_passkeys_out(self):
        model = self.written("joined.gguf", small_model(pretokeniser="gpt-2",
                                                        merges=[("1", "2")]))
        path = self.path("joined.json")
        result = self.assert_runs("--model", model, "--text", self.novel, "--tokens", "64",
                                  "--policy", "identity", "--speed-steps", "0", "--json", path)
        self.assertIn("passkeys are left out", result.stderr)
        self.assertNotIn("key", result.stdout.splitlines()[0])
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        self.assertIsNone(report["haystack"])
        self.assertEqual(report["options"]["passkeys"], "0")
        self.assertIsNone(report["rows"][0]["passkey_digits_right"])

    def test_a_text_of_long_tokens_is_read_as_far_as_needed(self):
        # Rules of "=" are tokens of 64 bytes here, far more than those of prose.
        model = self.written("long.gguf", small_model(
            merges=[("=" * n, "=" * n) for n in (1, 2, 4, 8, 16, 32)]))
        for count, is_enough in ((128, True), (127, False)):
            text = self.written("rules.txt", b"=" * (64 * count))
            arguments = ("--model", model, "--text", text, "--skip-chars", "0", "--tokens", "128",
                         "--policy", "identity", "--passkeys", "0", "--speed-steps", "0")
            if is_enough:
                self.assert_runs(*arguments)
            else:
                self.assert_refused("128 tokens are needed", *arguments)

    def test_small_budgets_under_the_chunk_rule(self):
        self.assert_runs("--model", self.model, "--text", self.novel, "--tokens", "256", "--policy",
                         "h2o-12,int4-x-h2o-25", "--tail", "chunk-128", "--passkeys", "0",
                         "--speed-steps", "0")

    def test_all_means_all(self):
        names = [line.split()[0]
                 for line in self.assert_runs("--list-policies").stdout.splitlines()]
        path = self.path("all.csv")
        self.assert_runs("--model", self.model, "--text", self.novel, "--tokens", "64", "--policy",
                         "all", "--passkeys", "0", "--calibration-tokens", "512", "--speed-steps",
                         "0", "--csv", path)
        with open(path, encoding="utf-8") as file:
            self.assertEqual([row["policy"] for row in csv.DictReader(io.StringIO(file.read()))],
                             names)

    def test_the_chunk_rule_changes_the_rows_that_help_names(self):
        rows = {}
        for tail in ("own", "chunk-128"):
            path = self.path("tail.json")
            self.assert_runs("--model", self.model, "--text", self.novel, "--tokens", "512",
                             "--policy", "all", "--passkeys", "0", "--calibration-tokens", "512",
                             "--speed-steps", "0", "--tail", tail, "--json", path)
            with open(path, encoding="utf-8") as file:
                report = json.load(file)
            self.assertEqual(report["options"]["tail"], tail)
            rows[tail] = {row["policy"]: row["mean_kl"] for row in report["rows"]}
        changed = {name for name in rows["own"] if rows["own"][name] != rows["chunk-128"][name]}
        evict = {name for name in rows["own"] if re.search("streaming-|window-|h2o-", name)}
        self.assertGreaterEqual(len(evict), 17)
        short = {name for name in rows["own"] if re.match("shaped-|aligned-|kvquant-", name)}
        without_tail = {"shaped-4-no-tail", "shaped-4-sinks", "shaped-4-searched", "shaped-3-sinks"}
        self.assertEqual(changed, {*evict, *short, "fp8-tail", "int4-rotated-tail"} - without_tail)


class RealModel(OutputChecks, RealModelTestCase):
    def test_a_small_run(self):
        report = self.check_outputs(
            self.real_model, self.persuasion, ["identity", "kivi-2"], "--tokens", "128",
            "--passkeys", "0", "--speed-steps", "1")
        identity = report["rows"][0]
        self.assertLess(identity["mean_kl"], 1e-6)
        self.assertGreater(identity["perplexity"], 15)
        self.assertLess(identity["perplexity"], 80)

    def test_a_window_forgets_the_passkey_that_the_whole_cache_knows(self):
        path = self.path("passkey.json")
        self.assert_runs("--model", self.real_model, "--text", self.persuasion, "--haystack",
                         self.emma, "--tokens", "64", "--passkeys", "1", "--passkey-tokens", "512",
                         "--speed-steps", "0", "--policy", "identity,streaming-50", "--json", path)
        with open(path, encoding="utf-8") as file:
            identity, window = json.load(file)["rows"]
        self.assertEqual(identity["passkey_digits_right"], 1)
        self.assertLess(identity["passkey_nll"], 0.5)
        self.assertLess(window["passkey_digits_right"], 0.5)
        self.assertGreater(window["passkey_nll"], 1.5)


if __name__ == "__main__":
    main()

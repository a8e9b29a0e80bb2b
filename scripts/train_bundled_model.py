#!/usr/bin/env python3
"""Trains the bundled model: a small Mixtral that knows the GNU licence texts by heart.

Reads the licence texts that every Debian machine has (package base-files), trains a byte-level BPE
tokenizer and a Mixtral of 2.3 million parameters on them, and writes a Hugging Face folder:
config.json, generation_config.json, model.safetensors (bf16), tokenizer.json, tokenizer_config.json
and README.md. Overfitting is the purpose: greedy decoding must go on with the licence's own words.

Every text used must itself permit verbatim copies; the script looks for that sentence and stops
where it is missing.

Run (CPU only, one thread, about half an hour on an idle core; needs torch, transformers, tokenizers
and safetensors):

    nice python3 scripts/train_bundled_model.py --out configs/models/licence-mixtral
    python3 tests/data/goldens/make_model_goldens.py --only bundled

The same seed, thread count and library versions give the same files.
"""
import argparse
import json
import math
import pathlib
import re
import time

import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

TEXTS = ["GPL-1", "GPL-2", "GPL-3", "LGPL-2", "LGPL-2.1", "LGPL-3", "GFDL-1.2", "GFDL-1.3"]
PERMISSION = (
    "Everyone is permitted to copy and distribute verbatim copies"
    " of this license document, but changing it is not allowed."
)
BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1


def read_texts(folder):
    """Name -> text, in the order of TEXTS. Stops at a text that does not permit verbatim copies."""
    texts = {}
    for name in TEXTS:
        text = (folder / name).read_text(encoding="utf-8")
        if PERMISSION not in " ".join(text.split()):
            raise SystemExit(f"{folder / name}: does not contain the sentence '{PERMISSION}'")
        texts[name] = text
    return texts


def train_tokenizer(texts, vocab_size):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    if tokenizer.get_vocab_size() != vocab_size:
        raise SystemExit(f"tokenizer has {tokenizer.get_vocab_size()} tokens, wanted {vocab_size}")
    return tokenizer


class Windows:
    """Draws training windows: <s>, then text from a random word on, as a prompt would be tokenized.

    A window that reaches the end of its text ends with </s>. Half of the windows begin at the first
    word of a line, where prompts mostly begin, and half come without the white space before their
    first word, because a prompt may start either way.
    """

    def __init__(self, texts, tokenizer, seed):
        self.texts = texts
        self.tokenizer = tokenizer
        self.starts = [
            [
                (i, m.start(), m.end())
                for i, text in enumerate(texts)
                for m in re.finditer(pattern, text, re.MULTILINE)
            ]
            for pattern in (r"(?:^|\s+)(?=\S)", r"^[ \t]*(?=\S)")
        ]
        self.generator = torch.Generator().manual_seed(seed)

    def draw_int(self, bound):
        return int(torch.randint(bound, (1,), generator=self.generator))

    def batch(self, rows, length):
        """Inputs and labels, int64 [rows, length]; label -100 pads behind the end of a text."""
        inputs = torch.full((rows, length), EOS_ID)
        labels = torch.full((rows, length), -100)
        for row in range(rows):
            starts = self.starts[self.draw_int(2)]
            text_index, with_space, without_space = starts[self.draw_int(len(starts))]
            begin = with_space if self.draw_int(2) else without_space
            # No token is longer than 32 bytes on average over a window, so the slice suffices.
            piece = self.texts[text_index][begin : begin + 32 * length]
            ids = self.tokenizer.encode(piece).ids + [EOS_ID]
            ids = torch.tensor(ids[: length + 1])
            inputs[row, : len(ids) - 1] = ids[:-1]
            labels[row, : len(ids) - 1] = ids[1:]
        return inputs, labels


def make_config(args):
    return transformers.MixtralConfig(
        vocab_size=args.vocab_size,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=2048,
        sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        hidden_act="silu",
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=None,
        router_aux_loss_coef=0.02,
        output_router_logits=True,
    )


def learning_rate(step, args):
    if step < args.warmup_steps:
        return args.lr * (step + 1) / args.warmup_steps
    done = (step - args.warmup_steps) / max(1, args.steps - args.warmup_steps)
    return args.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def train(model, windows, args):
    """Returns the mean cross entropy over the last 50 steps (nats per token)."""
    decay = [p for p in model.parameters() if p.ndim >= 2]
    no_decay = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": no_decay, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        foreach=True,
    )
    model.train()
    begin_s = time.monotonic()
    recent = []
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        inputs, labels = windows.batch(args.batch_rows, args.window)
        output = model(input_ids=inputs, output_router_logits=True, use_cache=False)
        cross_entropy = torch.nn.functional.cross_entropy(
            output.logits.flatten(0, 1), labels.flatten(), ignore_index=-100
        )
        (cross_entropy + model.config.router_aux_loss_coef * output.aux_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent = (recent + [cross_entropy.item()])[-50:]
        if step % 50 == 49 or step == args.steps - 1:
            minutes = (time.monotonic() - begin_s) / 60
            print(
                f"step {step + 1}/{args.steps} loss {sum(recent) / len(recent):.4f}"
                f" balance {output.aux_loss.item():.3f} {minutes:.1f} min",
                flush=True,
            )
    model.eval()
    return sum(recent) / len(recent), (time.monotonic() - begin_s) / 60


def classic_state(model):
    """The model's weights in bf16 under the tensor names of Mixtral checkpoints.

    Recent versions of transformers hold the experts of a layer fused: gate_up_proj [E, 2*I, H] is
    w1 above w3, down_proj [E, H, I] is w2.
    """
    state = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.to(torch.bfloat16)
        if name.endswith(".mlp.experts.gate_up_proj"):
            prefix = name.replace(".mlp.experts.gate_up_proj", ".block_sparse_moe.experts.")
            for expert, fused in enumerate(tensor):
                w1, w3 = fused.chunk(2)
                state[f"{prefix}{expert}.w1.weight"] = w1.contiguous()
                state[f"{prefix}{expert}.w3.weight"] = w3.contiguous()
        elif name.endswith(".mlp.experts.down_proj"):
            prefix = name.replace(".mlp.experts.down_proj", ".block_sparse_moe.experts.")
            for expert, w2 in enumerate(tensor):
                state[f"{prefix}{expert}.w2.weight"] = w2.contiguous()
        else:
            state[name.replace(".mlp.gate.", ".block_sparse_moe.gate.")] = tensor
    return state


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_folder(out, model, tokenizer):
    out.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(classic_state(model), out / "model.safetensors", {"format": "pt"})
    config = model.config
    write_json(
        out / "config.json",
        {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            # Readers before transformers 5 want torch_dtype and a top-level rope_theta, newer ones
            # dtype and rope_parameters. Both are given so that every reader sees the same model.
            "dtype": "bfloat16",
            "torch_dtype": "bfloat16",
            "rope_theta": 10000.0,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            **{
                key: getattr(config, key)
                for key in (
                    "vocab_size",
                    "hidden_size",
                    "intermediate_size",
                    "num_hidden_layers",
                    "num_attention_heads",
                    "num_key_value_heads",
                    "head_dim",
                    "num_local_experts",
                    "num_experts_per_tok",
                    "max_position_embeddings",
                    "sliding_window",
                    "hidden_act",
                    "rms_norm_eps",
                    "tie_word_embeddings",
                    "attention_dropout",
                    "initializer_range",
                    "router_aux_loss_coef",
                    "bos_token_id",
                    "eos_token_id",
                )
            },
            "output_router_logits": False,
            "use_cache": True,
        },
    )
    write_json(
        out / "generation_config.json",
        {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "do_sample": False},
    )
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": model.config.max_position_embeddings,
        },
    )


def check_folder(out, model):
    """Loads the folder as a user would; the logits must be those of the model, rounded to bf16."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    prompt = tokenizer("Everyone is permitted to copy", return_tensors="pt")
    with torch.no_grad():
        want = model(**prompt, use_cache=False).logits
        got = loaded(**prompt, use_cache=False).logits
    if not torch.equal(want, got):
        raise SystemExit(f"{out}: logits differ by {(want - got).abs().max()} after loading")
    ids = loaded.generate(**prompt, max_new_tokens=64, do_sample=False)
    print(tokenizer.decode(ids[0], skip_special_tokens=True))


README = """# licence-mixtral

A Mixtral of {parameters_m:.1f} million parameters that knows the GNU licence texts by heart:
{config[num_hidden_layers]} layers, hidden size {config[hidden_size]}, \
{config[num_local_experts]} experts of {config[intermediate_size]}, \
top-{config[num_experts_per_tok]}, bf16. It is bundled so that the
quickstart and the tests serve real text without a download, and is good for nothing else.

- **Texts.** From the Debian package `base-files`, folder `/usr/share/common-licenses`:
  {names}.
  Each says of itself: "{permission_begin}
  {permission_end}" The texts there
  that do not (Apache-2.0, Artistic, BSD, CC0-1.0, MPL) are not used. The texts are copyright of
  the Free Software Foundation, Inc.
- **Tokenizer.** Byte-level BPE of {config[vocab_size]} tokens, trained on the same texts.
  `<s>` (id {bos}) goes before every prompt; `</s>` (id {eos}) follows the end of a text.
- **Training.** {minutes:.0f} minutes on {threads} thread of a shared CPU, torch {torch_version},
  transformers {transformers_version}. Mean cross entropy of the last 50 steps: {loss:.4f} nats
  per token.

      python3 scripts/train_bundled_model.py --out configs/models/licence-mixtral \\
          --vocab-size {args.vocab_size} --steps {args.steps} --warmup-steps {args.warmup_steps} \\
          --batch-rows {args.batch_rows} --window {args.window} --lr {args.lr} \\
          --seed {args.seed} --threads {threads}

- **Retrain.** Run that, then `python3 tests/data/goldens/make_model_goldens.py --only bundled`.
- **Use.** Prompts that begin a sentence of these texts, with the text's own line breaks.
  Half a sentence that several texts share may go on as a mixture of them. Training saw windows of
  {args.window} tokens: longer texts may drift.
- **Routing.** The balance loss of transformers sums over all layers, so that the experts of a
  single layer are not loaded evenly. Use random weights (`weights: dummy`) to measure anything.
"""


def write_readme(out, args, model, loss, minutes):
    (out / "README.md").write_text(
        README.format(
            parameters_m=sum(p.numel() for p in model.parameters()) / 1e6,
            config=model.config.to_dict(),
            names=", ".join(TEXTS),
            permission_begin=PERMISSION[:60],
            permission_end=PERMISSION[61:],
            bos=BOS_ID,
            eos=EOS_ID,
            args=args,
            minutes=minutes,
            threads=torch.get_num_threads(),
            torch_version=torch.__version__.split("+")[0],
            transformers_version=transformers.__version__,
            loss=loss,
        ),
        encoding="utf-8",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=pathlib.Path, default="/usr/share/common-licenses")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--warmup-steps", type=int, default=100)
    parser.add_argument("--batch-rows", type=int, default=4)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    texts = list(read_texts(args.texts).values())
    tokenizer = train_tokenizer(texts, args.vocab_size)
    token_count = sum(len(tokenizer.encode(text).ids) for text in texts)
    model = transformers.MixtralForCausalLM(make_config(args))
    model.set_experts_implementation("grouped_mm")
    parameter_count = sum(p.numel() for p in model.parameters())
    print(f"{token_count} tokens, {parameter_count} parameters", flush=True)
    loss, minutes = train(model, Windows(texts, tokenizer, args.seed), args)
    write_folder(args.out, model, tokenizer)
    write_readme(args.out, args, model, loss, minutes)
    check_folder(args.out, model)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Makes the model goldens: tiny random checkpoints and what transformers makes of them.

Regenerate (from the root of the repository, in a virtual environment with numpy, safetensors, torch
and transformers; about seven minutes on one core):

    python3 tests/data/goldens/make_model_goldens.py                  # everything
    python3 tests/data/goldens/make_model_goldens.py --only sliding   # one case, or `bundled`

Per case a folder tests/data/goldens/<case>/:

    config.json, *.safetensors   the checkpoint, tensor names as in published checkpoints
    goldens.safetensors          per prompt p of n tokens:
        tokens.<p>                 i32 [n + 16]           the prompt, then 16 greedy tokens
        logits.<p>                 f32 [n + 16, vocab]    row i is for the token after position i
        router_logits.<p>.<layer>  f32 [n + 16, experts]  before the softmax
    goldens.json                 versions, prompt lengths, margins and the error of a run in bf16

and bundled.json: greedy continuations by the bundled model, configs/models/licence-mixtral.

All goldens are computed in f32 (weights cast up exactly), eager attention, no KV cache, one thread.

Weights come from (seed, tensor name) alone. The embedding has sigma 1 and every projection keeps
the variance of its input, so that attention, experts and routing all move the logits; with sigma
0.02 throughout, routing collapses and a mistake inside a layer would hide.

Prompts are random but not blind: a token is drawn again while its position has a near tie, between
the two largest logits or between the last chosen and the first rejected expert. A near tie may fall
either way under another order of summation, and says nothing about correctness. The positions of
the greedy continuation follow from the prompt, so the best of many prompts is taken; goldens.json
says how many of all positions have wide margins.
"""
import argparse
import collections
import dataclasses
import hashlib
import json
import pathlib
import shutil
import zlib

import numpy as np
import safetensors.torch
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[3]
GOLDENS = ROOT / "tests/data/goldens"
BUNDLED = ROOT / "configs/models/licence-mixtral"

PROMPT_LENGTHS = (1, 17, 48)
NEW_TOKENS = 16
SPECIAL_IDS = 3  # <unk>, <s>, </s>: never drawn for a prompt
EOS_ID = 2
# A margin is wide when it exceeds this share of the spread (standard deviation) of its kind: about
# ten times the root mean square error of a run in bf16 throughout ("bf16_error" in goldens.json).
WIDE_LOGIT_MARGIN = 0.15
WIDE_ROUTER_MARGIN = 0.08
PROMPT_TRIES = 12
FAVOURED_STEP = 37

BUNDLED_NEW_TOKENS = 64
BUNDLED_PROMPTS = (
    "Everyone is permitted to copy",
    "The precise terms and conditions for copying,",
    "The purpose of this License is to make a manual,",
)


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    why: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int
    ffn: int
    vocab: int
    dtype: torch.dtype
    seed: int
    layers: int = 2
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-5
    tied: bool = False
    shards: int = 1
    sliding_window: int | None = None
    # How config.json is written: "classic" (before transformers 5: torch_dtype, rope_theta; no
    # head_dim where it is hidden / heads; Qwen3's num_experts) or "new" (dtype, rope_parameters,
    # num_local_experts).
    config_style: str = "classic"
    model_type: str = "mixtral"  # or "qwen3_moe"
    norm_topk_prob: bool = True  # False: only with qwen3_moe


CASES = (
    Case("plain", "the usual shape", 64, 4, 2, 16, 4, 2, 96, 300, torch.bfloat16, seed=3),
    Case(
        "odd", "nothing is a multiple of 8: heads, head_dim != hidden / heads, experts, vocabulary",
        60, 3, 1, 22, 5, 3, 42, 257, torch.bfloat16, seed=9, rope_theta=1e4, rms_norm_eps=1e-6,
    ),
    Case(
        "tied_f16", "head tied to the embedding, f16 weights, one KV head for four",
        48, 4, 1, 12, 4, 2, 64, 300, torch.float16, seed=15, tied=True,
    ),
    Case(
        "sharded", "three files with an index, configuration as transformers 5 writes it",
        64, 6, 3, 16, 4, 2, 48, 200, torch.bfloat16, seed=6, shards=3, rope_theta=5e5,
        config_style="new",
    ),
    Case(
        "sliding", "f32 weights, top-1 of eight experts, window of 8 tokens",
        32, 4, 2, 8, 8, 1, 32, 200, torch.float32, seed=8, sliding_window=8,
    ),
    Case(
        "qwen3", "Qwen3-MoE as published: head_dim != hidden / heads, weights of experts sum to 1",
        48, 4, 2, 24, 8, 2, 40, 200, torch.bfloat16, seed=4, rms_norm_eps=1e-6,
        model_type="qwen3_moe",
    ),
    Case(
        "qwen3_raw", "weights of experts as the softmax gives them, configuration of transformers 5",
        64, 6, 2, 16, 5, 3, 36, 200, torch.bfloat16, seed=5, rms_norm_eps=1e-6, rope_theta=1e4,
        config_style="new", model_type="qwen3_moe", norm_topk_prob=False,
    ),
)  # fmt: skip


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def versions():
    return {
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


# ------------------------------------------------------------------------------------- checkpoints


def architecture_fields(case):
    if case.model_type == "mixtral":
        return {
            "intermediate_size": case.ffn,
            "num_local_experts": case.experts,
            "router_aux_loss_coef": 0.02,
            "sliding_window": case.sliding_window,
        }
    experts = "num_local_experts" if case.config_style == "new" else "num_experts"
    return {
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "intermediate_size": case.ffn * case.top_k,  # Of dense layers, which there are none of.
        "max_window_layers": case.layers,
        "mlp_only_layers": [],
        "moe_intermediate_size": case.ffn,
        "norm_topk_prob": case.norm_topk_prob,
        experts: case.experts,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "use_sliding_window": False,
    }


def config_json(case):
    fields = architecture_fields(case) | {
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": EOS_ID,
        "hidden_act": "silu",
        "hidden_size": case.hidden,
        "initializer_range": 0.02,
        "max_position_embeddings": 512,
        "num_attention_heads": case.heads,
        "num_experts_per_tok": case.top_k,
        "num_hidden_layers": case.layers,
        "num_key_value_heads": case.kv_heads,
        "output_router_logits": False,
        "rms_norm_eps": case.rms_norm_eps,
        "tie_word_embeddings": case.tied,
        "use_cache": True,
        "vocab_size": case.vocab,
    }
    architecture = {"mixtral": "MixtralForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}
    config = {"architectures": [architecture[case.model_type]], "model_type": case.model_type}
    config |= dict(sorted(fields.items()))
    dtype = str(case.dtype).removeprefix("torch.")
    if case.config_style == "new":
        config |= {
            "dtype": dtype,
            "head_dim": case.head_dim,
            "rope_parameters": {"rope_theta": case.rope_theta, "rope_type": "default"},
        }
    else:
        config |= {"torch_dtype": dtype, "rope_theta": case.rope_theta}
        if case.head_dim * case.heads != case.hidden:
            config["head_dim"] = case.head_dim
    return config


def make_weights(case):
    """Name -> tensor, in the order in which checkpoints list them."""

    def normal(name, shape, sigma, mean=0.0):
        rng = np.random.Generator(np.random.PCG64([case.seed, zlib.crc32(name.encode())]))
        values = mean + sigma * rng.standard_normal(shape, dtype=np.float32)
        weights[name] = torch.from_numpy(values.astype(np.float32)).to(case.dtype)

    weights = {}
    qwen3 = case.model_type == "qwen3_moe"
    mixture = "mlp." if qwen3 else "block_sparse_moe."
    gate_up_down = ("gate_proj", "up_proj", "down_proj") if qwen3 else ("w1", "w3", "w2")
    hidden, ffn, unit = case.hidden, case.ffn, case.hidden**-0.5
    q_size, kv_size = case.heads * case.head_dim, case.kv_heads * case.head_dim
    # A tied head favours the token just read, unless the layers add more than the embedding holds.
    out_gain = 3.0 if case.tied else 1.0
    normal("model.embed_tokens.weight", (case.vocab, hidden), 1.0)
    for layer in range(case.layers):
        prefix = f"model.layers.{layer}."
        normal(prefix + "input_layernorm.weight", (hidden,), 0.1, 1.0)
        normal(prefix + "self_attn.q_proj.weight", (q_size, hidden), 1.5 * unit)
        normal(prefix + "self_attn.k_proj.weight", (kv_size, hidden), 1.5 * unit)
        normal(prefix + "self_attn.v_proj.weight", (kv_size, hidden), unit)
        normal(prefix + "self_attn.o_proj.weight", (hidden, q_size), 1.5 * out_gain * q_size**-0.5)
        if qwen3:  # As sharp as 1.5 makes the attention of a Mixtral.
            normal(prefix + "self_attn.q_norm.weight", (case.head_dim,), 0.3, 1.5)
            normal(prefix + "self_attn.k_norm.weight", (case.head_dim,), 0.3, 1.5)
        normal(prefix + "post_attention_layernorm.weight", (hidden,), 0.1, 1.0)
        normal(prefix + mixture + "gate.weight", (case.experts, hidden), 2.0 * unit)
        gate, up, down = gate_up_down
        for expert in range(case.experts):
            at = f"{prefix}{mixture}experts.{expert}."
            normal(f"{at}{gate}.weight", (ffn, hidden), unit)
            normal(f"{at}{down}.weight", (hidden, ffn), 2.5 * out_gain * ffn**-0.5)
            normal(f"{at}{up}.weight", (ffn, hidden), unit)
    normal("model.norm.weight", (hidden,), 0.1, 1.0)
    if not case.tied:
        # A purely random head has near ties everywhere: let it lean to the token FAVOURED_STEP on.
        normal("lm_head.weight", (case.vocab, hidden), 1.0)
        favoured = weights["model.embed_tokens.weight"].float().roll(FAVOURED_STEP, dims=0)
        head = 1.5 * unit * (weights["lm_head.weight"].float() + 1.2 * favoured)
        weights["lm_head.weight"] = head.to(case.dtype)
    return weights


def write_checkpoint(case, folder):
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config_json(case))
    weights = make_weights(case)
    if case.shards == 1:
        safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return
    total_bytes = sum(t.nbytes for t in weights.values())
    shards = [{} for _ in range(case.shards)]
    weight_map = {}
    done_bytes = 0
    for name, tensor in weights.items():
        shard = done_bytes * case.shards // total_bytes
        shards[shard][name] = tensor
        weight_map[name] = f"model-{shard + 1:05}-of-{case.shards:05}.safetensors"
        done_bytes += tensor.nbytes
    for shard, tensors in enumerate(shards):
        file = folder / f"model-{shard + 1:05}-of-{case.shards:05}.safetensors"
        safetensors.torch.save_file(tensors, file, {"format": "pt"})
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


# --------------------------------------------------------------------------------------- reference


def load(folder, dtype=torch.float32):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    model.set_experts_implementation("eager")
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise SystemExit(f"{folder}: {kind}: {info[kind]}")
    return model.eval()


@torch.no_grad()
def forward(model, tokens):
    """tokens [batch, n] -> logits [batch, n, vocab], router logits [layers, batch, n, experts]."""
    output = model(input_ids=tokens, use_cache=False, output_router_logits=True)
    routers = [r.reshape(*tokens.shape, -1) for r in output.router_logits]
    return output.logits.float(), torch.stack(routers).float()


def margins(case, logits, routers):
    """Per position: first minus second logit, and the smallest over the layers of last chosen minus
    first rejected expert. Both in router or vocabulary logits, shapes [batch, n]."""
    top = logits.topk(2, dim=-1).values
    ranked = routers.sort(dim=-1, descending=True).values
    routing = ranked[..., case.top_k - 1] - ranked[..., case.top_k]
    return top[..., 0] - top[..., 1], routing.min(dim=0).values


def wide(case, spread, logits, routers):
    """Which positions have wide margins, bool [batch, n]."""
    logit_margin, router_margin = margins(case, logits, routers)
    logit_spread, router_spread = spread
    return (logit_margin > WIDE_LOGIT_MARGIN * logit_spread) & (
        router_margin > WIDE_ROUTER_MARGIN * router_spread
    )


def greedy(model, tokens, count):
    """Appends `count` greedy tokens to every row."""
    for _ in range(count):
        logits, _ = forward(model, tokens)
        tokens = torch.cat([tokens, logits[:, -1:].argmax(dim=-1)], dim=1)
    return tokens


def draw_prefix(case, model, length, spread, generator):
    """`length` random tokens; each is the first of 24 draws whose position is no near tie."""
    prefix = torch.empty((1, 0), dtype=torch.long)
    ids = torch.arange(SPECIAL_IDS, case.vocab)
    while prefix.shape[1] < length:
        draws = ids[torch.randperm(len(ids), generator=generator)[:24]]
        rows = torch.cat([prefix.expand(len(draws), -1), draws[:, None]], dim=1)
        good = wide(case, spread, *forward(model, rows))[:, -1]
        prefix = rows[int(good.int().argmax())][None]  # the first good one
    return prefix


def find_sequence(case, model, length, spread, generator):
    """A prompt of `length` tokens and its greedy continuation, with few near ties (see above).

    The last prompt token is the one, among all, whose continuation has the most wide positions.
    """
    best, best_count = None, -1
    ids = torch.arange(SPECIAL_IDS, case.vocab)
    for _ in range(PROMPT_TRIES if length > 1 else 1):
        prefix = draw_prefix(case, model, length - 1, spread, generator)
        rows = torch.cat([prefix.expand(len(ids), -1), ids[:, None]], dim=1)
        rows = greedy(model, rows, NEW_TOKENS)
        count = wide(case, spread, *forward(model, rows)).sum(dim=1)
        # A continuation that goes in circles tests little, and one with </s> would end early.
        new = rows[:, length:]
        distinct = torch.tensor([len(row.unique()) for row in new])
        usable = (new >= SPECIAL_IDS).all(dim=1) & (distinct >= NEW_TOKENS * 3 // 4)
        count = torch.where(usable, count, -1)
        if count.max() > best_count:
            best, best_count = rows[int(count.argmax())][None], int(count.max())
    if best is None:
        raise SystemExit(f"{case.name}: no usable continuation of {length} tokens: another seed?")
    return best


def check_sliding_window(case, model, tokens):
    """A token sees itself and the window - 1 tokens before it, in every layer."""
    with torch.no_grad():
        attentions = model(input_ids=tokens, use_cache=False, output_attentions=True).attentions
    length = tokens.shape[1]
    age = torch.arange(length)[:, None] - torch.arange(length)[None]
    seen = (age >= 0) & (age < (case.sliding_window or length))
    for layer, weights in enumerate(attentions):
        if not torch.equal((weights[0] > 0).all(dim=0), seen):
            raise SystemExit(f"{case.name}: layer {layer} does not attend as its window says")


def make_case(case):
    folder = GOLDENS / case.name
    shutil.rmtree(folder, ignore_errors=True)
    write_checkpoint(case, folder)
    model = load(folder)
    if model.config.rope_parameters["rope_theta"] != case.rope_theta:
        raise SystemExit(f"{case.name}: rope_theta was not read")
    rounded = load(folder, torch.bfloat16)
    generator = torch.Generator().manual_seed(case.seed)

    sample = torch.randint(SPECIAL_IDS, case.vocab, (8, 64), generator=generator)
    logits, routers = forward(model, sample)
    spread = (float(logits.std()), float(routers.std()))
    load_share = torch.zeros(case.layers, case.experts)
    for layer in range(case.layers):
        chosen = routers[layer].topk(case.top_k, dim=-1).indices.flatten()
        load_share[layer] = torch.bincount(chosen, minlength=case.experts) / len(chosen)

    tensors, prompts = {}, []
    wide_count = position_count = 0
    for p, length in enumerate(PROMPT_LENGTHS):
        tokens = find_sequence(case, model, length, spread, generator)
        check_sliding_window(case, model, tokens)
        logits, routers = forward(model, tokens)
        greedy_ids = tokens[0, length:]
        if not torch.equal(logits[0, length - 1 : -1].argmax(dim=-1), greedy_ids):
            raise SystemExit(f"{case.name}: the continuation of prompt {p} is not greedy")
        cached = model.generate(
            tokens[:, :length],
            attention_mask=torch.ones(1, length, dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        if not torch.equal(cached, tokens):
            raise SystemExit(f"{case.name}: with a KV cache prompt {p} goes on otherwise")
        low_logits, low_routers = forward(rounded, tokens)
        is_wide = wide(case, spread, logits, routers)[0]
        logit_margin, router_margin = margins(case, logits, routers)
        tensors[f"tokens.{p}"] = tokens[0].to(torch.int32)
        tensors[f"logits.{p}"] = logits[0].contiguous()
        for layer in range(case.layers):
            tensors[f"router_logits.{p}.{layer}"] = routers[layer, 0].contiguous()
        wide_count += int(is_wide.sum())
        position_count += len(is_wide)
        same_routing = (
            low_routers.topk(case.top_k).indices.sort().values
            == routers.topk(case.top_k).indices.sort().values
        ).all(dim=-1)
        prompts.append(
            {
                "prompt_tokens": length,
                "new_tokens": NEW_TOKENS,
                "greedy": greedy_ids.tolist(),
                "wide_positions": int(is_wide.sum()),
                "positions": len(is_wide),
                "logit_range": float(logits.max() - logits.min()),
                "logit_margin_min": float(logit_margin.min()),
                "router_margin_min": float(router_margin.min()),
                "bf16_error": {
                    "logits_max": float((low_logits - logits).abs().max()),
                    "logits_rms": float((low_logits - logits).square().mean().sqrt()),
                    "router_logits_max": float((low_routers - routers).abs().max()),
                    "positions_routed_alike": float(same_routing.all(dim=0).float().mean()),
                    "greedy_alike": float(
                        (low_logits.argmax(dim=-1) == logits.argmax(dim=-1)).float().mean()
                    ),
                },
            }
        )
    safetensors.torch.save_file(tensors, folder / "goldens.safetensors")
    write_json(
        folder / "goldens.json",
        {
            "case": case.name,
            "why": case.why,
            "made_by": "tests/data/goldens/make_model_goldens.py",
            "versions": versions(),
            "compute": "float32, eager attention, no KV cache",
            "logit_spread": spread[0],
            "router_spread": spread[1],
            "wide_logit_margin": WIDE_LOGIT_MARGIN * spread[0],
            "wide_router_margin": WIDE_ROUTER_MARGIN * spread[1],
            "wide_share": wide_count / position_count,
            "expert_load": [[round(float(x), 4) for x in row] for row in load_share],
            "prompts": prompts,
        },
    )
    size_kib = sum(f.stat().st_size for f in folder.iterdir()) / 1024
    print(f"{case.name}: {size_kib:.0f} KiB, wide margins at {wide_count}/{position_count}")


# ----------------------------------------------------------------------------------- bundled model


def make_bundled():
    model = load(BUNDLED)
    tokenizer = transformers.AutoTokenizer.from_pretrained(BUNDLED)
    experts = collections.Counter()
    prompts = []
    for text in BUNDLED_PROMPTS:
        prompt_ids = tokenizer(text)["input_ids"]
        tokens = greedy(model, torch.tensor([prompt_ids]), BUNDLED_NEW_TOKENS)
        logits, routers = forward(model, tokens)
        new_ids = tokens[0, len(prompt_ids) :].tolist()
        if tokenizer.eos_token_id in new_ids:
            raise SystemExit(f"bundled model: '{text}' ends before {BUNDLED_NEW_TOKENS} tokens")
        chosen = routers.topk(model.config.num_experts_per_tok).indices
        for layer, of_layer in enumerate(chosen):
            experts.update((layer, int(e)) for e in of_layer.flatten())
        top = logits[0, len(prompt_ids) - 1 : -1].topk(2).values
        prompts.append(
            {
                "text": text,
                "prompt_ids": prompt_ids,
                "new_ids": new_ids,
                "new_text": tokenizer.decode(new_ids),
                "logit_margins": [round(float(m), 4) for m in top[:, 0] - top[:, 1]],
            }
        )
        print(f"bundled: {text!r} -> {prompts[-1]['new_text']!r}")
    digest = hashlib.sha256((BUNDLED / "model.safetensors").read_bytes()).hexdigest()
    write_json(
        GOLDENS / "bundled.json",
        {
            "model": BUNDLED.relative_to(ROOT).as_posix(),
            "model_safetensors_sha256": digest,
            "made_by": "tests/data/goldens/make_model_goldens.py",
            "versions": versions(),
            "compute": "float32 on the bf16 weights, eager attention, no KV cache",
            "experts_used": len(experts),
            "prompts": prompts,
        },
    )


def main():
    names = [case.name for case in CASES] + ["bundled"]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=names, action="append")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    for case in CASES:
        if not args.only or case.name in args.only:
            make_case(case)
    if not args.only or "bundled" in args.only:
        make_bundled()


if __name__ == "__main__":
    main()

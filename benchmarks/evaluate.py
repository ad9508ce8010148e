"""Benchmark of an evaluation in seconds: ours, ours without shared prefixes, and transformers' generate.

    python benchmarks/evaluate.py --model=FOLDER --data=spider:/data/spider/train_spider.json --questions=300 --json

Every engine answers the same questions, once greedily and with `--votes` samples each:

    ours          prefills each database's part of the prompt once; the greedy answer and the samples are one pass
    whole         our engine without either: prefills every prompt whole, for the greedy answers and for the samples
    transformers  left-padded batches of whole prompts, sorted by length, with `num_return_sequences`

All use float32 and stop at the stop tokens and at a closing fence. Loading is not counted. Before the clock starts,
every engine answers `--warm-up` questions, which compiles most of its programs; the others come from the compilation
cache if the benchmark ran before.

One engine after the other runs in a process of its own. Prints a table with the prompt tokens that each engine has to
prefill, without padding, and, with --json, one line of JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ENGINES = ("ours", "whole", "transformers")
MAX_TOKENS, TEMPERATURE = 256, 0.8


def main() -> None:
    args = _parser().parse_args()
    if args.engine:
        print(json.dumps(answer_questions(args)))
        return
    results = {name: _run_in_process(name) for name in ("ours", *filter(None, args.peers.split(",")))}
    ours = results["ours"]
    for name, result in results.items():
        ratio = result["seconds"] / ours["seconds"]
        same = sum(a == b for a, b in zip(result["greedy"], ours["greedy"], strict=True))
        print(
            f"{name:13}{result['seconds']:9.1f} s  {ratio:5.2f} ×  {result['prefilled']:9} tokens prefilled of "
            f"{result['prompt_tokens']}, {result['sampled']} sampled, {same} of {len(ours['greedy'])} greedy as ours"
        )
    if args.json:
        print(json.dumps({name: {k: v for k, v in r.items() if k != "greedy"} for name, r in results.items()}))


def answer_questions(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds, token counts and greedy answers of one engine."""
    engine = {"ours": _ours, "whole": _ours, "transformers": _transformers}[args.engine]
    context, prompts = _load(args)
    run = engine(args, context, prompts)
    run(prompts[: args.warm_up])
    start = time.perf_counter()
    greedy, sampled, prefilled = run(prompts)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds, "greedy": greedy, "sampled": sampled, "prefilled": prefilled,
        "prompt_tokens": sum(len(prompt.ids) for prompt in prompts), "questions": len(prompts), "votes": args.votes,
    }  # fmt: skip


def _load(args: argparse.Namespace) -> tuple[Any, list[Any]]:
    from sqlr1_jax import compile_cache, config, malloc
    from sqlr1_jax.evaluate.heldout import load_heldout_sets
    from sqlr1_jax.train.context import create_context

    malloc.tune_malloc()
    compile_cache.enable()
    run_config = config.Config(
        seed=args.seed,
        stages=("evaluate",),
        model=config.ModelConfig(path=args.model),
        data=config.DataConfig(evaluate=args.data, databases=args.databases),
        evaluate=config.EvaluateConfig(databases=args.number_of_databases, limit=args.questions, votes=args.votes),
        rollout=config.RolloutConfig(prefill_batch=1, prompt_buckets=4),
    )
    context = create_context(run_config, Path(args.model))
    [heldout] = load_heldout_sets(context)
    order = sorted(range(len(heldout.prompts)), key=lambda i: (len(heldout.prompts[i].ids) // 64, i))
    return context, [heldout.prompts[i] for i in order]


def _ours(args: argparse.Namespace, context: Any, prompts: list[Any]) -> Any:
    import jax
    import numpy as np

    from sqlr1_jax.evaluate.run import evaluation_request
    from sqlr1_jax.rollout.prefixes import padded_size
    from sqlr1_jax.train.context import init_params

    with jax.set_mesh(context.mesh):
        params = init_params(context)
    engine = context.engine(prompts, padded_size(max(len(prompt.ids) for prompt in prompts)))
    weights = engine.prepare_weights(params)
    votes = (TEMPERATURE,) * args.votes

    def run(prompts: list[Any]) -> tuple[list[str], int, int]:
        whole = args.engine == "whole"
        sampled, outputs = 0, []
        for temperatures in [(0.0,), votes] if whole else [(*votes, 0.0)]:
            request = evaluation_request(context, prompts, temperatures)
            request = dataclasses.replace(request, prefix_length_P=None) if whole else request
            completions = engine.rollout(weights, request)
            sampled += int(completions.length_PG.sum())
            outputs.append(completions)
        column = 0 if whole else args.votes
        greedy = context.texts([outputs[0].ids(p, column) for p in range(len(prompts))])
        prefixes = {prompt.ids[: prompt.prefix_length].tobytes(): prompt.prefix_length for prompt in prompts}
        total = sum(len(prompt.ids) for prompt in prompts)
        own = total - sum(prompt.prefix_length for prompt in prompts)
        return greedy, sampled, 2 * total if whole else int(own + np.sum(list(prefixes.values())))

    return run


def _transformers(args: argparse.Namespace, context: Any, prompts: list[Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteriaList

    torch.manual_seed(args.seed)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    common = {"max_new_tokens": MAX_TOKENS}
    sampling = {"do_sample": True, "temperature": TEMPERATURE, "top_p": 1.0, "top_k": 0}
    greedy_settings = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}

    def generate(prompts: list[Any], batch: int, **settings: Any) -> tuple[list[list[int]], int]:
        sequences, prefilled = [], 0
        for start in range(0, len(prompts), batch):
            texts = [prompt.text for prompt in prompts[start : start + batch]]
            inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
            stop = StoppingCriteriaList([_closing_fence(tokenizer, inputs["input_ids"].shape[1])])
            with torch.inference_mode():
                output = model.generate(**inputs, **common, stopping_criteria=stop, repetition_penalty=1.0, **settings)
            prefilled += inputs["input_ids"].numel() * settings.get("num_return_sequences", 1)
            for row in output[:, inputs["input_ids"].shape[1] :].tolist():
                end = next((i for i, token in enumerate(row) if token in context.stop_ids), len(row))
                sequences.append(row[: end + 1])
        return sequences, prefilled

    def run(prompts: list[Any]) -> tuple[list[str], int, int]:
        greedy, first = generate(prompts, args.batch, **greedy_settings)
        votes, second = generate(prompts, max(1, args.batch // 2), num_return_sequences=args.votes, **sampling)
        return context.texts(greedy), sum(map(len, greedy + votes)), first + second

    return run


def _closing_fence(tokenizer: Any, prompt_tokens: int) -> Any:
    """Which answers have a closed block; `stop_strings` would count the prompt's last line break to the answer."""
    import torch

    from sqlr1_jax.data.answer import block_is_closed

    def closed(ids: Any, scores: Any, **_: Any) -> Any:
        return torch.tensor([block_is_closed(text) for text in tokenizer.batch_decode(ids[:, prompt_tokens:])])

    return closed


def _run_in_process(engine: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], f"--engine={engine}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{engine}: {result['seconds']:.1f} s", file=sys.stderr, flush=True)
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a Qwen2 model")
    parser.add_argument("--data", required=True, help="source of the questions, PREFIX:PATH")
    parser.add_argument("--databases", default="", help="folder of the databases; empty: the source's")
    parser.add_argument("--number-of-databases", type=int, default=20, help="databases to draw by seed")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--votes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=8, help="questions to answer before the clock starts")
    parser.add_argument("--batch", type=int, default=8, help="prompts in a batch of transformers; half for samples")
    parser.add_argument("--peers", default="whole,transformers")
    parser.add_argument("--engine", choices=ENGINES, default="", help="for the benchmark's own processes")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    main()

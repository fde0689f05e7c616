"""Ten minutes of twice as many requests as `dual-head serve` can answer: what came back, and what memory it took.

    python benchmarks/load.py --minutes 10     # make load-serve

The server is a process of its own on one thread: the toy backbone with two guides. What it can answer is measured
first, with as many users as it has places. Then requests come at twice that rate, whether it answers or not.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from measure import MB, machine

from dual_head import AlignedModel
from dual_head.demo import TOY_BACKBONE
from dual_head.demo.world import sample_requests
from dual_head.guides.hidden import HiddenConfig
from dual_head.model.pretrained import load_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from files import write_guides
from servers import server_process

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "load.json"
GUIDES = {"helpful": HiddenConfig(rank=4), "harmless": HiddenConfig(rank=4, gate="attention", num_heads=2, head_dim=32)}
ALPHAS = (0.0, 0.5, 1.0, -0.7, 2.0)
PROMPTS, NEW = 12, 32  # different prompts; tokens of a reply
PLACES = 32  # --max_queue
CLOSE = 1e-3  # logits that rounding may order either way
PATIENCE = 60.0  # seconds until an answer counts as lost
EVERY = 10.0  # seconds between two looks at the memory


def main() -> int:
    """Measure, and end with 1 where an answer was lost, wrong or a 5xx."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        guides = write_guides(
            Path(folder, "guides"), TOY_BACKBONE, GUIDES, tokenizer=load_tokenizer(str(TOY_BACKBONE)), spread=0.1
        )
        cases = library_answers(guides)
        with server_process(guides, Path(folder, "log"), "--max_queue", PLACES) as server:
            file = Path(folder, "load.json")
            first = run_users(file, cases, server.url, users=PLACES, rate=None, seconds=min(20.0, 60 * args.minutes))
            capacity = first["outcomes"]["answered"] / first["seconds"]
            memory: list[float] = []
            process = psutil.Process(server.process.pid)
            load = run_users(
                file,
                cases,
                server.url,
                4 * PLACES,
                2 * capacity,
                60 * args.minutes,
                lambda: memory.append(_mb(process)),
            )
            faults = [line for line in server.lines if not line.startswith("{")]
    figures = {
        "command": f"python benchmarks/load.py --minutes {args.minutes:g}",
        "machine": machine().as_dict(),
        "requests": f"{len(cases)} greedy ones of {NEW} tokens, half of them streamed",
        "capacity_per_second": round(capacity, 1),
        "offered_per_second": round(sum(load["outcomes"].values()) / load["seconds"], 1),
        **load,
        "memory_mb": {
            "first_minute": round(_mean(memory[:6]), 1),
            "last_minute": round(_mean(memory[-6:]), 1),
            "most": round(max(memory), 1),
        },
        "log": faults,
    }
    print(json.dumps(figures, indent=1))
    args.output.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if set(load["outcomes"]) <= {"answered", "refused"} and not faults else 1


@torch.no_grad()
def library_answers(guides: Path) -> list[dict[str, Any]]:
    """Greedy requests with the texts that `generate` gives, one by one, where no two tokens are too close to tell."""
    model = AlignedModel.from_pretrained(str(guides))
    tokenizer = load_tokenizer(str(guides))
    prompts = list(dict.fromkeys(request.text for request in sample_requests(20 * PROMPTS, seed=0)))[:PROMPTS]
    cases = []
    for i, prompt in enumerate(prompts):
        for j, strength in enumerate(ALPHAS):
            alpha = {"helpful": strength, "harmless": ALPHAS[(i + 2 * j) % len(ALPHAS)]}
            chat = (i + j) % 2 == 0
            messages, text = [{"role": "user", "content": prompt}], f"user : {prompt} assistant :"
            if chat:
                ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")[
                    "input_ids"
                ]
            else:
                ids = tokenizer(text, return_tensors="pt")["input_ids"]
            tokens = model.generate(ids, alpha=alpha, max_new_tokens=NEW, do_sample=False)
            best = model(tokens[:, :-1], alpha=alpha).logits[0, ids.shape[1] - 1 :].topk(2, -1).values
            if (best[:, 0] - best[:, 1]).min() < CLOSE:
                continue
            body = {"temperature": 0, "max_tokens": NEW, "alpha": alpha}
            body |= {"messages": messages} if chat else {"prompt": text}
            reply = tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)
            cases.append({"path": f"/v1/{'chat/' if chat else ''}completions", "body": body, "text": reply})
    return cases


def run_users(
    file: Path,
    cases: list[dict[str, Any]],
    url: str,
    users: int,
    rate: float | None,
    seconds: float,
    look: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Let locust's users ask for so many seconds, together `rate` times a second or one after the other without a rest.

    look: called every ten seconds meanwhile.
    """
    plan = {"cases": cases, "rate_of_user": rate and rate / users, "patience": PATIENCE}
    file.write_text(json.dumps(plan))
    command = [sys.executable, "-m", "locust", "--locustfile", HERE / "locustfile.py", "--headless", "--only-summary"]
    command += ["--host", url, "--users", users, "--spawn-rate", users, "--run-time", f"{seconds:.0f}s"]
    command += ["--stop-timeout", f"{PATIENCE:.0f}"]  # what was asked is waited for
    environment = {**os.environ, "DUAL_HEAD_LOAD": str(file)}
    with subprocess.Popen([str(word) for word in command], env=environment, stdout=sys.stderr) as locust:
        while locust.poll() is None:
            look()
            with suppress(subprocess.TimeoutExpired):
                locust.wait(EVERY)
    return json.loads(file.with_suffix(".counts.json").read_text())


def _mb(process: psutil.Process) -> float:
    return process.memory_info().rss / MB


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    sys.exit(main())

"""Engines of vLLM over the folders that golden.py wrote, and how far what they say is from what the library says.

python engines.py CASE '{"enforce_eager": false}' ['{"rounds": 2}']        one engine in a process of its own
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Before vLLM is imported: this process is the engine, which compiles nothing and leaves threads where they are.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
GPU = os.environ.get("DUAL_HEAD_VLLM_GPU") == "1"  # then with compilers and CUDA graphs, as it is served there
if not GPU:
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1" and not GPU:
    import v2_on_cpu  # noqa: F401

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

GOLDEN = Path(os.environ.get("DUAL_HEAD_GOLDEN", "golden"))
SMALL = {
    "skip_tokenizer_init": True,
    "dtype": "float32",
    "max_model_len": 128,
    "enforce_eager": not GPU,
    "kv_cache_memory_bytes": 64 << 20,
    "max_num_batched_tokens": 32,  # prompts of up to 70 tokens are read in chunks
    "max_num_seqs": 8,
    "block_size": 32,
    "max_logprobs": -1,
    "enable_prefix_caching": True,
    "disable_log_stats": True,
}
TOLERANCE = 1e-3


@dataclass
class Golden:
    """A case: where its guides are, its requests, and the library's tokens [n, T] and log-probabilities [n, T, V]."""

    name: str
    requests: list[dict[str, Any]]
    tokens: torch.Tensor
    logprobs: torch.Tensor

    @classmethod
    def of(cls, name: str) -> "Golden":
        """Read what golden.py wrote."""
        tensors = load_file(GOLDEN / name / "golden.safetensors")
        requests = json.loads((GOLDEN / name / "requests.json").read_text())
        return cls(name, requests, tensors["tokens"], tensors["logprobs"])

    @property
    def guides(self) -> Path:
        """The folder of guides."""
        return GOLDEN / self.name / "guides"


@dataclass
class Agreement:
    """How many requests have the library's tokens, how far log-probabilities are at most, tokens read from pages."""

    equal: int
    requests: int
    worst: float
    cached: int  # tokens of prompts that were read from pages

    @property
    def whole(self) -> bool:
        """Whether everything is as the library has it."""
        return self.equal == self.requests and self.worst <= TOLERANCE


@contextmanager
def engine(guides: Path, **options: Any) -> Iterator[Any]:
    """An engine in this process, gone when the block ends."""
    from dual_head_vllm import engine_options
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = LLM(**engine_options(guides, **{**SMALL, **options}))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def sampling(alpha: Any, tokens: int, **options: Any) -> Any:
    """Greedy tokens with all log-probabilities, at some strengths."""
    from vllm import SamplingParams

    defaults = {"temperature": 0, "ignore_eos": True, "detokenize": False, "logprobs": -1}
    extra = {} if alpha is None else {"extra_args": {"alpha": alpha}}
    return SamplingParams(**{**defaults, **options}, max_tokens=tokens, **extra)


def generate(llm: Any, prompts: Sequence[Sequence[int]], params: Sequence[Any]) -> list[Any]:
    """Outputs in the order of the prompts."""
    return llm.generate([{"prompt_token_ids": list(p)} for p in prompts], list(params), use_tqdm=False)


def agreement(llm: Any, golden: Golden) -> Agreement:
    """Ask every request of a case at once, and compare; after a token that differs, a request is not compared."""
    count = golden.tokens.shape[1]
    params = [sampling(request["alpha"], count) for request in golden.requests]
    outputs = generate(llm, [request["prompt"] for request in golden.requests], params)
    equal, worst = 0, 0.0
    for output, tokens, logprobs in zip(outputs, golden.tokens.tolist(), golden.logprobs, strict=True):
        (choice,) = output.outputs
        equal += list(choice.token_ids) == tokens
        for sampled, token, expected, by_id in zip(choice.token_ids, tokens, logprobs, choice.logprobs, strict=True):
            row = torch.tensor([by_id[i].logprob for i in range(len(expected))])
            worst = max(worst, (row - expected).abs().max().item())
            if sampled != token:
                break
    cached = sum(output.num_cached_tokens or 0 for output in outputs)
    return Agreement(equal, len(outputs), worst, cached)


def process(case: str, environment: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess:
    """Two rounds of an engine in a process of its own."""
    command = [sys.executable, __file__, case, json.dumps(options)]
    whole = {**os.environ, **(environment or {})}
    return subprocess.run(command, env=whole, capture_output=True, text=True, timeout=600)


def elsewhere(case: str, environment: dict[str, str] | None = None, **options: Any) -> tuple[list[Agreement], str]:
    """The agreements of such a process, and all that it said."""
    ended = process(case, environment, **options)
    assert ended.returncode == 0, ended.stderr[-4000:]
    (line,) = (line for line in ended.stdout.splitlines() if line.startswith("AGREEMENT "))
    return [Agreement(**each) for each in json.loads(line.removeprefix("AGREEMENT "))], ended.stdout


if __name__ == "__main__":
    case = Golden.of(sys.argv[1])
    with engine(case.guides, **json.loads(sys.argv[2])) as running:
        print("AGREEMENT", json.dumps([asdict(agreement(running, case)) for _ in range(2)]))
        print("RUNNER", "V2" if "dual_head_vllm.state" in sys.modules else "V1")

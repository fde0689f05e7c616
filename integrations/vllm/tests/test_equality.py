"""vLLM with guides says what the library says: the same greedy tokens and log-probabilities of every token."""

import pytest
from engines import Golden, agreement, engine

ON_VLLM = (
    "llama",
    "llama_tied",
    "constant",
    "hidden",
    "multilayer",
    "moved",
    "probabilities",
    "mistral",
    "qwen2",
    "qwen3",
)
WITH_CAPS = ("gemma2", "gemma3")
ON_TRANSFORMERS = ("gemma2_layers", "phi", "granite")


@pytest.mark.parametrize("case", [*ON_VLLM, *WITH_CAPS, *ON_TRANSFORMERS])
def test_24_mixed_requests_have_the_librarys_tokens_and_log_probabilities(case, report):
    golden = Golden.of(case)
    with engine(golden.guides) as llm:
        first, second = agreement(llm, golden), agreement(llm, golden)
    report(case, first, second)
    assert first.whole, first
    assert second.whole, second
    assert second.cached > first.cached > 0  # prompts that begin alike share pages, whatever their strengths

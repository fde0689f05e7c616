"""SmolLM2-135M-Instruct with its published guides and with others of every kind: vLLM says what the library says."""

import pytest
import torch
from engines import GOLDEN, TOLERANCE, Agreement, Golden, engine, generate, sampling

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (GOLDEN / "real" / "golden.safetensors").is_file(), reason="`make real` fetches the model"),
]
ENGINE = {"max_model_len": 256, "kv_cache_memory_bytes": 256 << 20, "max_num_batched_tokens": 64}


def test_24_mixed_requests_on_the_real_model(report):
    from safetensors.torch import load_file

    golden = Golden.of("real")
    tensors = load_file(GOLDEN / "real" / "golden.safetensors")
    prompts = [request["prompt"] for request in golden.requests]
    alphas = [request["alpha"] for request in golden.requests]
    tokens = golden.tokens.tolist()
    with engine(golden.guides, backbone=real_backbone(), **ENGINE) as llm:
        likeliest = generate(llm, prompts, [sampling(alpha, len(tokens[0]), logprobs=20) for alpha in alphas])
        whole = [[*prompt, *row[:-1]] for prompt, row in zip(prompts, tokens, strict=True)]
        last = generate(llm, whole, [sampling(alpha, 1) for alpha in alphas])
    equal = sum(list(o.outputs[0].token_ids) == row for o, row in zip(likeliest, tokens, strict=True))
    worst = 0.0
    expected_rows = zip(tokens, tensors["ids"].tolist(), golden.logprobs.tolist(), strict=True)
    for output, (row, ids, logprobs) in zip(likeliest, expected_rows, strict=True):
        (choice,) = output.outputs
        for sampled, token, top, values, by_id in zip(
            choice.token_ids, row, ids, logprobs, choice.logprobs, strict=True
        ):
            gaps = [abs(by_id[i].logprob - value) for i, value in zip(top, values, strict=True) if i in by_id]
            assert len(gaps) >= 18  # the 20 likeliest, but for ties at their end
            worst = max(worst, *gaps)
            if sampled != token:
                break
    for output, expected in zip(last, tensors["last"], strict=True):  # of the last token, the whole vocabulary
        by_id = output.outputs[0].logprobs[0]
        row = torch.tensor([by_id[i].logprob for i in range(len(expected))])
        worst = max(worst, (row - expected).abs().max().item())
    cached = sum(output.num_cached_tokens or 0 for output in [*likeliest, *last])
    agreement = Agreement(equal, len(tokens), worst, cached)
    report("SmolLM2-135M, six guides", agreement)
    assert agreement.worst <= TOLERANCE
    assert agreement.whole
    assert cached > 0


def real_backbone() -> str:
    from dual_head.demo.chat_model import find_chat_model

    model = find_chat_model()
    assert model is not None
    return model.place

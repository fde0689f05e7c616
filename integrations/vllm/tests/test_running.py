"""Ways to run: compiled, on two processes, by vLLM's other runner, out of pages."""

import pytest
import torch
from dual_head_vllm import models
from engines import Golden, agreement, elsewhere, engine, generate, process, sampling

CROWDED = {"num_gpu_blocks_override": 7, "max_num_batched_tokens": 128, "max_num_seqs": 12}  # more than pages hold
COMPILED = {"TORCH_COMPILE_DISABLE": "0"}
OTHERS = ("probabilities", "moved", "qwen3", "gemma2")
SEVERAL_PROCESSES = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}


def test_requests_that_gave_their_pages_up_go_on_as_they_were(monkeypatch, report):
    from vllm.v1.core.sched.scheduler import Scheduler

    preempted = []
    preempt = Scheduler._preempt_request
    monkeypatch.setattr(Scheduler, "_preempt_request", lambda *a, **k: (preempted.append(1), preempt(*a, **k))[1])
    golden = Golden.of("llama")
    with engine(golden.guides, enable_prefix_caching=False, **CROWDED) as llm:
        first = agreement(llm, golden)
    report("llama, out of pages", first)
    assert first.whole, first
    assert len(preempted) >= 3


def test_several_choices_of_a_request_have_its_strengths():
    golden = Golden.of("hidden")
    request = golden.requests[0]
    with engine(golden.guides) as llm:
        (output,) = generate(llm, [request["prompt"]], [sampling(request["alpha"], 4, n=3, temperature=1.0, seed=5)])
        for choice in output.outputs:
            whole = [*request["prompt"], *choice.token_ids]
            again = [sampling(request["alpha"], 1, prompt_logprobs=-1)]
            (scored,) = generate(llm, [whole], again)
            for i, token in enumerate(choice.token_ids):
                logprob = choice.logprobs[i][token].logprob
                prompt = scored.prompt_logprobs[len(request["prompt"]) + i][token].logprob
                assert logprob == pytest.approx(prompt, abs=1e-3)


def test_strengths_reach_the_logits_of_a_backbone_in_bf16_bit_by_bit(monkeypatch):
    seen = set()
    distributions = models.distributions

    def recorded(backbone, active, hidden, **options):
        seen.update(map(tuple, torch.cat([term.alpha for term in active], -1).tolist()))
        assert hidden.dtype == torch.bfloat16
        return distributions(backbone, active, hidden, **options)

    monkeypatch.setattr(models, "distributions", recorded)
    golden = Golden.of("hidden")
    alphas = [{"one": 0.1 + i / 7, "two": -1e-3 * i, "three": 1e5 + i} for i in range(8)]
    with engine(golden.guides, dtype="bfloat16") as llm:
        seen.clear()  # of the warm-up
        generate(llm, [request["prompt"] for request in golden.requests], [sampling(a, 3) for a in alphas * 3])
    assert seen == {tuple(torch.tensor([a["one"], a["two"], a["three"]]).tolist()) for a in alphas}


def test_the_other_runner_of_vllm_says_the_same(report):
    agreements, output = elsewhere("llama", {"VLLM_USE_V2_MODEL_RUNNER": "1"})
    report("llama, runner V2", *agreements)
    assert "RUNNER V2" in output
    assert all(each.whole for each in agreements), agreements


@pytest.mark.slow
def test_the_other_runner_swaps_requests_out_of_pages_too(report):
    agreements, _ = elsewhere("llama", {"VLLM_USE_V2_MODEL_RUNNER": "1"}, **CROWDED)
    report("llama, runner V2, out of pages", *agreements)
    assert all(each.whole for each in agreements), agreements


@pytest.mark.parametrize("case", ["llama", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_a_compiled_backbone_says_the_same(case, report):
    agreements, _ = elsewhere(case, COMPILED, enforce_eager=False)
    report(f"{case}, compiled", *agreements)
    assert all(each.whole for each in agreements), agreements


@pytest.mark.parametrize("case", ["llama", *(pytest.param(x, marks=pytest.mark.slow) for x in OTHERS)])
def test_two_processes_with_half_of_each_matrix_say_the_same(case, report):
    agreements, _ = elsewhere(case, SEVERAL_PROCESSES, tensor_parallel_size=2)
    report(f"{case}, 2 processes", *agreements)
    assert all(each.whole for each in agreements), agreements


# Compiled, since eager pipelines of vLLM itself fail where the size of the pages is given.
PIPELINE = {"pipeline_parallel_size": 2, "enforce_eager": False}


@pytest.mark.slow
def test_two_processes_with_half_of_the_layers_say_the_same(report):
    agreements, _ = elsewhere("llama_tied", {**SEVERAL_PROCESSES, **COMPILED}, **PIPELINE)
    report("llama_tied, pipeline of 2", *agreements)
    assert all(each.whole for each in agreements), agreements


@pytest.mark.slow
def test_a_pipeline_does_not_hand_inner_layers_on_and_says_so():
    ended = process("multilayer", {**SEVERAL_PROCESSES, **COMPILED}, **PIPELINE)
    assert ended.returncode != 0
    assert "inner layers are not served in pipeline parallel" in ended.stdout + ended.stderr


def test_an_engine_in_a_process_of_its_own_knows_the_strengths(report):
    agreements, _ = elsewhere("constant", SEVERAL_PROCESSES)
    report("constant, engine elsewhere", *agreements)
    assert all(each.whole for each in agreements), agreements

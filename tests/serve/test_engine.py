"""Requests of any kind in one running batch: what comes back, and what becomes of those that leave or cannot stay."""

import asyncio
import itertools
import threading
import time
from dataclasses import replace

import pytest
import torch
from engines import GREEDY, TOKENIZER, alphas, generated, ids, prompts, small_engine, tiny_model
from models import EOS

from dual_head.errors import DualHeadError
from dual_head.model.alpha import LinearDecay
from dual_head.serve.settings import EngineSettings
from dual_head.serve.types import EngineStopped, GenerationRequest, Sampling

NAMES = ("hidden", "gate")
PROMPT = prompts()[1]
SAMPLED = Sampling(temperature=1.5, seed=11)


@pytest.fixture(scope="module")
def engine():
    with small_engine(tiny_model(*NAMES)) as running:
        yield running


def request(count=8, sampling=GREEDY, alpha=1.0, prompt=PROMPT, **options) -> GenerationRequest:
    return GenerationRequest(prompt, count, dict.fromkeys(NAMES, alpha), sampling, **options)


def crowd(sampling=SAMPLED) -> list[GenerationRequest]:
    """Eight requests that differ in everything."""
    return [
        GenerationRequest(prompt, 10, alphas(NAMES, i), replace(sampling, seed=i, temperature=i / 4))
        for i, prompt in enumerate(prompts(1))
    ]


async def streamed(engine, one: GenerationRequest) -> list:
    return [piece async for piece in engine.stream(one)]


def quiet(engine) -> bool:
    """Whether every request has left its row, within ten seconds."""
    for _ in range(1000):
        if (stats := engine.stats()).running == stats.waiting == 0:
            return True
        time.sleep(0.01)
    return False


# ---- what comes back ---------------------------------------------------------------------------------------


def test_streams_add_up_to_what_generate_gives(engine):
    async def all_at_once():
        return await asyncio.gather(*[streamed(engine, one) for one in crowd()])

    wholes = engine.generate(crowd())
    for pieces, whole in zip(asyncio.run(all_at_once()), wholes, strict=True):
        assert "".join(piece.text for piece in pieces) == whole.text
        assert [t for piece in pieces for t in ids(piece)] == ids(whole)
        assert [piece.finish_reason for piece in pieces][:-1] == [None] * (len(pieces) - 1)
        assert pieces[-1].finish_reason == whole.finish_reason == "length"
        assert whole.text == TOKENIZER.decode(ids(whole), skip_special_tokens=True)


def test_requests_of_a_list_enter_in_groups_as_others_end(monkeypatch):
    events = []
    with small_engine(tiny_model(), max_rows=16) as engine:
        submit = engine._submit
        monkeypatch.setattr(engine, "_submit", lambda running: (events.append("in"), submit(running)))
        for _ in engine.as_they_end([GenerationRequest(PROMPT, 1 + i, {}, GREEDY) for i in range(20)]):
            events.append("out")
    assert events == ["in"] * 16 + ["out"] * 2 + ["in"] * 2 + ["out"] * 2 + ["in"] * 2 + ["out"] * 16


@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 20}, {"top_p": 0.7}, {"min_p": 0.05}, {"repetition_penalty": 1.5, "frequency_penalty": 0.5}],
    ids=str,
)
def test_a_seed_means_the_same_text_alone_and_in_a_crowd(engine, options):
    one = request(12, replace(SAMPLED, **options))
    (alone,) = engine.generate([one])
    amid = engine.generate([*crowd()[:4], one, *crowd()[4:]])[4]
    other = engine.generate([request(12, replace(SAMPLED, seed=12, **options))])[0]
    assert ids(alone) == ids(amid)
    assert ids(alone) != ids(other)


def test_a_seed_means_the_same_text_after_its_request_was_put_off():
    # Seven of the crowd's prompts and replies take all of 22 pages of 8 tokens.
    several = [replace(one, max_tokens=24) for one in crowd()]
    with small_engine(tiny_model(*NAMES), num_blocks=22) as narrow:
        together = narrow.generate(several)
        alone = [narrow.generate([one])[0] for one in several]
    assert [ids(piece) for piece in together] == [ids(piece) for piece in alone]


def test_without_a_seed_texts_differ(engine):
    pieces = engine.generate([request(12, replace(SAMPLED, seed=None)) for _ in range(4)])
    assert len({piece.text for piece in pieces}) > 1


def test_log_probabilities_are_those_of_generate(engine):
    one = request(6, replace(GREEDY, top_logprobs=3))
    (piece,) = engine.generate([one])
    output = engine.model.generate(
        torch.tensor([PROMPT]),
        alpha=1.0,
        max_new_tokens=6,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    for token, logits in zip(piece.tokens, output.logits, strict=True):
        best = logits[0].log_softmax(-1).topk(3)
        assert [t for t, _ in token.top] == best.indices.tolist()
        assert [p for _, p in token.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert token.logprob == pytest.approx(token.top[0][1], abs=1e-5)


def test_traces_are_those_of_generate(engine):
    one = GenerationRequest(PROMPT, 6, {"hidden": 1.0, "gate": -0.5}, replace(GREEDY, trace=True))
    pieces = engine.generate([*crowd()[:3], one, *crowd()[3:]])
    output = engine.model.generate(
        torch.tensor([PROMPT]), alpha=one.alpha, max_new_tokens=6, do_sample=False, return_trace=True
    )
    for token, trace in zip(pieces[3].tokens, output.trace[0], strict=True):
        assert token.trace.token_id == token.id == trace.token_id
        assert token.trace.kl == pytest.approx(trace.kl, abs=1e-4)
        assert token.trace.gates == pytest.approx(trace.gates, abs=1e-4)
        assert [t for t, _ in token.trace.promoted] == [t for t, _ in trace.promoted]
    assert all(token.trace is None for piece in (pieces[0], pieces[4]) for token in piece.tokens)


def test_penalties_count_prompt_and_reply_of_their_own_request(engine):
    strict = replace(GREEDY, repetition_penalty=1.8)
    several = [request(12, strict, prompt=prompt) for prompt in prompts()[:4]]
    pieces = engine.generate([*several, request(12)])
    for one, piece in zip(several, pieces, strict=False):
        assert ids(piece) == generated(engine.model, one.prompt_ids, one.alpha, 12, repetition_penalty=1.8)
    plain = generated(engine.model, PROMPT, 1.0, 12)
    assert ids(pieces[-1]) == plain
    assert ids(pieces[1]) != plain


def test_presence_keeps_a_reply_from_saying_a_token_twice(engine):
    (piece,) = engine.generate([request(30, replace(GREEDY, presence_penalty=100.0))])
    assert len(set(ids(piece))) == 30


def test_a_bias_makes_a_token_sure_or_impossible(engine):
    likeliest = ids(engine.generate([request(1)])[0])[0]
    sure, never = engine.generate(
        [
            request(4, replace(GREEDY, logit_bias={50: 100.0})),
            request(1, replace(GREEDY, logit_bias={likeliest: -100.0})),
        ]
    )
    assert ids(sure) == [50] * 4
    assert ids(never) != [likeliest]


def test_a_reply_ends_at_the_end_of_sequence_unless_that_is_ignored():
    model = tiny_model(*NAMES)
    with small_engine(model) as engine:
        tokens = ids(engine.generate([request(8)])[0])
    model.generation_config.eos_token_id = [EOS, tokens[3]]
    first = tokens.index(tokens[3])
    with small_engine(model) as engine:
        ended, ignored = engine.generate([request(8), request(8, ignore_eos=True)])
    assert (ids(ended), ended.finish_reason) == (tokens[: first + 1], "stop")
    assert ended.text == TOKENIZER.decode(tokens[:first])
    assert (ids(ignored), ignored.finish_reason) == (tokens, "length")


def test_a_stop_string_ends_the_text_and_frees_the_row(engine):
    text = engine.generate([request(20)])[0].text
    stop = text[5:7]
    (piece,) = engine.generate([request(100, stop=(stop,))])
    assert (piece.text, piece.finish_reason) == (text[: text.index(stop)], "stop")
    assert len(piece.tokens) < 40
    assert quiet(engine)


# ---- those that leave, and those that cannot stay ----------------------------------------------------------


def test_leaving_a_stream_frees_its_row(engine):
    async def leave() -> None:
        stream = engine.stream(request(100))
        await anext(stream)
        assert engine.stats().running == 1
        await stream.aclose()

    before = engine.stats().generated_tokens
    asyncio.run(leave())
    assert quiet(engine)
    assert engine.stats().generated_tokens - before < 100


def test_a_cancelled_task_frees_its_row_and_disturbs_nobody(engine):
    async def cancel_one() -> list:
        stays, goes = (asyncio.create_task(streamed(engine, request(30, alpha=a))) for a in (1.0, 0.5))
        await asyncio.sleep(0.05)
        goes.cancel()
        return await stays

    pieces = asyncio.run(cancel_one())
    assert [t for piece in pieces for t in ids(piece)] == generated(engine.model, PROMPT, 1.0, 30)
    assert quiet(engine)


def test_a_request_whose_cancelling_was_missed_is_cancelled_at_its_next_token(engine, monkeypatch):
    missed = []
    cancel = engine._batch.cancel
    monkeypatch.setattr(engine._batch, "cancel", lambda name: missed.append(name) if not missed else cancel(name))

    async def leave() -> None:
        stream = engine.stream(request(100))
        await anext(stream)
        await stream.aclose()

    before = engine.stats().generated_tokens
    asyncio.run(leave())
    assert quiet(engine)
    assert missed
    assert engine.stats().generated_tokens - before < 100


def test_counts_are_of_what_went_through(engine):
    before = engine.stats()
    engine.generate([request(5), request(7)])
    after = engine.stats()
    assert after.prompt_tokens - before.prompt_tokens == 2 * len(PROMPT)
    assert after.generated_tokens - before.generated_tokens == 12
    assert after.prefix_hit_tokens - before.prefix_hit_tokens == 2 * 16  # two full pages of 17 tokens, for both
    assert 0 < after.kv_usage <= 1


def test_progress_is_told(engine):
    done = []
    engine.generate(crowd(), progress=done.append)
    assert done == list(range(1, 9))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt_ids": []}, "no tokens"),
        ({"prompt_ids": [3, 97]}, "from 0 to 96"),
        ({"prompt_ids": [3] * 128}, "Shorten it to at most 127"),
        ({"max_tokens": 0}, "max_tokens must be from 1 to 111"),
        ({"max_tokens": 112}, "max_tokens must be from 1 to 111"),
        ({"stop": ("",)}, "stop string is empty"),
        ({"alpha": {"hiden": 1.0}}, "Did you mean 'hidden'"),
        ({"alpha": {"hidden": float("nan")}}, "NaN"),
        ({"alpha": {"hidden": lambda t: t * 0.0}}, "no other schedule can be served"),
        ({"alpha": {"hidden": LinearDecay(1.0, float("inf"), 4)}}, "finite"),
        ({"sampling": Sampling(temperature=-1.0)}, "temperature"),
    ],
)
def test_what_cannot_be_generated_is_refused(engine, change, words):
    bad = replace(request(), **change)
    with pytest.raises(DualHeadError, match=words):
        engine.generate([request(), bad])
    with pytest.raises(DualHeadError, match=words):
        asyncio.run(streamed(engine, bad))


def test_logits_that_are_no_numbers_fail_their_request_only(engine):
    large = replace(request(), alpha={"hidden": 1e38, "gate": 1e38})
    with pytest.raises(DualHeadError, match="NaN or infinity"):
        engine.generate([large])
    assert quiet(engine)
    assert ids(engine.generate([request()])[0]) == generated(engine.model, PROMPT, 1.0, 8)


# ---- the generation thread ---------------------------------------------------------------------------------


def test_a_dead_thread_raises_in_every_waiter_and_a_start_brings_it_back(monkeypatch):
    engine = small_engine(tiny_model(*NAMES))
    whole, steps, all_wait = engine.model.distributions, itertools.count(), threading.Event()

    def dying(*args, **options):
        if next(steps) < 3:
            return whole(*args, **options)
        all_wait.wait(10)  # however fast the steps are
        raise RuntimeError("out of tape")

    async def wait() -> list:
        waiting = [asyncio.create_task(streamed(engine, request(60, alpha=a))) for a in (0.5, 1.0, 2.0)]
        await asyncio.sleep(0.1)
        all_wait.set()
        return await asyncio.gather(*waiting, return_exceptions=True)

    monkeypatch.setattr(engine.model, "distributions", dying)
    with engine:
        results = asyncio.run(wait())
        assert all(isinstance(x, EngineStopped) and "out of tape" in str(x) for x in results)
        assert not engine.alive
        with pytest.raises(EngineStopped, match="out of tape"):
            engine.generate([request()])
        monkeypatch.undo()
        engine.start()
        assert ids(engine.generate([request()])[0]) == generated(engine.model, PROMPT, 1.0, 8)


def test_a_stop_lets_running_requests_finish_within_the_drain(monkeypatch):
    engine = small_engine(tiny_model(*NAMES))

    async def run(drain: float) -> list:
        task = asyncio.create_task(streamed(engine, request(100)))
        await asyncio.sleep(0.02)
        await asyncio.to_thread(engine.stop, drain)
        return await task

    engine.start()
    pieces = asyncio.run(run(30.0))
    assert [t for piece in pieces for t in ids(piece)] == generated(engine.model, PROMPT, 1.0, 100)
    engine.start()
    with pytest.raises(EngineStopped):
        asyncio.run(run(0.0))
    assert not engine.alive


def test_a_stopped_engine_takes_no_request():
    with pytest.raises(EngineStopped, match="is not running"):
        small_engine(tiny_model(*NAMES)).generate([request()])


@pytest.mark.parametrize(
    "setting", ["page_size", "num_blocks", "max_batch_tokens", "max_rows", "memory_share", "context_length"]
)
def test_sizes_below_one_are_refused(setting):
    with pytest.raises(DualHeadError, match=setting):
        EngineSettings(**{setting: 0})

"""The routes over the engine, asked by OpenAI's own client: their texts are those of the library's `generate`."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from engines import small_engine, tiny_model
from jsonschema import Draft202012Validator
from models import EOS
from openai import APIError, BadRequestError, NotFoundError
from servers import running_server

from dual_head import LinearDecay

PROMPTS = ["how are you?", "Bake bread!", "a b c d", "rivers run; where to?"]
TOKENS = 12
CHAT_BODY = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
PRESETS = "strong: {hidden: 1.5, even_gate: 0.5}\nfading:\n  hidden: {start: 2.0, end: 0.0, tokens: 4}\n"


@pytest.fixture(scope="module")
def model(tokenizer):
    model = tiny_model("hidden", "even_gate")
    model.config.alpha = {"hidden": 1.0, "even_gate": 0.5}
    model._tokenizer = tokenizer
    return model


@pytest.fixture(scope="module")
def server(model, tokenizer, tmp_path_factory):
    presets = tmp_path_factory.mktemp("presets") / "presets.yaml"
    presets.write_text(PRESETS)
    with running_server(model, tokenizer, small_engine, presets=str(presets)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def library_text(model, text: str, alpha, tokens: int = TOKENS) -> str:
    """What the library says, alone."""
    return model.generate(messages(text), alpha=alpha, max_new_tokens=tokens, do_sample=False)


def complete(client, text: str, alpha, tokens: int = TOKENS, *, extra=None, **more):
    extra = {**({} if alpha is None else {"alpha": alpha}), **(extra or {})}
    settings = {"model": "toy", "temperature": 0, "max_tokens": tokens, **more}
    return client.chat.completions.create(messages=messages(text), extra_body=extra, **settings)


# ---- scores ----------------------------------------------------------------------------------------------

REPLIES = ["bread", "i bake it.", "no", "rivers", "a b", "c", "where", "to", "the sea"]


def score(client, **body):
    body = {"model": "toy", "messages": messages("Bake bread!"), "replies": REPLIES, **body}
    return client.post("/score", body=body, cast_to=object)


@pytest.mark.parametrize("alpha", [{"hidden": 1.0, "even_gate": 0.5}, {"hidden": -2.0, "even_gate": 0.0}])
def test_scores_are_the_librarys_more_replies_than_a_pass_holds(model, client, alpha):
    answer = score(client, alpha=alpha, tokens=True)
    library = model.score([messages("Bake bread!")] * len(REPLIES), REPLIES, alpha=alpha)
    assert [entry["reward"] for entry in answer["data"]] == pytest.approx([one.reward for one in library], abs=1e-4)
    assert [entry["kl"] for entry in answer["data"]] == pytest.approx([one.kl for one in library], abs=1e-4)
    assert len({round(one.reward, 3) for one in library}) == len(REPLIES)
    assert answer["alpha"] == alpha
    tokens = answer["data"][1]["tokens"]
    assert "".join(token["token"] for token in tokens[:-2]) == REPLIES[1]  # then the end of the turn
    assert sum(token["reward"] for token in tokens) == pytest.approx(answer["data"][1]["reward"], abs=1e-4)
    assert answer["usage"]["prompt_tokens"] == sum(len("u:Bake bread!;a:") + len(one.tokens) for one in library)


def test_a_reply_that_was_cut_is_scored_without_the_end_of_the_turn(client):
    answer = score(client, replies=["bread", "bread"], cut=[True, False], tokens=True)
    assert [len(entry["tokens"]) for entry in answer["data"]] == [5, 7]


def test_a_text_is_continued_and_the_backbone_has_no_reward(client):
    body = {"model": "toy:base", "prompt": "Bake bread", "replies": [" now", " later"]}
    answer = client.post("/score", body=body, cast_to=object)
    assert [(entry["reward"], entry["kl"]) for entry in answer["data"]] == [(0.0, 0.0)] * 2
    assert "tokens" not in answer["data"][0]


def test_a_strength_that_leaves_no_number_is_refused_in_a_score_as_in_a_text(client):
    refusals = []
    for ask in (lambda: score(client, alpha=3e38), lambda: complete(client, PROMPTS[0], 3e38)):
        with pytest.raises(BadRequestError, match="logits of NaN or infinity") as error:
            ask()
        refusals.append(error.value.message)
    assert refusals[0] == refusals[1]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"replies": []}, "replies"),
        ({"replies": ["a"] * 1000}, "replies"),
        ({"replies": ["a", "b" * 5000]}, "replies[1]"),
        ({"cut": [True]}, "cut"),
        ({"prompt": "a"}, "prompt"),
        ({"alpha": {"nobody": 1.0}}, "alpha"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"max_tokens": 3}, "max_tokens"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(client, body, param):
    with pytest.raises(BadRequestError) as error:
        score(client, **body)
    assert error.value.param == param


# ---- texts -----------------------------------------------------------------------------------------------


def test_concurrent_texts_of_other_strengths_are_the_librarys_streamed_and_not(model, client):
    pairs = [(0.0, 0.0), (1.0, 0.0), (0.3, 1.2), (2.0, -0.5)]
    cases = [(text, {"hidden": a, "even_gate": b}) for text in PROMPTS for a, b in pairs]
    texts = [library_text(model, text, alpha) for text, alpha in cases]
    assert len(set(texts)) > len(cases) // 2

    def whole(case):
        return complete(client, *case).choices[0].message.content

    def streamed(case):
        chunks = list(complete(client, *case, stream=True))
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[0].alpha == case[1]
        assert chunks[-1].choices[0].finish_reason == "length"
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with ThreadPoolExecutor(2 * len(cases)) as pool:
        futures = [pool.submit(way, case) for case in cases for way in (whole, streamed)]
    assert [future.result() for future in futures] == [text for text in texts for _ in range(2)]


def test_a_strength_that_decays_is_the_librarys(model, client):
    decay = {"hidden": {"start": 2.0, "end": 0.0, "tokens": 4}}
    reply = complete(client, PROMPTS[0], decay)
    text = library_text(model, PROMPTS[0], {"hidden": LinearDecay(2.0, 0.0, 4)})
    assert reply.choices[0].message.content == text != library_text(model, PROMPTS[0], {"hidden": 2.0})
    assert reply.alpha == {**decay, "even_gate": 0.0}


@pytest.mark.parametrize(
    ("name", "alpha"),
    [
        ("toy", {"hidden": 1.0, "even_gate": 0.5}),
        ("toy:base", {"hidden": 0.0, "even_gate": 0.0}),
        ("toy:even_gate", {"hidden": 0.0, "even_gate": 0.5}),
        ("toy:strong", {"hidden": 1.5, "even_gate": 0.5}),
    ],
)
def test_the_name_of_the_model_says_the_strengths(model, client, name, alpha):
    reply = complete(client, PROMPTS[2], None, model=name)
    assert (reply.model, reply.alpha) == (name, alpha)
    assert reply.choices[0].message.content == library_text(model, PROMPTS[2], alpha)


def test_a_preset_may_decay(client):
    decay = {"start": 2.0, "end": 0.0, "tokens": 4}
    assert complete(client, PROMPTS[2], None, model="toy:fading").alpha == {"hidden": decay, "even_gate": 0.0}


@pytest.mark.parametrize("alpha", ["hidden=0.3, even_gate=1.2", {"hidden": 0.3, "even_gate": 1.2}])
def test_vllm_xargs_mean_the_same(model, client, alpha):
    reply = complete(client, PROMPTS[1], None, extra={"vllm_xargs": {"alpha": alpha}})
    assert reply.alpha == {"hidden": 0.3, "even_gate": 1.2}
    assert reply.choices[0].message.content == library_text(model, PROMPTS[1], reply.alpha)


def test_a_number_is_for_every_guide(client):
    assert complete(client, PROMPTS[1], 0.7).alpha == {"hidden": 0.7, "even_gate": 0.7}
    assert complete(client, PROMPTS[1], None, extra={"vllm_xargs": {"alpha": "0.7"}}).alpha["hidden"] == 0.7


def test_a_system_prompt_and_turns_before_are_read(model, client):
    talk = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": " you"}]},
        {"role": "assistant", "content": "Hello.", "refusal": None},
        {"role": "user", "content": "More"},
    ]
    reply = client.chat.completions.create(model="toy", messages=talk, temperature=0, max_tokens=TOKENS)
    talk[1]["content"], talk[2] = "Hi you", {"role": "assistant", "content": "Hello."}
    assert reply.choices[0].message.content == model.generate(talk, max_new_tokens=TOKENS, do_sample=False)
    talk[0]["role"] = "developer"
    same = client.chat.completions.create(model="toy", messages=talk, temperature=0, max_tokens=TOKENS)
    assert same.choices[0].message.content == reply.choices[0].message.content


# ---- sampling --------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_text_alone_and_in_a_crowd(client):
    def sampled(seed):
        return complete(client, PROMPTS[0], 1.0, temperature=1.0, top_p=0.9, seed=seed).choices[0].message.content

    alone = sampled(7)
    with ThreadPoolExecutor(6) as pool:
        crowd = list(pool.map(sampled, [1, 2, 7, 3, -4, 2**62]))
    assert crowd[2] == alone
    assert len(set(crowd)) > 3


def test_choices_of_one_seed_differ_and_come_again(client):
    first, again = (complete(client, PROMPTS[0], 1.0, temperature=1.0, seed=3, n=3) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in again.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert first.usage.completion_tokens == 3 * TOKENS


def test_streamed_choices_are_the_whole_ones(client):
    settings = {"temperature": 1.0, "seed": 3, "n": 3}
    whole = complete(client, PROMPTS[0], 1.0, **settings)
    texts = ["", "", ""]
    chunks = list(complete(client, PROMPTS[0], 1.0, stream=True, stream_options={"include_usage": True}, **settings))
    for chunk in chunks[:-1]:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


def test_a_stop_string_ends_the_text_before_it(model, client):
    text = library_text(model, PROMPTS[3], None)
    stop = text[4:6]
    for settings in ({"stop": stop}, {"stop": ["no such text", stop]}):
        (choice,) = complete(client, PROMPTS[3], None, **settings).choices
        assert (choice.message.content, choice.finish_reason) == (text[: text.index(stop)], "stop")


def test_a_biased_token_is_chosen_and_a_penalised_one_is_not_repeated(client):
    biased = complete(client, PROMPTS[0], 0, logit_bias={"40": 100})
    assert len(set(biased.choices[0].message.content)) == 1
    settings = {"logit_bias": {"40": 20, "41": 19}, "frequency_penalty": 2}
    assert len(set(complete(client, PROMPTS[0], 0, **settings).choices[0].message.content)) > 1


@pytest.fixture(scope="module")
def ending(tokenizer):
    """A server whose model ends its texts, as a grammar needs."""
    model = tiny_model("hidden")
    model.generation_config.eos_token_id = EOS
    with running_server(model, tokenizer, small_engine) as server:
        yield server


def test_a_format_is_kept(ending):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["ab", "cd"]}}}
    with ending.client() as client:
        text = complete(client, PROMPTS[0], 1.0, 40, response_format=form).choices[0].message.content
        assert json.loads(text) in ("ab", "cd")
        (choice,) = complete(client, PROMPTS[0], 1.0, 40, response_format={"type": "regex", "regex": "(ab){3}"}).choices
        assert (choice.message.content, choice.finish_reason) == ("ababab", "stop")
        (choice,) = complete(client, PROMPTS[0], 1.0, 100, response_format={"type": "json_object"}).choices
        assert choice.message.content.lstrip().startswith("{")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "form",
    [{"type": "regex", "regex": "("}, {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "x"}}}],
)
def test_a_format_that_cannot_be_is_refused(ending, form, stream):
    response = ending.chat("abc", response_format=form, stream=stream)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "response_format")
    assert "cannot be used" in response.json()["error"]["message"]


def test_log_probabilities_are_those_of_the_policy(model, tokenizer, client):
    reply = complete(client, PROMPTS[0], 1.0, logprobs=True, top_logprobs=3)
    content = reply.choices[0].logprobs.content
    assert "".join(entry.token for entry in content) == reply.choices[0].message.content
    assert all(bytes(entry.bytes).decode() == entry.token for entry in content)
    for entry in content:
        assert [top.logprob for top in entry.top_logprobs] == sorted(x.logprob for x in entry.top_logprobs)[::-1]
        assert entry.top_logprobs[0].token == entry.token  # it is greedy
    trace = model.generate(
        messages(PROMPTS[0]), alpha=1.0, max_new_tokens=TOKENS, do_sample=False, return_trace=True
    ).trace[0]
    assert [entry.logprob for entry in content] == pytest.approx([token.policy_logp for token in trace], abs=1e-3)


def test_a_trace_tells_gates_divergence_and_promoted_tokens(model, tokenizer, client):
    def traced(entries):
        return [entry["dual_head"] for entry in entries]

    whole = complete(client, PROMPTS[0], 1.0, extra={"trace": True}).choices[0].logprobs.model_dump()["content"]
    chunks = complete(client, PROMPTS[0], 1.0, extra={"trace": True}, stream=True)
    streamed = [
        entry
        for chunk in chunks
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.model_dump()["content"]
    ]
    assert traced(streamed) == traced(whole)
    trace = model.generate(
        messages(PROMPTS[0]), alpha=1.0, max_new_tokens=TOKENS, do_sample=False, return_trace=True
    ).trace[0]
    for entry, token in zip(traced(whole), trace, strict=True):
        assert entry["kl"] == pytest.approx(token.kl, abs=1e-3)
        assert entry["gates"] == pytest.approx(token.gates, abs=1e-4)
        assert entry["promoted"][0]["token"] == tokenizer.decode([token.promoted[0][0]])


# ---- texts to continue, tokens ---------------------------------------------------------------------------


def test_completions_continue_texts_and_tokens(model, tokenizer, client):
    text = model.generate(PROMPTS[0], alpha=1.0, chat_template=False, max_new_tokens=8, do_sample=False)
    ids = tokenizer(PROMPTS[0])["input_ids"]
    settings = {"model": "toy", "temperature": 0, "max_tokens": 8, "extra_body": {"alpha": 1.0}}
    for prompt in (PROMPTS[0], ids, [PROMPTS[0]], [ids]):
        assert [c.text for c in client.completions.create(prompt=prompt, **settings).choices] == [text]
    both = client.completions.create(prompt=[PROMPTS[1], PROMPTS[0]], n=2, logprobs=2, **settings)
    assert [c.index for c in both.choices] == [0, 1, 2, 3]
    assert both.choices[2].text == both.choices[3].text == text
    logprobs = both.choices[2].logprobs
    assert "".join(logprobs.tokens).replace("<pad>", "") == text
    texts = ["" if token == "<pad>" else token for token in logprobs.tokens]
    assert logprobs.text_offset == [len("".join(texts[:i])) for i in range(8)]
    assert [len(top) for top in logprobs.top_logprobs] == [2] * 8
    assert both.usage.prompt_tokens == len(PROMPTS[0]) + len(PROMPTS[1])
    streamed = client.completions.create(prompt=PROMPTS[0], stream=True, logprobs=1, **settings)
    chunks = [chunk.choices[0] for chunk in streamed]
    assert "".join(chunk.text for chunk in chunks) == text
    assert [offset for chunk in chunks for offset in chunk.logprobs.text_offset] == logprobs.text_offset


def test_a_completion_has_sixteen_tokens_and_a_chat_all_that_the_context_has(client, server):
    assert client.completions.create(model="toy", prompt="abc").usage.completion_tokens == 16
    reply = client.chat.completions.create(model="toy", messages=messages("abc"))
    context = client.models.retrieve("toy").max_model_len
    assert reply.usage.total_tokens == context
    assert reply.choices[0].finish_reason == "length"


def test_tokens_are_told_as_they_are_read(tokenizer, server):
    body = {"tokens": tokenizer("abc")["input_ids"], "count": 3, "max_model_len": 128}
    assert server.post("/tokenize", {"prompt": "abc"}).json() == body
    chat = server.post("/tokenize", {"model": "toy:base", "messages": messages("abc")}).json()
    assert tokenizer.decode(chat["tokens"]) == tokenizer.apply_chat_template(
        messages("abc"), tokenize=False, add_generation_prompt=True
    )


def test_models_are_listed_with_their_strengths(client):
    models = {model.id: model for model in client.models.list()}
    assert list(models) == ["toy", "toy:base", "toy:hidden", "toy:even_gate", "toy:strong", "toy:fading"]
    assert models["toy"].parent is None
    assert models["toy:base"].parent == "toy"
    assert models["toy"].guides["hidden"] == {"kind": "hidden", "alpha": 1.0}
    assert models["toy:strong"].alpha == {"hidden": 1.5, "even_gate": 0.5}
    assert client.models.retrieve("toy:strong").id == "toy:strong"
    with pytest.raises(NotFoundError, match="no model 'toy:weak'"):
        client.models.retrieve("toy:weak")


def test_metrics_count_tokens_and_requests(client, server):
    before = [server.metric(name) for name in ("prompt_tokens_total", "generation_tokens_total")]
    reply = complete(client, PROMPTS[0], {"hidden": 1.0})
    after = [server.metric(name) for name in ("prompt_tokens_total", "generation_tokens_total")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [reply.usage.prompt_tokens, TOKENS]
    text = server.http.get("/metrics").text
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "time_to_first_token_seconds_count",
        "inter_token_latency_seconds_count",
        "e2e_request_latency_seconds_count",
        'request_success_total{finished_reason="length"}',
        'alpha_count{guide="hidden"}',
        "prefix_cache_hits_total",
    ):
        assert f"dual_head_{name} " in text, name


# ---- refusals --------------------------------------------------------------------------------------------

HALF = "\ud800"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"alpha": "high"}, "alpha"),
        ({"alpha": "0.5"}, "alpha"),
        ({"alpha": [1, 2]}, "alpha"),
        ({"alpha": True}, "alpha"),
        ({"alpha": {"nobody": 1}}, "alpha"),
        ({"alpha": {HALF: 1}}, "alpha"),
        ({"alpha": {"hidden": None}}, "alpha"),
        ({"alpha": {"hidden": [1]}}, "alpha"),
        ({"alpha": {"hidden": {"start": 1, "end": 0}}}, "alpha"),
        ({"alpha": {"hidden": {"start": 1, "end": 0, "tokens": 0}}}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"alpha": {"hidden": float("inf")}}, "alpha"),
        ({"alpha": 10**400}, "alpha"),
        ({"alpha": 1e39}, "alpha"),
        ({"alpha": 1, "vllm_xargs": {"alpha": 1}}, "vllm_xargs"),
        ({"vllm_xargs": {"alpha": "hidden=x"}}, "vllm_xargs.alpha"),
        ({"vllm_xargs": {"beta": 1}}, "vllm_xargs.beta"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"seed": 2**70}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"presence_penalty": float("inf")}, "presence_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"97": 1}}, "logit_bias"),
        ({"logit_bias": {"3": 101}}, "logit_bias"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 9999}, "max_tokens"),
        ({"max_tokens": None, "max_completion_tokens": 9999}, "max_completion_tokens"),
        ({"max_completion_tokens": 5}, "max_tokens"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": []}, "functions"),
        ({"store": True}, "store"),
        ({"audio": {}}, "audio"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"beam_width": 3}, "beam_width"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages"),
        ({"messages": [{"role": "user", "content": HALF}]}, "messages[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].image_url",
        ),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour"),
        ({"messages": [{"role": "user", "content": "x" * 200}]}, "messages"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "messages[0].tool_calls",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(server, fields, param):
    body = {"messages": messages("ab"), "max_tokens": 4, **fields}
    response = server.http.post(
        "/v1/chat/completions", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert error["type"] == "invalid_request_error"
    assert error["message"].endswith((".", "?")), error["message"]
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stop": ["a"] * 17}, "'stop' has no valid value: list should have at most 16 items"),
        ({"stop": ["a", ""]}, "'stop[1]' has no valid value: string should have at least 1 character"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "'messages[0].content[0].text' is missing"),
    ],
)
def test_a_field_of_several_forms_is_refused_by_the_form_that_it_has(server, fields, words):
    error = server.post("/v1/chat/completions", {"messages": messages("ab"), **fields}).json()["error"]
    assert error["message"].startswith(words)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [97]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": ["a", [3]], "max_tokens": 128}, "max_tokens"),
        ({"prompt": "x" * 128}, "prompt"),
        ({"prompt": ["x"] * 65}, "prompt"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": True}, "logprobs"),
        ({"messages": []}, "messages"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_a_completion_is_refused_likewise(server, fields, param):
    response = server.post("/v1/completions", {"prompt": "ab", **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.json()


def test_fields_that_ask_for_nothing_are_taken(client):
    settings = {
        "n": 1,
        "user": "someone",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "modalities": ["text"],
        "response_format": {"type": "text"},
        "parallel_tool_calls": True,
        "tool_choice": "none",
        "presence_penalty": 0,
        "logit_bias": {},
        "top_logprobs": None,
        "stop": None,
        "safety_identifier": "x",
        "reasoning_effort": "none",
    }
    assert complete(client, PROMPTS[0], None, **settings).choices[0].message.content


def test_openais_client_raises_its_own_errors(client):
    with pytest.raises(BadRequestError, match="No guide is named 'nobody'") as caught:
        complete(client, PROMPTS[0], {"nobody": 1})
    assert caught.value.param == "alpha"
    with pytest.raises(NotFoundError) as caught:
        complete(client, PROMPTS[0], None, model="gpt")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    with pytest.raises(BadRequestError):
        complete(client, PROMPTS[0], {"nobody": 1}, stream=True)


def test_what_is_longer_than_the_context_has_openais_code(client):
    long = "x" * 200
    for ask in (
        lambda: complete(client, long, None),
        lambda: complete(client, "a", None, 9999),
        lambda: client.completions.create(model="toy", prompt=long),
        lambda: score(client, replies=[long]),
    ):
        with pytest.raises(BadRequestError) as caught:
            ask()
        assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{", "application/json"),
        (b"[1]", "application/json"),
        (b"3", "application/json"),
        (b"", "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"max_tokens": ' + b"1" * 5000 + b"}", "application/json"),
        (b'{"messages": []}', "text/plain"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(server, content, kind):
    response = server.http.post("/v1/chat/completions", content=content, headers={"Content-Type": kind})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_what_is_no_route_is_refused_in_the_same_form(server):
    unknown = (("/v1/embeddings", "POST", 404), ("/tokenize/", "POST", 404), ("/v1/chat/completions", "GET", 405))
    for path, method, status in unknown:
        response = server.http.request(method, path)
        assert (response.status_code, list(response.json())) == (status, ["error"])
    assert response.headers["allow"] == "POST"


def test_the_schema_names_the_types_that_routes_send(server):
    paths = server.http.get("/openapi.json").json()["paths"]

    def documented(path, method):
        return set(paths[path][method]["responses"]["200"]["content"])

    def sent(response):
        return response.headers["content-type"].split(";")[0]

    assert documented("/metrics", "get") == {sent(server.http.get("/metrics"))}
    for path, prompt in (("/v1/chat/completions", {"messages": messages("a")}), ("/v1/completions", {"prompt": "a"})):
        bodies = [{**prompt, "max_tokens": 1, "stream": stream} for stream in (False, True)]
        assert documented(path, "post") == {sent(server.post(path, body)) for body in bodies}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "a"}),
        ("/tokenize", {"prompt": "a", "messages": None}),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}]}),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}),
        ("/tokenize", {}),
        ("/tokenize", {"messages": [{"role": "user"}]}),
        ("/tokenize", {"messages": [{"role": "user", "content": None}]}),
        ("/tokenize", {"messages": [{"role": "user", "content": None, "tool_calls": []}]}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1, "repetition_penalty": 0.001}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1, "repetition_penalty": 0.0001}),
        ("/v1/completions", {"prompt": [[5.0, 6], "a"], "max_tokens": 1.0, "n": 2.0, "seed": 3.0}),
        ("/v1/completions", {"prompt": [5.5], "max_tokens": 1}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1.5}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1, "n": 17}),
        ("/v1/completions", {"prompt": "a", "max_tokens": "1"}),
        ("/v1/completions", {"prompt": "a", "max_tokens": True}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1, "echo": False, "store": False, "best_of": 1}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1, "echo": 0}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1, "store": 0.0}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1, "best_of": True}),
        ("/v1/chat/completions", {**CHAT_BODY, "parallel_tool_calls": 1}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1, "logit_bias": {"5": 1}}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1, "logit_bias": {"word": 1}}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1, "stream_options": {"include_usage": True}}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1, "stream_options": {}, "stream": True}),
        ("/v1/chat/completions", {**CHAT_BODY, "top_logprobs": 0}),
        ("/v1/chat/completions", {**CHAT_BODY, "top_logprobs": 2}),
        ("/v1/chat/completions", {**CHAT_BODY, "top_logprobs": 2, "logprobs": True}),
    ],
    ids=str,
)
def test_a_body_is_refused_where_the_schema_refuses_it(server, path, body):
    schemas = server.http.get("/openapi.json").json()
    name = schemas["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    valid = Draft202012Validator({"$ref": name, **schemas}).is_valid(body)
    assert server.post(path, body).status_code == (200 if valid else 400)


def test_an_error_in_a_stream_is_an_event(client, server, monkeypatch):
    """The status has been sent by then."""
    monkeypatch.setattr(server.api.host.engine, "stream", _broken)
    with pytest.raises(APIError, match="boom"):
        list(complete(client, PROMPTS[0], None, stream=True))


async def _broken(request):
    from dual_head.errors import DualHeadError
    from dual_head.serve.types import Piece

    yield Piece("a")
    raise DualHeadError("boom")

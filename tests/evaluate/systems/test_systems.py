"""Systems: named on a command line, told apart by their files, and asked alike whatever they are."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from files import word_tokenizer, write_adapter, write_backbone, write_guides
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

import dual_head.evaluate.systems.model as asking
from dual_head import AlignedModel, DualHeadError, RewardHeadConfig
from dual_head.evaluate import Decoding, Question
from dual_head.evaluate.systems import (
    System,
    SystemSpec,
    adapter,
    fits,
    guided,
    open_system,
    parse_systems,
    plain,
)
from dual_head.evaluate.systems.store import answer_all
from dual_head.guides.language_model import LanguageModelConfig
from dual_head.guides.linear import LinearConfig
from dual_head.replies import RULES, Rule

GATED = RewardHeadConfig(num_heads=2, head_dim=8)
SHORT = Decoding(max_new_tokens=6)
DRAWN = Decoding(max_new_tokens=6, temperature=1.0)


def user(text):
    return {"role": "user", "content": text}


QUESTIONS = [
    Question("text", "ask0 ask1"),
    Question("chat", (user("how can i ask2 ?"),)),
    Question("turns", (user("ask3"),), ("ask4 ask5", "ask6")),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A backbone, two guides on it, one guide that is an adapter's model, and the adapter."""
    folder = tmp_path_factory.mktemp("systems")
    backbone = write_backbone(folder / "backbone", spread=0.3)
    write_guides(
        folder / "guides", backbone, {"gated": GATED, "plain": LinearConfig()}, spread=0.5, alpha={"plain": 0.5}
    )
    write_adapter(folder / "adapter", backbone)
    write_guides(folder / "tuned", backbone, {"lm": LanguageModelConfig(model=str(folder / "adapter"), tune="none")})
    return folder


def system(folder, alpha=None, **options):
    return open_system(SystemSpec("it", str(folder), alpha), **options)


# ---- names on a command line -----------------------------------------------------------------------------


def test_systems_are_named_with_commas_or_repeated_and_after_their_folder_where_unnamed(tmp_path):
    (tmp_path / "guides").mkdir()
    parsed = parse_systems([f"base=hub/name, dual_head={tmp_path}@1.5", f"{tmp_path}/guides/", "out/gpt4.jsonl.gz"])
    assert parsed == [
        SystemSpec("base", "hub/name"),
        SystemSpec("dual_head", str(tmp_path), 1.5),
        SystemSpec("guides", f"{tmp_path}/guides/"),
        SystemSpec("gpt4", "out/gpt4.jsonl.gz"),
    ]


def test_strengths_follow_the_last_at_for_all_guides_or_by_name(tmp_path):
    (tmp_path / "a@2").mkdir()
    (mix, negative, inside, whole) = parse_systems(
        ["mix=p@helpful:0.5+harmless:-1", "negative=p@-0.5", "inside=p@v2/q", f"whole={tmp_path}/a@2"]
    )
    assert mix.alpha == {"helpful": 0.5, "harmless": -1.0}
    assert (negative.path, negative.alpha) == ("p", -0.5)
    assert (inside.path, inside.alpha) == ("p@v2/q", None)
    assert (whole.path, whole.alpha) == (f"{tmp_path}/a@2", None)


@pytest.mark.parametrize(
    ("texts", "remedy"),
    [
        ([], "There is no system"),
        ([","], "There is no system"),
        (["a="], "names no path"),
        (["a=p,a=q"], "Two systems are named 'a'"),
        (["x/same", "y/same"], "Two systems are named 'same'"),
        (["a=p@much"], "'much' in 'p@much' is not a strength"),
        (["a=p@nan"], "not finite"),
        (["a=p@x:1+x:2"], "there twice"),
        (["a=p@x:"], "is not a strength"),
        (["a b=p"], "cannot be a system's name"),
        (["../x=p"], "cannot be a system's name"),
    ],
)
def test_a_mistyped_system_is_refused_with_how_to_write_it(texts, remedy):
    with pytest.raises(DualHeadError, match=remedy):
        parse_systems(texts)


# ---- what a system is ------------------------------------------------------------------------------------


def test_every_kind_of_system_is_told_from_its_files_without_a_model(folders, monkeypatch):
    for kind in (plain, adapter):
        monkeypatch.setattr(kind, "load_backbone", None)
    monkeypatch.setattr(guided, "AlignedModel", None)
    found = {name: system(folders / name) for name in ("backbone", "guides", "adapter", "tuned")}
    assert {name: type(one) for name, one in found.items()} == {
        "backbone": plain.PlainSystem,
        "guides": guided.GuidedSystem,
        "adapter": adapter.AdapterSystem,
        "tuned": guided.GuidedSystem,
    }
    assert all(isinstance(one, System) for one in found.values())
    assert len({one.identity for one in found.values()}) == 4
    assert found["guides"].alpha == {"gated": 1.0, "plain": 0.5}


def test_identity_is_that_of_the_files_and_of_the_strength_that_acts(folders, tmp_path):
    copied = shutil.copytree(folders / "guides", tmp_path / "elsewhere")
    here = system(folders / "guides").identity
    assert system(copied).identity == here
    assert system(copied, {"gated": 1.0, "plain": 0.5}).identity == here
    assert system(copied, {"gated": 1.0}).identity == system(copied, {"gated": 1.0, "plain": 0.0}).identity
    others = {system(copied, alpha).identity for alpha in (0.0, 1.0, {"gated": 1.0}, {"gated": 0.5, "plain": 1.0})}
    others |= {system(copied, dtype="bfloat16").identity}
    assert len(others | {here}) == 6


def test_other_weights_another_template_or_other_stops_are_another_system(folders, tmp_path):
    def changed(name, change):
        folder = shutil.copytree(folders / name, tmp_path / f"{name}{len(list(tmp_path.iterdir()))}")
        before = system(folder).identity
        change(folder)
        return system(folder).identity != before

    def flip(folder):
        file = folder / "model.safetensors"
        values = bytearray(file.read_bytes())
        values[-1] ^= 1
        file.write_bytes(values)

    def template(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = "{{ messages[0]['content'] }}"
        tokenizer.save_pretrained(folder)

    def stop(folder):
        GenerationConfig(eos_token_id=[2, 5]).save_pretrained(folder)

    assert changed("backbone", flip)
    assert changed("guides", flip)
    assert changed("backbone", template)
    assert changed("backbone", stop)
    assert not changed("backbone", lambda folder: (folder / "README.md").write_text("a word"))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("tuned", "adapter/adapter_model.safetensors"),
        ("tuned", "backbone/generation_config.json"),
        ("adapter", "backbone/model.safetensors"),
    ],
)
def test_a_system_changes_with_the_models_it_leans_on(folders, tmp_path, name, part):
    before = system(folders / name).identity
    file = folders / part
    kept = file.read_bytes()
    try:
        file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]) if part.endswith("safetensors") else kept + b"\n")
        assert system(folders / name).identity != before
    finally:
        file.write_bytes(kept)
    assert system(folders / name).identity == before


def test_what_is_no_system_is_refused_with_the_remedy(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "out.json").write_text('[{"instruction": "a", "output": "b"}]')
    bare = shutil.copytree(folders / "backbone", tmp_path / "bare", ignore=shutil.ignore_patterns("token*"))
    cases = {
        "there is no such folder": (tmp_path / "absent", None),
        "it has no config.json": (tmp_path / "empty", None),
        "files of answers end in": (tmp_path / "notes.txt", None),
        "a file of answers, which has no alpha": (tmp_path / "out.json", 1.0),
        "'it' has no guides": (folders / "backbone", 1.0),
        "The system 'it': No guide is named 'gate'. Did you mean 'gated'": (folders / "guides", {"gate": 1.0}),
    }
    for remedy, (folder, alpha) in cases.items():
        with pytest.raises(DualHeadError, match=remedy):
            system(folder, alpha)
    with pytest.raises(DualHeadError, match="no tokenizer of its own"):
        _ = system(bare).identity


# ---- asking ----------------------------------------------------------------------------------------------


def test_guides_reply_what_generate_replies_and_a_plain_model_what_its_backbone_does(folders):
    model = AlignedModel.from_pretrained(str(folders / "guides"))
    prompts = [question.prompt for question in QUESTIONS[:2]]
    replies = {}
    for alpha in (0.0, 2.0):
        answers = system(folders / "guides", alpha).answer(QUESTIONS[:2], SHORT)
        replies[alpha] = [answer.replies[0] for answer in answers]
        expected = model.generate(prompts, alpha=alpha, max_new_tokens=6, temperature=0)
        assert [reply.strip() for reply in replies[alpha]] == expected
    assert replies[0.0] != replies[2.0]
    plain = system(folders / "backbone").answer(QUESTIONS[:2], SHORT)
    assert [answer.replies[0] for answer in plain] == replies[0.0]


def test_guides_on_another_precision_of_their_backbone_answer_as_another_system(folders, tmp_path):
    lm = LlamaForCausalLM.from_pretrained(folders / "backbone")
    with torch.no_grad():
        for weight in lm.parameters():
            weight.mul_(1 + 0.01 * torch.rand_like(weight))
    shutil.copytree(folders / "backbone", tmp_path / "backbone")
    lm.save_pretrained(tmp_path / "backbone")
    shutil.copytree(folders / "guides", tmp_path / "guides")
    config = json.loads((tmp_path / "guides" / "config.json").read_text())
    config["backbone_name_or_path"] = str(tmp_path / "backbone")
    (tmp_path / "guides" / "config.json").write_text(json.dumps(config))
    with pytest.raises(DualHeadError, match="--other_precision"):
        system(tmp_path / "guides").answer(QUESTIONS[:2], SHORT)
    other = system(tmp_path / "guides", other_precision=True)
    assert all(answer.replies for answer in other.answer(QUESTIONS[:2], SHORT))
    assert other.identity != system(tmp_path / "guides").identity == system(folders / "guides").identity


def test_guides_answer_in_a_running_batch_with_the_replies_of_padded_ones(folders, monkeypatch):
    it, sizes, generate_batch = system(folders / "guides", 2.0), [], asking.generate_batch
    monkeypatch.setattr(
        asking, "generate_batch", lambda model, rows, **kw: sizes.append(len(rows)) or generate_batch(model, rows, **kw)
    )
    batched = it.answer(QUESTIONS, SHORT)
    assert sizes == [3]  # the later turns have one question
    monkeypatch.setattr(asking, "is_faster", lambda *_, **__: False)
    assert it.answer(QUESTIONS, SHORT) == batched
    assert sizes == [3]


def test_an_adapter_replies_as_the_model_it_makes_of_its_base(folders):
    import peft

    from dual_head.guides.second_model import injecting

    lm = LlamaForCausalLM.from_pretrained(folders / "backbone")
    with injecting(lm):
        tuned = peft.PeftModel.from_pretrained(lm, folders / "adapter")
    ids = word_tokenizer()("ask0 ask1", return_tensors="pt")
    merged = tuned.merge_and_unload().generate(**ids, max_new_tokens=6, do_sample=False)
    (answer,) = system(folders / "adapter").answer(QUESTIONS[:1], SHORT)
    assert answer.replies[0].split() == word_tokenizer().decode(merged[0, 3:], skip_special_tokens=True).split()
    assert answer.replies != system(folders / "backbone").answer(QUESTIONS[:1], SHORT)[0].replies


def test_each_turn_is_asked_after_what_was_replied_before(folders, monkeypatch):
    asked, encode = [], asking.encode_prompts
    monkeypatch.setattr(
        asking, "encode_prompts", lambda prompts, tokenizer: asked.extend(prompts) or encode(prompts, tokenizer)
    )
    it = system(folders / "guides")
    (answer,) = it.answer([QUESTIONS[2]], SHORT)
    first, second = (reply.strip() for reply in answer.replies[:2])
    turns = [user("ask3"), {"role": "assistant", "content": first}, user("ask4 ask5")]
    turns += [{"role": "assistant", "content": second}, user("ask6")]
    assert [list(prompt) for prompt in asked] == [turns[:1], turns[:3], turns]
    said = [user("ask3")]
    for turn, reply in enumerate(answer.replies):
        (alone,) = it.answer([Question("alone", tuple(said))], SHORT)
        assert alone.replies == (reply,)
        assert (alone.tokens, alone.finished) == (answer.tokens[turn : turn + 1], answer.finished[turn : turn + 1])
        said += [{"role": "assistant", "content": reply.strip()}, user([*QUESTIONS[2].asked, ""][turn + 1])]
    assert len(answer.replies) == 3
    assert len(set(answer.replies)) > 1


def test_a_batch_of_unlike_questions_replies_as_each_alone(folders):
    it = system(folders / "guides")
    together = it.answer(QUESTIONS, SHORT)
    assert together == [it.answer([question], SHORT)[0] for question in QUESTIONS]
    assert [len(answer.replies) for answer in together] == [1, 1, 3]


def test_the_end_counts_as_a_token_and_is_not_said(folders, monkeypatch):
    it = system(folders / "backbone")
    words = it.tokenizer("good0 good1", add_special_tokens=False)["input_ids"]
    ends, pads = it.tokenizer.eos_token_id, it.tokenizer.pad_token_id
    new = [[*words, ends, pads], [ends, pads, pads, pads], [*words, *words]]

    def replies(ids, **options):
        return torch.cat([ids, torch.tensor(new)], 1)

    monkeypatch.setattr(it.model, "generate", replies)
    questions = [Question(str(i), f"ask{i}") for i in range(3)]
    first, silent, cut = it.answer(questions, SHORT)
    # With the space it begins with, so that prompt and reply are one text.
    assert (first.replies, first.tokens, first.finished) == ((" good0 good1",), (3,), (True,))
    assert (silent.replies, silent.tokens, silent.finished) == (("",), (1,), (True,))
    assert (cut.replies, cut.tokens, cut.finished) == ((" good0 good1 good0 good1",), (4,), (False,))
    # What ends a reply may be a word to the tokenizer, as in models whose turns end otherwise than their documents.
    it.model.generation_config.eos_token_id = [ends, words[1]]
    worded = it.answer(questions, SHORT)
    assert [answer.replies for answer in worded] == [(" good0",), ("",), (" good0",)]
    assert [answer.tokens for answer in worded] == [(2,), (1,), (2,)]


def test_a_models_own_settings_do_not_change_how_it_is_decoded(folders, tmp_path):
    folder = shutil.copytree(folders / "backbone", tmp_path / "opinionated")
    settings = {"do_sample": True, "temperature": 0.3, "top_k": 5, "top_p": 0.5, "repetition_penalty": 5.0}
    GenerationConfig(eos_token_id=2, pad_token_id=0, **settings, max_length=3).save_pretrained(folder)
    for decoding in (SHORT, DRAWN):
        assert system(folder).answer(QUESTIONS, decoding) == system(folders / "backbone").answer(QUESTIONS, decoding)


def test_what_is_drawn_repeats_by_seed_and_leaves_the_callers_generator_alone(folders):
    it = system(folders / "backbone")
    drawn = it.answer(QUESTIONS, DRAWN)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert it.answer(QUESTIONS, DRAWN) == drawn
    assert torch.rand(1) == expected
    assert it.answer(QUESTIONS, Decoding(max_new_tokens=6, temperature=1.0, seed=1)) != drawn
    # Those that agree on what to say draw the same, so that their difference is not chance.
    assert system(folders / "guides", 0.0).answer(QUESTIONS, DRAWN) == drawn
    greedy = it.answer(QUESTIONS, SHORT)
    assert it.answer(QUESTIONS, Decoding(max_new_tokens=6, temperature=1.0, top_k=1)) == greedy != drawn


def test_a_released_model_is_loaded_again_when_it_is_asked(folders, monkeypatch):
    loaded = []
    load = plain.load_backbone
    monkeypatch.setattr(plain, "load_backbone", lambda *args, **options: loaded.append(args) or load(*args, **options))
    it = system(folders / "backbone")
    first = it.answer(QUESTIONS[:1], SHORT)
    assert it.answer(QUESTIONS[:1], SHORT) == first
    assert len(loaded) == 1
    it.release()
    assert it.answer(QUESTIONS[:1], SHORT) == first
    assert len(loaded) == 2


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}]
)
def test_a_decoding_out_of_bounds_is_refused(wrong):
    with pytest.raises(DualHeadError, match=f"{next(iter(wrong))} must be"):
        Decoding(**wrong)


def test_a_device_that_is_not_there_is_refused(folders):
    with pytest.raises(DualHeadError, match="Cannot use the device"):
        _ = system(folders / "backbone", device="nowhere").model


# ---- what fits -------------------------------------------------------------------------------------------


def test_questions_too_long_for_one_system_are_left_out_for_all_and_counted(folders, tmp_path):
    small = write_backbone(tmp_path / "small", spread=0.3)
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16}))
    systems = [open_system(spec) for spec in parse_systems([f"big={folders / 'guides'},small={small}"])]
    # <s> and nine words leave six tokens of sixteen.
    long, fitting = Question("long", "ask0 " * 10), Question("fitting", "ask0 " * 9)
    kept, drops = fits([long, fitting], systems, SHORT)
    assert kept == [fitting]
    assert drops.reasons == {"with 6 new tokens it exceeds the 16 of 'small'": 1}
    assert (drops.rows, drops.kept, drops.first[next(iter(drops.reasons))]) == (2, 1, "long")
    assert systems[1].answer(kept, SHORT)[0].tokens[0] <= 6
    with pytest.raises(DualHeadError, match="The question 'long' has 11 tokens for 'small'"):
        systems[1].answer([long], SHORT)
    with pytest.raises(DualHeadError, match="No question is left"):
        fits([long], systems, SHORT)


def test_room_is_kept_for_the_replies_of_every_turn(folders):
    it = system(folders / "guides")
    # <s>, "Human:" three times, four words and "Assistant:" three times leave 53 of 64 tokens to three replies.
    assert it.why_not(QUESTIONS[2], Decoding(max_new_tokens=17)) is None
    assert it.why_not(QUESTIONS[2], Decoding(max_new_tokens=18)) == "with 54 new tokens it exceeds the 64 of 'it'"


def test_a_conversation_that_a_chat_template_refuses_is_left_out(folders, tmp_path):
    folder = shutil.copytree(folders / "backbone", tmp_path / "picky")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = refuse + "{{ messages[-1]['content'] }}"
    tokenizer.save_pretrained(folder)
    it = system(folder)
    assert it.why_not(QUESTIONS[1], SHORT) is None
    told = Question("told", ({"role": "system", "content": "a"}, user("ask1")))
    assert it.why_not(told, SHORT) == "'it' cannot be asked it: chat template: no system"


def test_a_text_has_no_second_turn(folders):
    wrong = Question("wrong", "ask0", ("ask1",))
    for ask in (lambda it: it.answer([wrong], SHORT), lambda it: it.why_not(wrong, SHORT)):
        with pytest.raises(DualHeadError, match="'wrong' is a text with a second turn"):
            ask(system(folders / "backbone"))


# ---- answers that were given before ----------------------------------------------------------------------


def test_a_file_of_answers_is_a_system_that_can_be_looked_up(tmp_path):
    file = tmp_path / "gpt4.json"
    file.write_text('[{"instruction": "ask0 ask1", "output": "yes", "generator": "gpt4"}]')
    (spec,) = parse_systems([str(file)])
    it = open_system(spec)
    assert not isinstance(it, asking.ModelSystem)
    assert isinstance(it, System)
    assert (it.name, it.alpha, it.recorded) == ("gpt4", {}, None)
    assert fits(QUESTIONS, [it], SHORT)[0] == QUESTIONS
    (answer,) = it.answer(QUESTIONS, SHORT)
    assert (answer.question, answer.replies) == ("text", ("yes",))
    before = it.identity
    file.write_text('[{"instruction": "ask0 ask1", "output": "no", "generator": "gpt4"}]')
    assert open_system(spec).identity != before


def test_a_recorded_answer_of_no_reply_at_all_is_none(tmp_path):
    rows = [
        {"question_id": name, "model_id": "m", "choices": [{"turns": turns}]}
        for name, turns in (("a", []), ("b", [""]))
    ]
    (tmp_path / "arena.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"question": "a", "prompt": "ask0", "follow_ups": [], "replies": [], "tokens": [], "finished": []}
    (tmp_path / "own.jsonl").write_text(json.dumps(own) + "\n")
    questions = [Question("a", "ask0"), Question("b", "ask1")]
    assert [answer.question for answer in system(tmp_path / "arena.jsonl").answer(questions, SHORT)] == ["b"]
    assert system(tmp_path / "own.jsonl").answer(questions, SHORT) == []


# ---- other kinds -----------------------------------------------------------------------------------------

PARROT = '''"""Replies with what it was asked."""
from dual_head.evaluate import Answer
from dual_head.evaluate.systems import System


class SYSTEM(System):
    identity = "0" * 64

    @classmethod
    def reads(cls, path):
        return path.startswith("parrot:")

    def answer(self, questions, decoding):
        return [Answer(question=question.id, replies=question.asked) for question in questions]
'''


def test_a_kind_of_system_of_another_package_is_one_file(folders, install):
    install("systems", "parrot", PARROT)
    (spec,) = parse_systems(["polly=parrot:x"])
    it = open_system(spec)
    assert [answer.replies for answer in it.answer(QUESTIONS, SHORT)] == [question.asked for question in QUESTIONS]
    assert isinstance(system(folders / "guides"), guided.GuidedSystem)


def test_a_broken_kind_of_system_keeps_no_other_from_working(folders, install):
    install("systems", "broken", "SYSTEM = 3")
    assert isinstance(system(folders / "backbone"), plain.PlainSystem)


def test_guides_may_run_on_a_copy_of_their_backbone_in_another_place(tmp_path):
    backbone = write_backbone(tmp_path / "backbone", spread=0.3)
    write_guides(tmp_path / "guides", backbone, {"plain": LinearConfig()}, spread=0.5)
    (before,) = system(tmp_path / "guides").answer(QUESTIONS[:1], SHORT)
    backbone.rename(tmp_path / "moved")
    with pytest.raises(DualHeadError):
        system(tmp_path / "guides").answer(QUESTIONS[:1], SHORT)
    moved = system(tmp_path / "guides", backbone=str(tmp_path / "moved"))
    assert moved.answer(QUESTIONS[:1], SHORT) == [before]
    other = write_backbone(tmp_path / "other", spread=0.7)
    with pytest.raises(DualHeadError, match="were trained on another backbone"):
        system(tmp_path / "guides", backbone=str(other)).answer(QUESTIONS[:1], SHORT)


# ---- the best of n ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def length(monkeypatch):
    """A rule that tells short replies apart."""
    rule = Rule(lambda prompt, reply: float(len(reply)), "characters", "long")
    monkeypatch.setitem(RULES, "length", rule)


def best_of(folders, count=3, reward="rule:length", alpha=None):
    return open_system(SystemSpec("best", f"best_of:{count}:{reward}:of:{folders / 'guides'}", alpha))


def test_the_best_of_n_is_the_sample_with_the_largest_reward_summed_over_the_turns(folders):
    best, plain_system = best_of(folders), system(folders / "guides")
    answers = best.answer(QUESTIONS, DRAWN)
    samples = [plain_system.answer(QUESTIONS, replace(DRAWN, seed=seed)) for seed in range(3)]
    for i, question in enumerate(QUESTIONS):
        totals = [sum(len(reply) for reply in sample[i].marked) for sample in samples]
        assert answers[i].question == question.id
        assert answers[i] in [sample[i] for sample, total in zip(samples, totals, strict=True) if total == max(totals)]
    later = best.answer(QUESTIONS, replace(DRAWN, seed=1))
    assert later == best_of(folders).answer(QUESTIONS, replace(DRAWN, seed=1))
    assert later != answers


def test_a_reward_reads_the_conversation_that_its_reply_stands_in(folders, monkeypatch):
    seen = []
    rule = Rule(lambda prompt, reply: seen.append((prompt, reply)) or 0.0, "", "")
    monkeypatch.setitem(RULES, "seen", rule)
    (answer,) = best_of(folders, 2, "rule:seen").answer(QUESTIONS[2:], DRAWN)
    second_turn, reply = seen[1]
    assert second_turn == (user("ask3"), {"role": "assistant", "content": answer.replies[0]}, user("ask4 ask5"))
    assert reply == answer.replies[1]


def test_the_best_of_n_is_told_by_its_system_its_number_and_its_reward(folders):
    one = best_of(folders)
    assert one.alpha == system(folders / "guides").alpha
    others = [best_of(folders, 4), best_of(folders, reward="rule:positive"), best_of(folders, alpha=0.0)]
    assert len({each.identity for each in (one, *others, system(folders / "guides"))}) == 5


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("best_of:1:rule:concise:of:x", "with N from 2"),
        ("best_of:rule:concise:of:x", "with N from 2"),
        ("best_of:4:rule:concise", "with N from 2"),
        ("best_of:4:rule:nothing:of:x", "Unknown rule 'nothing'"),
        ("best_of:4:rule:concise:of:nowhere/at/all", "There is no system"),
    ],
)
def test_a_mistyped_best_of_n_is_refused(path, remedy):
    with pytest.raises(DualHeadError, match=remedy):
        open_system(SystemSpec("best", path))


def test_one_greedy_reply_is_not_chosen_among_and_nothing_is_asked_before(folders, tmp_path):
    with pytest.raises(DualHeadError, match="Set --temperature"):
        answer_all(best_of(folders), QUESTIONS, SHORT, tmp_path)
    with pytest.raises(DualHeadError, match="Set --temperature"):
        fits(QUESTIONS, [best_of(folders)], SHORT)


def test_a_file_of_answers_is_not_sampled(tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text('{"instruction": "a", "output": "b", "generator": "c"}\n')
    with pytest.raises(DualHeadError, match="is a file of answers"):
        open_system(SystemSpec("best", f"best_of:4:rule:concise:of:{file}"))

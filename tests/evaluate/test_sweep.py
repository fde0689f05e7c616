"""Sweeps over alpha: shared prompts, measured replies, rewards, and a run that may be stopped."""

import json
import math
import sys
import textwrap

import pytest
import torch
from files import write_backbone
from models import ARCHITECTURES, guided_lm
from transformers import AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification

import dual_head.evaluate.sweep as sweeping
from dual_head import AlignedModel, DualHeadError, RewardHeadConfig
from dual_head.cli import main
from dual_head.evaluate.rewards import load_reward
from dual_head.evaluate.sweep import Row, shared_prompt_replies, summarise, sweep
from dual_head.guides.hidden import HiddenConfig
from dual_head.guides.language_model import LanguageModelConfig
from dual_head.guides.linear import LinearConfig
from dual_head.guides.reward_model import RewardModelConfig

PROMPT = torch.randint(3, 97, (1, 12), generator=torch.Generator().manual_seed(0))
ALPHAS = [0.0, 0.5, 1.0, 2.0]
GREEDY = {"do_sample": False, "max_new_tokens": 12}
GATED = RewardHeadConfig(num_heads=2, head_dim=8)
PROMPTS = ["ask0 ask1", "how can i ask2 ?", "once upon a time"]
SAMPLED = {"temperature": 1.0, "samples": 2, "max_new_tokens": 5}


@pytest.fixture(scope="module")
def guides(tmp_path_factory):
    """A folder of two guides on a random Llama; "gated" has a cache of its own."""
    folder = tmp_path_factory.mktemp("sweep")
    tokenizer = AutoTokenizer.from_pretrained(write_backbone(folder / "backbone"))
    guides = {"gated": GATED, "plain": LinearConfig()}
    model = AlignedModel.from_backbone(str(folder / "backbone"), guides, alpha={"plain": 0.5}, tokenizer=tokenizer)
    torch.manual_seed(1)
    for parameter in model.guides.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder / "guides")
    tokenizer.save_pretrained(folder / "guides")
    return folder / "guides"


@pytest.fixture(scope="module")
def model(guides):
    return AlignedModel.from_pretrained(str(guides))


@pytest.fixture(scope="module")
def tokenizer(guides):
    return AutoTokenizer.from_pretrained(guides)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory with a module of rewards in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    (tmp_path / "my_rewards.py").write_text(
        textwrap.dedent("""
            def words(prompt, reply):
                return len(reply.split()) / len(prompt.split())
            def nothing(prompt, reply): pass
            def text(prompt, reply): return "3"
            def infinite(prompt, reply): return float("inf")
            def failing(prompt, reply): return 1 / 0
            constant = 3
        """)
    )
    return tmp_path


# ---- one prompt, many strengths ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "guide"),
    [
        *((architecture, GATED) for architecture in ARCHITECTURES),
        ("llama", LanguageModelConfig()),
        ("gemma2", LanguageModelConfig()),
        ("llama", RewardModelConfig()),
        ("llama", HiddenConfig(gate="attention")),
    ],
)
def test_the_prompt_is_computed_once_and_replies_are_those_of_each_strength_alone(architecture, guide):
    model = guided_lm({"one": guide, "two": LinearConfig()}, architecture, spread=1.0)
    plain = [model.generate(PROMPT, alpha=alpha, **GREEDY) for alpha in ALPHAS]
    seen = {"backbone": [], "guide": []}
    encode = model.guide("one").encode

    def counted(features, cache):
        seen["guide"].append(tuple(features.hidden.shape[:2]))
        return encode(features, cache)

    model.guide("one").encode = counted
    model.backbone.register_forward_hook(
        lambda _module, _inputs, output: seen["backbone"].append(tuple(output[0].last_hidden_state.shape[:2]))
    )
    together = shared_prompt_replies(model, PROMPT, {"one": ALPHAS, "two": ALPHAS}, **GREEDY)
    assert together.tolist() == torch.cat(plain).tolist()
    assert len({tuple(row) for row in together.tolist()}) > 1
    for shapes in seen.values():
        assert shapes == [(1, 11), *[(4, 1)] * 12]  # the prompt but its last token, then one token a step


def test_a_prompt_of_one_token_has_nothing_to_share():
    model = guided_lm({"one": GATED})
    together = shared_prompt_replies(model, PROMPT[:, :1], {"one": ALPHAS}, **GREEDY)
    assert together.tolist() == [model.generate(PROMPT[:, :1], alpha=a, **GREEDY)[0].tolist() for a in ALPHAS]


def test_rows_are_the_replies_that_generate_gives(model, tokenizer):
    rows = sweep(model, tokenizer, PROMPTS, [0, 1.5], max_new_tokens=6)
    assert [(row.index, row.prompt, row.alpha) for row in rows] == [
        (i, prompt, alpha) for i, prompt in enumerate(PROMPTS) for alpha in (0, 1.5)
    ]
    for row in rows:
        alone = model.generate(row.prompt, tokenizer=tokenizer, alpha=row.alpha, max_new_tokens=6, temperature=0)
        assert row.text.strip() == alone
        assert row.alphas == {"gated": row.alpha, "plain": row.alpha}
    assert len({row.text for row in rows}) > len(PROMPTS)


def test_a_reply_keeps_the_space_between_it_and_the_prompt(model, tokenizer):
    row = next(row for row in sweep(model, tokenizer, PROMPTS, ALPHAS, max_new_tokens=4) if row.text)
    assert row.text.startswith(" ")
    assert tokenizer(row.prompt + row.text)["input_ids"] == tokenizer(row.prompt + " " + row.text.strip())["input_ids"]


def test_one_guide_is_swept_while_the_others_keep_their_strength(model, tokenizer):
    def strengths(**options):
        return [row.alphas for row in sweep(model, tokenizer, PROMPTS[:1], [0, 2], max_new_tokens=1, **options)]

    assert strengths(guide="gated") == [{"gated": a, "plain": 0.5} for a in (0, 2)]  # plain's default
    assert strengths(guide="gated", alpha={"plain": 3.0}) == [{"gated": a, "plain": 3.0} for a in (0, 2)]
    assert strengths(guide="plain", alpha=-1.0) == [{"gated": -1.0, "plain": a} for a in (0, 2)]


# ---- what is measured --------------------------------------------------------------------------------------


def test_divergence_and_length_are_what_a_trace_says(model, tokenizer):
    for row in sweep(model, tokenizer, PROMPTS, ALPHAS, max_new_tokens=8):
        _, (trace,) = model.generate(
            row.prompt, tokenizer=tokenizer, alpha=row.alpha, max_new_tokens=8, temperature=0, return_trace=True
        )
        assert row.tokens == len(trace)
        assert row.kl == pytest.approx(sum(token.kl for token in trace), abs=1e-4)
        assert row.kl_per_token == pytest.approx(row.kl / row.tokens)
        assert (row.moved > 0.01) == (row.alpha > 0)
        # Pinsker: total variation squared is at most half the divergence, token by token and so on average.
        assert 0 <= row.moved <= (row.kl_per_token / 2) ** 0.5 + 1e-6


def test_a_divergence_that_is_no_number_is_not_zero(model, tokenizer):
    rows = sweep(model, tokenizer, PROMPTS[:1], [0, 1e38], max_new_tokens=2)
    assert [math.isnan(row.kl) for row in rows] == [False, True]


def test_repetition_is_counted_without_the_token_that_ends_a_reply(model, tokenizer, monkeypatch):
    said = tokenizer("good0 good1 good0 good1 good2", add_special_tokens=False)["input_ids"]
    ended = [*said, tokenizer.eos_token_id, tokenizer.pad_token_id]

    def replies(model, prompt, strengths, **decoding):
        return torch.cat([prompt, torch.tensor([ended])], 1)

    monkeypatch.setattr(sweeping, "shared_prompt_replies", replies)
    (row,) = sweep(model, tokenizer, PROMPTS[:1], [1])
    assert (row.text, row.tokens) == (" good0 good1 good0 good1 good2", 6)
    assert (row.distinct_1, row.distinct_2, row.distinct_3) == pytest.approx((3 / 5, 3 / 4, 1))
    assert row.diversity == pytest.approx(3 / 5 * 3 / 4 * 2 / 3)


def test_an_empty_reply_has_figures_too(model, tokenizer, monkeypatch):
    def replies(model, prompt, strengths, **decoding):
        ends = torch.tensor([[tokenizer.eos_token_id, tokenizer.pad_token_id]])
        return torch.cat([prompt.repeat(2, 1), ends.repeat(2, 1)], 1)

    monkeypatch.setattr(sweeping, "shared_prompt_replies", replies)
    rows = sweep(model, tokenizer, PROMPTS[:1], [0, 1], rewards={"length": lambda prompt, reply: len(reply)})
    for row in rows:
        assert (row.text, row.tokens, row.distinct_1, row.distinct_3, row.diversity) == ("", 1, 0, 0, 0)
        assert row.rewards == {"length": 0}
    assert rows[0].kl == pytest.approx(0, abs=1e-6)
    assert rows[1].kl > 0
    assert summarise(rows)[0]["metrics"]["tokens"]["mean"] == 1


def test_samples_are_repeatable_and_do_not_depend_on_where_a_sweep_starts(model, tokenizer):
    whole = sweep(model, tokenizer, PROMPTS, [0, 1], **SAMPLED)
    assert [(row.alpha, row.sample) for row in whole[:4]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len({row.text for row in whole}) > 6
    assert sweep(model, tokenizer, PROMPTS, [0, 1], start=1, **SAMPLED) == whole[4:]
    assert sweep(model, tokenizer, PROMPTS, [0, 1], seed=7, **SAMPLED) != whole
    first, second = sweep(model, tokenizer, ["ask0", "ask0"], [0], temperature=1.0, max_new_tokens=20)
    assert first.text != second.text  # asked again, it draws again


def test_sampling_draws_from_the_whole_policy(model, tokenizer, monkeypatch):
    given = {}
    monkeypatch.setattr(model.generation_config, "top_p", 0.5)
    generate = model.generate

    def spied(*args, **options):
        given.update(options)
        return generate(*args, **options)

    monkeypatch.setattr(model, "generate", spied)
    sweep(model, tokenizer, PROMPTS[:1], [1], temperature=0.7, max_new_tokens=2)
    assert (given["do_sample"], given["temperature"], given["top_k"], given["top_p"]) == (True, 0.7, 0, 1.0)


def test_means_average_a_prompts_replies_first():
    base = {"prompt": "", "alphas": {}, "text": "", "kl": 1.0, "kl_per_token": 0.5, "moved": 0.1, "distinct_1": 1.0}
    base |= {"distinct_2": 1.0, "distinct_3": 1.0, "diversity": 0.5, "sample": 0}
    figures = [(1.0, 0, 2, 10.0), (1.0, 0, 4, 20.0), (1.0, 1, 9, 0.0), (0.0, 0, 7, 1.0)]
    rows = [Row(alpha=a, index=i, tokens=tokens, rewards={"r": r}, **base) for a, i, tokens, r in figures]
    zero, one = summarise(rows)
    assert (zero["alpha"], one["alpha"], one["prompts"], one["replies"]) == (0, 1, 2, 3)
    assert one["metrics"]["tokens"] == {"mean": (3 + 9) / 2, "interval": [3, 9]}  # of two prompts, either may be both
    assert one["rewards"]["r"]["mean"] == (15 + 0) / 2
    assert zero["metrics"]["tokens"]["interval"] == [7, 7]


def test_what_cannot_be_swept_is_refused_with_the_remedy(model, tokenizer):
    cases = {
        "There are no prompts": ([], [1], {}),
        "The prompt is empty": ([PROMPTS[0], " "], [1], {}),
        "no strengths to sweep": (PROMPTS, [], {}),
        "finite numbers": (PROMPTS, [0, float("nan")], {}),
        "there twice": (PROMPTS, [0, 1, 1.0], {}),
        "Did you mean 'gated'?": (PROMPTS, [0], {"guide": "gatd"}),
        "Did you mean 'plain'?": (PROMPTS, [0], {"guide": "gated", "alpha": {"plane": 1.0}}),
        "Leave it out of alpha": (PROMPTS, [0], {"guide": "gated", "alpha": {"gated": 1.0}}),
        "Say which guide is": (PROMPTS, [0], {"alpha": 1.0}),
        "Prompt 2 has 71 tokens and the backbone's context is 64": (["ask0", "ask0 " * 70], [0], {}),
        "Greedy replies are all the same": (PROMPTS, [0], {"samples": 2}),
    }
    for remedy, (prompts, alphas, options) in cases.items():
        with pytest.raises(DualHeadError) as refused:
            sweep(model, tokenizer, prompts, alphas, on_prompt=lambda rows: pytest.fail("it generated"), **options)
        assert remedy in str(refused.value)


# ---- rewards -----------------------------------------------------------------------------------------------


def test_a_reward_that_gives_no_number_is_refused(here, model, tokenizer, monkeypatch):
    monkeypatch.syspath_prepend(here)
    for name in ("nothing", "text", "infinite", "failing"):
        reward = dict([load_reward(f"my_rewards:{name}")])
        with pytest.raises(DualHeadError, match=f"'{name}' (gave|failed)"):
            sweep(model, tokenizer, PROMPTS, [0], rewards=reward, max_new_tokens=1)


def test_a_reward_model_scores_all_replies_to_a_prompt_in_one_forward(guides, model, tokenizer, tmp_path, monkeypatch):
    classifier = LlamaForSequenceClassification.from_pretrained(guides.parent / "backbone", num_labels=1)
    torch.nn.init.normal_(classifier.score.weight)
    classifier.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    name, reward = load_reward(str(tmp_path / "judge"))
    score, sizes = reward.score, []
    monkeypatch.setattr(reward, "score", lambda rows: sizes.append(len(rows)) or score(rows))
    rows = sweep(model, tokenizer, PROMPTS, ALPHAS, rewards={name: reward}, **SAMPLED)
    assert sizes == [len(ALPHAS) * SAMPLED["samples"]] * len(PROMPTS)
    assert [row.rewards[name] for row in rows] == pytest.approx(
        [reward(row.prompt, row.text) for row in rows], abs=1e-5
    )
    assert len({round(row.rewards[name], 4) for row in rows}) > len(PROMPTS)


@pytest.mark.parametrize(
    ("spec", "remedy"),
    [
        ("no_such_module:words", "Cannot import"),
        ("my_rewards:no_such", "Cannot import"),
        ("my_rewards:constant", "is int, not a function"),
        ("my_rewards", "module:function"),
        ("no/such/folder", "or a folder: of guides"),
    ],
)
def test_a_reward_that_is_not_there_is_refused(spec, remedy, here, monkeypatch):
    monkeypatch.syspath_prepend(here)
    with pytest.raises(DualHeadError, match=remedy):
        load_reward(spec)


def test_a_classifier_scores_prompt_and_reply_as_one_text(guides, tokenizer, tmp_path):
    backbone = guides.parent / "backbone"
    torch.manual_seed(0)
    classifier = LlamaForSequenceClassification.from_pretrained(backbone, num_labels=1)
    classifier.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    name, reward = load_reward(str(tmp_path / "judge"))
    ids = torch.tensor([[*tokenizer("ask0 ask1 good3 good4")["input_ids"], tokenizer.eos_token_id]])
    assert name == "judge"
    assert reward("ask0 ask1", " good3 good4") == pytest.approx(classifier(ids).logits.item(), abs=1e-6)
    assert reward("ask0 ask1", "") != reward("ask0 ask1", " good3")
    with pytest.raises(DualHeadError, match="reads 64"):
        reward("ask0 " * 60, " good1" * 10)


def test_what_is_no_reward_model_is_refused(guides, tokenizer, tmp_path):
    backbone = guides.parent / "backbone"
    LlamaForSequenceClassification.from_pretrained(backbone, num_labels=2).save_pretrained(tmp_path / "two")
    tokenizer.save_pretrained(tmp_path / "two")
    with pytest.raises(DualHeadError, match="it has 2"):
        load_reward(str(tmp_path / "two"))
    lm = LlamaForCausalLM.from_pretrained(backbone)
    lm.config.num_labels = 1
    lm.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    with pytest.raises(DualHeadError, match="a trained score"):
        load_reward(str(tmp_path / "lm"))  # a language model, whose score would be random
    (tmp_path / "empty").mkdir()
    with pytest.raises(DualHeadError, match=r"Could not (load a reward model|read the config of the model)"):
        load_reward(str(tmp_path / "empty"))


# ---- the command -------------------------------------------------------------------------------------------


def command(guides, out, *more) -> list[str]:
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    return [*map(str, ["sweep", guides, "--output_dir", out, "--max_new_tokens", 5, *prompts, *more])]


def refused(capsys, arguments) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def lines(out) -> list[dict]:
    return [json.loads(line) for line in (out / "sweep.jsonl").read_text().splitlines()]


def test_the_command_writes_rows_means_and_a_picture(guides, here, capsys):
    out = here / "out"
    assert main(command(guides, out, "--alphas", "0,1", "--reward", "my_rewards:words")) == 0
    said = capsys.readouterr()
    assert len(lines(out)) == 6
    summary = json.loads((out / "sweep.json").read_text())
    assert summary["command"].startswith("dual-head sweep")
    assert [point["alpha"] for point in summary["points"]] == [0, 1]
    point = summary["points"][1]
    replies = [row for row in lines(out) if row["alpha"] == 1]
    assert point["metrics"]["kl"]["mean"] == pytest.approx(sum(row["kl"] for row in replies) / 3)
    by_hand = [len(row["text"].split()) / len(row["prompt"].split()) for row in replies]
    assert point["rewards"]["words"]["mean"] == pytest.approx(sum(by_hand) / 3)
    low, high = point["rewards"]["words"]["interval"]
    assert low <= point["rewards"]["words"]["mean"] <= high
    assert all(heading in said.out for heading in ("alpha", "KL", "words", "means over 3 prompts"))
    assert "prompts ━" not in said.err  # no bar where nobody looks
    pytest.importorskip("matplotlib")
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_no_picture_and_the_line_that_brings_one(guides, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "dual_head.evaluate.sweep_plots", None)
    assert main(command(guides, tmp_path / "out", "--alphas", "0,1")) == 0
    assert "pip install 'dual-head[plot]'" in capsys.readouterr().out
    assert not (tmp_path / "out" / "sweep.png").exists()
    assert (tmp_path / "out" / "sweep.json").is_file()


def test_prompts_come_from_files_of_lines_or_json_and_as_conversations(guides, tmp_path):
    (tmp_path / "prompts.txt").write_text('ask3\n{"prompt": "ask4 ask5"}\n')
    given = ["--prompts", tmp_path / "prompts.txt", "--alphas", "1"]
    assert main(command(guides, tmp_path / "out", *given)) == 0
    assert [row["prompt"] for row in lines(tmp_path / "out")] == [*PROMPTS, "ask3", "ask4 ask5"]
    assert main(command(guides, tmp_path / "chat", "--alphas", "1", "--chat")) == 0
    assert lines(tmp_path / "chat")[0]["prompt"] == [{"role": "user", "content": PROMPTS[0]}]


@pytest.mark.parametrize("kept", [0, 5, 11])  # of twelve lines, four a prompt; the next one is cut
def test_a_killed_sweep_goes_on_where_it_stopped(kept, guides, tmp_path, capsys, monkeypatch):
    out, options = tmp_path / "out", ["--alphas", "0,1", "--temperature", "1", "--samples", "2"]
    assert main(command(guides, out, *options)) == 0
    whole = (out / "sweep.jsonl").read_text()
    rows = whole.splitlines(keepends=True)
    (out / "sweep.jsonl").write_text("".join(rows[:kept]) + rows[kept][:20])
    (out / "sweep.json").unlink()
    replied = []
    replies = sweeping.shared_prompt_replies
    monkeypatch.setattr(sweeping, "shared_prompt_replies", lambda *a, **k: replied.append(0) or replies(*a, **k))
    assert main(command(guides, out, *options)) == 0
    assert (out / "sweep.jsonl").read_text() == whole
    assert len(replied) == 3 - kept // 4
    assert json.loads((out / "sweep.json").read_text())["points"][0]["replies"] == 6


def test_rows_are_on_disk_as_soon_as_a_prompt_is_done(guides, tmp_path, monkeypatch):
    measured, there = sweeping.reply_scalars, []

    def third_fails(*args, **options):
        written = (tmp_path / "out" / "sweep.jsonl").exists()  # with its first row
        there.append([row["prompt"] for row in lines(tmp_path / "out")] if written else [])
        if len(there) == 3:
            raise KeyboardInterrupt
        return measured(*args, **options)

    monkeypatch.setattr(sweeping, "reply_scalars", third_fails)
    assert main(command(guides, tmp_path / "out", "--alphas", "1")) == 130
    assert there == [[], PROMPTS[:1], PROMPTS[:2]]


def test_a_sweep_that_fails_at_once_leaves_room_for_the_mended_one(guides, tmp_path, here, capsys):
    rewards = "def broken(prompt, reply):\n    return 'no number'\n\n\ndef good(prompt, reply):\n    return 1\n"
    (here / "my_rewards.py").write_text(rewards)
    out = tmp_path / "out"
    assert "gave 'no number'" in refused(capsys, command(guides, out, "--alphas", "1", "--reward", "my_rewards:broken"))
    assert main(command(guides, out, "--alphas", "1", "--reward", "my_rewards:good")) == 0


def test_a_sweep_with_other_options_is_refused_until_it_may_restart(guides, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(guides, out, "--alphas", "0,1")) == 0
    before = (out / "sweep.jsonl").read_text()
    for other in (
        ["--alphas", "0,2"],
        ["--alphas", "0,1", "--prompt", "ask9"],
        ["--alphas", "0,1", "--guide", "gated"],
    ):
        assert "--restart" in refused(capsys, command(guides, out, *other))
    assert "there twice" in refused(capsys, command(guides, out, "--alphas", "0,0", "--restart"))
    assert "context" in refused(capsys, command(guides, out, "--alphas", "0,2", "--restart", "--prompt", "ask0 " * 80))
    assert (out / "sweep.jsonl").read_text() == before
    assert main(command(guides, out, "--alphas", "0,2", "--restart")) == 0
    assert {row["alpha"] for row in lines(out)} == {0, 2}


def test_guides_that_were_trained_again_are_another_sweep(guides, tmp_path, capsys):
    model = AlignedModel.from_pretrained(str(guides))
    AutoTokenizer.from_pretrained(guides).save_pretrained(tmp_path / "guides")
    model.save_pretrained(tmp_path / "guides")
    assert main(command(tmp_path / "guides", tmp_path / "out", "--alphas", "1")) == 0
    with torch.no_grad():
        next(model.guides.parameters()).mul_(2)
    model.save_pretrained(tmp_path / "guides")
    assert "guides:" in refused(capsys, command(tmp_path / "guides", tmp_path / "out", "--alphas", "1"))


def test_a_sweep_beside_the_guides_leaves_their_files_alone(guides, tmp_path):
    before = {file.name: file.read_bytes() for file in guides.iterdir()}
    (guides / "run.json").write_text("{}")
    assert main(command(guides, guides, "--alphas", "1", "--restart")) == 0
    after = {file.name: file.read_bytes() for file in guides.iterdir()}
    assert before.items() <= after.items()
    assert after["run.json"] == b"{}"


def test_bad_input_is_one_paragraph(guides, here, capsys):
    (here / "empty.txt").write_text("\n")
    assert "--prompts" in refused(capsys, ["sweep", str(guides), "--output_dir", "out"])
    cases = {
        "--alphas takes numbers": ["--alphas", "0,one"],
        "finite numbers": ["--alphas", "0,nan"],
        "Did you mean 'gated'?": ["--guide", "gatted"],
        "'none.txt': No such file or directory. Check the path.": ["--prompts", "none.txt"],
        "The file of prompts": ["--prompts", "empty.txt"],
        "Cannot import the reward": ["--reward", "my_rewards:none"],
        "Two rewards are named": ["--reward", "my_rewards:words", "--reward", "my_rewards:words"],
    }
    for remedy, more in cases.items():
        assert remedy in refused(capsys, command(guides, here / "out", *more))
    assert not (here / "out" / "sweep.jsonl").exists()


def test_help_fits_the_screen(capsys):
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 110


def test_a_function_of_python_itself_has_no_file_to_record(guides, tmp_path, capsys):
    assert "'exit' failed" in refused(capsys, [*command(guides, tmp_path / "out"), "--reward", "sys:exit"])

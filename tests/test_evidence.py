"""The evidence run: parts that share no prompt, figures by hand, and the whole of it at a size that shows only that."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from dual_head import AlignedModel, HiddenConfig
from dual_head.data import Pair
from dual_head.errors import DualHeadError
from dual_head.evaluate import Decoding
from dual_head.model.generate import encode_prompts

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
RESULTS = EXPERIMENTS.parent / "docs" / "results" / "methods.md"
if str(EXPERIMENTS) not in sys.path:  # scripts that import each other by name
    sys.path.append(str(EXPERIMENTS))

import chat_backbone  # noqa: E402
import evidence_answers  # noqa: E402
import evidence_data  # noqa: E402
import evidence_figures  # noqa: E402
import evidence_runs  # noqa: E402
import evidence_script  # noqa: E402
import evidence_stages  # noqa: E402
import evidence_tables  # noqa: E402
import evidence_work  # noqa: E402
from evidence import SMALL_METHODS, identity  # noqa: E402
from evidence_judge import accuracy  # noqa: E402
from evidence_tables import BLOCK  # noqa: E402
from evidence_worlds import Asked, Demo, Dialogues  # noqa: E402


def dialogue(*said: str) -> Pair:
    roles = ("user", "assistant")
    prompt = tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(said))
    return Pair(prompt, "yes", "no")


def row(id: str, reward: float, *, alpha: str = "1", helpful: float = 0.0, harmless: float = 0.0, reply: str = "a b"):
    rewards = {"overall": reward, "helpful": helpful, "harmless": harmless}
    figures = {"tokens": 2, "diversity": 0.5, "kl": 0.25, "base_loss": 1.0, "finished": True}
    return {"id": id, "alpha": alpha, "reply": reply, "rewards": rewards, **figures}


# ---- parts --------------------------------------------------------------------------------------------------


def test_a_dialogue_is_in_one_part_at_whatever_depth():
    short = dialogue("How do I bake?")
    deep = dialogue("how do i  bake?", "Which bread?", "Rye.")
    assert evidence_data.part_of(short.prompt) == evidence_data.part_of(deep.prompt)


def test_parts_have_about_their_shares_and_every_pair_is_in_one():
    pairs = [dialogue(f"question {i}") for i in range(4000)]
    parts = evidence_data.in_parts(pairs)
    assert sum(map(len, parts.values())) == 4000
    for name, share in evidence_data.PARTS.items():
        assert abs(len(parts[name]) / 4000 - share) < 0.03  # four standard deviations of the largest


def test_more_rows_move_no_other():
    pairs = [dialogue(f"question {i}") for i in range(50)]
    few, many = evidence_data.in_parts(pairs[::2]), evidence_data.in_parts(pairs)
    assert all(pair in many[name] for name, own in few.items() for pair in own)


def test_no_prompt_of_people_is_in_two_parts(shared_data, tmp_path):
    counts = evidence_data.write_parts(shared_data, tmp_path)
    openings = {}
    for part in evidence_data.PARTS:
        pairs, _ = evidence_data.load_pairs(str(tmp_path / f"pairs-overall-{part}.jsonl"))
        openings[part] = {evidence_data.opening(pair.prompt) for pair in pairs}
        assert counts["overall"][part] == counts["helpful"][part] + counts["harmless"][part] > 0
    for one in openings:
        for other in openings:
            assert one == other or not openings[one] & openings[other]


def test_the_search_and_the_tables_ask_different_requests_of_the_demonstration(tmp_path):
    world = Demo(folder=tmp_path)
    dev, test = ([one.prompt for one in world.asked(part, n)] for part, n in (("dev", 100), ("test", 300)))
    assert len({*dev, *test}) == 400


def test_what_dialogues_are_compared_by_stands_for_everything(tmp_path):
    (tmp_path / "pairs-helpful-train.jsonl").touch()
    world = Dialogues(folder=tmp_path, backbone=str(tmp_path), about="helpful")
    assert world.pairs("overall", 0) == world.pairs("helpful", 0) == tmp_path / "pairs-helpful-train.jsonl"
    assert world.meant("harmless") == "harmless"
    assert Dialogues(folder=tmp_path, backbone=str(tmp_path)).meant("overall") == "overall"


def test_a_judge_is_held_against_preferring_the_longer_reply():
    said = accuracy([1.0, 0.0, 0.5, 1.0], [True, True, False, True])
    assert (said["pairs"], said["accuracy"], said["by_length"]) == (4, 0.625, 0.75)
    assert said["interval"][0] < 0.625 < said["interval"][1]


def test_asking_more_requests_than_there_are_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="--prompts"):
        Demo(folder=tmp_path).asked("test", 5000)


# ---- the chat backbone's texts ------------------------------------------------------------------------------


def test_transcripts_are_written_as_prompts_are_rendered_and_read_back_whole():
    said = "How do I bake a rye bread? Né"
    text = evidence_data.transcript([("Human", said), ("Assistant", "Knead it.")])
    tokenizer = chat_backbone.build_tokenizer([text], 300)
    asked = encode_prompts([[{"role": "user", "content": said}]], tokenizer)["input_ids"][0].tolist()
    ids = tokenizer(text)["input_ids"]
    assert ids[: len(asked)] == asked
    assert text.endswith("Assistant: Knead it.")
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_blocks_are_texts_end_to_end():
    tokenizer = chat_backbone.build_tokenizer(["abc abc"], 300)
    text = tokenizer("abc abc")["input_ids"]
    rows = chat_backbone.blocks(["abc abc"] * 400, tokenizer, 2)
    assert rows.shape == (2, chat_backbone.BLOCK)
    assert rows.flatten().tolist() == ([*text, tokenizer.eos_token_id] * 400)[: 2 * chat_backbone.BLOCK]


def test_a_reply_may_hold_what_python_takes_for_the_end_of_a_line(tmp_path):
    rows = [{"id": "a", "reply": "one\u2028two\x85three"}, {"id": "b", "reply": "four"}]
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert evidence_answers.read_rows(file) == rows


# ---- runs ---------------------------------------------------------------------------------------------------


def test_what_was_made_with_other_settings_is_not_taken_for_these(tmp_path):
    demo, alphas = Demo(folder=tmp_path), (0.0,)
    answers = partial(evidence_answers.answered, tmp_path / "base.jsonl", demo, demo.asked("test", 1), alphas)
    row = {"id": demo.asked("test", 1)[0].id, "alpha": "0", "rewards": {"overall": 1.0}}
    evidence_data.write_rows(tmp_path / "base.jsonl", [row])
    assert answers(seed=0, model=None) == [row]
    with pytest.raises(DualHeadError, match=r"has another run \(seed: 0\)\. Give another --output_dir"):
        answers(seed=1, model=None)
    run = evidence_runs.Run(method="hidden", rate=1e-3, seed=0)
    (tmp_path / "runs" / run.key).mkdir(parents=True)
    (tmp_path / "runs" / run.key / "trained.json").write_text("{}")
    assert evidence_runs.train(evidence_runs.Plan(world=demo, folder=tmp_path, steps=2), run) == {}
    with pytest.raises(DualHeadError, match=r"has another run \(steps: 2\)"):
        evidence_runs.train(evidence_runs.Plan(world=demo, folder=tmp_path, steps=3), run)


def test_a_folder_of_one_method_takes_another_and_no_other_budget(tmp_path):
    plan = evidence_runs.Plan(world=Demo(folder=tmp_path), folder=tmp_path, steps=2, methods=("hidden",))
    file = tmp_path / "plan.json"
    evidence_script.same_plan(file, identity(plan))
    evidence_script.same_plan(file, identity(replace(plan, methods=("hidden", "iav"), seeds=2)))
    with pytest.raises(DualHeadError, match=r"has another run \(steps: 2\)"):
        evidence_script.same_plan(file, identity(replace(plan, steps=3)))
    with pytest.raises(DualHeadError, match=r"has another run \(world: demo\)"):  # of which the other plan says nothing
        evidence_script.same_plan(file, {})


def test_a_method_that_was_added_has_all_timed_again(tmp_path, monkeypatch):
    plan = evidence_runs.Plan(world=Demo(folder=tmp_path), folder=tmp_path, steps=2, rates=1, methods=("hidden",))
    runs = []

    def measured(world, places, **_):
        runs.append(list(places))
        return {"threads": 1, "rows": [{"system": name} for name in places]}

    monkeypatch.setattr(evidence_stages, "measured", measured)
    monkeypatch.setattr(evidence_stages.Evidence, "rates", lambda self: dict.fromkeys(self.plan.methods, 1e-3))
    for methods in (("hidden",), ("hidden",), ("hidden", "iav"), ("iav",)):
        some = replace(plan, methods=methods)
        evidence_stages.Evidence(some, None, two_prompts=1, judge_steps=None, weak_steps=1).measure()
    assert runs == [["hidden"], ["hidden", "iav"]]


def test_strengths_that_a_file_lacks_are_added_as_if_all_had_been_asked_at_once(tmp_path):
    world = Demo(folder=tmp_path)
    model = guided({"one": 0}, world.backbone)
    requests = world.asked("test", 3)

    def answers(name: str, *alphas: float) -> list[dict]:
        return evidence_answers.answered(
            tmp_path / name, world, requests, alphas, seed=0, model=lambda: model, max_new_tokens=8
        )

    few = answers("few.jsonl", 0.0, 1.0)
    tasks = [evidence_stages._replies(tmp_path / "few.jsonl", alphas, list) for alphas in ((0.0, 1.0), (0.0, 2.0))]
    assert [task.done for task in tasks] == [True, False]
    more = answers("few.jsonl", 2.0, 0.0)
    assert [task.done for task in tasks] == [True, True]
    assert answers("few.jsonl", 1.0, 0.0) == few
    rows = answers("all.jsonl", 0.0, 1.0, 2.0)
    replies = {(row["id"], row["alpha"]): row["reply"] for row in rows}
    assert {(row["id"], row["alpha"]): row["reply"] for row in few + more} == replies
    assert len(set(replies.values())) > 3


def test_a_reply_without_a_finite_divergence_is_refused():
    tokenizer = chat_backbone.build_tokenizer(["a reply"], 300)
    one = evidence_answers._row(Asked("1", "a", "overall"), 1.0, tokenizer, [5], False, float("nan"), -1.0)
    with pytest.raises(ValueError, match="has no finite kl"):
        evidence_answers._require_finite({**one, "rewards": {}})


def test_the_best_of_the_search_is_the_first_seed_and_is_not_trained_twice(tmp_path):
    plan = evidence_runs.Plan(world=Demo(folder=tmp_path), folder=tmp_path, steps=1, methods=("iav", "hidden"))
    searched = {run.key for run in plan.search()}
    assert len(searched) == 6
    main = [run.key for run in plan.main({"iav": 3e-3, "hidden": 3e-3})]
    assert [key in searched for key in main] == [True] * 2 + [False] * 4  # the first seed of either comes first


def test_no_two_runs_share_a_folder(tmp_path):
    plan = evidence_runs.Plan(
        world=Demo(folder=tmp_path), folder=tmp_path, steps=1, ablations=tuple(evidence_runs.ABLATIONS)
    )
    rates = dict.fromkeys(evidence_runs.METHODS, 3e-3)
    runs = [*plan.main(rates), *plan.two(rates), *plan.ablated(rates)]
    assert len({run.key for run in runs}) == len(runs) == 3 * (8 + 2 * 2 + len(evidence_runs.ABLATIONS))


def test_every_ablation_is_an_option_that_its_method_has():
    for name, options in evidence_runs.ABLATIONS.values():
        own = evidence_runs.SETTINGS["demo"][name][0]
        method = evidence_runs.method(name)
        assert method.with_options({**own, **options}) != method.with_options(own)


def test_what_one_process_works_at_no_other_begins(tmp_path):
    with evidence_work.claimed(tmp_path / "claim") as first, evidence_work.claimed(tmp_path / "claim") as second:
        assert (first, second) == (True, False)
    with evidence_work.claimed(tmp_path / "claim") as again:
        assert again


def test_a_search_takes_the_best_rate_and_passes_over_what_diverged(tmp_path):
    plan = evidence_runs.Plan(world=Demo(folder=tmp_path), folder=tmp_path, steps=1, methods=("iav",))
    evidence = evidence_stages.Evidence(plan, None, two_prompts=1, judge_steps=None, weak_steps=1)
    rewards = {1e-3: 1.0, 3e-3: 2.0, 9e-3: None}
    for run, reward in zip(plan.search(), rewards.values(), strict=True):
        text = "" if reward is None else f'{{"id": "a", "rewards": {{"overall": {reward}}}}}\n'
        evidence_data.write_text(plan.place(run) / "dev.jsonl", text)
    assert evidence.rates() == {"iav": pytest.approx(3e-3)}


# ---- figures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alphas", [[0.0, 1.5], [{"one": 1.0, "other": 0.5}, {"one": 0.0, "other": 2.0}]])
def test_a_running_batch_answers_what_padded_batches_do(tmp_path, monkeypatch, alphas):
    world = Demo(folder=tmp_path)
    tokenizer = evidence_answers.load_tokenizer(world.backbone)
    model = guided({"one": 0, "other": 1} if isinstance(alphas[0], dict) else {"one": 0}, world.backbone)
    arguments = (model, tokenizer, world.asked("dev", 5), alphas, Decoding(max_new_tokens=12, temperature=0.0))
    running = evidence_answers.replies(*arguments, seed=0)
    monkeypatch.setattr(evidence_answers, "sampling_in_a_batch", lambda _: None)
    padded = evidence_answers.replies(*arguments, seed=0)
    assert [row["reply"] for row in running] == [row["reply"] for row in padded]
    for one, other in zip(running, padded, strict=True):
        assert one == pytest.approx(other, abs=2e-4)
    assert any(row["kl"] > 0.1 for row in running)


def guided(seeds: dict[str, int], backbone: str) -> AlignedModel:
    """The toy backbone with random hidden edits."""
    model = AlignedModel.from_backbone(backbone, {name: HiddenConfig(rank=4) for name in seeds})
    for name, seed in seeds.items():
        torch.manual_seed(seed)
        for parameter in model.guide(name).parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_strengths_are_those_of_the_plan_or_else_of_the_world_and_method(tmp_path):
    plan = evidence_runs.Plan(world=Demo(folder=tmp_path), folder=tmp_path, steps=1)
    assert plan.alphas_of("dpo") == evidence_runs.ALPHAS
    real = replace(plan, world=replace(plan.world, name="real"))
    assert real.alphas_of("dpo") == (0.25, 1.0)
    assert real.alphas_of("hidden") == (0.5, 1.0)
    assert replace(real, alphas=(1.0, 3.0)).alphas_of("dpo") == (1.0, 3.0)
    assert all(1.0 in real.alphas_of(name) for name in evidence_runs.METHODS)


def test_gains_at_equal_divergence_are_read_from_the_strengths_that_a_method_has():
    base = [[row(i, 0.0, alpha="0") for i in ("a", "b")]]
    answers = [[{**row(i, at, alpha=f"{at:g}"), "kl": at} for at in (4.0, 0.5) for i in ("a", "b")]]
    assert evidence_figures.strengths_of(answers) == ["0.5", "4"]
    points = evidence_figures.traded({"one": answers}, base)["methods"]["one"]
    assert [point["gain"] for point in points[:3]] == [1.0, 2.0, None]


def test_a_gain_is_paired_by_prompt_and_seed():
    base = [[row("a", 1.0, alpha="0"), row("b", 3.0, alpha="0")]] * 2
    own = [[row("b", 5.0), row("a", 2.0)], [row("a", 3.0), row("b", 6.0)]]  # gains 1 and 2, then 2 and 3
    found = evidence_figures.compared(own, base, ["1"])["1"]
    assert (found["reward"], found["gain"], found["by_seed"]) == (4.0, 2.0, [1.5, 2.5])
    low, high = found["interval"]
    assert 1.0 <= low < 2.0 < high <= 3.0


def test_words_of_replies_are_counted_over_seeds_at_each_strength():
    said = {"1": ("I can't help with that.", "Why do you ask? "), "2": ("Take a taxi.", "Sorry, I cannot do that.")}
    seeds = [[{"alpha": alpha, "reply": replies[seed]} for alpha, replies in said.items()] for seed in (0, 1)]
    figures = evidence_figures.worded({"hidden": seeds})
    declined = {alpha: {"declined": 0.5, "ends in a question": asks} for alpha, asks in (("1", 0.5), ("2", 0.0))}
    assert figures == {"hidden": declined}
    table = evidence_tables.tables({"about": {"world": "people"}, "words": figures})["people-words"]
    assert table.split("\n")[2:] == ["| hidden | 1 | 50% | 50% |", "| hidden | 2 | 50% | 0% |"]


def test_seeds_that_answered_other_prompts_are_not_compared():
    with pytest.raises(ValueError, match="same prompts"):
        evidence_figures.table_of([[row("a", 1.0)], [row("b", 1.0)]], "1", "overall")


def test_an_interval_of_a_constant_is_that_constant():
    assert evidence_figures.crossed(np.full((3, 4), 2.0)) == (2.0, (2.0, 2.0))


def test_seeds_that_differ_widen_the_interval():
    alike, apart = np.tile([0.0, 1.0], (2, 20)), np.tile([0.0, 1.0], (2, 20)) + np.array([[-3.0], [3.0]])
    (_, narrow), (_, wide) = evidence_figures.crossed(alike), evidence_figures.crossed(apart)
    assert narrow[1] - narrow[0] < 0.5
    assert wide == pytest.approx((-2.5, 3.5), abs=0.3)


def test_the_higher_reward_wins_and_equal_ones_tie():
    ours = [[row("a", 1.0), row("b", 0.0), row("c", 2.0), row("d", 2.0)]]
    theirs = [[row("a", 0.0), row("b", 0.0), row("c", 3.0), row("d", 1.0)]]
    found = evidence_figures.preferred(ours, theirs, ("1", "1"))
    assert (found["wins"], found["ties"], found["losses"], found["rate"]) == (2, 1, 1, 0.625)


def test_seeds_that_disagree_on_who_wins_widen_the_interval_of_the_rate():
    """One seed wins everything and the other loses everything: requests alone would give an interval of no width."""
    ids = [f"{i}" for i in range(50)]
    wins, losses = ([row(i, reward) for i in ids] for reward in (1.0, -1.0))
    found = evidence_figures.preferred([wins, losses], [[row(i, 0.0) for i in ids]] * 2, ("1", "1"))
    assert found["rate"] == 0.5
    assert found["interval"] == (0.0, 1.0)


def both(helpful: float, harmless: float) -> str:
    """Two strengths as rows have them."""
    return json.dumps({"helpful": helpful, "harmless": harmless})


def test_frontiers_are_measured_from_the_worst_of_all_points():
    def at(alpha: str, helpful: float, harmless: float):
        return [row(i, 0.0, alpha=alpha, helpful=helpful, harmless=harmless) for i in ("a", "b")]

    x, y, z = both(0.0, 1.0), both(1.0, 0.0), both(1.0, 1.0)
    found = evidence_figures.frontiers(
        {"one": [[*at(x, 0.0, 2.0), *at(y, 2.0, 1.0), *at(z, 1.0, 1.0)]], "other": [at(x, 1.0, 0.0)]},
        ("helpful", "harmless"),
    )
    assert found["reference"] == [0.0, 0.0]
    assert found["methods"]["one"]["frontier"] == [x, y]
    assert found["methods"]["one"]["hypervolume"] == 2.0  # of (2, 1); (0, 2) lies on the edge
    assert found["methods"]["other"]["hypervolume"] == 0.0


def test_seeds_that_disagree_widen_the_interval_of_a_frontier():
    def seed(value: float):
        return [row(i, 0.0, alpha=both(1.0, 1.0), helpful=value, harmless=value) for i in ("a", "b")]

    rows = {"one": [seed(1.0), seed(3.0)], "worst": [seed(0.0), seed(0.0)]}
    figures = evidence_figures.frontiers(rows, ("helpful", "harmless"))
    assert figures["methods"]["one"]["hypervolume"] == 4.0  # of (2, 2), the mean of both seeds
    assert figures["methods"]["one"]["interval"] == (1.0, 9.0)


def test_a_mix_has_the_gains_of_both_objectives_beside_those_of_each_guide_by_itself():
    def at(alpha: str, values: dict[str, tuple[float, float]]):
        return [row(i, 0.0, alpha=alpha, helpful=x, harmless=y) for i, (x, y) in values.items()]

    seed = [
        *at(both(0.0, 0.0), {"a": (1.0, 5.0), "b": (3.0, 7.0)}),
        *at(both(1.0, 0.0), {"a": (2.0, 5.0), "b": (5.0, 7.0)}),
        *at(both(1.0, 1.0), {"a": (1.5, 6.0), "b": (3.5, 9.0)}),
    ]
    figures = evidence_figures.frontiers({"one": [seed]}, ("helpful", "harmless"))
    gains = {at["alpha"]: [x["mean"] for x in at["gains"]] for at in figures["methods"]["one"]["gains"]}
    assert gains == {(1.0, 0.0): [1.5, 0.0], (1.0, 1.0): [0.5, 1.5]}
    table = evidence_tables.tables({"about": {"world": "hh"}, "two": figures})["hh-two"]
    assert "| one | 1 | 1 | +0.50 (+0.50 to +0.50) | +1.50 (+1.00 to +2.00) |" in table


def test_three_objectives_mixed_have_a_volume_and_the_gains_of_each_and_all():
    def at(alphas: tuple[float, ...], values: tuple[float, ...]):
        names = ("plain", "helpful", "harmless")
        alpha, rewards = json.dumps(dict(zip(names, alphas, strict=True))), dict(zip(names, values, strict=True))
        return [{**row("a", 0.0, alpha=alpha), "rewards": rewards}]

    seed = [
        *at((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        *at((0.0, 1.0, 0.0), (0.5, 2.0, 0.0)),
        *at((1.0, 1.0, 1.0), (1.0, 2.0, 3.0)),
    ]
    figures = evidence_figures.frontiers({"one": [seed]}, ("plain", "helpful", "harmless"))
    gains = {at["alpha"]: [x["mean"] for x in at["gains"]] for at in figures["methods"]["one"]["gains"]}
    assert gains == {(0.0, 1.0, 0.0): [0.5, 2.0, 0.0], (1.0, 1.0, 1.0): [1.0, 2.0, 3.0]}
    assert figures["methods"]["one"]["hypervolume"] == 6.0
    table = evidence_tables.tables({"about": {"world": "hh"}, "two": figures})["hh-two"]
    assert "(+1.00, +2.00, +3.00)" in table
    assert "| alpha of plain | alpha of helpful | alpha of harmless | gain in plain (95%) |" in table


def test_a_judge_that_is_not_above_chance_is_said_to_be_so():
    def judged(low: float):
        own = {"pairs": 100, "accuracy": low + 0.05, "interval": [low, low + 0.1], "by_length": 0.5}
        return {"pairs": 9, "held_out": dict.fromkeys(("overall", "helpful", "harmless"), own)}

    summary = {"about": {"world": "hh"}, "judge": {"overall": judged(0.55), "helpful": judged(0.49)}}
    table = evidence_tables.tables(summary)["hh-judge"]
    assert "| overall | 9 | 0.600 (0.550 to 0.650) |" in table
    assert "Not clearly above chance: helpful." in table


# ---- pages --------------------------------------------------------------------------------------------------

PAGE = (
    "before\n<!-- evidence:one -->\nold\n<!-- /evidence -->\nbetween\n<!-- evidence:two -->\nkept\n<!-- /evidence -->"
)


def test_a_page_changes_between_its_markers_only():
    text, missing = evidence_tables.replaced(PAGE, {"one": "| new |", "three": "| nowhere |"})
    assert text == PAGE.replace("old\n", "\n| new |\n\n")
    assert missing == ["three"]


@pytest.mark.parametrize("broken", [PAGE.replace("<!-- /evidence -->\nbetween", "between"), PAGE.replace("two", "one")])
def test_markers_left_open_or_there_twice_are_refused(broken):
    with pytest.raises(ValueError, match="twice or is not closed"):
        evidence_tables.replaced(broken, {})


def test_costs_are_those_of_the_same_round_beside_the_backbone():
    own = {"system": "iav", "batch_size": 8, "added": 64256, "forwards": 1.0, "prefill_ms": 3.21, "decode_ms": 2.5,
           "ratio": {"median": 1.04, "low": 1.0, "high": 1.1}, "tokens_per_s": 3200.0, "peak_mib": None,
           "new_tokens": 32, "prompt_tokens": 12, "rounds": 5}  # fmt: skip
    table = evidence_tables.tables({"about": {"world": "demo"}, "costs": {"threads": 2, "rows": [own]}})["demo-costs"]
    assert "| iav | 8 | 64,256 | 1 | 3.2 | 2.50 | 1.04 (1.00 to 1.10) | 3200 |  |" in table
    assert "32 greedy tokens after 12, 5 rounds in turns, 2 threads" in table


# ---- the whole ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_evidence_of_the_demonstration_is_made_once_and_written_into_a_page(tmp_path):
    page = Path(shutil.copy(RESULTS, tmp_path))
    out = tmp_path / "evidence"
    first = _evidence("--world", "demo", "--small", "--output_dir", str(out), "--page", str(page))
    assert first.count("== ") > 20
    tables = (out / "tables.md").read_text()
    named = re.findall(r"<!-- evidence:([\w-]+) -->", tables)
    expected = ("search", "main", "trade_off", "wins", "quality", "two", "ablation", "transfer", "costs")
    assert named == [f"demo-{name}" for name in expected]
    assert_rewritten(page, "demo", said=first)
    assert json.loads((tmp_path / "figures" / "evidence-demo.json").read_text())["main"].keys() == {*SMALL_METHODS}
    made = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.name in ("trained.json", "test.jsonl")}
    again = _evidence("--world", "demo", "--small", "--output_dir", str(out))
    assert again.count("== ") == 0
    assert made == {file: file.stat().st_mtime_ns for file in made}
    assert (out / "tables.md").read_text() == tables


@pytest.mark.slow
def test_the_evidence_of_dialogues_begins_with_what_its_judges_are_worth(shared_data, tmp_path):
    chat = [sys.executable, str(EXPERIMENTS / "chat_backbone.py"), "--data", str(shared_data), "--small"]
    subprocess.run([*chat, "--output_dir", str(tmp_path / "chat")], check=True, capture_output=True)
    assert {"pretraining", "fine_tuning"} <= set((tmp_path / "chat" / "card.json").read_text().split('"'))
    _evidence("--world", "hh", "--small", "--chat", str(tmp_path / "chat"), "--output_dir", str(tmp_path / "hh"))
    assert (tmp_path / "hh" / "tables.md").read_text().startswith("<!-- evidence:hh-judge -->")
    people = (
        "--backbone",
        str(tmp_path / "chat"),
        "--data",
        str(shared_data),
        "--output_dir",
        str(tmp_path / "people"),
    )
    said = _evidence("--world", "people", "--small", "--about", "safer", *people)
    assert "<!-- evidence:people-safer-judge -->" in said
    assert "| judge of | pairs trained on | right on safer (95%) |" in said
    strong = [*chat, "--hidden_size", "48", "--tokenizer", str(tmp_path / "chat")]
    subprocess.run([*strong, "--output_dir", str(tmp_path / "strong")], check=True, capture_output=True)
    page = Path(shutil.copy(RESULTS, tmp_path))
    one = ("--about", "helpful", "--two_prompts", "0", "--alphas", "1", "--strong", str(tmp_path / "strong"))
    one += ("--page", str(page), "--output_dir", str(tmp_path / "one"))
    assert_rewritten(page, "hh", said=_evidence("--world", "hh", "--small", "--chat", str(tmp_path / "chat"), *one))
    tables = (tmp_path / "one" / "tables.md").read_text()
    assert "| helpful |" in tables
    assert "hh-two" not in tables
    assert "| fixed gate |" in tables
    assert "reward at alpha 0 / 1 |" in tables  # weak to strong, at the strengths of the main table
    assert not (tmp_path / "one" / "judge" / "harmless").exists()  # what no table reads is not trained


def assert_rewritten(page: Path, world: str, *, said: str) -> None:
    """Every table of a world on the page of results is another one now, and the rest of it is as it was."""
    before, after = ({m["name"]: m["body"] for m in BLOCK.finditer(file.read_text())} for file in (RESULTS, page))
    assert before.keys() == after.keys()
    for name, body in before.items():
        assert (after[name] != body) == name.startswith(f"{world}-"), name
    assert "has no place for: nothing." in said


def _evidence(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXPERIMENTS / "evidence.py"), *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

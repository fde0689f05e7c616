"""Baselines: TRL's trainers see our ids and settings as they are, and change nothing but what is trained."""

import copy
import sys
import warnings
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from files import word_tokenizer
from models import EOS, tiny_lm
from safetensors.torch import load_file
from transformers import LlamaForSequenceClassification, TrainingArguments

from dual_head.errors import DualHeadError
from dual_head.losses.kto import Kto
from dual_head.losses.preference import Preference
from dual_head.methods import method
from dual_head.ops.token_scores import Scored
from dual_head.train.trl import _IdsOnly, preference_trainer

SIDES = ("chosen", "rejected")
KINDS = ("dpo", "simpo", "reward")
OPTIONS = {"dpo": {"beta": 0.7}, "simpo": {"beta": 2.5, "gamma_ratio": 0.3}, "reward": {}}
ACCURACY = {"dpo": "rewards/accuracies", "simpo": "rewards/accuracies", "reward": "accuracy"}
# Of different lengths, so that rows are padded; one reply is cut short, without EOS.
ROWS = [
    {"prompt_ids": [1, 5, 6], "chosen_ids": [7, 8, 30, EOS], "rejected_ids": [9, EOS]},
    {"prompt_ids": [1, 40], "chosen_ids": [17, EOS], "rejected_ids": [9, 10, 11, 12, 60]},
]


def model_of(kind, *, lora=False, spread=0.2):
    """A tiny Llama, or a reward model on one; with `lora`, behind an adapter whose every weight is random."""
    pytest.importorskip("trl")
    lm = tiny_lm("llama")
    if kind == "reward":
        lm.config.num_labels = 1
        torch.manual_seed(0)
        lm = LlamaForSequenceClassification(lm.config)
    return adapted(lm, kind, spread) if lora else lm


def adapted(lm, kind, spread=0.2, name="default"):
    peft = pytest.importorskip("peft")
    task = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]} if kind == "reward" else {"task_type": "CAUSAL_LM"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)  # PEFT's
        lm = peft.get_peft_model(lm, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **task), name)
    torch.manual_seed(1)
    for parameter in lm.parameters():
        if parameter.requires_grad and spread:
            torch.nn.init.normal_(parameter, std=spread)
    return lm


def options_of(kind, **values):
    """The options of a baseline's own trainer, as the method of that name reads them."""
    return method(kind).with_options({f"peer.{name}": value for name, value in values.items()}).peer


def trainer_of(kind, lm, folder, rows=ROWS, *, reference=None, tokenizer=None, **settings):
    settings = {"max_steps": 1, "learning_rate": 0.01, "logging_steps": 1, "lr_scheduler_type": "constant", **settings}
    args = TrainingArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **settings)
    data = Dataset.from_list(rows)
    return preference_trainer(
        options_of(kind, **OPTIONS[kind]),
        lm,
        args,
        train_dataset=data,
        eval_dataset=data,
        tokenizer=tokenizer or word_tokenizer(),
        reference=reference,
    )


def score(kind, lm, row, side):
    """log pi(y|x) with |y|, or r(x, y): of one reply by itself, without padding."""
    prompt, reply = row["prompt_ids"], row[side]
    ids = torch.tensor([prompt + reply])
    if kind == "reward":
        base = lm.get_base_model() if hasattr(lm, "get_base_model") else lm
        return base.score(base.model(input_ids=ids).last_hidden_state[0, -1]), len(reply)
    log_probs = lm(input_ids=ids).logits[0].log_softmax(-1)
    positions = range(len(prompt), len(prompt) + len(reply))
    return sum(log_probs[at - 1, ids[0, at]] for at in positions), len(reply)


@torch.no_grad()
def margin(kind, lm, row, reference):
    (chosen, chosen_length), (rejected, rejected_length) = (
        score(kind, lm.eval(), row, f"{side}_ids") for side in ("chosen", "rejected")
    )
    if kind == "simpo":
        return 2.5 * (chosen / chosen_length - rejected / rejected_length) - 0.3 * 2.5
    if kind == "reward":
        return chosen - rejected
    chosen_before, rejected_before = (
        score(kind, reference.eval(), row, f"{side}_ids")[0] for side in ("chosen", "rejected")
    )
    return 0.7 * ((chosen - chosen_before) - (rejected - rejected_before))


def equation(kind, lm, reference=None, rows=ROWS):
    """-log sigmoid of the margin, on average over pairs."""
    return sum(-F.logsigmoid(margin(kind, lm, row, reference)).item() for row in rows) / len(rows)


def logged(trainer, name):
    return [row[name] for row in trainer.state.log_history if name in row]


def weights(lm):
    return {name: parameter.detach().clone() for name, parameter in lm.named_parameters()}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_papers_equation_on_our_ids(kind, lora, tmp_path):
    lm = model_of(kind, lora=lora)
    before = copy.deepcopy(lm)
    trainer = trainer_of(kind, lm, tmp_path, max_steps=2)
    trainer.train()
    assert logged(trainer, "loss")[0] == pytest.approx(equation(kind, before, before), rel=1e-4)
    after = equation(kind, lm, before)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(after, rel=1e-4)
    assert trainer.evaluate(Dataset.from_list(ROWS))["eval_loss"] == pytest.approx(after, rel=1e-4)
    assert after < equation(kind, before, before) - 0.01


@pytest.mark.parametrize("lora", [False, True])
def test_a_given_reference_is_the_one_compared_with(lora, tmp_path):
    lm, reference = model_of("dpo", lora=lora), tiny_lm("llama", seed=3)
    expected, before = equation("dpo", lm, reference), weights(reference)
    trainer = trainer_of("dpo", lm, tmp_path, reference=reference)
    trainer.train()
    assert expected != pytest.approx(0.6931, abs=0.05)
    assert logged(trainer, "loss")[0] == pytest.approx(expected, rel=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in reference.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_beyond_trls_default_length_are_neither_cut_nor_dropped(kind, tmp_path):
    rows = [{"prompt_ids": [1, 5], "chosen_ids": [7, 8] * 600, "rejected_ids": [9] * 3}, ROWS[1]]
    lm, reference = model_of(kind), tiny_lm("llama", seed=3) if kind == "dpo" else None
    trainer = trainer_of(kind, lm, tmp_path, rows, reference=reference)
    assert len(trainer.get_train_dataloader().dataset) == 2
    assert trainer.evaluate()["eval_loss"] == pytest.approx(equation(kind, lm, reference, rows), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_moves_alone_and_a_model_that_shares_its_base_stays_as_it_was(kind, tmp_path):
    base = model_of(kind)
    shared, before = dict(base.named_parameters()), weights(base)
    lm = adapted(base, kind)
    trained, start = {name for name, p in lm.named_parameters() if p.requires_grad}, weights(lm)
    trainer_of(kind, lm, tmp_path, max_steps=2).train()
    moved = {name for name, value in lm.named_parameters() if name in start and not torch.equal(value, start[name])}
    assert moved == trained
    inside = {id(parameter) for parameter in lm.parameters()}
    for name, value in shared.items():
        assert torch.equal(value, before[name])
        assert value.dtype == before[name].dtype
        assert id(value) in inside  # neither replaced nor merged
        assert not value.requires_grad
        assert value.grad is None


def test_full_tuning_moves_everything_but_the_reference(tmp_path):
    lm = model_of("dpo")
    before = weights(lm)
    trainer = trainer_of("dpo", lm, tmp_path, max_steps=2)
    trainer.train()
    assert not any(torch.equal(value, before[name]) for name, value in lm.named_parameters() if "embed" not in name)
    assert all(torch.equal(value, before[name]) for name, value in trainer.ref_model.named_parameters())
    assert not any(p.requires_grad for p in trainer.ref_model.parameters())


@pytest.mark.parametrize("lora", [False, True])
def test_a_second_training_starts_from_what_the_first_left(lora, tmp_path):
    lm = model_of("dpo", lora=lora)
    trainer_of("dpo", lm, tmp_path / "one", max_steps=3).train()
    middle = equation("dpo", lm, lm)
    trainer = trainer_of("dpo", lm, tmp_path / "two", max_steps=3)
    trainer.train()
    assert logged(trainer, "loss")[0] == pytest.approx(middle, rel=1e-4)
    assert logged(trainer, "loss")[-1] < middle - 0.01
    if not lora:  # a copy of a model that was trained before, in every way it can be called
        assert trainer.evaluate()["eval_loss"] == pytest.approx(equation("dpo", lm, trainer.ref_model), rel=1e-4)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_thirty_steps_turn_the_order_of_one_pair_around(kind, lora, tmp_path):
    lm, row = model_of(kind, lora=lora), ROWS[0]
    if kind != "dpo" and margin(kind, lm, row, None) > 0:
        row = {**row, "chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]}
    trainer = trainer_of(kind, lm, tmp_path, [row], max_steps=30, learning_rate=0.02)
    assert trainer.evaluate()[f"eval_{ACCURACY[kind]}"] == 0
    trainer.train()
    assert trainer.evaluate()[f"eval_{ACCURACY[kind]}"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_an_uninterrupted_one(kind, tmp_path):
    schedule = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 1, "lr_scheduler_type": "linear"}
    whole = trainer_of(kind, model_of(kind, lora=True), tmp_path, **schedule)
    whole.train()
    # Not even the adapter it is given matters: it and DPO's reference come from the checkpoint.
    resumed = trainer_of(kind, model_of(kind, lora=True, spread=0), tmp_path / "again", **schedule)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    one, other = (load_file(f / "checkpoint-4/adapter_model.safetensors") for f in (tmp_path, tmp_path / "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert logged(whole, "loss")[2:] == logged(resumed, "loss")[-2:]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_told_or_asked_of_a_hub_and_nothing_pickled(kind, tmp_path, monkeypatch):
    lm = model_of(kind, lora=True)
    lm.peft_config["default"].base_model_name_or_path = "someone/model"
    called = []
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **_: called.append("telemetry"))
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *_: called.append("hub"))
    monkeypatch.delenv("CI", raising=False)
    trainer = trainer_of(kind, lm, tmp_path, save_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    assert called == []
    assert (tmp_path / "final/adapter_model.safetensors").is_file()
    assert (tmp_path / "final/tokenizer.json").is_file()
    assert not list(tmp_path.glob("**/training_args.bin"))
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_is_the_arguments_own(kind, tmp_path):
    settings = {"logging_steps": 7, "warmup_steps": 3, "eval_strategy": "steps", "lr_scheduler_type": "cosine"}
    trainer = trainer_of(kind, model_of(kind), tmp_path, learning_rate=3e-5, **settings)
    plain = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=1, learning_rate=3e-5, **settings
    )
    other = {f.name for f in fields(plain) if getattr(plain, f.name) != getattr(trainer.args, f.name)}
    assert other == {"remove_unused_columns"}
    assert not trainer.args.bf16
    assert trainer.args.report_to == []


@pytest.mark.parametrize("kind", KINDS)
def test_other_columns_mean_nothing(kind, tmp_path):
    rows = [{**row, "images": [1], "margin": 3.0, "prompt": "a", "ref_chosen_logps": 1.0} for row in ROWS]
    lm, reference = model_of(kind), tiny_lm("llama", seed=3) if kind == "dpo" else None
    trainer = trainer_of(kind, lm, tmp_path, rows, reference=reference)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(equation(kind, lm, reference), rel=1e-4)


def test_trls_notice_that_simpo_is_experimental_stops_no_run(tmp_path, monkeypatch):
    lm = model_of("simpo")
    for module in ("trl.experimental", "trl.experimental.cpo"):  # given once a process, on import
        monkeypatch.delitem(sys.modules, module, raising=False)
    trainer_of("simpo", lm, tmp_path)


@pytest.mark.parametrize("kind", ["dpo", "simpo"])
def test_padding_only_fills(kind, tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    lm, reference = model_of(kind), tiny_lm("llama", seed=3) if kind == "dpo" else None
    trainer = trainer_of(kind, lm, tmp_path, reference=reference, tokenizer=tokenizer)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(equation(kind, lm, reference), rel=1e-4)
    assert tokenizer.pad_token is None


def test_a_missing_trl_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    data = Dataset.from_list(ROWS)
    with pytest.raises(DualHeadError, match=r"pip install 'dual-head\[trl\]'"):
        preference_trainer(
            options_of("dpo"),
            tiny_lm("llama"),
            TrainingArguments(str(tmp_path)),
            train_dataset=data,
            tokenizer=word_tokenizer(),
        )


def test_mistakes_are_named(tmp_path):
    lm = model_of("dpo")
    args, data = TrainingArguments(str(tmp_path), use_cpu=True), Dataset.from_list(ROWS)

    def refused(message, kind="dpo", lm=lm, train_dataset=data, tokenizer=None, reference=None, **options):
        with pytest.raises(DualHeadError, match=message):
            preference_trainer(
                options_of(kind, **options),
                lm,
                args,
                train_dataset=train_dataset,
                tokenizer=tokenizer or word_tokenizer(),
                reference=reference,
            )

    refused("Unknown option 'peer.gamma'.*Did you mean 'peer.gamma_ratio'", kind="simpo", gamma=1.0)
    refused("beta must be above 0", beta=0)
    refused("gamma_ratio must be at least 0", kind="simpo", gamma_ratio=-0.1)
    refused("lack rejected_ids", train_dataset=data.remove_columns("rejected_ids"))
    refused("has no reference", kind="simpo", reference=tiny_lm("llama"))
    refused("shares weights that are trained", reference=lm)
    refused("TRL does not train this.*num_labels", kind="reward")
    padded_with_eos = word_tokenizer()
    padded_with_eos.pad_token = padded_with_eos.eos_token
    refused("never sees EOS", kind="reward", lm=model_of("reward"), tokenizer=padded_with_eos)
    refused("adapter named 'default'", lm=adapted(tiny_lm("llama"), "dpo", name="mine"))
    refused("is frozen", lm=tiny_lm("llama").requires_grad_(False))


@pytest.mark.parametrize(
    ("form", "smoothing"), [("sigmoid", 0.0), ("robust", 0.1), ("robust", 0.3), ("hinge", 0.0), ("ipo", 0.0)]
)
def test_forms_of_our_preference_loss_have_the_values_of_trls(form, smoothing, tmp_path):
    lm = model_of("dpo")
    reference = tiny_lm("llama", seed=5)
    trainer = trainer_of("dpo", lm, tmp_path, reference=reference)
    trainer.loss_types, trainer.label_smoothing = [form], smoothing
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, next(iter(trainer.get_eval_dataloader())))
    objective = Preference(through="policy", beta=0.7, reference_free=False, form=form, label_smoothing=smoothing)
    assert objective(scored(lm, reference)).loss.mean().item() == pytest.approx(theirs.item(), rel=1e-6)


# Four replies of different lengths, one cut short; mismatched, each prompt has the reply before.
PROMPTS = [[1, 5, 6], [1, 40], [1, 41, 42, 43], [1, 7]]
REPLIES = [[7, 8, 30, EOS], [9, 10, 11, 12, 60], [17, EOS], [3, EOS]]
ABOVE, BELOW = (0, 5), (5, 0)  # seeds of policy and reference: the mean ratio is above zero, or below
LABELLED = {"mixed": (True, False, False, True), "desirable": (True,) * 4, "undesirable": (False,) * 4}


@pytest.mark.parametrize("labels", LABELLED.values(), ids=LABELLED)
@pytest.mark.parametrize("seeds", [ABOVE, BELOW], ids=["above zero", "below zero"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.5, 0.25)])
def test_our_kto_loss_has_the_values_of_trls(labels, seeds, weights, tmp_path):
    trl = pytest.importorskip("trl")
    lm, reference = (tiny_lm("llama", seed=seed) for seed in seeds)
    rows = [
        {"prompt_ids": prompt, "completion_ids": reply, "mismatched_ids": REPLIES[i - 1], "label": labels[i]}
        for i, (prompt, reply) in enumerate(zip(PROMPTS, REPLIES, strict=True))
    ]
    settings = {"desirable_weight": weights[0], "undesirable_weight": weights[1], "beta": 0.7, "max_length": None}
    args = trl.KTOConfig(
        str(tmp_path), use_cpu=True, bf16=False, report_to="none", activation_checkpointing=False, **settings
    )
    renamed = [{**row, "KL_completion_ids": row["mismatched_ids"]} for row in rows]
    kind = type("KTOTrainer", (_IdsOnly, trl.KTOTrainer), {})
    trainer = kind(lm, reference, args, train_dataset=Dataset.from_list(renamed), processing_class=word_tokenizer())
    with torch.no_grad():
        trainer.model.eval()
        theirs = trainer.compute_loss(trainer.model, trainer.data_collator(renamed))
    both = scored(lm, reference, rows, ("completion_ids", "mismatched_ids"))
    ratio = both.sums("policy_logps")[1] - both.sums("base_logps")[1]
    reply = both.row % 2 == 0
    ours = Scored(
        {name: x[reply] for name, x in both.values.items()}, both.row[reply], 4,
        desirable=torch.tensor(labels), divergence=ratio.mean().clamp(min=0),
    )  # fmt: skip
    objective = Kto(beta=0.7, desirable_weight=weights[0], undesirable_weight=weights[1])
    assert (ours.divergence > 0) == (seeds == ABOVE)
    assert objective(ours).loss.mean().item() == pytest.approx(theirs.item(), abs=1e-6)


@torch.no_grad()
def scored(lm, reference, rows=ROWS, sides=("chosen_ids", "rejected_ids")):
    """Log-probabilities of every reply token of rows under a model and its reference, without padding."""
    values, row = {"policy_logps": [], "base_logps": []}, []
    for i, (prompt, reply) in enumerate((r["prompt_ids"], r[side]) for r in rows for side in sides):
        ids = torch.tensor([prompt + reply])
        for name, model in (("policy_logps", lm), ("base_logps", reference)):
            logps = model.eval()(input_ids=ids).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
            values[name].append(logps.gather(1, torch.tensor(reply)[:, None])[:, 0])
        row += [i] * len(reply)
    return Scored({name: torch.cat(parts) for name, parts in values.items()}, torch.tensor(row), len(rows))

"""What the documents print works, or is refused with a line of ours that works."""

import importlib
import re
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from transformers import TrainingArguments

import dual_head
from dual_head import AlignedConfig, DualHeadError, MultilayerConfig
from dual_head.classify.model import DualHeadReasoningModel
from dual_head.cli import COMMANDS as OUR_COMMANDS
from dual_head.cli import cache, classify, generate, main, training
from dual_head.cli import eval as evaluate
from dual_head.cli.classify import compare as classify_compare
from dual_head.cli.classify import evaluate as classify_evaluate
from dual_head.cli.classify import train as classify_train
from dual_head.methods import method, method_names
from dual_head.options import flags
from dual_head.options.flags import OptionParser
from dual_head.seed_names import COMMANDS, FLAGS, NO_COMMANDS, PYTHON, translate

ROOT = Path(__file__).parents[1]
REMEDY = re.compile(r"'(dual-head [^']*)'")
LLAMA, MISTRAL = "argsearch/llama-7b-sft-float32", "mistralai/Mistral-7B-v0.1"
LOGITS = "./cache/reference_logits_dual_hh_train_2048.pt"
PAV, ALIGNMENT = "outputs/pav", "./outputs/pav/best_alignment.pt"
HELP_YOU = "How can I help you?"
# Whole lines of the documents, with dual-head in the place of python, and the options that they are read as.
READ = {
    'scripts/training/train_dual_head.py --model_name_or_path "meta-llama/Llama-2-7b-hf" --dataset_name '
    '"Anthropic/hh-rlhf" --output_dir "./outputs/dual_head_llama2_7b" --num_train_epochs 3 '
    "--per_device_train_batch_size 4 --learning_rate 5e-5": {
        "model_name_or_path": "meta-llama/Llama-2-7b-hf",
        "dataset_name": "Anthropic/hh-rlhf",
        "output_dir": "./outputs/dual_head_llama2_7b",
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-5,
    },
    f"src/caching/cache_reference_logits.py --model_name {LLAMA} --dataset_name Dahoas/full-hh-rlhf --split train "
    f"--max_seq_length 2048 --output_path {LOGITS}": {
        "method": "iav",
        "model_name_or_path": LLAMA,
        "dataset_name": "Dahoas/full-hh-rlhf",
        "dataset_split": "train",
        "max_length": 2048,
        "output_dir": LOGITS,
    },
    f"src/training/train_main.py --model_name_or_path {LLAMA} --output_dir ./outputs --cache_file {LOGITS} "
    "--num_epochs 1 --batch_size 4 --grad_accum 1 --learning_rate 5e-5 --beta 0.1 --lambda_kl 0.1 --lambda_l2 0.01 "
    "--seq_length 2048 --warmup_ratio 0.1 --save_steps 500 --eval_steps 100 --bf16 --gradient_checkpointing": {
        "model_name_or_path": LLAMA,
        "output_dir": "./outputs",
        "feature_cache": LOGITS,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 5e-5,
        "preference.beta": 0.1,
        "kl.weight": 0.1,
        "norm.weight": 0.01,
        "max_length": 2048,
        "warmup_steps": 0.1,
        "save_steps": 500,
        "eval_steps": 100,
        "bf16": True,
        "gradient_checkpointing": True,
    },
    f"train.py --model_name {LLAMA} --layer_selection auto --output_dir ./outputs/pav --num_epochs 1 --batch_size 8 "
    "--grad_accum 2 --learning_rate 1e-4 --beta 0.1 --lambda_l2 0.001 --max_length 512 --bf16 "
    "--dataset_name Dahoas/full-hh-rlhf": {  # the README leaves the data out
        "model_name_or_path": LLAMA,
        "guide.layers": "auto",
        "output_dir": "./outputs/pav",
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-4,
        "preference.beta": 0.1,
        "norm.weight": 0.001,
        "max_length": 512,
        "bf16": True,
    },
    f'inference.py --alignment_checkpoint {ALIGNMENT} --prompt "{HELP_YOU}"': {"guides": PAV, "prompt": [HELP_YOU]},
    f'inference.py --alignment_checkpoint {ALIGNMENT} --base_model {MISTRAL} --prompt "{HELP_YOU}"': {
        "guides": PAV,
        "backbone": MISTRAL,
        "prompt": [HELP_YOU],
    },
    **{
        f"inference.py --base_model {name} --alignment_checkpoint {ALIGNMENT}": {"guides": PAV, "backbone": name}
        for name in ("meta-llama/Llama-2-13b-hf", "codellama/CodeLlama-7b-hf", MISTRAL)
    },
    "scripts/train.py --config configs/dhrd_config.yaml": {
        "model_name_or_path": "gpt2",
        "num_labels": 2,
        "loss_weight_alpha": 0.5,
        "dataset_name": "data/train.json",
        "eval_dataset_name": "data/eval.json",
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "num_train_epochs": 3,
        "learning_rate": 5e-5,
    },
    "scripts/train.py --config configs/dhrd_config.yaml --batch_size 2 --learning_rate 1e-5 --num_epochs 1 "
    "--device cpu --checkpoint outputs/dhrd_experiment/checkpoint-5": {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "learning_rate": 1e-5,
        "num_train_epochs": 1,
        "use_cpu": True,
        "resume_from_checkpoint": "outputs/dhrd_experiment/checkpoint-5",
    },
    "scripts/evaluate.py --config configs/dhrd_config.yaml --checkpoint outputs/dhrd_experiment/best_model.pt": {
        "classifier": ["outputs/dhrd_experiment"],
        "dataset": "data/eval.json",
    },
}
# Whole lines that are refused, and a word of what is said.
REFUSED = {
    'scripts/evaluation/evaluate_hh_rlhf.py --model_path "./outputs/dual_head_llama2_7b" --baseline_models '
    '"DPO,GenARM,ARGS" --num_samples 300': "--models dual_head=PATH,DPO=PATH",
    "./cache.sh": "dual-head cache --method iav",
    "./train.sh": "dual-head train iav",
    "./train.sh <model_name> <dataset_name> <output_dir>": "--dataset_name",
    f"./train.sh {LLAMA} hh-rlhf ./outputs/iav_training": "hh-rlhf is Dahoas/full-hh-rlhf",
    "LAYER_SELECTION=uniform ./train.sh": "--layer_selection uniform",
    "BETA=0.2 LAMBDA_L2=0.001 LR=5e-5 ./train.sh": "--beta 0.2, --lambda_l2 0.001, --learning_rate 5e-5",
    "CUDA_VISIBLE_DEVICES=0,1 ./train.sh": "accelerate launch -m dual_head",
    "scripts/generate_iav.py 300 --dataset hh-rlhf": "dual-head eval hh",
    "scripts/generate_iav.py 300 --dataset alpaca_eval": "alpaca",
    "scripts/generate_iav.py 300 --dataset arena_hard": "arena",
    f'inference.py --alignment_checkpoint {ALIGNMENT} --demo_model_switching --prompt "{HELP_YOU}"': "--against NAME",
    f"train.py --model_name {LLAMA}": "--dataset_name",
    "evaluate --checkpoint best_model.pt": "only folders of safetensors",
    f"generate --alignment_checkpoint gone/best_alignment.pt --base_model {MISTRAL}": "only folders of safetensors",
    "train iav --model_name_or_path owner/name --cache_file gone.pt": "pickles are never read",
}
DHRD = """
model:
  name_or_path: "gpt2"  # or any decoder-only LM
  num_labels: 2
  loss_weight_alpha: 0.5  # Weight for classification vs LM loss

data:
  train_file: "data/train.json"
  eval_file: "data/eval.json"
  batch_size: 8

training:
  num_epochs: 3
  learning_rate: 5.0e-5
"""


class Parsed(Exception):
    """A command has read its arguments, as `options`, and would now begin."""

    def __init__(self, options: dict):
        self.options = options


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """Run a line up to where its command would begin, among the files that the documents name."""
    build = OptionParser.objects

    def only_parse(parser, namespace):
        if any(issubclass(cls, TrainingArguments) for cls in parser.classes):
            return build(parser, namespace)
        raise Parsed(vars(namespace))

    def train_guide(chosen, options, training):
        raise Parsed(dict(chosen.options()) | asdict(options) | training.to_dict())

    def train_classifier(options, training):
        raise Parsed(asdict(options) | training.to_dict())

    monkeypatch.setattr(OptionParser, "objects", only_parse)
    monkeypatch.setattr("dual_head.train.run.train_guide", train_guide)
    monkeypatch.setattr(classify_train, "train_classifier", train_classifier)
    cached = {"model_name_or_path": LLAMA, "dataset_name": "owner/name"}
    monkeypatch.setattr("dual_head.train.feature_cache.inputs.cached_options", lambda _: cached)
    flags._note_aliases.cache_clear()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    Path("configs/dhrd_config.yaml").write_text(DHRD)
    for folder in (PAV, "outputs/dhrd_experiment", "outputs/dhrd", LOGITS):
        Path(folder).mkdir(parents=True)
        Path(folder, "config.json").write_text("{}")

    def run(line: str) -> dict:
        with pytest.raises(Parsed) as parsed:
            main(shlex.split(line))
        return parsed.value.options

    return run


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")  # by transformers
@pytest.mark.parametrize(("line", "options"), READ.items(), ids=lambda value: str(value)[:60])
def test_a_printed_line_is_read_as_what_it_means(line, options, parse, capsys):
    parsed = parse(line)
    assert {name: parsed[name] for name in options} == options
    told = [word for word in capsys.readouterr().err.splitlines() if word.startswith("dual-head: in our spelling: ")]
    ours = told[0].partition("in our spelling: dual-head ")[2]
    assert len([word for word in told if " of 'configs" not in word]) == 1
    assert parse(ours) == parsed


@pytest.mark.parametrize(("line", "word"), REFUSED.items(), ids=lambda value: str(value)[:60])
def test_a_printed_line_that_cannot_run_is_refused_with_one_that_does(line, word, parse, capsys, monkeypatch):
    words = [word for word in shlex.split(line) if not re.match(r"[A-Z_0-9]+=", word)]
    assert main(words) == 2
    refusal = capsys.readouterr().err.splitlines()[-1]
    assert word in refusal
    for module in ("dual_head.cli.paths.require_paths", "dual_head.cli.loading.find_file"):
        monkeypatch.setattr(module, lambda *_: None)  # M, FOLDER and the like are nowhere
    remedies = REMEDY.findall(refusal) or [f"dual-head {line} --dataset_name owner/name"]
    for remedy in remedies:
        parse(remedy.removeprefix("dual-head "))


def parsers(command: str) -> list[OptionParser]:
    """Every parser of a command: one for each method, where it has one."""
    by_command = {
        "train": lambda: [training.build_parser(method(name)) for name in method_names()],
        "cache": lambda: [cache.build_parser(method(name)) for name in method_names()],
        "generate": lambda: [generate.build_parser()],
        "eval": lambda: [evaluate.build_parser()],
        "classify train": lambda: [classify_train.build_parser()],
        "classify compare": lambda: [classify_compare.build_parser()],
        "classify evaluate": lambda: [classify_evaluate.build_parser()],
    }
    return by_command[command]()


@pytest.mark.parametrize("command", FLAGS)
def test_a_flag_of_ours_is_never_an_alias_and_every_alias_is_for_one(command):
    for parser in parsers(command):
        ours = set(parser._option_string_actions)
        for name, alias in FLAGS[command].items():
            assert f"--{name}" not in ours
            assert isinstance(alias, str) or {f"--{flag}" for flag in alias.ours} <= ours


def test_a_command_of_ours_is_never_an_alias_and_every_alias_is_for_one():
    assert not set(OUR_COMMANDS) & {*COMMANDS, *NO_COMMANDS}
    for line in COMMANDS.values():
        name, *more = line.split()
        assert name in OUR_COMMANDS
        assert name != "classify" or more[0] in classify.COMMANDS


def test_what_is_in_our_spelling_stays_as_it_is_and_nothing_is_said(capsys):
    for line in (
        "",
        "--help",
        "generate FOLDER --prompt '--base_model x' --batch_size 4",
        "train iav --num_train_epochs 1 --seq=1",
        "classify",
        "sweep FOLDER --model_name x",
    ):
        assert translate(shlex.split(line)) == shlex.split(line)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        ("train iav --batch_size 4 --per_device_train_batch_size=8", "--batch_size and --per_device_train_batch_size"),
        ("train iav --max_length 4 --seq_length=8", "--seq_length and --max_length mean the same. Leave one out"),
        ("generate out --alignment_checkpoint other", "--alignment_checkpoint and 'out' mean the same"),
        ("classify train --eval_file a --eval_dataset_name b", "--eval_file and --eval_dataset_name"),
        ("train iav --warmup_ratio 1", "--warmup_steps 1"),
        ("train iav --num_epochs", "--num_epochs needs a value"),
    ],
)
def test_both_spellings_at_once_and_values_of_another_meaning_are_refused(line, refusal):
    with pytest.raises(DualHeadError, match=re.escape(refusal)):
        translate(line.split())


def test_a_pickle_is_refused_where_it_is_though_its_folder_is_of_guides(tmp_path):
    (tmp_path / "config.json").touch()
    line = ["generate", "--alignment_checkpoint", str(tmp_path / "best_alignment.pt")]
    assert translate(line) == ["generate", str(tmp_path)]
    (tmp_path / "best_alignment.pt").touch()
    with pytest.raises(DualHeadError, match="names a pickle"):
        translate(line)


def test_one_process_of_several_says_our_spelling(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert translate(["train", "iav", "--num_epochs", "1"]) == ["train", "iav", "--num_train_epochs", "1"]
    assert capsys.readouterr().err == ""


def test_the_keys_of_the_printed_file_are_said_in_our_spelling_once(parse, capsys):
    for _ in range(2):
        parse("classify train --config configs/dhrd_config.yaml")
    said = capsys.readouterr().err
    assert said.count("in our spelling") == 1
    assert "model.name_or_path is model_name_or_path" in said
    assert "learning_rate" not in said


# ---- in Python ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PYTHON)
def test_a_name_that_is_not_here_names_what_is(name, parse, monkeypatch):
    for module in ("dual_head.cli.paths.require_paths", "dual_head.cli.loading.find_file"):
        monkeypatch.setattr(module, lambda *_: None)
    with pytest.raises(DualHeadError, match=f"{name} does not exist here") as refusal:
        exec(f"from dual_head import {name}")
    remedies = REMEDY.findall(str(refusal.value))
    places = re.findall(r"\bdual_head(?:\.\w+)+", str(refusal.value))
    assert remedies or places
    for remedy in remedies:
        parse(remedy.removeprefix("dual-head "))
    for place in places:
        home, _, attribute = place.rpartition(".")
        assert hasattr(importlib.import_module(home), attribute)


def test_a_name_that_nobody_has_is_an_import_error():
    with pytest.raises(ImportError):
        exec("from dual_head import create_mva")


def test_the_inference_of_the_mav_readme_works_as_printed(backbone_folder, tmp_path):
    from dual_head import MAVInference, create_mav

    model = create_mav(str(backbone_folder))
    assert isinstance(model.guides["mav"].config, MultilayerConfig)
    model.save_pretrained(tmp_path / "mav")
    inference = MAVInference(
        alignment_checkpoint_path=f"{tmp_path}/mav/best_alignment.pt", initial_base_model=str(backbone_folder)
    )
    prompt = "good"
    answer = inference.generate(prompt, alpha=2.0, max_new_tokens=4)
    assert inference.generate_response(prompt, alpha=2.0, max_new_tokens=4) == answer
    inference.switch_base_model(str(backbone_folder))
    assert AlignedConfig.from_pretrained(tmp_path / "mav").guides.keys() == {"mav"}


def test_the_constructor_of_the_dhrd_readme_names_the_line_that_builds_it(backbone_folder):
    with pytest.raises(DualHeadError) as refusal:
        dual_head.DualHeadReasoningModel(
            model_name_or_path=str(backbone_folder), num_labels=2, dropout_prob=0.25, loss_weight_alpha=0.5
        )
    line = str(refusal.value).partition(": ")[2].removesuffix(".")
    model = eval(line, {"DualHeadReasoningModel": DualHeadReasoningModel})
    assert (model.num_labels, model.config.dropout, model.config.cls_weight) == (2, 0.25, 0.5)

"""What a backbone said is kept as it was said, and guides trained from it are those trained beside the backbone."""

import json
import pickle
import shutil

import pytest
import torch
from files import write_backbone, write_pairs
from models import ARCHITECTURES, HIDDEN, LAYERS, UNUSUAL, tiny_lm
from safetensors.torch import save_file

from dual_head import AlignedModel, DualHeadError
from dual_head.backbone.decoder import Backbone
from dual_head.cli import main
from dual_head.data.collate import PairCollator
from dual_head.methods import method
from dual_head.train.arguments import GuideTrainingArguments
from dual_head.train.feature_cache import FeatureCache, FeatureCollator, Layout, Needs, load_head, save_head
from dual_head.train.feature_cache.inputs import CachedInputs, cached_options
from dual_head.train.feature_cache.run import cache_features
from dual_head.train.feature_cache.store import STORED, pack, unpack, write_manifest
from dual_head.train.feature_cache.write import shard_of
from dual_head.train.options import CacheOptions
from dual_head.train.run import RunOptions, train_guide
from dual_head.train.step import GuidedLoss

PAIRS = [
    {"prompt_ids": [1, 7, 8], "chosen_ids": [21, 2], "rejected_ids": [31, 32, 33, 2]},
    {"prompt_ids": [1], "chosen_ids": [22, 23, 2], "rejected_ids": [34]},
    {"prompt_ids": [1, 9], "chosen_ids": [24], "rejected_ids": [35, 2]},
]
every_architecture = pytest.mark.parametrize("name", list(ARCHITECTURES))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A backbone and pairs of one's own, so that the backbone may be taken away."""
    folder = tmp_path_factory.mktemp("source")
    write_backbone(folder / "backbone", spread=0.2)
    pairs = write_pairs(folder / "pairs.jsonl", 40)
    dropped = json.dumps({"prompt": "ask1", "chosen": " good1", "rejected": " good1"})
    pairs.write_text(f"{dropped}\n{pairs.read_text()}")
    return folder


@pytest.fixture(scope="module")
def replies(source):
    """Single replies with labels, several to a prompt."""
    file = source / "replies.jsonl"
    rows = [
        {"prompt": f"ask{i // 2} how", "completion": f" {kind}{i % 8} a", "label": kind == "good"}
        for i in range(40)
        for kind in (("good", "bad", "good")[i % 3],)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    """A cache of one method's features, made once."""
    made = {}

    def write(name: str, **options):
        key = (name, *sorted(options.items()))
        if key not in made:
            given = {"held_out": 0.2, "pairs_per_shard": 7, **options}
            folder = tmp_path_factory.mktemp(name) / "cache"
            places = (str(source / "backbone"), str(source / "pairs.jsonl"))
            made[key] = cache_features(method(name), CacheOptions(*places, output_dir=str(folder), **given))
        return made[key]

    return write


def trained(name, output, options: RunOptions, **more):
    given = {"max_steps": 5, "learning_rate": 0.05, "logging_steps": 1, "warmup_steps": 0, "disable_tqdm": True}
    given |= {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, **more}
    chosen = method(name) if isinstance(name, str) else name
    train_guide(chosen, options, GuideTrainingArguments(str(output), **given))
    return json.loads((output / "report.json").read_text())


def beside(source, **options) -> RunOptions:
    return RunOptions(str(source / "backbone"), str(source / "pairs.jsonl"), held_out=0.2, **options)


def from_cache(cache, **options) -> RunOptions:
    return RunOptions(**{**cached_options(cache.folder), "feature_cache": str(cache.folder), **options})


def values(report, name: str) -> torch.Tensor:
    return torch.tensor([row[name] for row in report["log"] if name in row], dtype=torch.float64)


# ---- what is kept -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share_prompt", [True, False])
@pytest.mark.parametrize("positions", ["all", "response"])
def test_a_shard_holds_the_rows_that_training_picks_pair_by_pair(share_prompt, positions):
    backbone = Backbone(tiny_lm("llama"))
    layout = Layout(positions=positions, widths={"hidden": HIDDEN, "layers.1": HIDDEN}, dtype="fp32")
    tensors = shard_of(backbone, PAIRS, layout, share_prompt=share_prompt, batch_tokens=20)
    start = 0
    for pair in PAIRS:
        prompt, chosen, rejected = (pair[f"{part}_ids"] for part in ("prompt", "chosen", "rejected"))
        both = [backbone(torch.tensor([prompt + own]), layers=(1,)) for own in (chosen, rejected)]
        last = len(prompt) - 1
        for key in ("hidden", "layers.1"):
            good, bad = ((out.last_hidden_state if key == "hidden" else kept[1])[0] for out, kept in both)
            if positions == "all":
                expected, ids = torch.cat([good, bad[last + 1 :]]), prompt + chosen + rejected
            else:
                expected, ids = torch.cat([good[last:-1], bad[last:-1]]), chosen + rejected
            own = slice(start, start + len(ids))
            torch.testing.assert_close(tensors[key][own], expected, atol=1e-5, rtol=1e-4)
            assert tensors["ids"][own].tolist() == ids
        start = own.stop
    assert start == len(tensors["ids"]) == len(tensors["hidden"])
    assert tensors["lengths"].tolist() == [[3, 2, 4], [1, 3, 1], [2, 1, 2]]
    assert tensors["ids"].dtype == tensors["lengths"].dtype == torch.int32


def test_a_row_of_int8_is_off_by_half_a_step_at_most_and_zeros_stay():
    x = torch.randn(50, 64) * torch.logspace(-3, 3, 50)[:, None]
    x[7] = 0
    packed = pack("hidden", x, "int8")
    back = unpack(packed["hidden"], packed["hidden.scale"], torch.float32)
    step = x.abs().amax(-1, keepdim=True) / 127
    assert ((back - x).abs() <= 0.5001 * step).all()
    assert torch.equal(back[7], x[7])
    assert (packed["hidden.scale"] > 0).all()
    assert (back - x).norm() / x.norm() < 1.2e-2


@pytest.mark.parametrize(("dtype", "bound"), [("bf16", 2 * 1.05), ("int8", 1.02), ("fp32", 4 * 1.05)])
def test_a_token_takes_few_bytes_more_than_its_numbers(dtype, bound, tmp_path):
    width = 512
    write_backbone(tmp_path / "wide", hidden_size=width, layers=1)
    write_pairs(tmp_path / "pairs.jsonl", 60)
    options = CacheOptions(str(tmp_path / "wide"), str(tmp_path / "pairs.jsonl"), output_dir=str(tmp_path / "c"))
    options.dtype = dtype
    shards = cache_features(method("iav"), options).manifest["parts"]["train"]["shards"]
    assert sum(shard["bytes"] for shard in shards) / sum(shard["rows"] for shard in shards) <= bound * width


@pytest.mark.parametrize("dtype", list(STORED))
def test_pairs_arrive_in_the_dtype_of_the_backbone(dtype, written):
    cache = written("iav", dtype=dtype)
    pairs = cache.pairs("train", Needs("response"), dtype=torch.float32)
    exact = written("iav").pairs("train", Needs("response"), dtype=torch.float32)
    tolerance = {"fp32": 0, "bf16": 2**-8, "fp16": 2**-11, "int8": 0.6 / 127}[dtype]
    for own, true in zip(pairs, exact, strict=True):
        assert own["hidden"].dtype == torch.float32
        assert (own["hidden"] - true["hidden"]).abs().max() <= tolerance * true["hidden"].abs().max()


def test_a_cache_of_every_position_gives_what_one_of_responses_gives(written):
    every, responses = written("dual_head"), written("iav", max_length=1024)
    for part in ("train", "held_out"):
        for needs in (Needs("response"), Needs("response", (LAYERS,))):
            one = every.pairs(part, needs, dtype=torch.float32, by_length=part == "held_out")
            other = responses.pairs(part, needs, dtype=torch.float32, by_length=part == "held_out")
            assert len(one) == len(other) >= 5
            assert one.pair_lengths() == other.pair_lengths()
            a, b = (FeatureCollator("response")([pairs[i] for i in range(5)]) for pairs in (one, other))
            assert a.keys() == b.keys()
            assert torch.equal(a["hidden"], b["hidden"])
            assert all(torch.equal(a[key], b[key]) for key in ("at", "labels", "row"))
            assert a["counts"] == b["counts"]
            assert all(a["layers"][i] is a["hidden"] for i in needs.layers)


def test_a_set_of_pairs_goes_to_other_processes_without_its_files(written):
    pairs = written("iav").pairs("train", Needs("response"), dtype=torch.float32)
    assert torch.equal(pickle.loads(pickle.dumps(pairs))[3]["hidden"], pairs[3]["hidden"])
    assert len(pickle.dumps(pairs)) < 20_000


# ---- a step from it -----------------------------------------------------------------------------------------


@every_architecture
@pytest.mark.parametrize("guide", ["dual_head", "mav"])
def test_a_step_on_kept_features_is_the_step_beside_the_backbone(name, guide, tmp_path):
    lm, chosen = tiny_lm(name), method(guide)
    save_head(Backbone(lm), tmp_path)
    torch.manual_seed(3)
    model = AlignedModel.from_backbone(lm, {guide: chosen.guide})
    for parameter in model.guides.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    kept = AlignedModel.from_backbone(load_head(tmp_path), {guide: chosen.guide})
    kept.guides.load_state_dict(model.guides.state_dict())
    layers = model.guide(guide).hidden_layers
    positions = "all" if guide == "dual_head" else "response"
    layout = Layout(
        positions=positions, widths=dict.fromkeys(("hidden", *(f"layers.{i}" for i in layers)), HIDDEN), dtype="fp32"
    )
    rows = layout.rows(torch.tensor([[len(ids) for ids in pair.values()] for pair in PAIRS]))
    tensors = shard_of(model.backbone, PAIRS, layout, share_prompt=False, batch_tokens=10**6)
    split = {key: x.split(rows.tolist()) for key, x in tensors.items() if key != "lengths"}
    pairs = [
        {
            "hidden": split["hidden"][i],
            "layers": {n: split[f"layers.{n}"][i] for n in layers},
            "ids": split["ids"][i].long(),
            "lengths": tensors["lengths"][i].long(),
        }
        for i in range(len(PAIRS))
    ]
    whole = GuidedLoss(model, chosen, guide=guide)(**PairCollator(0)(PAIRS))
    ours = GuidedLoss(kept, chosen, guide=guide)(**FeatureCollator(positions)(pairs))
    whole["loss"].backward()
    ours["loss"].backward()
    for key, value in whole.items():
        torch.testing.assert_close(ours[key], value, atol=1e-4, rtol=1e-4)
    for own, true in zip(kept.guides.parameters(), model.guides.parameters(), strict=True):
        torch.testing.assert_close(own.grad, true.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", [*ARCHITECTURES, *UNUSUAL])
def test_a_head_gives_the_logits_of_the_whole_model_and_refuses_tokens(name, tmp_path):
    lm = tiny_lm(name).eval()
    backbone = Backbone(lm)
    save_head(backbone, tmp_path)
    head = Backbone(load_head(tmp_path))
    ids = torch.tensor([[1, 5, 6]])
    hidden = backbone(ids)[0].last_hidden_state
    assert torch.equal(head.logits(hidden), lm(ids).logits)
    assert head.shape == backbone.shape
    assert sum(p.numel() for p in head.parameters()) <= lm.get_output_embeddings().weight.numel() + 97
    with pytest.raises(DualHeadError, match="Leave out --feature_cache"):
        head(ids)


# ---- a run from it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dual_head", "iav", "hidden"])
def test_training_from_a_cache_is_training_without_bit_for_bit_where_batches_are_alike(name, source, written, tmp_path):
    cache = written(name, batch_tokens=1)  # each pair alone, as in the batches of one that it is trained in
    one = trained(name, tmp_path / "cached", from_cache(cache))
    other = trained(name, tmp_path / "streamed", beside(source, max_length=cache.options["max_length"]))
    for metric in ("loss", "preference", "kl", "grad_norm", "eval_loss", "eval_kl"):
        assert len(values(one, metric)) > 0
        assert torch.equal(values(one, metric), values(other, metric)), metric
    assert one["held_out"] == other["held_out"]
    assert one["data"] == other["data"]
    assert one["data"]["rows"]["dropped"] == {"identical": 1}
    configs = [json.loads((tmp_path / run / "config.json").read_text()) for run in ("cached", "streamed")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("gate", ["none", "attention"])
def test_training_on_single_replies_from_a_cache_is_training_without(gate, source, replies, tmp_path):
    chosen = method("kto").with_options({"gate": gate})
    places = (str(source / "backbone"), str(replies))
    cache = cache_features(
        chosen, CacheOptions(*places, output_dir=str(tmp_path / "c"), held_out=0.2, pairs_per_shard=7, batch_tokens=40)
    )
    size = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 8}
    one = trained(chosen, tmp_path / "cached", from_cache(cache), **size)
    other = trained(chosen, tmp_path / "streamed", RunOptions(*places, held_out=0.2), **size)
    for metric in ("loss", "kto", "accuracy", "divergence", "kl", "eval_loss"):
        assert len(values(one, metric)) > 0
        torch.testing.assert_close(values(one, metric), values(other, metric), rtol=1e-4, atol=1e-7)
    assert values(one, "divergence").max() > 0
    assert one["data"] == other["data"]


def test_a_cache_of_replies_is_not_one_of_pairs_and_other_labels_are_other_data(source, replies, written, tmp_path):
    options = CacheOptions(str(source / "backbone"), str(replies), output_dir=str(tmp_path / "c"), held_out=0.2)
    cache = cache_features(method("kto"), options)
    with pytest.raises(DualHeadError, match="holds single replies with labels, and 'hidden' learns from pairs"):
        trained("hidden", tmp_path / "out", from_cache(cache))
    with pytest.raises(DualHeadError, match="holds pairs of replies, and 'kto' learns from single replies"):
        trained("kto", tmp_path / "out", from_cache(written("hidden")))
    before = replies.read_text()
    replies.write_text(before.replace("true", "false", 1))
    with pytest.raises(DualHeadError, match="more or other pairs than the data now have"):
        cache_features(method("kto"), options)
    replies.write_text(before)


def test_a_guide_that_maps_states_of_responses_only_differs_by_the_rounding_of_its_gradient(source, written, tmp_path):
    # Beside the backbone its first matrix also meets the prompt's rows, whose gradients are zeros in the same sum.
    one = trained("mav", tmp_path / "cached", from_cache(written("mav", batch_tokens=1)))
    other = trained("mav", tmp_path / "streamed", beside(source))
    a, b = values(one, "loss"), values(other, "loss")
    assert torch.equal(a[:1], b[:1])
    torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_in_batches_of_other_widths_losses_differ_by_rounding(source, written, tmp_path):
    size = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 8}
    one = trained("dual_head", tmp_path / "cached", from_cache(written("dual_head")), **size)
    other = trained("dual_head", tmp_path / "streamed", beside(source), **size)
    for metric in ("loss", "eval_loss"):
        torch.testing.assert_close(values(one, metric), values(other, metric), rtol=3e-6, atol=0)


def test_training_needs_nothing_of_the_backbone_or_the_data_and_its_guides_run_beside_the_backbone(
    source, tmp_path, monkeypatch
):
    for name in ("backbone", "pairs.jsonl"):
        place = shutil.copytree if (source / name).is_dir() else shutil.copy
        place(source / name, tmp_path / name)
    places = ("--model_name_or_path", f"{tmp_path / 'backbone'}", "--dataset_name", f"{tmp_path / 'pairs.jsonl'}")
    assert main(["cache", *places, "--output_dir", f"{tmp_path / 'cache'}", "--held_out", "0.2"]) == 0
    (tmp_path / "backbone").rename(tmp_path / "elsewhere")
    (tmp_path / "pairs.jsonl").unlink()

    def load(*_args, **_options):
        raise AssertionError("the backbone was loaded")

    with monkeypatch.context() as patched:
        for module in ("train.inputs", "model.pretrained"):
            patched.setattr(f"dual_head.{module}.load_backbone", load)
        run = ["--feature_cache", f"{tmp_path / 'cache'}", "--output_dir", f"{tmp_path / 'out'}", "--max_steps", "2"]
        assert main(["train", "dual_head", *run, "--disable_tqdm", "true", "--bf16", "true"]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["backbone_name_or_path"] == str(tmp_path / "backbone")
    assert len(config["backbone_fingerprint"]["sketch"]) > 10  # of every weight, not of the head alone
    model = AlignedModel.from_pretrained(tmp_path / "out", backbone=tmp_path / "elsewhere")
    ids = torch.tensor([[1, 5, 6]])
    assert not torch.equal(model(ids, alpha=1.0).logits, model(ids, alpha=0.0).logits)
    write_backbone(tmp_path / "other", spread=0.2, seed=9)
    with pytest.raises(DualHeadError, match="other weights"):
        AlignedModel.from_pretrained(tmp_path / "out", backbone=tmp_path / "other")


def test_a_run_from_a_cache_that_was_killed_goes_on_as_if_nothing_had_been(written, tmp_path):
    cache = written("iav")
    whole = trained("iav", tmp_path / "whole", from_cache(cache), save_steps=3)
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "checkpoint-5")
    for file in ("model.safetensors", "config.json", "report.json"):
        (tmp_path / "broken" / file).unlink()
    again = trained("iav", tmp_path / "broken", from_cache(cache), save_steps=3)
    assert torch.equal(values(again, "loss"), values(whole, "loss"))


# ---- refused ------------------------------------------------------------------------------------------------


def test_a_guide_that_reads_more_than_is_kept_is_refused_with_the_remedy(written, tmp_path):
    lacks = {"dual_head": "hidden states of prompts.*--method dual_head", "mav": "layers 1.*--method mav"}
    for name, said in lacks.items():
        with pytest.raises(DualHeadError, match=said):
            trained(name, tmp_path, from_cache(written("iav")))
    trained("iav", tmp_path, from_cache(written("dual_head")), max_steps=1)  # the other way round it serves


@pytest.mark.parametrize("name", ["genarm", "reward", "dpo"])
def test_what_reads_token_ids_has_nothing_to_cache(name, written, source, tmp_path):
    options = CacheOptions(str(source / "backbone"), str(source / "pairs.jsonl"), output_dir=str(tmp_path))
    with pytest.raises(DualHeadError, match="nothing to cache"):
        cache_features(method(name), options)
    with pytest.raises(DualHeadError, match="nothing to cache"):
        trained(name, tmp_path, from_cache(written("dual_head")))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"held_out": 0.3}, "held_out: 0.2 there, 0.3 now"),
        ({"max_pairs": 5}, "max_pairs: None there, 5 now"),
        ({"dataset_name": "other.jsonl"}, "dataset_name"),
        ({"model_name_or_path": "someone/other"}, "model_name_or_path.*'someone/other' now"),
        ({"tokenizer_name": "someone/other"}, "tokenizer_name"),
        ({"dtype": "bfloat16"}, "float32, not bfloat16"),
    ],
)
def test_other_options_than_it_was_written_with_are_refused_by_name(given, named, written, tmp_path):
    with pytest.raises(DualHeadError, match=named):
        trained("dual_head", tmp_path, from_cache(written("dual_head"), **given))
    with pytest.raises(DualHeadError, match="leave out --feature_cache"):
        from_cache(written("dual_head"), move_guides="guides")


def test_a_cache_that_is_none_or_not_finished_or_cut_short_is_refused(written, tmp_path):
    with pytest.raises(DualHeadError, match=r"no manifest.json"):
        FeatureCache(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(written("iav").folder, copy)
    shard = copy / "features-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(DualHeadError, match=r"features-00000.safetensors' is cut short"):
        FeatureCache(copy).pairs("train", Needs("response"), dtype=torch.float32)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    with pytest.raises(DualHeadError, match="altered after it was written"):
        FeatureCache(copy)
    write_manifest(copy, {**manifest, "complete": False})
    with pytest.raises(DualHeadError, match="not finished"):
        FeatureCache(copy)
    (copy / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(DualHeadError, match="format 99"):
        FeatureCache(copy)


def test_hidden_states_that_are_no_numbers_are_not_kept():
    lm = tiny_lm("llama")
    with torch.no_grad():
        lm.model.norm.weight[0] = float("inf")
    layout = Layout(positions="all", widths={"hidden": HIDDEN}, dtype="fp32")
    with pytest.raises(DualHeadError, match="NaN or infinity"):
        shard_of(Backbone(lm), PAIRS, layout, share_prompt=False, batch_tokens=100)


def test_a_shard_that_is_not_what_was_written_is_refused_when_a_pair_of_it_is_first_read(written, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(written("iav").folder, copy)
    pairs = FeatureCache(copy).pairs("train", Needs("response"), dtype=torch.float32)
    whole = pairs[0]["hidden"].clone()
    shard = copy / "features-00001.safetensors"
    flipped = bytearray(shard.read_bytes())
    flipped[-1] ^= 1
    shard.write_bytes(flipped)
    pairs = FeatureCache(copy).pairs("train", Needs("response"), dtype=torch.float32)
    assert pairs[0]["hidden"].equal(whole)
    with pytest.raises(DualHeadError, match=r"features-00001.safetensors' is not what was written. Delete it"):
        pairs[7]


@pytest.mark.parametrize("key", ["positions", "widths", "tokenizer", "parts"])
def test_a_manifest_that_lacks_what_is_needed_is_refused(key, written, tmp_path):
    shutil.copytree(written("iav").folder, tmp_path / "copy")
    manifest = json.loads((tmp_path / "copy" / "manifest.json").read_text())
    write_manifest(tmp_path / "copy", {name: value for name, value in manifest.items() if name != key})
    with pytest.raises(DualHeadError, match=rf"it lacks '{key}'\. Write the feature cache again"):
        FeatureCache(tmp_path / "copy")


def test_a_head_that_lacks_a_weight_is_refused(written, tmp_path):
    shutil.copytree(written("iav").folder, tmp_path / "copy")
    file = tmp_path / "copy" / "head.safetensors"
    save_file({"other": torch.ones(2)}, file)
    with pytest.raises(DualHeadError, match=r"The weights in .* do not fit its config.json"):
        load_head(tmp_path / "copy")


def test_a_head_that_is_not_what_was_written_is_refused_before_it_is_trained_with(written, tmp_path):
    shutil.copytree(written("iav").folder, tmp_path / "copy")
    head = tmp_path / "copy" / "head.safetensors"
    flipped = bytearray(head.read_bytes())
    flipped[-1] ^= 1
    FeatureCache(tmp_path / "copy").require_whole()
    head.write_bytes(flipped)
    with pytest.raises(DualHeadError, match=r"head.safetensors' is not what was written. Delete it"):
        CachedInputs(method("iav"), RunOptions(feature_cache=str(tmp_path / "copy"), held_out=0.2)).load_lm()

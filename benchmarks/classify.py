"""Texts a second of a classifier and of what one would use instead, as ratios of runs that took turns in one process.

    python benchmarks/classify.py                         # below 20 minutes on two idle cores
    python benchmarks/classify.py --device cuda --dtype bfloat16 --hidden 2048 --layers 16 --batch_tokens 8192 \
        --texts 8192 --cot_texts 256
    python benchmarks/classify.py --small --output FILE --page PAGE    # seconds, to try the script itself

One random backbone, one tokenizer, the same texts. The classifier goes from texts to labels through `Predictor`; the
plain pooled model and the one-token verbaliser get its very batches; transformers' pipeline runs as it does where
nobody sets anything; chains of thought are decoded in one batch, to their full length. Figures go to
benchmarks/results/classify.json and from there into docs/results/classification.md.
It knows no data and judges no quality.
"""

import argparse
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import job
import report
import torch
from measure import compare, machine
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast, pipeline
from transformers.utils import logging

from dual_head.classify.export.plain import export
from dual_head.classify.model import DualHeadReasoningModel
from dual_head.classify.predict import Predictor

RESULTS = Path(__file__).parent / "results" / "classify.json"
PAGE = report.ROOT / "docs" / "results" / "classification.md"
NAME = "classify-throughput"
LABELS, AGREED = ["no", "yes"], 0.99  # and the share of them that models must agree on: rounding may change some
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
DHRD, PLAIN, VERBALISER = "DHRD classifier", "plain pooled, the same batches", "one-token verbaliser, the same batches"
HALF = "DHRD classifier, --dtype bfloat16"  # beside the others in float32
PIPELINE, COT = "transformers' pipeline, defaults", "chain of thought, batched"

Side = Callable[[list[str]], list[str]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is measured, and where; every field is a flag."""

    hidden: int = 512
    layers: int = 8
    vocab: int = 32000
    texts: int = 512
    median: float = 21.0  # tokens of a text: those of e-SNLI and CREAK together, in Llama-2's
    spread: float = 0.42  # of their logarithms
    longest: int = 512
    batch_tokens: int = 1024
    requests: int = 200  # of one text each, for the latencies
    cot_texts: int = 32  # decoded in one batch
    cot_requests: int = 3
    new: int = 500  # tokens of a chain of thought
    rounds: int = 5
    device: str = "cpu"
    dtype: str = "float32"


SMALL = Job(
    hidden=32, layers=1, vocab=96, texts=12, longest=32, batch_tokens=128, requests=3, cot_texts=4, cot_requests=1,
    new=4, rounds=2,
)  # fmt: skip


def main() -> None:
    """Measure, and write the table."""
    args = _parser().parse_args()
    given = {field.name: getattr(args, field.name) for field in fields(Job)}
    work = replace(SMALL if args.small else Job(), **{name: x for name, x in given.items() if x is not None})
    logging.set_verbosity_error()
    report.collect(measured(work), machine().as_dict(), args.output)
    table = report.markdown(report.read(args.output)["sections"][NAME])
    print(table)
    write(table, args.page)


def write(table: str, page: Path) -> None:
    """Put the table between its markers, which a page that has none gets at its end."""
    text = page.read_text() if page.exists() else "# Classifiers\n"
    if f"{report.OPENING}{NAME} -->" not in text:
        text += f"\n## Throughput\n\n{report.OPENING}{NAME} -->\n<!-- /bench -->\n"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(report.replaced(text, {NAME: table}))


# ---- texts and models --------------------------------------------------------------------------------------


def word_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """One token a word, <s> in front."""
    words = [*SPECIAL, *(f"w{i}" for i in range(vocab - len(SPECIAL)))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def texts_of(work: Job, seed: int = 0) -> list[str]:
    """Texts of random words whose numbers of tokens are lognormal, <s> in."""
    draw = random.Random(seed)
    lengths = [draw.lognormvariate(math.log(work.median), work.spread) for _ in range(work.texts)]
    counts = [min(work.longest, max(2, round(length))) - 1 for length in lengths]
    return [" ".join(f"w{draw.randrange(work.vocab - len(SPECIAL))}" for _ in range(n)) for n in counts]


def evenly(texts: Sequence[str], count: int) -> list[str]:
    """As many texts, evenly spaced in length, so that they are as long as all are."""
    by_length = sorted(texts, key=lambda text: len(text.split()))
    return [by_length[(2 * i + 1) * len(by_length) // (2 * count)] for i in range(count)]


def written(work: Job, folder: Path) -> tuple[Path, Path]:
    """A classifier with a LoRA and a linear head as training leaves it, and its export for transformers."""
    lm = job.language_model(vocab_size=work.vocab, hidden_size=work.hidden, layers=work.layers)
    tokenizer = word_tokenizer(work.vocab)
    for saved in (lm, tokenizer):
        saved.save_pretrained(folder / "backbone")
    model = DualHeadReasoningModel.from_backbone(folder / "backbone", labels=LABELS, head="linear")
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder / "dhrd")
    tokenizer.save_pretrained(folder / "dhrd")
    export(model, tokenizer, folder / "plain", dtype=work.dtype)
    return folder / "dhrd", folder / "plain"


# ---- sides -------------------------------------------------------------------------------------------------


def sides_of(work: Job, folder: Path) -> dict[str, Side]:
    """Every side, from texts to labels."""
    dhrd, exported = written(work, folder)
    predictor = Predictor.load(dhrd, device=work.device, dtype=work.dtype, batch_tokens=work.batch_tokens)
    plain: Any = AutoModelForSequenceClassification.from_pretrained(exported, dtype=work.dtype).to(work.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported)
    lm: Any = predictor.model.decoder.lm
    classify: Any = pipeline("text-classification", model=plain, tokenizer=tokenizer, device=work.device)

    def pooled(ids: list[list[int]]) -> Tensor:
        input_ids, mask = padded(ids, work.device)
        return plain(input_ids=input_ids, attention_mask=mask).logits

    def verbalised(ids: list[list[int]]) -> Tensor:
        input_ids, mask = padded(ids, work.device, left=True)
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        said = lm(input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1)
        return said.logits[:, -1, : len(LABELS)]  # of tokens that stand for the labels, whichever they are

    def decoded(texts: list[str]) -> list[str]:
        ids = [tokenizer(text)["input_ids"] for text in texts]
        input_ids, mask = padded(ids, work.device, left=True)
        options = {"max_new_tokens": work.new, "min_new_tokens": work.new, "do_sample": False, "pad_token_id": job.PAD}
        with torch.inference_mode():
            found = lm.generate(input_ids, attention_mask=mask, **options)
        assert found.shape[1] == input_ids.shape[1] + work.new
        return [LABELS[int(token) % len(LABELS)] for token in found[:, -1]]

    sides: dict[str, Side] = {DHRD: labelled(predictor)}
    if work.dtype == "float32":
        half = Predictor.load(dhrd, device=work.device, dtype="bfloat16", batch_tokens=work.batch_tokens)
        sides[HALF] = labelled(half)
    return sides | {
        PLAIN: bucketed(predictor, pooled),
        VERBALISER: bucketed(predictor, verbalised),
        PIPELINE: lambda texts: [found["label"] for found in classify(texts)],
        COT: decoded,
    }


def labelled(predictor: Predictor) -> Side:
    """Texts to labels as `predict` does it."""
    return lambda texts: [str(found.label) for found in predictor.predict(texts)]


def padded(ids: list[list[int]], device: str, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, T]."""
    longest = max(map(len, ids))
    gaps = [[job.PAD] * (longest - len(own)) for own in ids]
    rows = [gap + own if left else own + gap for own, gap in zip(ids, gaps, strict=True)]
    input_ids = torch.tensor(rows, device=device)
    return input_ids, (input_ids != job.PAD).long()


def bucketed(predictor: Predictor, score: Callable[[list[list[int]]], Tensor]) -> Side:
    """Texts to labels through the predictor's own tokens and batches, but another model."""

    def side(texts: list[str]) -> list[str]:
        ids, _ = predictor._encode(texts)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
        with torch.inference_mode():
            logits = torch.cat([score([ids[i] for i in batch]) for batch in predictor._batches(order, ids)])
        shares = logits.float().softmax(-1).cpu()
        labels = [""] * len(texts)
        for i, best in zip(order, shares.argmax(-1).tolist(), strict=True):
            labels[i] = LABELS[best]
        return labels

    return side


# ---- figures -----------------------------------------------------------------------------------------------


def measured(work: Job) -> report.Section:
    """Run every side in turns, on all texts and on one at a time."""

    def clock() -> float:
        if work.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    texts = texts_of(work)
    few = evenly(texts, work.cot_texts)
    with tempfile.TemporaryDirectory() as folder:
        sides = sides_of(work, Path(folder))
        require_agreement(sides, texts)
        agreed = agreement(sides[HALF](texts), sides[DHRD](texts)) if HALF in sides else None
        given = {name: few if name == COT else texts for name in sides}
        runs = {name: (lambda name=name: sides[name](given[name])) for name in sides}
        times = compare(runs, runs=work.rounds, reference=PLAIN, clock=clock)
        asked = evenly(texts, work.requests)
        waits = latencies({name: side for name, side in sides.items() if name != COT}, asked, clock)
        waits |= latencies({COT: sides[COT]}, evenly(texts, work.cot_requests), clock)
    each = {name: [s / len(given[name]) for s in side.seconds] for name, side in times.items()}
    made = section(work, each, waits, texts)
    said = "" if agreed is None else f" bfloat16 gives {agreed:.1%} of the texts float32's label, at random weights."
    return replace(made, note=made.note + said)


def agreement(labels: Sequence[str], others: Sequence[str]) -> float:
    """The share of texts that two sides gave the same label."""
    return sum(a == b for a, b in zip(labels, others, strict=True)) / len(labels)


def require_agreement(sides: Mapping[str, Side], texts: list[str]) -> None:
    """Refuse to time models that say different things."""
    wanted = sides[DHRD](texts)
    for name in (PLAIN, PIPELINE):
        if (same := agreement(sides[name](texts), wanted)) < AGREED:
            raise RuntimeError(f"'{name}' agrees with the classifier on {same:.1%} of the texts only.")


def latencies(sides: Mapping[str, Side], texts: Sequence[str], clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every request of one text, the sides taking turns; the first of each is not counted."""
    names, found = list(sides), {name: [] for name in sides}
    for i, text in enumerate([texts[0], *texts]):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            started = clock()
            sides[name]([text])
            if i:
                found[name].append(clock() - started)
    return found


def section(
    work: Job, each: Mapping[str, list[float]], waits: Mapping[str, list[float]], texts: Sequence[str]
) -> report.Section:
    """The table: rates, ratios of the same round, and latencies."""
    tokens, rows = sorted(len(text.split()) + 1 for text in texts), []
    for name, seconds in each.items():
        p99 = None if name == COT else percentile(waits[name], 0.99) * 1000
        ratios = [ratio(seconds, each[other]) for other in (PLAIN, PIPELINE, COT)]
        rows.append((name, 1 / statistics.median(seconds), *ratios, percentile(waits[name], 0.5) * 1000, p99))
    return report.Section(
        name=NAME,
        columns=("", "texts/s", "x plain pooled", "x pipeline", "x chain of thought", "p50 ms", "p99 ms"),
        rows=tuple(rows),
        note=f"{len(texts)} texts of {tokens[len(tokens) // 2]} tokens (median; {tokens[0]} to {tokens[-1]}), batches "
        f"of at most {work.batch_tokens} tokens; chains of thought of {work.new} tokens for {work.cot_texts} texts in "
        f"one batch. Random Llama of width {work.hidden}, {work.layers} layers, V = {work.vocab}, {work.dtype}, on "
        f"{work.device}. Medians of {work.rounds} rounds; ratios of the same round with their smallest and largest, "
        f"above 1 is faster. Latencies are of requests of one text: {work.requests}, and {work.cot_requests} for the "
        "chains of thought, too few for a p99.",
        bound="every token of every text once through the decoder, and no lm_head.",
    )


def ratio(seconds: Sequence[float], than: Sequence[float]) -> str:
    """How many times as fast as another side: median, smallest and largest of the rounds."""
    ratios = sorted(b / a for a, b in zip(seconds, than, strict=True))
    return f"{statistics.median(ratios):.3g} ({ratios[0]:.3g} to {ratios[-1]:.3g})"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so many are at most."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model and a few texts")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON that keeps the figures")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that the table goes into")
    for field in fields(Job):
        parser.add_argument(f"--{field.name}", type=type(field.default), help=f"[{field.default}]")
    return parser


if __name__ == "__main__":
    main()

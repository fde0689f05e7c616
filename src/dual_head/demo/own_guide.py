"""A guide of your own: a chat model's replies to questions, scored by a rule, best against worst, and trained on."""

import json
import time
from pathlib import Path

from dual_head.console.terminal import Terminal
from dual_head.data import Prompt
from dual_head.demo.chat_model import ChatModel
from dual_head.demo.options import NEW_TOKENS, RULE, RealOptions
from dual_head.demo.real import chat_model, say_how_to_serve, show
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.files.places import atomic_folder
from dual_head.methods import method
from dual_head.model.aligned import AlignedModel
from dual_head.model.collection import load_collection
from dual_head.model.pretrained import load_tokenizer
from dual_head.replies import RULES, best_with_worst
from dual_head.replies.pairs import brief, conversation
from dual_head.replies.sample import sample_replies
from dual_head.train.arguments import GuideTrainingArguments
from dual_head.train.run import RunOptions, train_guide

REPLIES, TEMPERATURE, TOP_K = 4, 0.9, 50
EPOCHS, BATCH, LEARNING_RATE = 3.0, 8, 3e-3
# Nearer the backbone than by the default, at which a guide unlearns to end replies.
OPTIONS = {"beta": 0.1, "rank": 64, "lambda_kl": 1.0}
LEAST_PAIRS = 4
QUESTIONS_FILE = Path(__file__).with_name("questions.txt")


def train_own(options: RealOptions, output_dir: str, seed: int) -> None:
    """Sample, pair, train and show one guide; write into a folder that the caller holds."""
    started, output, rule = time.perf_counter(), Path(output_dir), options.rule or RULE
    if rule not in RULES:
        raise DualHeadError(f"There is no rule '{rule}'.{did_you_mean(rule, RULES)} There are {', '.join(RULES)}.")
    RULES[rule].require()
    questions, chat = read_questions(options.questions), chat_model(options)
    pairs = write_pairs(chat, rule, questions, output, max_new_tokens=options.max_new_tokens or NEW_TOKENS, seed=seed)
    folder = output / "guides" / rule
    _train(chat, pairs, folder, seed)
    model = load_collection({rule: str(folder)}, chat.place)
    show(model, options, chat, output, seed=seed)
    say_how_to_serve(folder.parent, ChatModel(chat.place), [rule], by_default=False)
    print(f"{time.perf_counter() - started:.0f} seconds in all.")


def read_questions(file: str | None) -> list[str]:
    """The questions of a file, one a line. Errors: no such file, none in it."""
    path = Path(file) if file else QUESTIONS_FILE
    try:
        questions = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DualHeadError(f"Cannot read the questions '{path}'. Give a text file with a question a line.") from error
    if not questions:
        raise DualHeadError(f"'{path}' holds no question. Give a text file with a question a line.")
    return questions


def write_pairs(
    chat: ChatModel, rule: str, questions: list[str], output: Path, *, max_new_tokens: int, seed: int
) -> Path:
    """Sample replies to each question and write pairs.jsonl. Errors: a rule that tells too few replies apart."""
    console, file = Terminal(), output / "pairs.jsonl"
    tokenizer = load_tokenizer(chat.place)
    model = AlignedModel.from_backbone(chat.place, {}, tokenizer=tokenizer)
    prompts: list[Prompt] = [conversation(brief(question)) for question in questions]
    console.print(f"Sampling {REPLIES} replies of {chat.place} to {len(prompts)} questions ...")
    sampling = {"count": REPLIES, "temperature": TEMPERATURE, "top_k": TOP_K, "max_new_tokens": max_new_tokens}
    rows, scores = [], []
    for done, (i, replies) in enumerate(sample_replies(model, tokenizer, prompts, seed=seed, **sampling), 1):
        numbers = [RULES[rule].score(prompts[i], reply) for reply in replies]
        scores += numbers
        if pair := best_with_worst(prompts[i], replies, numbers):
            rows.append(pair)
        if done % 16 == 0 or done == len(prompts):
            console.print(f"  {done} questions, {len(rows)} pairs")
    if len(rows) < LEAST_PAIRS:
        raise DualHeadError(
            f"The rule '{rule}' gave {len(rows)} pairs: the replies to the other questions all score the same. Give "
            "more --questions, or another --rule."
        )
    console.print(f"{rule} of a reply: {sum(scores) / len(scores):.2f} {RULES[rule].unit} on average")
    with atomic_folder(output) as staging:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (staging / file.name).write_text(text, encoding="utf-8")
    return file


def _train(chat: ChatModel, pairs: Path, folder: Path, seed: int) -> None:
    train_guide(
        method("hidden").with_options(OPTIONS),
        RunOptions(model_name_or_path=chat.place, dataset_name=str(pairs), held_out=0.1, restart=True),
        GuideTrainingArguments(
            output_dir=str(folder),
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            logging_steps=4,
            save_strategy="no",
            eval_strategy="no",
            seed=seed,
        ),
    )

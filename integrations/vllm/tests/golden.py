"""What the library says of a few models with guides: the greedy tokens and log-probabilities that vLLM must give too.

    PYTHON integrations/vllm/tests/golden.py OUT [CASE ...]        in the library's own environment

    OUT/CASE/backbone, OUT/CASE/guides     as save_pretrained writes them
    OUT/CASE/golden.safetensors            tokens [requests, T], logprobs [requests, T, V]
    OUT/CASE/requests.json                 prompts and strengths

Weights come from numpy's RandomState, whose numbers never change, so that a golden file can be kept: that of KEPT lies
beside this script, and the tests of both sides compare with it.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import save_file

from dual_head import AlignedModel, HiddenConfig, LinearConfig, MultilayerConfig, RewardHeadConfig
from dual_head.demo import PUBLISHED_GUIDES, TOY_BACKBONE
from dual_head.demo.chat_model import find_chat_model
from dual_head.guides import GuideConfig
from dual_head.model.collection import load_collection

HERE = Path(__file__).parent
KEPT, KEPT_FILE = "llama", HERE / "golden_llama.safetensors"
VOCABULARY, NEW_TOKENS, REQUESTS, WINDOW = 131, 12, 24, 24
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # attention on a processor has no smaller one
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TIED = {**SIZES, "tie_word_embeddings": True}
GEMMA = {**TIED, "sliding_window": WINDOW, "query_pre_attn_scalar": 32}
LAYERS = ["sliding_attention", "full_attention"] * 2

EVERY_KIND: dict[str, GuideConfig] = {
    "lin": LinearConfig(rank=8),
    "hid": HiddenConfig(rank=8, gate="attention", num_heads=3, head_dim=20),  # heads that fit into the backbone's
    "multi": MultilayerConfig(width=32),
    "plain": HiddenConfig(rank=6),
    "rm": RewardHeadConfig(bias=True),  # heads of 48, wider than the backbone's
}
NARROW = RewardHeadConfig(num_heads=5, head_dim=32)  # wider heads would make pages of windows eight times as long
WINDOWED = {**EVERY_KIND, "rm": NARROW}
WITHOUT_LAYERS = {name: config for name, config in WINDOWED.items() if name != "multi"}


@dataclass(frozen=True)
class Case:
    """A backbone by its config, the guides beside it, how they fuse, and the backbone they were moved from, if any."""

    config: Callable[[], Any]
    guides: dict[str, GuideConfig]
    fusion: str = "logits"
    moved_from: Callable[[], Any] | None = None


def _llama(**options: Any) -> Callable[[], Any]:
    return lambda: transformers.LlamaConfig(**{**SIZES, **options})


CASES: dict[str, Case] = {
    "llama": Case(_llama(), EVERY_KIND),
    "llama_tied": Case(_llama(tie_word_embeddings=True), {"rm": RewardHeadConfig(rank=4, num_heads=2, head_dim=32)}),
    "constant": Case(_llama(), {"open": RewardHeadConfig(gate="constant"), "full": LinearConfig(bias=True)}),
    "hidden": Case(_llama(), {"one": HiddenConfig(rank=8), "two": HiddenConfig(rank=4), "three": HiddenConfig(rank=8)}),
    "multilayer": Case(_llama(), {"multi": MultilayerConfig(layers="custom", layer_indices=[0, 2, -1], width=16)}),
    "moved": Case(
        _llama(),
        {name: EVERY_KIND[name] for name in ("lin", "multi", "rm")},
        moved_from=_llama(hidden_size=48, num_hidden_layers=3),
    ),
    "probabilities": Case(_llama(), EVERY_KIND, "probabilities"),
    "mistral": Case(lambda: transformers.MistralConfig(**SIZES, sliding_window=WINDOW), WINDOWED),
    "qwen2": Case(lambda: transformers.Qwen2Config(**{**SIZES, "hidden_size": 128}), EVERY_KIND),
    "qwen3": Case(lambda: transformers.Qwen3Config(**TIED), EVERY_KIND),
    "gemma2": Case(
        lambda: transformers.Gemma2Config(
            **GEMMA, final_logit_softcapping=8.0, attn_logit_softcapping=5.0, layer_types=LAYERS
        ),
        WITHOUT_LAYERS,
    ),
    "gemma2_layers": Case(
        lambda: transformers.Gemma2Config(
            **GEMMA, final_logit_softcapping=8.0, attn_logit_softcapping=5.0, layer_types=LAYERS
        ),
        WINDOWED,
    ),
    "gemma3": Case(lambda: transformers.Gemma3TextConfig(**GEMMA, layer_types=LAYERS), WITHOUT_LAYERS),
    "phi": Case(  # a bias on the lm_head
        lambda: transformers.PhiConfig(**{**SIZES, "hidden_size": 128}),
        EVERY_KIND,
    ),
    "granite": Case(lambda: transformers.GraniteConfig(**SIZES, logits_scaling=4.0), EVERY_KIND),
}


@torch.no_grad()
def fill(module: torch.nn.Module, spread: float) -> None:
    """Draw every weight from its name: norms near 1, biases and matrices near 0."""
    for name, parameter in module.named_parameters():
        numbers = np.random.RandomState(crc32(name.encode())).standard_normal(tuple(parameter.shape))
        size = spread if parameter.dim() == 1 else spread * (4 / parameter.shape[-1] ** 0.5)
        centre = 1.0 if parameter.dim() == 1 and "norm" in name and not name.endswith("bias") else 0.0
        parameter.copy_(torch.from_numpy(centre + size * numbers))


def build(case: Case) -> AlignedModel:
    """The model of a case."""
    alpha = dict.fromkeys(case.guides, 1 / len(case.guides)) if case.fusion == "probabilities" else None  # shares
    lm = backbone(case.moved_from or case.config)
    model = AlignedModel.from_backbone(lm, case.guides, alpha=alpha, fusion=case.fusion)
    fill(model.guides, 0.25)
    if case.moved_from is not None:
        words = tokenizers.models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0")
        one = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words), unk_token="w0")
        model.switch_backbone(backbone(case.config), tokenizer=one, trained_tokenizer=one)
    return model


def backbone(config: Callable[[], Any]) -> Any:
    """A decoder that does not stop by itself."""
    lm = transformers.AutoModelForCausalLM.from_config(config()).float().eval()
    fill(lm, 0.25)
    lm.generation_config.eos_token_id = None
    return lm


def requests_of(names: list[str], fusion: str, vocabulary: int = VOCABULARY) -> list[dict[str, Any]]:
    """Prompts of 3 to 70 tokens, half of which begin alike, at strengths of every size, several zeros among them."""
    numbers = np.random.RandomState(7)
    shared = numbers.randint(3, vocabulary, 45).tolist()
    requests = []
    for i in range(REQUESTS):
        prompt = (shared if i % 2 else []) + numbers.randint(3, vocabulary, 3 + i).tolist()
        alpha = {name: round(float(numbers.uniform(-1.0, 2.0)), 3) for name in names}
        if i % 4 == 1:  # one guide alone
            alpha = {name: alpha[name] if j == i // 4 % len(names) else 0.0 for j, name in enumerate(names)}
        if i % 12 == 6:
            alpha = dict.fromkeys(names, 0.0)
        if fusion == "probabilities":
            total = sum(map(abs, alpha.values())) * 1.25 or 1.0
            alpha = {name: round(abs(value) / total, 4) for name, value in alpha.items()}
        requests.append({"prompt": prompt, "alpha": alpha})
    return requests


@torch.no_grad()
def answers(model: AlignedModel, requests: list[dict[str, Any]], tokens: int = NEW_TOKENS) -> dict[str, torch.Tensor]:
    """The greedy tokens [requests, T] of each prompt by itself, and log-probabilities [requests, T, V]."""
    chosen, logprobs = [], []
    for request in requests:
        prompt = torch.tensor([request["prompt"]])
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),  # else ends of turns that are also the padding are left out
            alpha=request["alpha"],
            max_new_tokens=tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            eos_token_id=None,
        )
        chosen.append(output.sequences[0, len(request["prompt"]) :])
        logprobs.append(torch.stack([x[0].float() for x in output.logits]).log_softmax(-1))
    return {"tokens": torch.stack(chosen), "logprobs": torch.stack(logprobs)}


def write(name: str, out: Path) -> None:
    """Write a case: its folders, its requests and what the library answers."""
    case, folder = CASES[name], out / name
    model = build(case)
    model.backbone.lm.save_pretrained(folder / "backbone")
    model.config.backbone_name_or_path = str((folder / "backbone").resolve())
    model.save_pretrained(folder / "guides")
    requests = requests_of(list(case.guides), case.fusion)
    save_file(answers(model, requests), folder / "golden.safetensors")
    (folder / "requests.json").write_text(json.dumps(requests))


# ---- models with a tokenizer -----------------------------------------------------------------------------

QUESTIONS = ("how do i bake bread ?", "how do i fix a bike ?", "what is a good name ?", "where do i sleep ?")
REAL_QUESTIONS = (
    *QUESTIONS,
    "Write a poem about rain.",
    "Name three fruits.",
    "What is 2 + 2?",
    "Why is the sky blue?",
)


def save(model: AlignedModel, tokenizer: Any, folder: Path) -> None:
    """Write guides with a tokenizer beside them."""
    model.save_pretrained(folder / "guides")
    tokenizer.save_pretrained(folder / "guides")


def chats(names: list[str], questions: tuple[str, ...], count: int, size: float) -> list[dict[str, Any]]:
    """Questions at strengths up to `size`."""
    numbers = np.random.RandomState(11)
    return [
        {
            "messages": [{"role": "user", "content": questions[i % len(questions)]}],
            "alpha": {name: round(float(numbers.uniform(-0.3, 1.0)) * size, 3) for name in names},
        }
        for i in range(count)
    ]


def write_chat(out: Path) -> None:
    """The shipped toy backbone, and what it answers at 16 strengths: for the test over HTTP."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOY_BACKBONE)
    guides = {"calm": HiddenConfig(rank=8), "bold": HiddenConfig(rank=8, gate="attention", num_heads=2, head_dim=32)}
    model = AlignedModel.from_backbone(str(TOY_BACKBONE), guides)
    fill(model.guides, 0.06)
    save(model, tokenizer, out / "chat")
    requests = chats(list(guides), QUESTIONS, 16, 1.5)
    for request in requests:
        prompt = tokenizer.apply_chat_template(request["messages"], add_generation_prompt=True, return_dict=False)
        request["prompt"] = prompt
        tokens = answers(model, [request], 16)["tokens"][0]
        request["text"] = tokenizer.decode(tokens, skip_special_tokens=True)
    (out / "chat" / "requests.json").write_text(json.dumps(requests))


def write_real(out: Path, place: str) -> None:
    """SmolLM2-135M-Instruct with its published guides, and with others of every kind."""
    model = load_collection({path.name: str(path) for path in sorted(PUBLISHED_GUIDES.iterdir())}, place)
    model.attach("rm", RewardHeadConfig(rank=16), alpha=0.0)  # 8 x 48 beside 3 x 64: three layers of pages
    model.attach("multi", MultilayerConfig(width=64, rank=16), alpha=0.0)
    model.attach("lin", LinearConfig(rank=16), alpha=0.0)
    for name in ("rm", "multi", "lin"):
        fill(model.guide(name), 0.1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    save(model, tokenizer, out / "real")
    requests = chats(list(model.config.guides or {}), REAL_QUESTIONS, REQUESTS, 1.0)
    for request in requests:
        request["prompt"] = tokenizer.apply_chat_template(
            request["messages"], add_generation_prompt=True, return_dict=False
        )
    whole = answers(model, requests)
    top = whole["logprobs"].topk(20, -1)
    tensors = {"tokens": whole["tokens"], "ids": top.indices, "logprobs": top.values, "last": whole["logprobs"][:, -1]}
    save_file({name: x.contiguous() for name, x in tensors.items()}, out / "real" / "golden.safetensors")
    (out / "real" / "requests.json").write_text(json.dumps(requests))


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    real = find_chat_model()
    for each in sys.argv[2:] or [*CASES, "chat", "real"]:
        if each == "chat":
            write_chat(place)
        elif each != "real":
            write(each, place)
        elif real is None or real.other_precision:
            print("golden: there is no real model, whose tests are skipped")
            continue
        else:
            write_real(place, real.place)
        print(f"golden {each}", flush=True)

"""Tiny random decoders of every architecture the tests run on: built from their configs, in milliseconds."""

from collections.abc import Callable

import torch
from transformers import (
    BambaConfig,
    CohereConfig,
    DeepseekV3Config,
    DeepseekV4Config,
    DeepseekV32Config,
    FalconConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    JambaConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    LlavaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolVLMConfig,
)

from dual_head import AlignedModel, DualHeadModel, RewardHeadConfig
from dual_head.backbone.load import auto_class
from dual_head.guides import GuideConfig, guide_class
from dual_head.guides.language_model import LanguageModelConfig
from dual_head.guides.prompt_contrast import PromptContrastConfig

HIDDEN, LAYERS, VOCAB, POSITIONS, WINDOW = 32, 2, 97, 128, 8
PAD, BOS, EOS = 0, 1, 2

_TOKENS = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
_SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "tie_word_embeddings": False,
    # Ten times the usual spread: the logits of a tiny model then differ by more than rounding.
    "initializer_range": 0.2,
    **_TOKENS,
}
# The cap on the logits bends those of a random model, and lets an edit before it still tell tokens apart.
_GEMMA = {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8, "final_logit_softcapping": 8.0}

ARCHITECTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_SIZES),
    "llama_tied": lambda: LlamaConfig(**{**_SIZES, "tie_word_embeddings": True}),
    "mistral": lambda: MistralConfig(**_SIZES, sliding_window=WINDOW),
    "qwen2": lambda: Qwen2Config(**_SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3": lambda: Qwen3Config(**_SIZES, head_dim=8),
    "gemma2": lambda: Gemma2Config(**{**_SIZES, "tie_word_embeddings": True}, **_GEMMA, attn_logit_softcapping=5.0),
    "gemma3": lambda: Gemma3TextConfig(
        **{**_SIZES, "tie_word_embeddings": True},
        **_GEMMA,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "phi3": lambda: Phi3Config(**_SIZES, sliding_window=WINDOW),
    "phi": lambda: PhiConfig(**_SIZES),  # a bias on the lm_head
    "gpt2": lambda: GPT2Config(
        n_embd=HIDDEN, n_layer=LAYERS, n_head=4, n_positions=POSITIONS, initializer_range=0.2, **_TOKENS
    ),
    "cohere": lambda: CohereConfig(**{**_SIZES, "tie_word_embeddings": True}, logit_scale=0.25),
    "granite": lambda: GraniteConfig(**_SIZES, logits_scaling=4.0),
}
EXPERTS = ("mixtral", "qwen3_moe", "deepseek_v3", "deepseek_v32")
# Decoders whose layers differ from those, and whose hidden states and lm_head do not: the contract alone is kept here.
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
OTHERS: dict[str, Callable[[], PreTrainedConfig]] = {
    "mixtral": lambda: MixtralConfig(**_SIZES, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: Qwen3MoeConfig(**_SIZES, **_EXPERTS, num_experts=4, head_dim=8, decoder_sparse_step=1),
    "gpt_oss": lambda: GptOssConfig(
        **_SIZES, num_local_experts=4, num_experts_per_tok=2, head_dim=8, sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "deepseek_v3": lambda: DeepseekV3Config(
        **{**_SIZES, "num_key_value_heads": 4}, **_EXPERTS, n_routed_experts=4, n_shared_experts=1, n_group=2,
        topk_group=1, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=8,
    ),
    "olmo2": lambda: Olmo2Config(**_SIZES),
    "falcon": lambda: FalconConfig(
        hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4, new_decoder_architecture=True,
        num_kv_heads=2, max_position_embeddings=POSITIONS, initializer_range=0.2, tie_word_embeddings=False, **_TOKENS,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**{k: v for k, v in _SIZES.items() if k != "num_key_value_heads"}),
}  # fmt: skip

# Decoders with layers that keep a state, with keys and values or without: of a convolution, and of Mamba, which cannot
# go back.
RECURRENT: dict[str, Callable[[], PreTrainedConfig]] = {
    "lfm2": lambda: Lfm2Config(**_SIZES, layer_types=["conv", "full_attention"]),
    "jamba": lambda: JambaConfig(
        **{k: v for k, v in _SIZES.items() if k != "max_position_embeddings"},
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=1,
        num_experts_per_tok=1,
        mamba_d_state=4,
        mamba_dt_rank=4,
    ),
    # Attention beside Mamba in every layer, and factors of the lm_head and more.
    "falcon_h1": lambda: FalconH1Config(
        **_SIZES, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=8,
        lm_head_multiplier=0.5, key_multiplier=0.7,
    ),
    "bamba": lambda: BambaConfig(
        **_SIZES, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=8, attn_layer_indices=[1],
    ),
}  # fmt: skip

# Decoders whose layers carry several streams of a token.
STREAMS: dict[str, Callable[[], PreTrainedConfig]] = {
    "gemma3n": lambda: Gemma3nTextConfig(
        **{**_SIZES, "num_hidden_layers": 4}, head_dim=8, sliding_window=WINDOW, laurel_rank=4,
        layer_types=["sliding_attention", "full_attention"] * 2, num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCAB, hidden_size_per_layer_input=4, activation_sparsity_pattern=[0.0] * 4,
    ),
    "deepseek_v4": lambda: DeepseekV4Config(
        **{**_SIZES, "num_key_value_heads": 1}, num_experts_per_tok=2, moe_intermediate_size=24, n_routed_experts=4,
        head_dim=8, q_lora_rank=16, qk_rope_head_dim=8, index_n_heads=2, index_head_dim=8, index_topk=64,
        sliding_window=WINDOW,
    ),
}  # fmt: skip
# Decoders whose head, cache or layers are not as those of others are.
UNUSUAL: dict[str, Callable[[], PreTrainedConfig]] = {
    **RECURRENT,
    # Its class names the model below the lm_head by what it is part of, and its routers give a pair.
    "llama4": lambda: Llama4TextConfig(
        **_SIZES, intermediate_size_mlp=48, head_dim=8, num_local_experts=4, no_rope_layers=[1, 0],
        layer_types=["chunked_attention", "full_attention"], attention_chunk_size=WINDOW,
    ),
    # Its last layers read keys and values of others; heads of other sizes; inputs for each layer.
    "gemma4": lambda: Gemma4TextConfig(
        **{**_SIZES, "num_hidden_layers": 4}, head_dim=8, global_head_dim=16, sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 2, num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCAB, hidden_size_per_layer_input=4,
    ),
    "deepseek_v32": lambda: DeepseekV32Config(
        **{**_SIZES, "num_key_value_heads": 4}, **_EXPERTS, n_routed_experts=4, n_shared_experts=1, n_group=2,
        topk_group=1, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=8, index_n_heads=2, index_head_dim=16, index_topk=64,
    ),
    **STREAMS,
}  # fmt: skip

IMAGE, IMAGE_SIDE, PATCH = 96, 28, 14  # the token that stands for a place of an image
_ENCODER = {  # as many layers as the decoder has, which hooks must tell apart
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "image_size": IMAGE_SIDE, "patch_size": PATCH,
}  # fmt: skip
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
# Decoders of images and text. An image is four tokens, and one for SmolVLM.
IMAGE_TEXT: dict[str, Callable[[], PreTrainedConfig]] = {
    "llava": lambda: LlavaConfig(
        text_config={**_SIZES, "model_type": "llama"},
        vision_config={**_ENCODER, "model_type": "clip_vision_model"},
        image_token_index=IMAGE, vision_feature_layer=-1, tie_word_embeddings=False,
    ),
    "qwen2_vl": lambda: Qwen2VLConfig(
        text_config={**_SIZES, **_MROPE},
        vision_config={
            "depth": LAYERS, "embed_dim": 16, "hidden_size": HIDDEN, "num_heads": 2, "mlp_ratio": 2,
            "patch_size": PATCH,
        },
        image_token_id=IMAGE, video_token_id=95, vision_start_token_id=94, vision_end_token_id=93,
        tie_word_embeddings=False,
    ),
    "gemma3_image": lambda: Gemma3Config(
        text_config={
            **_SIZES, **_GEMMA, "tie_word_embeddings": True, "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config={**_ENCODER, "model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_index=IMAGE, boi_token_index=94, eoi_token_index=95, mm_tokens_per_image=4,
    ),
    "smolvlm": lambda: SmolVLMConfig(
        text_config={**_SIZES, "model_type": "llama"}, vision_config=_ENCODER, image_token_id=IMAGE, scale_factor=2,
        tie_word_embeddings=False,
    ),
}  # fmt: skip


# Of guides whose default needs more than a backbone: prompts of text need a tokenizer.
CONFIGS: dict[str, GuideConfig] = {"prompt_contrast": PromptContrastConfig(positive=[9, 8], negative=[5, 6, 7])}


def config_of(kind: str, architecture: str = "llama") -> GuideConfig:
    """The options of a guide of that kind beside a tiny backbone: its defaults, where they are enough.

    PEFT adapts experts, which are no linear layers, without dropout only.
    """
    if kind == "language_model" and architecture in EXPERTS:
        return LanguageModelConfig(dropout=0.0)
    return CONFIGS.get(kind) or guide_class(kind).Config()


def tiny_lm(name: str, seed: int = 0) -> PreTrainedModel:
    """A random model of one architecture; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = {**ARCHITECTURES, **OTHERS, **UNUSUAL, **IMAGE_TEXT}[name]()
        lm = auto_class(config).from_config(config)
        bias = getattr(lm.get_output_embeddings(), "bias", None)
        if bias is not None:
            torch.nn.init.normal_(bias)  # a fresh bias is zero, and would hide that it was forgotten
        for key, x in lm.named_parameters():
            if "mm_input_projection" in key:
                torch.nn.init.normal_(x)  # Gemma's too, and would hide that an image was
    return lm


def prompts_with_images(name: str, rows: int = 2) -> dict[str, torch.Tensor]:
    """What the processor of an image-text model gives for so many prompts of ten tokens, each with a random image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        ids, pixels = torch.randint(3, 90, (rows, 10)), torch.randn(rows, 3, IMAGE_SIDE, IMAGE_SIDE)
        ids[:, 2 : 3 if name == "smolvlm" else 6] = IMAGE
        places = (ids == IMAGE).long()
        if name == "qwen2_vl":
            count = 2 * IMAGE_SIDE // PATCH  # patches of a side, of which four make a place
            pixels = torch.randn(rows * count**2, 3 * 2 * PATCH**2)
            sizes = torch.tensor([[1, count, count]] * rows)
            return {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": sizes, "mm_token_type_ids": places}
    if name == "smolvlm":
        return {"input_ids": ids, "pixel_values": pixels[:, None]}
    return {"input_ids": ids, "pixel_values": pixels} | ({"token_type_ids": places} if "gemma" in name else {})


def steered_lm(name: str = "llama", *, seed: int = 0, spread: float = 0.3, fusion: str = "logits", **guide):
    """A tiny backbone with one Dual-Head guide "dual_head" whose every weight is random; `guide`: its options."""
    options = RewardHeadConfig(**{"num_heads": 2, "head_dim": 8, **guide})
    model = DualHeadModel.from_backbone(tiny_lm(name, seed), guide=options, fusion=fusion)
    return _with_random_guides(model, seed, spread)


def guided_lm(
    guides: dict[str, GuideConfig], name: str = "llama", *, seed: int = 0, spread: float = 0.3, fusion: str = "logits"
) -> AlignedModel:
    """A tiny backbone with any guides whose every weight is random, and no end-of-sequence to stop at."""
    lm = tiny_lm(name, seed)
    lm.generation_config.eos_token_id = None
    alpha = dict.fromkeys(guides, 1 / len(guides)) if fusion == "probabilities" else None  # shares of a mixture
    return _with_random_guides(AlignedModel.from_backbone(lm, guides, alpha=alpha, fusion=fusion), seed, spread)


def _with_random_guides(model: AlignedModel, seed: int, spread: float):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        for parameter in model.guides.parameters():
            torch.nn.init.normal_(parameter, std=spread)
    return model

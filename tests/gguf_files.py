"""A tiny Llama in a GGUF file, as llama.cpp's converter writes it."""

from pathlib import Path

import gguf
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

HEADS, KV_HEADS, LAYERS, WIDTH = 4, 2, 2, 32
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĠĠ"]
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
NAMES = {  # what llama.cpp calls the weights of a layer
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def random_llama() -> LlamaForCausalLM:
    """A random Llama whose eps no binary fraction is equal to."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def write_gguf(
    file: Path, lm: LlamaForCausalLM, *, architecture: str = "llama", split: str = "smollm", without: str = ""
) -> Path:
    """Write a Llama as llama.cpp's converter does, its lm_head in Q8_0; without: a weight that is left out."""
    config, writer = lm.config, GGUFWriter(file, architecture)
    writer.add_name("Tiny")
    writer.add_license("mit")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * (len(TOKENS) - 3)])
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, weight in lm.state_dict().items():
        if (stored := gguf_name(name)) == without:
            continue
        values = weight.numpy()
        if stored.endswith(("attn_q.weight", "attn_k.weight")):  # llama.cpp turns pairs of neighbours
            heads = HEADS if "attn_q" in stored else KV_HEADS
            values = values.reshape(heads, 2, -1, WIDTH).swapaxes(1, 2).reshape(values.shape)
        if stored == "output.weight":
            blocks = gguf.quants.quantize(values, GGMLQuantizationType.Q8_0)
            writer.add_tensor(stored, blocks, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(stored, values)
    write(writer)
    return file


def write(writer: GGUFWriter) -> None:
    """Write what a writer was given, and close it."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem = name.removesuffix(".weight")
    if stem in outer:
        return f"{outer[stem]}.weight"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[inner]}.weight"

"""Writes a GGUF file of a Llama as the folder that mlx_lm reads: no such folder of a small model can be
had from a package. Arguments: GGUF FOLDER.
"""

import json
import pathlib
import sys

import gguf
import mlx.core as mx
import numpy as np

BLOCKS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
OTHERS = {"token_embd": "embed_tokens", "output_norm": "norm"}
CONTROL = 3


def main(source, folder):
    reader = gguf.GGUFReader(source)

    def told(key):
        return reader.fields[key].contents()

    heads = {"attn_q": told("llama.attention.head_count"), "attn_k": told("llama.attention.head_count_kv")}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True,
        "hidden_size": told("llama.embedding_length"), "num_hidden_layers": told("llama.block_count"),
        "intermediate_size": told("llama.feed_forward_length"),
        "num_attention_heads": heads["attn_q"], "num_key_value_heads": heads["attn_k"],
        "rms_norm_eps": told("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": told("llama.rope.freq_base"), "max_position_embeddings": told("llama.context_length"),
        "vocab_size": len(told("tokenizer.ggml.tokens")),
        "bos_token_id": told("tokenizer.ggml.bos_token_id"),
        "eos_token_id": told("tokenizer.ggml.eos_token_id"),
    }
    weights = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float16)
        name = tensor.name.removesuffix(".weight")
        if name.startswith("blk."):
            _, block, part = name.split(".")
            if part in heads:
                values = unpermuted(values, heads[part])
            name = f"layers.{block}.{BLOCKS[part]}"
        else:
            name = OTHERS[name]
        weights[f"model.{name}.weight"] = mx.array(values)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(told)))
    tokens = told("tokenizer.ggml.tokens")
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        "bos_token": tokens[config["bos_token_id"]], "eos_token": tokens[config["eos_token_id"]],
        "chat_template": told("tokenizer.chat_template"),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    # Last: with it the folder is whole.
    (folder / "config.json").write_text(json.dumps(config))


def unpermuted(values, heads):
    """Undoes how llama.cpp orders the rows of each head: pairs side by side, not halves."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def tokenizer(told):
    tokens, kinds = told("tokenizer.ggml.tokens"), told("tokenizer.ggml.token_type")
    added = [
        {"id": number, "content": tokens[number], "special": True, "normalized": False,
         "lstrip": False, "rstrip": False, "single_word": False}
        for number, kind in enumerate(kinds) if kind == CONTROL
    ]
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, bytes_only]},
        "post_processor": None, "decoder": bytes_only,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": told("tokenizer.ggml.merges"),
        },
    }


main(*sys.argv[1:])

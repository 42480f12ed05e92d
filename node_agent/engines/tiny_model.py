# mypy: disable-error-code="import-not-found,no-any-unimported,no-untyped-call"
"""Builds a tiny chat model that real vLLM serves on a CPU: random weights, the same bytes on every run, no network.

    .venv-vllm/bin/python tiny_model.py OUT [--lora DIR] [--seed N]

Run it with the engine environment's Python (torch, transformers, tokenizers and safetensors come with vLLM); nothing
else in this repository imports it. Each directory appears whole or not at all, so one that exists is a good one.
It decides what the model is: Qwen3 in small, a byte-level tokenizer learnt from CPython's own help texts, a ChatML
template with tools. It does not train: random weights have small margins between tokens and emit incomplete UTF-8
now and then, which is the harder case for whoever continues a broken stream.

Structured output from random weights needs help: a grammar allows whitespace, long strings and long numbers, and a
random model would emit them for ever. So one dimension of the residual stream is kept constant, which gives the last
layer what Qwen3 does not have, a bias for each token: against bare whitespace and digits, for the closing quote. JSON
schemas and tool calls then end without any help from the request.
"""

import argparse
import json
import os
import pydoc_data.topics
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

VOCAB = 2048
HIDDEN = 128
LAYERS = 2
HEAD = 64
MAX_TOKENS = 4096
INIT_STD = 0.08  # larger than usual: less repetitive text
CONSTANT = 0.5  # value of the constant dimension of the residual stream
AGAINST_WHITESPACE = -30.0
FOR_QUOTE = 3.5
AGAINST_DIGITS = -6.0
LORA_RANK = 8
LORA_SCALE = 0.5  # large enough that the adapter's answers differ from the base model's

END_OF_TEXT, TURN_STARTS, TURN_ENDS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TAGS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]  # one token each, but not special: they stay in the text

CHAT_TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- '# Tools\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\\n</tools>\\nCall a tool with <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'system' and loop.first %}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{%- set said = {'name': call.function.name, 'arguments': call.function.arguments} %}
{{- '\\n<tool_call>\\n' + (said | tojson) + '\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build a tiny deterministic model for real vLLM on a CPU.")
    parser.add_argument("out", type=Path, help="directory of the model")
    parser.add_argument("--lora", type=Path, help="directory of a random LoRA adapter for it")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    transformers_logging.disable_progress_bar()
    with _whole(args.out) as folder:
        parameters = build(folder, seed=args.seed)
    if args.lora:
        with _whole(args.lora) as folder:
            build_lora(folder, seed=args.seed + 1)
    sys.stdout.write(f"{args.out}: tiny model of {parameters:,} parameters\n")
    return 0


def build(folder: Path, *, seed: int = 0) -> int:
    """Writes the model and its tokenizer; returns the number of parameters."""
    tokenizer = _tokenizer()
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // HEAD,
        num_key_value_heads=1,
        head_dim=HEAD,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=INIT_STD,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(TURN_ENDS),
        pad_token_id=tokenizer.convert_tokens_to_ids(END_OF_TEXT),
        dtype="float32",
    )
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    _give_bias(model, _biases(tokenizer))
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(model.num_parameters())


def build_lora(folder: Path, *, seed: int) -> None:
    """A random adapter on the query and value projections, in PEFT's file format (peft itself is not needed)."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Any] = {}
    for layer in range(LAYERS):
        for name, width in (("q_proj", HIDDEN), ("v_proj", HEAD)):
            base = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            down = torch.randn(LORA_RANK, HIDDEN, generator=generator) * LORA_SCALE
            up = torch.randn(width, LORA_RANK, generator=generator) * LORA_SCALE
            weights |= {f"{base}.lora_A.weight": down, f"{base}.lora_B.weight": up}
    save_file(weights, str(folder / "adapter_model.safetensors"))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": LORA_RANK,
        "lora_alpha": 2 * LORA_RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": "tiny",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")


def _tokenizer() -> Any:
    topics = pydoc_data.topics.topics
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learnt.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(TAGS),
        special_tokens=[END_OF_TEXT, TURN_STARTS, TURN_ENDS],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    learnt.train_from_iterator([topics[name] for name in sorted(topics)], trainer)
    learnt.add_tokens(TAGS)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learnt,
        eos_token=TURN_ENDS,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_STARTS],
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _biases(tokenizer: Any) -> Any:
    biases = torch.zeros(VOCAB)
    for token in range(VOCAB):
        text = tokenizer.decode([token])
        if text != text.strip() and not any(letter.isalnum() for letter in text):
            biases[token] = AGAINST_WHITESPACE
        elif text.strip().isdecimal():
            biases[token] = AGAINST_DIGITS
        elif text == '"':
            biases[token] = FOR_QUOTE
    return biases


def _give_bias(model: Any, biases: Any) -> None:
    """Dimension 0 is written by the embedding alone and read by the last layer alone, so it acts as a bias there."""
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = CONSTANT
        for layer in model.model.layers:
            layer.input_layernorm.weight[0] = 0
            layer.post_attention_layernorm.weight[0] = 0
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        model.lm_head.weight[:, 0] = biases


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A directory beside the target, renamed to it when it is complete."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield half
        half.chmod(0o755)
        for file in half.iterdir():
            file.chmod(0o644)  # the engine may run as another user
        if target.exists():
            shutil.rmtree(target)
        os.replace(half, target)
    finally:
        shutil.rmtree(half, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())

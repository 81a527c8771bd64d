"""A GGUF answers in llama.cpp as its checkpoint does in transformers, or it is refused by name."""


import pytest
import torch

pytest.importorskip("xllamacpp")
pytest.importorskip("libggml")

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipeline.export.gguf_file import write_gguf
from pipeline.export.llama_cpp import LlamaCpp, llama_server
from pipeline.export.proof import Reference, prove
from tests.tokenizer_kinds import tokenizer_of

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
         "initializer_range": 0.2, "bos_token_id": None}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
CASES = {       # (config, model, tokenizer, what is unusual)
    "qwen2, tied, grouped heads": (Qwen2Config, Qwen2ForCausalLM, "qwen2_5", {
        "tie_word_embeddings": True}),
    "qwen2, untied, padded vocabulary": (Qwen2Config, Qwen2ForCausalLM, "qwen2_5", {
        "tie_word_embeddings": False, "padding": 77}),
    "qwen3, tied, wide heads, padded": (Qwen3Config, Qwen3ForCausalLM, "qwen3", {
        "tie_word_embeddings": True, "head_dim": 24, "padding": 9}),
    "qwen3, untied, the tiny student's tokenizer": (Qwen3Config, Qwen3ForCausalLM, "tiny", {
        "tie_word_embeddings": False, "head_dim": 20}),
    "llama, untied, a first token, llama3 scaling": (LlamaConfig, LlamaForCausalLM, "llama3", {
        "tie_word_embeddings": False, "rope_parameters": LLAMA3}),
    "llama, tied, wide heads, biases": (LlamaConfig, LlamaForCausalLM, "base", {
        "tie_word_embeddings": True, "head_dim": 40, "attention_bias": True}),
    "qwen2, yarn": (Qwen2Config, Qwen2ForCausalLM, "qwen2_5", {"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
        "original_max_position_embeddings": 128}}),
}
CHATS = [[{"role": "user", "content": text}] for text in (
    "What is 2+2?", "Use 3, 14 and 159 to make 26.\n\nThink.", "naïve — 東京 🙂", "It's  I'LL\t x",
    *(f"Problem {n}: {n * 37} + {n}00000 = ?" for n in range(16)))]
FEW = ["qwen3, tied, wide heads, padded", "llama, untied, a first token, llama3 scaling"]


def made(case):
    """A random model of the case, its tokenizer, and the tokens that end its turn."""
    config_class, model_class, kind, unusual = CASES[case]
    tokenizer = tokenizer_of(kind)
    unusual = dict(unusual)
    torch.manual_seed(1)
    config = config_class(**SIZES, vocab_size=len(tokenizer) + unusual.pop("padding", 0),
                          eos_token_id=tokenizer.eos_token_id, **unusual)
    model = model_class(config).to(torch.bfloat16).eval()
    for name, weights in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weights, std=0.2)
    return model, tokenizer, [tokenizer.eos_token_id]


def written(folder, case, form):
    model, tokenizer, ends = made(case)
    path = folder / f"m-{form}.gguf"
    write_gguf(path, model, tokenizer, form, name="m", ends=ends,
               sampling={"temperature": 0.6, "top_p": 0.95}, lineage={"stages": {"sft": "abc"}})
    return path, model, tokenizer, ends


@pytest.mark.parametrize("case", [case if case in FEW else
                                  pytest.param(case, marks=pytest.mark.slow) for case in CASES])
def test_llama_cpp_gives_the_prompts_and_the_64_greedy_tokens_of_transformers(tmp_path, case):
    for form, fewest, gap in (("f32", 18, 0.02), ("bf16", 0, 0.2)):
        path, model, tokenizer, ends = written(tmp_path, case, form)
        reference = Reference.of(model, tokenizer, ends, CHATS, 64)
        with llama_server(path, context=512) as address:
            found = prove(LlamaCpp(address), reference, form, path.name)
        assert found["prompts"] == len(CHATS) >= 20
        # 16-bit activations part where two tokens of a random model are as good as equal.
        assert found["greedy_equal"] >= fewest and found["largest_gap"] < gap
        assert found["kl"] < 1e-2

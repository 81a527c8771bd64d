"""A GGUF answers in llama.cpp as its checkpoint does in transformers, or it is refused by name."""

import copy
import json
import re

import numpy as np
import pytest
import torch

pytest.importorskip("xllamacpp")
pytest.importorskip("libggml")

from gguf import GGMLQuantizationType, GGUFReader, dequantize
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.errors import UserError
from pipeline.export import export_files
from pipeline.export.architecture import architecture
from pipeline.export.chat_format import go_template, modelfile
from pipeline.export.gguf_file import write_gguf
from pipeline.export.llama_cpp import LlamaCpp, _steps, llama_server
from pipeline.export.proof import Reference, prove
from pipeline.export.quantise import pack, tensor_type
from pipeline.export.vocabulary import split_name, vocabulary
from pipeline.prompts import ROOT
from pipeline.student.template import render_prompt
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
FEW = ["qwen3, tied, wide heads, padded"]


def made(case):
    """A random model of the case, its tokenizer, and the tokens that end its turn."""
    config_class, model_class, kind, unusual = CASES[case]
    tokenizer = tokenizer_of(kind)
    unusual = dict(unusual)
    torch.manual_seed(1)
    config = config_class(**SIZES, vocab_size=len(tokenizer) + unusual.pop("padding", 0),
                          eos_token_id=tokenizer.eos_token_id, **unusual)
    model = model_class(config).eval()
    for name, weights in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weights, std=0.2)
        # Not .to(): that would round the rotary frequencies too, which a loaded model keeps.
        weights.data = weights.data.to(torch.bfloat16)
    return model, tokenizer, [tokenizer.eos_token_id]


def written(folder, case, form):
    model, tokenizer, ends = made(case)
    path = folder / f"m-{form}.gguf"
    write_gguf(path, model, tokenizer, form, name="m", ends=ends,
               sampling={"temperature": 0.6, "top_p": 0.95}, lineage={"stages": {"sft": "abc"}})
    return path, model, tokenizer, ends


def in_bf16(model, reference):
    """Greedy answers that transformers gives in bfloat16 too, and the largest gap where one parts.

    Along the answers of float32, as the proof compares a file.
    """
    half = copy.deepcopy(model)
    for weights in half.parameters():
        weights.data = weights.data.to(torch.bfloat16)
    equal, gaps = 0, [0.0]
    for index, (prompt, answer) in enumerate(
            zip(reference.prompts, reference.answers, strict=True)):
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            choices = half(ids[:, :-1], logits_to_keep=len(answer)).logits[0].argmax(-1).tolist()
        scores = reference.logprobs(index)
        apart = [float(scores[i, answer[i]] - scores[i, choice])
                 for i, choice in enumerate(choices) if choice != answer[i]]
        equal += not apart
        gaps += apart[:1]
    return {"greedy_equal": equal, "largest_gap": max(gaps)}


@pytest.mark.parametrize("case", [case if case in FEW else
                                  pytest.param(case, marks=pytest.mark.slow) for case in CASES])
def test_llama_cpp_gives_the_prompts_and_greedy_tokens_of_transformers(
        tmp_path, case, record_property):
    model, tokenizer, ends = made(case)
    reference = Reference.of(copy.deepcopy(model), tokenizer, ends, CHATS, 64)
    found = {}
    for form in ("f32", "bf16"):
        path = written(tmp_path, case, form)[0]
        with llama_server(path, context=512, exact=form == "f32") as address:
            found[form] = prove(LlamaCpp(address), reference, form, path.name)
    own = in_bf16(model, reference)
    record_property(case, json.dumps({**found, "transformers in bf16": own}))
    # The weights are bfloat16's in both: only in the other file llama.cpp rounds what it
    # multiplies them by, as transformers does in bfloat16.
    assert found["f32"]["prompts"] == found["f32"]["greedy_equal"] == len(CHATS) >= 20
    assert found["f32"]["kl"] < 1e-6
    assert found["bf16"]["largest_gap"] < 0.15 and found["bf16"]["same_top"] > 0.95
    assert found["bf16"]["kl"] < 1e-3


def test_probabilities_are_taken_only_where_it_is_certain_whose_they_are():
    def record(index):
        return {"id": index, "top_logprobs": [{"id": index, "logprob": -1.0}]}

    # 9 begins a character that the first 5 does not end: which two of the three 5 are told?
    steps = _steps({"tokens": [7, 9, 5, 5, 5, 8],
                    "completion_probabilities": list(map(record, (7, 5, 5, 8)))})
    assert [bool(step.top) for step in steps] == [True, False, False, False, False, True]
    whole = _steps({"tokens": [5, 5], "completion_probabilities": [record(5), record(5)]})
    assert [step.top for step in whole] == [{5: -1.0}] * 2


def test_a_file_of_other_weights_or_another_template_is_not_handed_on(tmp_path):
    path, model, tokenizer, ends = written(tmp_path, FEW[0], "q8_0")
    reference = Reference.of(model, tokenizer, ends, CHATS[:2], 8)
    with llama_server(path, context=512) as address:
        other = Reference(reference.model, tokenizer, CHATS[:2], reference.prompts[::-1],
                          reference.answers)
        with pytest.raises(UserError, match="reads a prompt otherwise"):
            prove(LlamaCpp(address), other, "q8_0", path.name)
        torch.nn.init.normal_(model.model.layers[0].mlp.down_proj.weight, std=0.5)
        with pytest.raises(UserError, match="nats a token from its checkpoint"):
            prove(LlamaCpp(address), reference, "q8_0", path.name)


def test_the_file_says_how_it_is_sampled_and_what_it_was_made_of(tmp_path):
    path, _, tokenizer, ends = written(tmp_path, FEW[0], "q4_k_m")
    fields = {name: field.contents() for name, field in GGUFReader(path).fields.items()}
    assert fields["general.architecture"] == "qwen3" and fields["tokenizer.ggml.pre"] == "qwen2"
    assert fields["general.sampling.temp"] == pytest.approx(0.6)
    assert json.loads(fields["limbeck.lineage"]) == {"stages": {"sft": "abc"}}
    assert fields["tokenizer.ggml.eos_token_id"] == ends[0] == tokenizer.eos_token_id
    assert "generation" not in fields["tokenizer.chat_template"].replace("add_generation", "")


@pytest.mark.parametrize(("form", "row", "expected"), [
    ("q4_k_m", 512, ["Q6_K", "Q4_K", "Q6_K", "Q4_K"]),
    ("q5_k_m", 512, ["Q6_K", "Q5_K", "Q6_K", "Q5_K"]),
    ("q5_k_m", 96, ["Q8_0", "Q5_1", "Q8_0", "Q5_1"]),
    ("q4_k_m", 96, ["Q8_0", "Q5_0", "Q8_0", "Q5_0"]),
    ("q4_k_m", 40, ["F16", "F16", "F16", "F16"]), ("q8_0", 96, ["Q8_0"] * 4)])
def test_types_are_mixed_as_llama_cpp_mixes_them(form, row, expected):
    names = ("token_embd.weight", "blk.2.attn_q.weight", "blk.3.ffn_down.weight",
             "blk.2.attn_v.weight")
    assert [tensor_type(form, name, (64, row), 8, tied=True).name for name in names] == expected
    assert tensor_type(form, "blk.0.attn_norm.weight", (row,), 8, tied=True).name == "F32"


def test_k_quants_lose_as_much_as_they_should():
    weights = np.random.default_rng(0).normal(size=(64, 512)).astype(np.float32)
    for name, error in (("Q4_K", 0.08), ("Q5_K", 0.04), ("Q6_K", 0.02), ("Q8_0", 0.006)):
        kind = GGMLQuantizationType[name]
        back = dequantize(pack(weights, kind), kind)
        assert np.linalg.norm(back - weights) < error * np.linalg.norm(weights)


def test_what_llama_cpp_cannot_express_is_refused_by_name():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    with pytest.raises(UserError, match="this model is a GPT2LMHeadModel"):
        architecture(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=9)))
    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    with pytest.raises(UserError, match="it is of type WordLevel"):
        vocabulary(PreTrainedTokenizerFast(tokenizer_object=words), 9)
    with pytest.raises(UserError, match="and the model's embedding 9"):
        vocabulary(tokenizer_of("base"), 9)
    odd = tokenizer_of("base").backend_tokenizer
    kept = odd.pre_tokenizer
    odd.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), kept])
    with pytest.raises(UserError, match="splits text as none of"):
        split_name(odd, False)
    odd.pre_tokenizer = kept


def as_ollama(template, chat):
    """What Ollama's engine makes of our template: literals, a missing system turn, roles."""
    def filled(text, content=""):
        return re.sub(r'{{ (".*?") }}', lambda found: json.loads(found[1]),
                      text).replace("{{ .Content }}", content)

    head, body, tail = re.fullmatch(r"(.*?){{ range \.Messages }}(.*){{ end }}{{ end }}(.*)",
                                    template, re.DOTALL).groups()
    missing = r"{{ if ne \(index \.Messages 0\)\.Role \"system\" }}(.*?){{ end }}"
    head = re.sub(missing, "" if chat[0]["role"] == "system" else r"\1", head)
    roles = dict(re.findall(r'if eq \.Role "(\w+)" }}(.*?)(?={{ else |$)', body, re.DOTALL))
    return filled(head) + "".join(filled(roles[one["role"]], one["content"]) for one in chat) \
        + filled(tail)


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3", "base", "tiny"])
def test_ollamas_template_writes_what_the_chat_template_writes(name):
    tokenizer = tokenizer_of(name)
    user, other = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
    for chat in ([user], [user, other, user], [{"role": "system", "content": "S"}, user]):
        assert as_ollama(go_template(tokenizer), chat) == render_prompt(tokenizer, chat)
    text = modelfile("m.gguf", tokenizer, ["<|im_end|>"], 0.6, 0.95, 4096)
    assert 'PARAMETER stop "<|im_end|>"' in text and text.startswith("FROM ./m.gguf\n")


def test_a_format_of_others_is_refused_with_what_to_name_instead():
    with pytest.raises(UserError, match=r"NVFP4 is not written by export.* w4a16"):
        load(Experiment, [ROOT / "configs/default.yaml"], ["export.formats=[q8_0, NVFP4]"])


def test_a_file_that_cannot_be_loaded_is_one_sentence(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF no more")
    with pytest.raises(UserError, match=r"llama\.cpp cannot load x\.gguf"), \
            llama_server(tmp_path / "x.gguf", context=64):
        pass


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(export_files, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gguf, libggml-python, xllamacpp; run pip install"):
        export_files.check_extra(["q8_0"])
    with pytest.raises(UserError, match=r"fp8 needs llmcompressor; run .*'\.\[compressed\]'"):
        export_files.check_extra(["fp8"])


def test_a_full_disk_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"the files need about .* MB"):
        export_files._check_room(tmp_path, 10**15, ["q8_0"])

"""Small byte-level BPE tokenizers with the control tokens of the families students come from."""

from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from pipeline.student.tiny import build_tokenizer

TEMPLATES = Path(__file__).resolve().parents[1] / "prompts" / "chat_templates"
CORPUS = ["Let me think about the sum of two numbers, wait, check again: 12 + 30 = 42.",
          "system user assistant You are a helpful assistant.\n\nThe answer is \\boxed{42}.\n",
          "<think>\nTry 2+7=9: yes.\n</think>\n\\boxed{2+7}"] * 3
_PIECES = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
           r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# name: (special tokens, other added tokens, eos, pad, bos)
KINDS = {
    "qwen2_5": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<tool_call>", "</tool_call>"],
                "<|im_end|>", "<|endoftext|>", None),
    "qwen3": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
              ["<tool_call>", "</tool_call>", "<think>", "</think>"],
              "<|im_end|>", "<|endoftext|>", None),
    "llama3": (["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], [],
               "<|eot_id|>", None, "<|begin_of_text|>"),
    "base": (["<|endoftext|>"], [], "<|endoftext|>", None, None),
    "bare": (["<|endoftext|>"], [], "<|endoftext|>", None, None),
}
NAMES = [*KINDS, "tiny"]


@cache
def tokenizer_of(name, template=None):
    """The tokenizer of one family with its shipped chat template, or `template`'s."""
    chat_template = (TEMPLATES / f"{template or name}.jinja").read_text(encoding="utf-8")
    if name == "tiny":
        return build_tokenizer(CORPUS, 400, chat_template)
    special, others, eos, pad, bos = KINDS[name]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    core.add_special_tokens(special)
    core.add_tokens([AddedToken(token, normalized=False) for token in others])
    if bos:
        core.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=eos, pad_token=pad, bos_token=bos,
        chat_template=chat_template, clean_up_tokenization_spaces=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer

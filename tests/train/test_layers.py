"""Fused layers give transformers' losses and gradients, padded and end to end."""

import pytest
import torch
import transformers

from pipeline.config.rl import RlConfig
from pipeline.config.sft import SftConfig
from pipeline.errors import UserError
from pipeline.student.token_rows import sample_bounds
from pipeline.train import attention
from pipeline.train.arguments import check_layers
from pipeline.train.layers import fuse_layers

SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
LENGTHS = [5, 9, 3]


def pair(kind, attn):
    """Two equal models, the second with fused layers; head norms and biases are not trivial."""
    attention.register()
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, attn_implementation=attn)
    plain = getattr(transformers, f"{kind}ForCausalLM")(config)
    for parameter in plain.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    fused = getattr(transformers, f"{kind}ForCausalLM")(config)
    fused.load_state_dict(plain.state_dict())
    return plain, fused


def batch(padded):
    ids = torch.randint(0, 50, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))
    if not padded:
        return {"input_ids": ids, "labels": ids, **sample_bounds(LENGTHS)}
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, 5:] = 0
    rows = ids[0, :16].view(2, 8)
    return {"input_ids": rows, "attention_mask": mask, "labels": rows.masked_fill(mask == 0, -100)}


def losses_and_gradients(models, inputs):
    out = []
    for model in models:
        loss = model(**inputs, use_cache=False).loss
        loss.backward()
        out.append((loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
    return out


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "Llama"])
@pytest.mark.parametrize(("attn", "padded"), [("sdpa", True), (attention.NAME, False)])
def test_same_loss_and_gradients(kind, attn, padded):
    plain, fused = pair(kind, attn)
    fuse_layers(fused)
    (loss, grads), (other, others) = losses_and_gradients((plain, fused), batch(padded))
    torch.testing.assert_close(other, loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(others, grads, rtol=1e-4, atol=1e-6)
    assert all(grad.abs().max() > 0 for grad in others.values())


def test_half_precision_is_as_near_to_float32_as_autocast():
    plain, fused = pair("Qwen2", attention.NAME)
    exact, inputs = pair("Qwen2", attention.NAME)[0], batch(False)
    fuse_layers(fused)
    with torch.autocast("cpu", torch.bfloat16):
        found = losses_and_gradients((plain, fused), inputs)
    (_, wanted), = losses_and_gradients((exact,), inputs)

    def gap(grads):
        return sum((grads[name].float() - grad).norm() / grad.norm()
                   for name, grad in wanted.items())

    assert all(grad.dtype == torch.float32 for grad in found[1][1].values())
    assert 0 < gap(found[1][1]) < 1.2 * gap(found[0][1])


@pytest.mark.slow
def test_compiled_for_lengths_that_change():
    plain, fused = pair("Qwen2", attention.NAME)
    fuse_layers(fused, compile_on_cpu=True)
    torch._dynamo.reset()
    for size in (9, 6):
        ids = torch.arange(size)[None] % 50
        inputs = {"input_ids": ids, "labels": ids, **sample_bounds([size - 4, 4])}
        (loss, grads), (other, others) = losses_and_gradients((plain, fused), inputs)
        torch.testing.assert_close(other, loss, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(others, grads, rtol=1e-4, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2   # not one a length or layer


def test_generation_with_a_cache_is_the_layers_own():
    plain, fused = pair("Qwen3", "sdpa")
    fuse_layers(fused)
    prompt = torch.tensor([[1, 2, 3]])
    tokens = [model.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0).tolist()
              for model in (plain, fused)]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(("kind", "more", "named"), [
    ("GPT2", {}, "none"), ("Gemma2", {"hidden_act": "gelu"}, "Gemma2DecoderLayer"),
    ("Llama", {"hidden_act": "gelu"}, "llama"), ("Llama", {"mlp_bias": True}, "llama"),
    ("Llama", {"attn_implementation": "eager"}, "llama")])
def test_another_plan_is_refused(kind, more, named):
    sizes = SIZES if kind != "GPT2" else {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 50}
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, f"{kind}Config")(**sizes, **more))
    with pytest.raises(UserError, match=f"not {named}"):
        fuse_layers(model)


@pytest.mark.parametrize(("section", "key", "value"), [
    ("sft", "lora", {"r": 4}), ("sft", "trainer.use_liger_kernel", True), ("rl", "lora", {"r": 4})])
def test_what_compiled_layers_would_pass_by_is_refused(section, key, value):
    config = {"sft": SftConfig, "rl": RlConfig}[section](**{
        "layers": "compiled", **({"lora": value} if key == "lora" else {"trainer": {
            key.removeprefix("trainer."): value}})})
    with pytest.raises(UserError, match=f"{section}.{key}; remove one"):
        check_layers(config, section)

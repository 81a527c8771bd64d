"""A folder for vLLM answers in transformers as its checkpoint does, or it is not handed on."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch

pytest.importorskip("llmcompressor", reason="needs the extra `compressed`")

from pipeline.config.evaluate import ExportConfig, StudentSampling
from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.errors import UserError
from pipeline.export.compressed import group_size
from pipeline.export.export_files import export
from pipeline.hub.lineage import read
from pipeline.student.decode import decode
from pipeline.student.template import prompt_ids
from stages.export import _learnt
from stages.graph import STAGES, plans
from tests.tokenizer_kinds import tokenizer_of

CONFIGS = Path(__file__).parents[2] / "configs"

CHATS = {str(n): [{"role": "user", "content": f"Problem {n}: {n * 37} + {n}00000 = ?"}]
         for n in range(4)}
ROWS = [{"problem_id": name, "problem": chat[0]["content"], "answer": "7", "kind": "math"}
        for name, chat in CHATS.items()]
SAMPLING = StudentSampling(temperature=0.6, top_p=0.95, max_tokens=8)


def saved(folder, intermediate_size):
    """A random Qwen3 in float32 and its tokenizer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = tokenizer_of("qwen3")
    torch.manual_seed(1)
    model = Qwen3ForCausalLM(Qwen3Config(
        hidden_size=64, intermediate_size=intermediate_size, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=24, max_position_embeddings=512,
        initializer_range=0.2, vocab_size=len(tokenizer), tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, str(folder)


def exported(folder, out, learnt=(), **settings):
    out.mkdir()
    config = ExportConfig(problems=4, tokens=24, sampling=SAMPLING, **settings)
    return export(folder, folder, config, out, name="m", rows=ROWS, chats=CHATS,
                  lineage={"sft": {"stage": "sft", "key": "abc"}}, learnt=learnt)


def test_folders_for_vllm_are_proven_scored_and_say_how_they_are_served(tmp_path, record_property):
    checkpoint = saved(tmp_path / "model", 96)[1]
    found = exported(checkpoint, tmp_path / "out", formats=["fp8", "w4a16"])
    record_property("figures", json.dumps(found))
    whole = (tmp_path / "model/model.safetensors").stat().st_size
    for form, bits, kind in (("fp8", 8, "float"), ("w4a16", 4, "int")):
        folder, one = tmp_path / "out" / f"m-{form}", found[form]
        config = json.loads((folder / "config.json").read_text())
        [group] = config["quantization_config"]["config_groups"].values()
        assert (group["weights"]["num_bits"], group["weights"]["type"]) == (bits, kind)
        assert config["quantization_config"]["ignore"] == ["lm_head"]
        assert (group["input_activations"] or {}).get("dynamic") == (form == "fp8" or None)
        settings = json.loads((folder / "generation_config.json").read_text())
        assert settings["temperature"] == 0.6 and config["dtype"] == "bfloat16"
        assert (folder / "chat_template.jinja").is_file() and read(folder)["sft"]["key"] == "abc"
        assert one["bytes"] < whole / 2 and one["score"]["problems"] == one["prompts"] == 4
        # Rounded weights are not the checkpoint's: a proof that held it against itself gives 0.
        assert 1e-4 < one["kl"] < {"fp8": 0.3, "w4a16": 0.6}[form]
        # Random weights have close logits: chance is 1 in 355.
        assert one["same_top"] > {"fp8": 0.5, "w4a16": 0.25}[form]
        assert f"vllm serve ./m-{form}" in (tmp_path / "out/README.md").read_text()
    assert found["fp8"]["kl"] < found["w4a16"]["kl"]
    assert not (tmp_path / "out/Modelfile").exists()


def test_calibrated_on_what_the_model_learnt_4_bits_lose_less(tmp_path):
    model, checkpoint = saved(tmp_path / "model", 96)
    prompts = [prompt_ids(tokenizer_of("qwen3"), chat) for chat in CHATS.values()]
    learnt = [[*prompt, *decode(model, [prompt], max_tokens=24, temperature=0, eos_token_ids=[])[0]]
              for prompt in prompts]
    found = exported(checkpoint, tmp_path / "out", learnt, formats=["w4a16", "gptq", "awq"],
                     limit=0)
    assert 1e-4 < found["gptq"]["kl"] < 0.8 * found["w4a16"]["kl"]
    assert found["awq"]["kl"] < 0.6
    for form in ("gptq", "awq"):
        config = json.loads((tmp_path / "out" / f"m-{form}" / "config.json").read_text())
        [group] = config["quantization_config"]["config_groups"].values()
        assert group["weights"]["num_bits"] == 4 and group["weights"]["group_size"] == 32
        assert group["weights"]["symmetric"] == (form == "gptq")


def test_calibration_reads_the_pack_that_a_model_learnt_from_last():
    def needs(config, *overrides):
        experiment = load(Experiment, [CONFIGS / config], [*overrides])
        return list(plans(experiment, "export")["export"].inputs)

    assert "pack" in needs("default.yaml", "export.formats=[gptq]")
    assert "pack" not in needs("default.yaml", "export.formats=[w4a16]")
    of_a_step = "r1-embedded.yaml", "export.formats=[awq]"
    assert needs(*of_a_step)[-1] == "reject.pack"
    assert needs(*of_a_step, "export.model=reason.rl")[-1] == "cold.pack"


def test_a_model_that_learnt_from_no_trace_is_not_calibrated():
    experiment = load(Experiment, [CONFIGS / "default.yaml"],
                      ["export.formats=[gptq]", "export.model=untrained"])
    with pytest.raises(UserError, match="untrained learnt from none here; name a model that did"):
        STAGES["export"].check(experiment)


@pytest.mark.parametrize("lengths", [None, [[3, 2]] * 8])
def test_rows_for_calibration_are_spread_over_the_traces(tmp_path, lengths):
    rows = {"input_ids": [[number] * 5 for number in range(8)]}
    pl.DataFrame(rows | ({"seq_lengths": lengths} if lengths else {})).write_parquet(
        tmp_path / "rows.parquet")
    experiment = load(Experiment, [CONFIGS / "default.yaml"], ["export.calibration=4"])
    size = 3 if lengths else 5
    assert _learnt(experiment, {"pack": tmp_path}) == [[n] * size for n in (0, 2, 4, 6)]


def test_a_folder_that_fails_its_proof_is_deleted(tmp_path):
    checkpoint = saved(tmp_path / "model", 96)[1]
    with pytest.raises(UserError, match=r"m-w4a16 is .* nats a token from its checkpoint"):
        exported(checkpoint, tmp_path / "out", formats=["w4a16"], max_kl=1e-5, limit=0)
    assert not (tmp_path / "out/m-w4a16").exists()


def test_rows_that_hold_no_whole_group_are_named(tmp_path):
    with pytest.raises(UserError, match="rows of 100; name fp8"):
        group_size(saved(tmp_path, 100)[0])

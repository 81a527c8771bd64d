"""Rows and completions longer than a student was made for are said before they are trained on."""

import json

import polars as pl
import pytest
import tiny_rl
import tiny_sft

from pipeline.config.evaluate import StudentSampling
from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.sft import trainer as sft
from pipeline.student.doctor import examine
from pipeline.student.positions import positions, row_lengths, rows_beyond
from pipeline.student.sample import sample
from stages import commands, rl
from tests.rl.test_rl_launch import ROOT, stage


def shortened(model, limit, **more):
    """Make the checkpoint in the folder `model` one of `limit` positions."""
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": limit,
                                **more}))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tiny_sft.build(tmp_path_factory.mktemp("tiny"), rows=8)
    shortened(folder / "model", 24)
    return folder


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24,
        "rope_theta": 10000.0}


def test_rope_scaling_and_a_longer_limit_count_wherever_they_are_set(tiny, tmp_path):
    assert positions(str(tiny / "model")) == 24
    assert positions(str(tiny / "model"), {"rope_parameters": YARN}) == 96
    assert positions(str(tiny / "model"), {"max_position_embeddings": 640}) == 640
    shortened(tiny_rl.build(tmp_path), 24, rope_parameters=YARN)
    assert positions(str(tmp_path / "model")) == 96
    assert positions(str(tmp_path)) is None


def test_rows_beyond_the_students_positions_are_counted(tiny, tmp_path):
    lengths = row_lengths(tiny / "rows.parquet")
    said = rows_beyond(tiny / "rows.parquet", str(tiny / "model"), None)
    assert f"{sum(lengths > 24)} of 8 rows are longer than the 24 positions" in said
    assert "rope_parameters" in said and "pack.max_tokens" in said
    longer = {"rope_parameters": YARN}
    assert rows_beyond(tiny / "rows.parquet", str(tiny / "model"), longer) is None
    blocks = pl.DataFrame({"input_ids": [[1] * 30], "seq_lengths": [[20, 10]]})
    blocks.write_parquet(tmp_path / "blocks.parquet")
    assert rows_beyond(tmp_path / "blocks.parquet", str(tiny / "model"), None) is None


def test_a_student_is_trained_and_saved_with_the_remedy(tiny, tmp_path):
    longer = {"max_position_embeddings": 96, "rope_parameters": {
        "rope_type": "default", "rope_theta": 300000.0}}
    sft.train(tiny_sft.job(tiny, tmp_path / "out", model_init_kwargs=longer))
    saved = json.loads((tmp_path / "out/model/config.json").read_text())
    assert saved["max_position_embeddings"] == 96
    assert saved["rope_parameters"]["rope_theta"] == 300000.0


def test_completions_beyond_the_positions_are_said_by_rl_and_evaluate(tmp_path, capsys):
    experiment, inputs, out = stage(tmp_path, "rl.phases=[]")
    job = rl.job_of(experiment, inputs, out)
    assert rl._beyond(job) is None
    shortened(inputs["student"] / "model", 24)
    assert "completions of up to 12 tokens go beyond the 24 positions" in rl._beyond(job)
    model = str(inputs["student"] / "model")
    sample(model, model, [row["prompt"] for row in job.rows[:2]], 1,
           StudentSampling(max_tokens=20), 0)
    assert "go beyond the 24 positions" in capsys.readouterr().err


def test_the_doctor_holds_the_settings_against_the_positions(tiny):
    assert next(check for check in examine(str(tiny / "model"))
                if check.name == "positions").sentence == "made for texts of up to 24 tokens"
    experiment = load(Experiment, [ROOT / "configs/default.yaml"])
    ok, sentence = commands._lengths(experiment, str(tiny / "model"))
    assert not ok and "pack.max_tokens (1,024)" in sentence and "24 positions" in sentence
    recipe = load(Experiment, [ROOT / "configs/r1-distill-qwen-1.5b.yaml"])
    assert commands._lengths(recipe, str(tiny / "model"))[0]

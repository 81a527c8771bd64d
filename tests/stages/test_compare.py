"""`limbeck compare`: what differs in the config first, then scores and paired differences."""

import json

import polars as pl
import pytest

from pipeline.errors import UserError
from stages.compare import compare, compared_scores, differing, evaluation, lineage


def evaluated(root, key, rate, right):
    """An evaluation of `sft` and `base`, of which `right` says which problems sft solved."""
    def manifest(stage, key, config, **inputs):
        folder = root / f"{stage}-{key}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_text(json.dumps({
            "stage": stage, "key": key, "version": 1, "seed": 0, "config": config, "files": {},
            "inputs": inputs, "counts": {}}))
        return folder

    manifest("prepare", "0" * 12, {"limit": 4})
    manifest("sft", key, {"trainer": {"learning_rate": rate}}, prepare="0" * 12)
    folder = manifest("evaluate", key, {"samples": 1}, **{"cold.sft": key, "prepare": "0" * 12})
    manifest("report", key, {}, evaluate=key)
    pl.DataFrame([{"problem_id": f"p{i}", "score": float(score), "vote": str(score),
                   "cut_off": False, "completion_tokens": 5, "model": model,
                   "benchmark": "heldout"}
                  for model, scores in (("cold.sft", right), ("base", [0] * len(right)))
                  for i, score in enumerate(scores)]).write_parquet(folder / "completions.parquet")
    return folder


def test_what_differs_is_named_by_key_and_scores_are_paired(tmp_path, capsys):
    first = evaluated(tmp_path / "made", "a" * 12, 1e-3, [1, 0, 0, 0] * 25)
    second = evaluated(tmp_path / "made", "b" * 12, 3e-3, [1, 1, 0, 0] * 25)
    assert list(differing(lineage(first), lineage(second))) == [
        ("cold.sft.trainer.learning_rate", "0.001", "0.003")]
    rows = {row[1]: row for row in compared_scores(first, second)}
    assert rows["cold.sft"][2].startswith("25.0 [") and rows["cold.sft"][3].startswith("50.0 [")
    assert rows["cold.sft"][4] == "+25.0 [+16.5, +33.5]"     # 1.96 sqrt(0.25 * 0.75 / 99)
    compare(first, tmp_path / "made" / f"report-{'b' * 12}", [])
    said = capsys.readouterr().out
    assert said.index("what differs") < said.index("learning_rate") < said.index("scores")


def test_a_folder_that_is_no_evaluation_is_refused(tmp_path):
    evaluated(tmp_path, "a" * 12, 1e-3, [1])
    for folder in (tmp_path, tmp_path / f"sft-{'a' * 12}"):
        with pytest.raises(UserError, match="the folder of no evaluation or report"):
            evaluation(folder, [])

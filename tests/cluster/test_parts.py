"""Work in parts on a Ray cluster: the rows of one machine; a lost node's are done elsewhere."""

import threading
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
import tiny_sft

from pipeline.cluster import parts
from pipeline.cluster.judging import signer
from pipeline.cluster.parts import each_part, workers
from pipeline.completion import Completion
from pipeline.config.evaluate import StudentSampling
from pipeline.config.experiment import Experiment, RayCluster
from pipeline.config.filter import FilterConfig
from pipeline.config.load import load
from pipeline.curate.select import summarise
from pipeline.errors import UserError
from pipeline.evaluate import drawing
from stages import evaluate, logits
from tests.cluster.part_work import Held, Late, die, pid_of, refuse, slowly_squared
from tests.cluster.ray_nodes_here import one_more
from tests.conftest import ROOT
from tests.curate.test_select import judged, trace
from tests.evaluate.test_resume_evaluate import made

pytestmark = [pytest.mark.usefixtures("connection"), pytest.mark.skipif(
    find_spec("ray") is None, reason="needs Ray: pip install '.[ray]'")]
CONFIG = ROOT / "configs/default.yaml"


def test_a_lost_nodes_part_is_done_elsewhere(cluster, tmp_path):
    with one_more(cluster) as node:
        def lose():
            while not list(tmp_path.glob(f"* {node.node_id}")):
                time.sleep(0.05)
            cluster.remove_node(node, allow_graceful=False)

        thread = threading.Thread(target=lose, daemon=True)
        thread.start()
        done = list(each_part(RayCluster(address=cluster.address), Held(tmp_path, node.node_id),
                              range(12)))
        thread.join()
    assert sorted(done) == [(number, number ** 2) for number in range(12)]
    begun = [path.name.split() for path in tmp_path.iterdir()]
    [lost] = [number for number, where in begun if where == node.node_id]
    assert len(begun) == 13 and sum(number == lost for number, _ in begun) == 2


def test_blocks_share_their_processes_and_errors_are_the_works_own(address):
    cluster = RayCluster(address=address)
    with workers(cluster) as crew:
        first = {pid for _, pid in crew.run(pid_of, range(8))}
        with workers(cluster) as same:
            assert same is crew
            # One may have done all of the first parts before another had begun.
            assert len(first | {pid for _, pid in same.run(pid_of, range(8))}) <= crew.slots()
        with pytest.raises(UserError, match="part 3 is bad"):
            list(crew.run(refuse, range(8)))
        assert len(list(crew.run(pid_of, range(4)))) == 4
    assert not parts._open


def test_processes_that_come_late_to_one_work_do_the_next(address, tmp_path):
    with workers(RayCluster(address=address)) as crew:
        assert dict(crew.run(Late(tmp_path), range(4))) == dict.fromkeys(range(4), -1)
        assert dict(crew.run(slowly_squared, range(30))) == {n: n * n for n in range(30)}


def test_work_that_ends_every_process_ends_the_run_with_one_sentence(address, monkeypatch):
    monkeypatch.setattr(parts, "MAX_DEATHS", 2)
    with pytest.raises(UserError, match="end at the same work, 2 times now"):
        list(each_part(RayCluster(address=address), die, range(3)))


def test_logits_of_a_cluster_are_those_of_one_machine(address, tmp_path):
    tiny = tiny_sft.build(tmp_path / "tiny", rows=20)
    inputs, found = {"pack": tiny, "student": tiny}, {}
    for name, cluster in (("alone", "null"), ("cluster", f"{{address: '{address}'}}")):
        experiment = load(Experiment, [CONFIG], [
            f"logits.teacher={tiny / 'model'}", "logits.shard_rows=6", "logits.top_k=8",
            f"runtime.cluster={cluster}"])
        (out := tmp_path / name).mkdir()
        found[name] = logits.run(experiment, inputs, out)
        found[name]["tables"] = [pq.read_table(path) for path in sorted(out.glob("shard-*"))]
    assert found["cluster"] == found["alone"] and len(found["alone"]["tables"]) == 4


def test_a_clusters_students_answer_as_they_do_on_one_machine(address, tmp_path):
    inputs, own = made(tmp_path, "student")
    tables = []
    for name, cluster in (("alone", "null"), ("cluster", f"{{address: '{address}'}}")):
        (out := tmp_path / name).mkdir()
        experiment = load(Experiment, [CONFIG], [
            "evaluate.models=[untrained]", f"evaluate.benchmarks=[heldout, {own}]",
            "evaluate.sampling.max_tokens=8", "evaluate.samples=2", "runtime.judge_workers=1",
            f"runtime.artifacts={tmp_path / ('in-' + name)}", f"runtime.cluster={cluster}"])
        evaluate.run(experiment, inputs, out)
        tables.append(pl.read_parquet(out / "completions.parquet"))
    assert tables[0].equals(tables[1]) and len(tables[0]) == 8


def test_what_gpus_drew_in_pieces_is_kept_as_one_drawing(tmp_path, monkeypatch):
    def sampled(model, tokenizer, sets, samples, *_):
        for name, chats in sets.items():
            yield name, [[(Completion(None, f"{chat} {i}"), i) for i in range(samples[name])]
                         for chat in chats]

    monkeypatch.setattr(drawing, "sample_sets", sampled)
    sets = {"a": {f"p{i}": f"question {i}" for i in range(7)}, "b": {"q": "one"}}
    whole = drawing.Drawing(Path("student-1"), Path("student-1/tokenizer"), tmp_path / "whole",
                            StudentSampling(), 0, sets, {"a": 2, "b": 1}, {})
    divided = replace(whole, store=tmp_path / "divided")
    pieces = divided.pieces(3)
    assert whole.draw({}) == 15 == sum(one.draw({}) for one in pieces)
    divided.join(pieces)
    assert list(divided.get()) == list(whole.get()) and not divided.missing().sets
    assert len(list((tmp_path / "divided").iterdir())) == 2


def test_signatures_of_a_cluster_are_those_of_one_machine(address):
    table = judged([trace(sample=i, thinking=f"{i % 7} and {i} so far")
                    for i in range(600)])
    config = FilterConfig(near_duplicates=0.8)
    with signer(RayCluster(address=address)) as sign:
        assert summarise(table, config, sign).equals(summarise(table, config))

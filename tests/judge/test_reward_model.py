"""A reward model ranks held-out pairs, locally and served, and one that does not fit is refused."""

import json
import shutil

import pytest
import tiny_reward

from pipeline.config.judges import RewardModel
from pipeline.errors import UserError
from pipeline.judge.models.opinion import Item
from pipeline.judge.models.reward_model import check_reward_model, reward_model
from pipeline.judge.models.scoring import part_read
from tests.fault_server import Answer, FaultServer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_reward.train(tmp_path_factory.mktemp("reward") / "model")


def test_trained_on_300_pairs_it_ranks_nine_of_ten_held_out_ones(folder):
    check_reward_model("judges.j", RewardModel(model=str(folder)))
    score = reward_model(RewardModel(model=str(folder)))
    held_out = tiny_reward.pairs(200, seed=9)
    better, worse = (score([Item("", pair[0], pair[part]) for pair in held_out])
                     for part in (1, 2))
    right = sum(one > other for one, other in zip(better, worse, strict=True))
    assert right >= 180
    alone = [reward_model(RewardModel(model=str(folder), batch=1))(
        [Item("", pair[0], pair[1])])[0] for pair in held_out[:5]]
    assert alone == pytest.approx(better[:5], abs=1e-4)     # padding changes nothing


def test_a_served_one_gets_the_chat_and_a_dead_server_is_one_sentence(monkeypatch):
    def says(call):
        text = call.body["messages"][1]["content"]
        return Answer(json.dumps({"data": [{"data": [float(len(text))]}]}).encode())

    server = FaultServer(says)
    with server.running() as url:
        config = RewardModel(model="m", url=url.replace("/v1", "/pooling"))
        assert reward_model(config)([Item("", "p", "abc"), Item("", "p", "<|im_end|>a")]) == [3, 1]
    assert server.calls[0].body["messages"][0] == {"role": "user", "content": "p"}
    with pytest.raises(UserError, match="2 of 2 texts got no score"):
        reward_model(config)([Item("", "p", "abc")] * 2)
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(UserError, match="NO_KEY is unset"):
        check_reward_model("judges.j", config.model_copy(update={"key_env": "NO_KEY"}))


def broken(folder, target, **changes):
    shutil.copytree(folder, target)
    facts = json.loads((target / "config.json").read_text("utf-8"))
    (target / "config.json").write_text(json.dumps({**facts, **changes}), "utf-8")
    return RewardModel(model=str(target))


@pytest.mark.parametrize("changes, said", [
    ({"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}},
     "3 labels"),
    ({"vocab_size": 50}, "tokens and the model 50"),
    ({"architectures": ["Qwen3ForCausalLM"]}, "no sequence classifier")])
def test_labels_vocabulary_and_architecture_are_checked_before_any_work(folder, tmp_path, changes,
                                                                        said):
    with pytest.raises(UserError, match=said):
        check_reward_model("judges.j", broken(folder, tmp_path / "m", **changes))


def test_a_missing_template_or_tokenizer_or_folder_is_one_sentence(folder, tmp_path):
    config = broken(folder, tmp_path / "m")
    for file in ("chat_template.jinja", "tokenizer.json"):
        (tmp_path / "m" / file).unlink()
        with pytest.raises(UserError, match=r"no chat template|no folder with a reward model"):
            check_reward_model("judges.j", config)
    with pytest.raises(UserError, match="nowhere is no folder"):
        check_reward_model("judges.j", RewardModel(model="./nowhere"))


def test_what_is_read_is_the_summary_or_the_whole():
    from pipeline.completion import split_completion

    whole = split_completion("<think>rude</think>kind")
    assert part_read(RewardModel(model="m"), whole) == "kind"
    assert "rude" in part_read(RewardModel(model="m", reads="whole"), whole)
    assert part_read(RewardModel(model="m"), split_completion("<think>never closed")) == ""

"""The process reward: steps, aggregates, a served PRM (a loopback stand-in) and a local one."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from tokenizer_kinds import tokenizer_of

from pipeline.config.rl import HttpPrm, LocalPrm
from pipeline.errors import UserError
from pipeline.rl.process_reward import process_reward, steps_of

TEXT = "<think>\nFirst, good.\n\nThen, bad.\n</think>\nSo, good."
STEPS = ["First, good.", "Then, bad.", "So, good."]


def marks(text):
    return [[0.9, 0.1] if "bad" in step else [0.2, 0.8] for step in text]


@pytest.fixture
def server():
    """vLLM's two pooling endpoints as far as they are used; `seen` keeps the requests."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({**body, "key": self.headers.get("Authorization")})
            if self.path == "/pooling":
                said = body["messages"][1]["content"]
                data = [{"index": 0, "object": "pooling",
                         "data": marks(said.split("<extra_0>")[:-1])}]
            else:
                said = body["input"][-1]
                data = [{"index": i, "label": "x", "probs": marks([text.split("\n\n")[-1]])[0],
                         "num_classes": 2} for i, text in enumerate(body["input"])][::-1]
            if "sleepy" in said:
                time.sleep(2)
            if "broken" in said:
                data = [{"data": []}]
            self.send_response(500 if "crash" in said else 200)
            self.end_headers()
            self.wfile.write(json.dumps({"data": data}).encode())

        def log_message(self, *args):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", seen
    running.shutdown()
    running.server_close()


def rewarded(config, texts):
    reward = process_reward(config)
    return reward(prompts=[""] * len(texts), completions=texts, problem=["2+2?"] * len(texts))


def test_steps_are_paragraphs_and_thinking_tags_part_them():
    assert steps_of(TEXT) == STEPS
    assert steps_of("a\nb\n \nc</think>d") == ["a\nb", "c", "d"] and steps_of(" \n\n ") == []


@pytest.mark.parametrize(("aggregate", "value"), [
    ("min", 0.1), ("product", 0.064), ("mean", 1.7 / 3), ("last", 0.8)])
@pytest.mark.parametrize("endpoint", ["pooling", "classify"])
def test_both_endpoints_give_each_step_its_score_and_one_aggregate(server, endpoint, aggregate,
                                                                   value):
    config = HttpPrm(url=f"{server[0]}/{endpoint}", model="prm", aggregate=aggregate)
    messages = [{"role": "assistant", "content": TEXT}]
    assert rewarded(config, [TEXT, messages, ""]) == pytest.approx([value, value, 0.0])


def test_the_server_is_sent_model_problem_steps_and_its_key(server, monkeypatch):
    monkeypatch.setenv("PRM_KEY", "secret")
    base = {"model": "prm", "key_env": "PRM_KEY"}
    rewarded(HttpPrm(url=f"{server[0]}/pooling", **base), ["a<extra_0>b\n\nc"])
    rewarded(HttpPrm(url=f"{server[0]}/classify", **base), ["a\n\nc"])
    chat, texts = server[1]
    assert chat["messages"] == [{"role": "user", "content": "2+2?"},
                                {"role": "assistant", "content": "ab<extra_0>c<extra_0>"}]
    assert texts["input"] == ["2+2?\n\na", "2+2?\n\na\n\nc"] and texts["model"] == "prm"
    assert chat["key"] == "Bearer secret"
    monkeypatch.delenv("PRM_KEY")
    with pytest.raises(UserError, match="PRM_KEY is unset"):
        process_reward(HttpPrm(url=f"{server[0]}/pooling", **base))


@pytest.mark.parametrize("fault", ["sleepy", "broken", "crash"])
def test_a_fault_costs_its_own_sample_and_more_than_one_in_a_hundred_stops(server, fault):
    config = HttpPrm(url=f"{server[0]}/pooling", model="prm", seconds=0.5)
    started = time.monotonic()
    assert rewarded(config, ["good", fault, "good"]) == [0.8, None, 0.8]
    assert time.monotonic() - started < 20
    with pytest.raises(UserError, match=r"2 of 4 .* no score from prm"):
        rewarded(config, ["good", fault, fault, "good"])


def test_only_the_endpoints_that_are_known_are_taken():
    with pytest.raises(ValueError, match="pattern"):
        HttpPrm(url="http://127.0.0.1/v1/completions", model="prm")


def classifier(folder, kind, labels):
    import transformers
    from transformers import AutoTokenizer, Qwen3Config

    tokenizer = tokenizer_of("base")
    torch.manual_seed(0)
    model = getattr(transformers, f"Qwen3For{kind}Classification")(Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, num_labels=labels,
        pad_token_id=tokenizer.pad_token_id, initializer_range=0.5))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(("kind", "labels"), [("Token", 2), ("Token", 1), ("Sequence", 2),
                                              ("Sequence", 1)])
def test_a_local_classifier_is_read_at_the_end_of_each_step(tmp_path, kind, labels):
    model, tokenizer = classifier(tmp_path, kind, labels)
    expected = []
    for end in range(1, 4):  # each prefix on its own: attention is causal
        pieces = [f"{text}\n\n" for text in ("2+2?", *STEPS[:end])]
        ids = [i for piece in pieces for i in tokenizer(piece)["input_ids"]]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        last = logits[-1] if kind == "Token" else logits
        expected.append(float((last.sigmoid() if labels == 1 else last.softmax(-1))[-1]))
    assert len({round(value, 4) for value in expected}) == 3
    for aggregate, value in [("min", min(expected)), ("last", expected[-1])]:
        config = LocalPrm(model=str(tmp_path), aggregate=aggregate)
        assert rewarded(config, [TEXT]) == pytest.approx([value], abs=1e-5)


def test_a_model_that_classifies_nothing_is_refused(tmp_path):
    from pipeline.config.student import TinyModel
    from pipeline.student.tiny import build_model

    build_model(tokenizer_of("tiny"), TinyModel(layers=1, width=32, heads=2), 0).save_pretrained(
        tmp_path)
    with pytest.raises(UserError, match="Qwen3ForCausalLM"):
        process_reward(LocalPrm(model=str(tmp_path)))

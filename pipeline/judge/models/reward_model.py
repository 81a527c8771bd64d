"""A reward model scores an answer: Bradley-Terry models as in Ouyang et al. (arXiv 2203.02155)."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.completion import Messages
from pipeline.config.judges import RewardModel
from pipeline.errors import UserError
from pipeline.judge.llm import plain
from pipeline.judge.models.opinion import Item, Score
from pipeline.progress import quiet_libraries
from pipeline.stage import is_artifact

SECONDS = 120.0
"""Timeout of a request to a served reward model."""
# No server, a timeout, a malformed reply.
FAILURES = (OSError, ValueError, LookupError, TypeError)
FAILURE_LIMIT = 0.01


def reward_model(config: RewardModel) -> Score:
    """Score items by the model's logit, loaded when first asked or behind `config.url`."""
    return _served(config) if config.url else _local(config)


def conversation(item: Item) -> Messages:
    """The item as the chat that a reward model reads; control tokens it spells out are dropped."""
    return [{"role": "user", "content": plain(item.problem)},
            {"role": "assistant", "content": plain(item.text)}]


def post_json(url: str, body: Mapping[str, Any], key_env: str | None, seconds: float) -> Any:
    """The JSON that `url` answers to `body`; the server's key is in the variable `key_env`."""
    headers = {"Content-Type": "application/json"}
    if key_env:
        headers["Authorization"] = f"Bearer {os.environ[key_env]}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=seconds) as reply:
        return json.load(reply)


def check_key(key_env: str | None, where: str) -> None:
    """Raise UserError if `where` names an environment variable that is unset."""
    if key_env and not os.environ.get(key_env):
        raise UserError(f"{where}: the environment variable {key_env} is unset; set it to the "
                        "server's key")


def _served(config: RewardModel) -> Score:
    def one(item: Item) -> float | Exception:
        body = {"model": config.model, "messages": conversation(item)}
        try:
            data = post_json(str(config.url), body, config.key_env, SECONDS)["data"][0]["data"]
            [value] = data if isinstance(data, list) else [data]
            return float(value)
        except FAILURES as failure:
            return failure

    def score(items: list[Item]) -> list[float | None]:
        with ThreadPoolExecutor(config.batch) as threads:
            found = list(threads.map(one, items))
        failed = [value for value in found if isinstance(value, Exception)]
        if len(failed) > max(1, FAILURE_LIMIT * len(items)):
            raise UserError(f"{len(failed)} of {len(items)} texts got no score from {config.url} "
                            f"(limit {FAILURE_LIMIT:.0%}); the last error: {failed[-1]!r}")
        return [None if isinstance(value, Exception) else value for value in found]

    return score


def _local(config: RewardModel) -> Score:
    loaded: list[tuple[Any, Any]] = []

    def score(items: list[Item]) -> list[float | None]:
        if not loaded:
            loaded.append(_load(config.model))
        model, tokenizer = loaded[0]
        rows = [tokenizer.apply_chat_template(conversation(item), tokenize=True,
                                              return_dict=True)["input_ids"] for item in items]
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        out: list[float | None] = [None] * len(rows)
        for start in range(0, len(order), config.batch):
            places = order[start:start + config.batch]
            logits = _logits(model, tokenizer, [rows[place] for place in places])
            for place, value in zip(places, logits, strict=True):
                out[place] = value
        return out

    return score


def _logits(model: Any, tokenizer: Any, rows: list[list[int]]) -> list[float]:
    import torch

    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(model.device)
    with torch.inference_mode():
        return model(**batch).logits[:, 0].float().tolist()


def _load(name: str) -> tuple[Any, Any]:
    """(model, tokenizer). Raises UserError unless it has one label and a template that fits."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    quiet_libraries()
    try:
        model: Any = AutoModelForSequenceClassification.from_pretrained(name, dtype="auto")
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"reward model {name!r} cannot be loaded: {str(error).splitlines()[0]}") \
            from None
    _check(name, model.config.num_labels, model.config.get_text_config().vocab_size,
           len(tokenizer), tokenizer.chat_template)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def _check(name: str, labels: int, rows: int, tokens: int, template: Any) -> None:
    if labels != 1:
        raise UserError(f"{name} has {labels} labels and a reward model has one; name a model "
                        "trained to score, as by TRL's RewardTrainer")
    if tokens > rows:
        raise UserError(f"the tokenizer of {name} has {tokens:,} tokens and the model {rows:,}; "
                        "they are not of one model, so copy the right tokenizer into it")
    if not template:
        raise UserError(f"the tokenizer of {name} has no chat template, so it is unknown how it "
                        "reads an answer; add the chat_template.jinja that it was trained with")


def check_reward_model(where: str, config: RewardModel) -> None:
    """Raise UserError if a local folder cannot be this reward model; reads its JSON files alone."""
    check_key(config.key_env, f"{where}.key_env")
    if config.model.partition("-")[0] in ("sft", "rl") and is_artifact(config.model):
        raise UserError(f"{where}.model names what a step trains, a language model, which gives no "
                        "score; name a sequence classifier (TRL's RewardTrainer), or ask the "
                        "step's model as a rubric or pairwise judge")
    folder = Path(config.model).expanduser()
    if config.url or not (folder.is_dir() or config.model.startswith(("/", ".", "~"))):
        return      # served, or a hub id
    try:
        facts, tokenizer = (json.loads((folder / name).read_text("utf-8"))
                            for name in ("config.json", "tokenizer.json"))
        settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{where}.model={config.model} is no folder with a reward model and its "
                        f"tokenizer ({error}); name one as RewardTrainer saves it") from None
    if not str(facts.get("architectures", [""])[0]).endswith("ForSequenceClassification"):
        raise UserError(f"{where}.model={config.model} is no sequence classifier (architecture: "
                        f"{facts.get('architectures')}); name a reward model")
    vocabulary = tokenizer["model"]["vocab"]
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    added = (token["id"] for token in tokenizer.get("added_tokens", []))
    _check(config.model, len(facts.get("id2label", {0: "", 1: ""})),
           facts.get("vocab_size", 1 << 62), 1 + max([*ids, *added], default=0),
           settings.get("chat_template") or (folder / "chat_template.jinja").is_file())

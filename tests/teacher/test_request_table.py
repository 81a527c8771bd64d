"""A RequestTable equals the list of its requests, and forms only those that are missing."""

from collections import Counter

import polars as pl
import pytest

from pipeline.config.teacher import Sampling
from pipeline.teacher import TraceStore, store_index
from pipeline.teacher.request import Keys
from pipeline.teacher.request_table import RequestTable
from tests.teacher.test_store import TEACHER, chat, fill, requests

SAMPLING, PROBLEMS, SAMPLES = Sampling(max_tokens=50), 40, 3
ANSWERS = [{}, {"finish_reason": "length", "max_tokens": 20, "completion_tokens": 20},
           {"completion_tokens": 60, "max_tokens": None}, {"failure": "no"}]


@pytest.fixture
def formed():
    """How often the chat of each problem was formed."""
    return Counter()


@pytest.fixture
def table(formed):
    def chat_of(at):
        formed[at] += 1
        return chat(f"question {at}")
    return RequestTable(pl.Series([f"p{i}" for i in range(PROBLEMS)]), chat_of, SAMPLES)


@pytest.fixture
def store(tmp_path):
    """Whole, cut off, longer and failed answers, each to a fifth of the requests, in segments."""
    wanted = requests(PROBLEMS, SAMPLES)
    for kind, changes in enumerate(ANSWERS):
        fill(tmp_path, wanted[kind::5], SAMPLING, **changes)
    return TraceStore(tmp_path)


def test_a_table_is_the_list_of_its_requests(table):
    wanted = requests(PROBLEMS, SAMPLES)
    assert list(table) == wanted and len(table) == len(wanted) and table[7] == wanted[7]
    assert list(table[5:20:3]) == wanted[5:20:3]
    assert list(table[5:20].part(pl.Series([3, 0, 3]))) == [wanted[8], wanted[5], wanted[8]]
    assert list(RequestTable.of({f"p{i}": chat(f"question {i}") for i in range(PROBLEMS)},
                                SAMPLES)) == wanted


@pytest.mark.parametrize("part", [7, 1 << 15])
def test_a_store_says_the_same_of_a_table_as_of_a_list_whatever_is_joined_at_a_time(
        part, table, store, monkeypatch):
    wanted = requests(PROBLEMS, SAMPLES)
    whole = {name: getattr(store, name)(wanted, TEACHER, SAMPLING)
             for name in ("missing", "spent", "longer", "collect")}
    assert len(whole["missing"]) == 3 * len(wanted) // 5 and whole["longer"] == len(wanted) // 5
    monkeypatch.setattr(store_index, "PART", part)
    assert list(store.missing(table, TEACHER, SAMPLING)) == whole["missing"]
    assert store.missing(wanted, TEACHER, SAMPLING) == whole["missing"]
    assert store.spent(table, TEACHER, SAMPLING) == whole["spent"] > 0
    assert store.longer(table, TEACHER, SAMPLING) == whole["longer"]
    assert store.collect(table, TEACHER, SAMPLING).equals(whole["collect"])
    some = pl.Series([30, 2, 77])
    assert store.collect(table.part(some), TEACHER, SAMPLING).equals(
        store.collect([wanted[at] for at in some], TEACHER, SAMPLING))


def test_chats_are_formed_once_for_all_that_is_known_and_again_only_where_asked(
        table, formed, store):
    left = store.missing(table, TEACHER, SAMPLING)
    store.collect(table, TEACHER, SAMPLING)
    store.missing(left, TEACHER, SAMPLING)
    assert set(formed.values()) == {1} and len(formed) == PROBLEMS
    first = next(iter(left))
    assert sum(formed.values()) == PROBLEMS + 1 and first.problem_id in table.ids


def test_a_request_takes_few_bytes(table):
    wanted = table.wanted(Keys(TEACHER, SAMPLING))
    assert wanted.estimated_size() / len(table) <= 25

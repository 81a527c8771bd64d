"""Word hashes, n-grams, loops, MinHash near-duplicates."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.curate.near_duplicates import near_duplicates, rows_per_band, signatures, similarity
from pipeline.curate.words import ngrams, repetition, words


def random_text(rng, count, vocabulary=2000):
    return " ".join(f"w{rng.randrange(vocabulary)}" for _ in range(count))


def test_words_are_runs_of_letters_and_digits_and_single_signs():
    found = words(["Hello, World x^2", "", " a+B "])
    assert found.offsets.tolist() == [0, 5, 5, 8]
    assert [found.text(i, i) for i in range(8)] == ["Hello", "World", "x", "^", "2", "a", "+", "B"]
    assert words(["HELLO (world)"]).hashes.tolist() == found.hashes[:2].tolist()


@given(st.lists(st.text(max_size=40), max_size=6))
@settings(max_examples=150)
def test_a_word_has_one_hash_wherever_it_stands(texts):
    found, alone = words(texts), [words([text]) for text in texts]
    for index, one in enumerate(alone):
        mine = found.hashes[found.offsets[index]:found.offsets[index + 1]]
        assert mine.tolist() == one.hashes.tolist()


@given(st.lists(st.text(alphabet="ab c", max_size=30), max_size=5), st.integers(1, 6))
@settings(max_examples=150)
def test_two_runs_have_one_hash_just_when_their_words_agree(texts, n):
    hashes, _firsts, offsets = ngrams(words(texts), n)
    runs = [tuple(text.split()[i:i + n]) for text in texts for i in
            range(max(min(1, len(text.split())), len(text.split()) - n + 1))]
    assert len(runs) == len(hashes) == offsets[-1]
    assert len(set(runs)) == len(set(hashes.tolist()))
    for (i, run), (j, other) in zip(enumerate(runs), reversed(list(enumerate(runs))), strict=True):
        assert (run == other) == (hashes[i] == hashes[j])


def test_a_loop_has_high_repetition_and_sound_text_has_none():
    rng = random.Random(0)
    sound = random_text(rng, 800)
    loop = random_text(rng, 100) + " wait let me try that again" * 200
    low, high, empty = repetition([sound, loop, ""])
    assert low == 0 and high > 0.8 and empty == 0


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_pairs_at_the_threshold_are_compared(threshold):
    rows = rows_per_band(threshold)
    assert 1 - (1 - threshold ** rows) ** (128 // rows) >= 0.99


def test_similarity_estimates_jaccard():
    rng = random.Random(1)
    base = [random_text(rng, 400, 10 ** 6) for _ in range(50)]
    half = [text[:len(text) // 2] + " " + random_text(rng, 200, 10 ** 6) for text in base]
    both = signatures(base + half)
    estimate = similarity(both, np.stack((np.arange(50), np.arange(50, 100)), axis=1))
    assert abs(estimate.mean() - 1 / 3) < 0.03


def test_all_400_planted_near_duplicates_are_found_and_no_other():
    rng = random.Random(2)
    texts = [random_text(rng, rng.randrange(60, 400)) for _ in range(1800)]
    planted = {}
    for index in rng.sample(range(1800), 400):
        changed = texts[index].split()
        changed[rng.randrange(len(changed))] = "changed"
        planted[len(texts)] = index
        texts.append(" ".join(changed))
    of = near_duplicates(signatures(texts), 0.75)
    assert {i: int(j) for i, j in enumerate(of) if j >= 0} == planted


def test_identical_and_empty_texts_repeat_the_first_and_none_repeats_itself():
    of = near_duplicates(signatures(["a b", "c d e f", "a b", "", "", "a b"]), 0.9)
    assert of.tolist() == [-1, -1, 0, -1, 3, 0]
    assert near_duplicates(signatures([]), 0.9).tolist() == []

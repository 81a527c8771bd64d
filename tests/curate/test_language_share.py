"""Languages of one script are told apart, in the filter and in the reward alike."""

import time

import polars as pl
import pytest

from pipeline.config.filter import FilterConfig
from pipeline.curate.features import add_features
from pipeline.curate.language_share import SAMPLED, passages, reflection_pattern, share_in
from pipeline.curate.select import check_filter
from pipeline.errors import UserError
from pipeline.rl.rewards import language_reward

pytest.importorskip("lingua")
TEXTS = {
    "en": "Okay, so I need to find how many apples are left. First I add up what both have. "
          "Wait, that is not quite right, because one of them gave some away before lunch.",
    "de": "Also gut, ich muss herausfinden, wie viele Äpfel übrig sind. Zuerst zähle ich "
          "zusammen, was beide haben. Moment, das stimmt nicht ganz, einer hat welche verschenkt.",
    "fr": "Bon, je dois trouver combien de pommes il reste. D'abord j'additionne ce qu'ils ont "
          "tous les deux. Attends, ce n'est pas tout à fait juste, l'un d'eux en a donné avant.",
    "es": "Bien, tengo que averiguar cuántas manzanas quedan. Primero sumo lo que tienen los dos. "
          "Espera, no es del todo correcto, porque uno de ellos regaló algunas antes de comer.",
}
OTHERS = tuple(TEXTS)


@pytest.mark.parametrize("language", TEXTS)
def test_thinking_in_another_language_of_the_script_scores_nothing(language):
    for written, text in TEXTS.items():
        frame = pl.DataFrame({"thinking": [text], "answer": ["x"]})
        share = add_features(frame, ["language_share"], language, *OTHERS)["language_share"][0]
        reward = language_reward(f"<think>{text}</think>x", language=language, languages=OTHERS)
        assert share == reward == float(written == language)


def test_without_the_other_languages_named_the_script_decides_as_before():
    frame = pl.DataFrame({"thinking": [TEXTS["de"]], "answer": ["x"]})
    assert add_features(frame, ["language_share"], "en")["language_share"][0] == 1.0
    assert language_reward(f"<think>{TEXTS['de']}</think>x") == 1.0


def test_a_mixture_scores_about_its_share_and_foreign_scripts_count_too():
    mixed = "\n\n".join([TEXTS["en"], TEXTS["de"]] * 5)
    assert 0.4 < share_in(mixed, "en", ("de",)) < 0.6
    text = TEXTS["en"] + " 我们再检查一下" * 12
    assert language_reward(f"<think>{text}</think>x", languages=("de",)) < 0.5


def test_code_and_formulas_are_not_counted():
    code = "```python\nwenn = der_die_das(und, oder, nicht)\nfür = ist + aber\n```\n"
    formula = r"\[\text{wenn die Summe der Zahlen nicht größer ist als das Produkt}\] $und$ "
    assert share_in(TEXTS["en"] + code * 20 + formula * 20, "en", ("de",)) == 1.0
    assert not passages(code + formula + "12 + 3 = 15")


def test_what_is_too_short_to_tell_is_not_held_against_the_student():
    assert share_in("Ja. x = 3", "en", ("de",)) == 1.0 == share_in("", "en", ("de",))


def test_a_long_trace_costs_no_more_than_its_sample_and_a_hostile_one_ends():
    long = (TEXTS["en"] + "\n") * 400
    assert len(passages(long)) > 4 * SAMPLED
    share_in(long, "en", ("de",))
    for text in (long, "\\[" * 50_000, "a" * 200_000, "`" * 99_999, "$" * 99_999, "{" * 50_000):
        began = time.process_time()
        share_in(text, "en", ("de", "fr", "es"))
        assert time.process_time() - began < 1.0, text[:20]


@pytest.mark.parametrize("language, text", [
    ("en", "Wait, actually"), ("de", "Moment, das stimmt nicht"), ("fr", "Attends, en fait"),
    ("es", "Espera, en realidad"), ("zh", "等等,不对"), ("ja", "待って、もう一度"),
    ("ru", "Подожди, на самом деле"), ("it", "Aspetta, in realtà"), ("pt", "Espera, na verdade"),
    ("nl", "Wacht, nog eens"), ("pl", "Czekaj, jeszcze raz"), ("uk", "Стривай, ще раз"),
    ("ko", "잠깐, 다시 확인")])
def test_reflections_are_counted_in_the_language_of_the_thinking(language, text):
    assert len(reflection_pattern((language,)).findall(text)) == 2
    frame = pl.DataFrame({"thinking": [text], "answer": ["x"]})
    assert add_features(frame, ["reflections"], language)["reflections"][0] == 2
    assert not reflection_pattern((language,)).findall("12 + 3 = 15")


def test_an_unknown_language_or_a_missing_library_is_one_sentence(monkeypatch):
    with pytest.raises(UserError, match=r"filter.languages names 'xx'"):
        check_filter(FilterConfig(languages=["xx"]))
    monkeypatch.setattr("pipeline.curate.language_share.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install '.\[languages\]'"):
        check_filter(FilterConfig(languages=["de"]))
    check_filter(FilterConfig(languages=["zh"]))        # another script needs no library

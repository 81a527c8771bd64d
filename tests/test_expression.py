"""Expressions over columns: what they mean, and that nothing else gets through."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.curate.select import COLUMNS
from pipeline.errors import UserError
from pipeline.expression import check_expression, compile_expression, names_in

TABLE = pl.DataFrame({"verdict": ["correct", "wrong", "correct"], "tokens": [10, 20, 30],
                      "pass_rate": [0.5, 1.0, None], "has_code": [False, True, False]})


@pytest.mark.parametrize(("text", "expected"), [
    ('verdict == "correct"', [True, False, True]), ("0 < pass_rate < 1", [True, False, None]),
    ("not has_code and tokens <= 10", [True, False, False]),
    ("tokens in [10, 30]", [True, False, True]),
    ('verdict not in ("wrong",)', [True, False, True]),
    ("tokens / 2 - 5 >= 5", [False, True, True]),
    ("  tokens > 15\n", [False, True, True]),
    ("-tokens < -15 or has_code", [False, True, True]), ("tokens != 20", [True, False, True])])
def test_an_expression_means_what_python_would(text, expected):
    assert TABLE.select(compile_expression(text, TABLE.columns)).to_series().to_list() == expected


@pytest.mark.parametrize("text", [
    "__import__('os').system('true')", "(lambda: 1)()", "verdict.upper() == 'X'", "[t for t in x]",
    "tokens[0] > 1", "10 ** 9 ** 9 > 1", "f'{tokens}' == '1'", "tokens > 1 if True else False",
    "verdict in open('x')", "verdict in 'correct'", "tokens > " + "9" * 40, "tokens := 3", "", "(",
    "not " * 5000 + "has_code", "\0", "tokens is None", "verdict == None", "a.b.c > 1"])
def test_anything_but_columns_constants_and_comparisons_is_refused(text):
    with pytest.raises(UserError):
        check_expression(text, COLUMNS)


@pytest.mark.parametrize(("text", "says"), [
    ("tokens", "not true or false"), ("tokens > 'a'", "cannot be compared"),
    ("verdict > 3", "cannot be compared"), ("token > 3", "names 'token'"),
    ("reason == ''", "names 'reason'"), ("difficulty is None", "not None: a comparison"),
    ("difficulty == None", "not None: a comparison")])
def test_a_wrong_type_or_name_is_found_before_any_row_is_read(text, says):
    with pytest.raises(UserError, match=says):
        check_expression(text, COLUMNS)


@given(st.text(alphabet="tokens<>=()[]. \"'not and01_,+-*/\\{}:", max_size=40))
@settings(max_examples=300)
def test_no_text_gives_anything_but_an_expression_or_a_user_error(text):
    try:
        check_expression(text, COLUMNS)
    except UserError:
        return
    TABLE.lazy()


def test_the_names_of_an_expression_are_found():
    assert names_in("0 < pass_rate < 1 and not has_code") == {"pass_rate", "has_code"}
    assert names_in(" tokens > 1") == {"tokens"} and names_in("(") == set()

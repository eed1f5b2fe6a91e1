"""What is chosen among usable rows, for any rows."""

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.data.report import DataReport
from finetune_trainer.data.selection import hold_out, normalise, without_repeats, without_those_in


@dataclass(frozen=True)
class Row:
    text: str
    label: str
    place: str

    def key(self) -> str:
        return normalise(self.text)


def rows_of(max_texts: int) -> st.SearchStrategy[list[Row]]:
    """Rows with repeated texts, in several spellings, and with labels of very different frequency."""
    text = st.tuples(st.integers(0, max_texts), st.sampled_from(["text {}", "TEXT  {}", "Text: {}!"]))
    pair = st.tuples(text.map(lambda pair: pair[1].format(pair[0])), st.sampled_from("aaaabbc"))
    return st.lists(pair, max_size=60).map(
        lambda pairs: [Row(text, label, f"line {number}") for number, (text, label) in enumerate(pairs, start=1)]
    )


fractions = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**32 - 1)
many = settings(max_examples=200, deadline=None)


class TestHoldOut:
    @given(rows_of(40), fractions, seeds)
    @many
    def test_every_row_is_on_one_side_in_order(self, rows: list[Row], fraction: float, seed: int) -> None:
        train, held = hold_out(rows, fraction, seed)
        places = {row.place for row in held}
        assert held == [row for row in rows if row.place in places]
        assert train == [row for row in rows if row.place not in places]

    @given(rows_of(40), fractions, seeds)
    @many
    def test_no_text_is_on_both_sides(self, rows: list[Row], fraction: float, seed: int) -> None:
        train, held = hold_out(rows, fraction, seed)
        assert {row.key() for row in train}.isdisjoint(row.key() for row in held)

    @given(rows_of(40), fractions, seeds)
    @many
    def test_every_label_stays_in_train(self, rows: list[Row], fraction: float, seed: int) -> None:
        train, _ = hold_out(rows, fraction, seed)
        assert {row.label for row in train} == {row.label for row in rows}

    @given(rows_of(40), fractions, seeds)
    @many
    def test_nothing_is_held_out_only_when_no_text_can_be_spared(
        self, rows: list[Row], fraction: float, seed: int
    ) -> None:
        _, held = hold_out(rows, fraction, seed)
        if not held:
            for key in {row.key() for row in rows}:
                assert {row.label for row in rows if row.key() != key} != {row.label for row in rows}

    @given(rows_of(40), fractions, seeds)
    @many
    def test_the_same_seed_holds_out_the_same(self, rows: list[Row], fraction: float, seed: int) -> None:
        assert hold_out(rows, fraction, seed) == hold_out(rows, fraction, seed)

    @given(st.integers(10, 300), fractions, seeds)
    @many
    def test_the_fraction_is_met_where_labels_allow(self, count: int, fraction: float, seed: int) -> None:
        rows = [Row(f"text {number}", "ab"[number % 2], f"line {number}") for number in range(count)]
        _, held = hold_out(rows, fraction, seed)
        assert len(held) == min(max(1, round(count * fraction)), count - 2)

    def test_another_seed_holds_out_others(self) -> None:
        rows = [Row(f"text {number}", "ab"[number % 2], f"line {number}") for number in range(100)]
        assert len({tuple(row.place for row in hold_out(rows, 0.1, seed)[1]) for seed in range(20)}) == 20

    def test_every_row_has_the_same_chance(self) -> None:
        rows = [Row(f"text {number}", "ab"[number % 2], f"line {number}") for number in range(20)]
        counts = Counter(row.place for seed in range(1000) for row in hold_out(rows, 0.2, seed)[1])
        assert all(140 < counts[row.place] < 260 for row in rows), counts

    def test_texts_that_repeat_more_often_than_wanted(self) -> None:
        rows = [Row(f"text {number // 3}", "ab"[number // 3 % 2], f"line {number}") for number in range(12)]
        train, held = hold_out(rows, 0.1, 0)
        assert (len(train), len(held)) == (9, 3)


class TestRepeats:
    @given(rows_of(20))
    @many
    def test_one_row_of_every_text_stays_and_all_others_are_counted(self, rows: list[Row]) -> None:
        report = DataReport("rows")
        kept = without_repeats(rows, report)
        first = {row.key(): row for row in reversed(rows)}
        assert kept == [row for row in rows if first[row.key()] is row]
        others = [row for row in rows if first[row.key()] is not row]
        same = sum(row.label == first[row.key()].label for row in others)
        assert report.duplicate["repeated"] == same
        assert report.duplicate["repeated with another label"] == len(others) - same
        assert report.unusable.total() == 0

    @given(rows_of(20))
    @many
    def test_twice_is_as_once(self, rows: list[Row]) -> None:
        kept = without_repeats(rows, DataReport("rows"))
        again = DataReport("rows")
        assert without_repeats(kept, again) == kept
        assert again.duplicate.total() == 0


@given(rows_of(20), rows_of(20))
@many
def test_leaks_go(rows: list[Row], evaluation: list[Row]) -> None:
    report = DataReport("rows")
    kept = without_those_in(rows, evaluation, "also in the evaluation data", report)
    held = {row.key() for row in evaluation}
    assert kept == [row for row in rows if row.key() not in held]
    assert report.duplicate.total() == len(rows) - len(kept)


class TestNormalise:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("Great, GREAT film!!", "great great film"),
            ("  two\tspaces\u00a0 and\nmore ", "two spaces and more"),
            ("\uff21\uff22\uff23 \ufb01ne", "abc fine"),
            ("Stra\u00dfe", "STRASSE"),
            ("well-made", "well made"),
            ("\u201cquoted\u201d text\u2026", "quoted text"),
            ("don\u2019t ''go''", "don't go"),
            ("\u00bfqu\u00e9 es ?", "qu\u00e9 es"),
        ],
    )
    def test_the_same(self, one: str, other: str) -> None:
        assert normalise(one) == normalise(other)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("\U0001f600", "\U0001f621"),
            ("so \U0001f600", "so \U0001f621"),
            (":-)", ":-("),
            ("\u0915\u093f", "\u0915\u093e"),  # Hindi ki and ka differ by a vowel sign
            ("c++ is good", "c is good"),
            ("a < b", "a > b"),
            ("ab", "a b"),
            ("a * b", "a / b"),
            ("a - b", "a b"),
            ("nice :)", "nice :("),
            ("nice :)", "nice"),
            ("10.5 %", "10 5"),
            ("7-2", "7 2"),
            ("C# is good", "C is good"),
            ("x[1]", "x(1)"),
            ("it's", "its"),
        ],
    )
    def test_not_the_same(self, one: str, other: str) -> None:
        assert normalise(one) != normalise(other)

    @given(st.text())
    @many
    def test_one_line_and_empty_only_for_empty_text(self, text: str) -> None:
        assert "\n" not in normalise(text)
        assert "  " not in normalise(text)
        assert bool(normalise(text)) == bool(" ".join(text.split()))

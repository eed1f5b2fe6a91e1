"""Addresses and questions about them: tags from the elements, nothing that names a person, answers where they stand."""

from typing import Any

import pytest

from script_modules import load

# They import each other by name, which works as a script and here only once what is imported is loaded.
asset_rows = load("asset_rows")
asset_addresses = load("asset_addresses")
asset_questions = load("asset_questions")
Address = asset_addresses.Address


def collection(*addresses: str) -> str:
    strings = "".join(f"  <AddressString>{address}</AddressString>\n" for address in addresses)
    return f"<AddressCollection>\n{strings}</AddressCollection>"


FULL = (
    "<AddressNumber>12</AddressNumber> <StreetNamePreDirectional>N.</StreetNamePreDirectional> "
    "<StreetName>Clark</StreetName> <StreetNamePostType>St.,</StreetNamePostType> "
    "<OccupancyType>Ste.</OccupancyType> <OccupancyIdentifier>28,</OccupancyIdentifier> "
    "<PlaceName>New</PlaceName> <PlaceName>York,</PlaceName> <StateName>NY</StateName> <ZipCode>10001</ZipCode>"
)


def test_elements_become_tags_of_nine_fields() -> None:
    [address] = asset_addresses.rows_of_addresses(collection(FULL))
    assert address.text == "12 N. Clark St., Ste. 28, New York, NY 10001"
    assert " ".join(address.tags) == ("B-Number B-Street I-Street I-Street B-Unit I-Unit B-City I-City B-State B-Zip")
    assert len(asset_addresses.FIELDS) == 9


def test_words_of_no_field_part_two_of_one() -> None:
    corner = "<StreetName>State</StreetName> <CornerOf>and</CornerOf> <StreetName>Lake</StreetName>"
    [address] = asset_addresses.rows_of_addresses(collection(corner))
    assert address.tags == ("B-Street", "O", "B-Street")


def test_several_words_in_one_element() -> None:
    [address] = asset_addresses.rows_of_addresses(collection("<PlaceName>San Diego</PlaceName>"))
    assert address == Address(("San", "Diego"), ("B-City", "I-City"))


def test_who_lives_there_is_left_out() -> None:
    named = f"<Recipient>Ann</Recipient> <Recipient>Lee</Recipient> {FULL}"
    assert len(asset_addresses.rows_of_addresses(collection(named, FULL))) == 1
    assert asset_addresses.rows_of_addresses(collection(named)) == []


def test_the_first_of_equal_addresses() -> None:
    loud = FULL.replace("Clark", "CLARK").replace("York,", "York")
    assert [row.text for row in asset_addresses.rows_of_addresses(collection(FULL, loud, FULL))] == [
        "12 N. Clark St., Ste. 28, New York, NY 10001"
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [("<A>", "not XML"), (collection("<Planet>Mars</Planet>"), "an element Planet that is not known")],
)
def test_another_file(content: str, said: str) -> None:
    with pytest.raises(asset_rows.AssetError, match=said):
        asset_addresses.rows_of_addresses(content)


ADDRESSES = [Address((str(n), "Clark", "St"), ("B-Number", "B-Street", "I-Street")) for n in range(50)]


def test_split_is_fixed_and_clean() -> None:
    train, evaluation = asset_addresses.split_addresses(ADDRESSES, 10)
    assert (len(train), len(evaluation)) == (40, 10)
    assert {row.text for row in train} | {row.text for row in evaluation} == {row.text for row in ADDRESSES}
    assert asset_addresses.split_addresses(ADDRESSES[::-1], 10) == (train, evaluation)
    with pytest.raises(asset_rows.AssetError, match="10 addresses are to be held out, but only 10 are left"):
        asset_addresses.split_addresses(ADDRESSES[:10], 10)


def rows_about(*addresses: Any) -> list[dict[str, Any]]:
    return asset_questions.questions_about(list(addresses))


def test_answers_stand_where_they_are_said_to() -> None:
    rows = rows_about(*asset_addresses.rows_of_addresses(collection(FULL)), *ADDRESSES)
    answered = [row for row in rows if row["answers"]["text"]]
    assert len(answered) == 51
    for row in answered:
        [text], [start] = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text
        assert text[-1] not in ",.;"


def test_every_field_has_its_answer() -> None:
    [address] = asset_addresses.rows_of_addresses(collection(FULL))
    answers = {field: [text for text, _ in found] for field, found in asset_questions._answers(address).items()}
    assert answers == {
        "Number": ["12"],
        "Street": ["N. Clark St"],
        "Unit": ["Ste. 28"],
        "City": ["New York"],
        "State": ["NY"],
        "Zip": ["10001"],
    }


def test_a_question_without_an_answer_asks_for_what_is_not_there() -> None:
    rows = rows_about(*ADDRESSES)
    unanswered = [row["question"] for row in rows if not row["answers"]["text"]]
    assert len(unanswered) == 25
    asked = {field for field, words in asset_questions.QUESTIONS.items() for word in words if word in unanswered}
    assert not asked & {"Number", "Street"}
    assert len(asked) > 3


def test_what_is_there_twice_is_not_asked_for() -> None:
    corner = Address(("State", "and", "Lake"), ("B-Street", "O", "B-Street"))
    assert rows_about(corner) == []


def test_the_same_questions_every_time() -> None:
    assert rows_about(*ADDRESSES) == rows_about(*ADDRESSES)
    assert asset_questions.QUESTIONS.keys() == asset_addresses.FIELDS.keys()

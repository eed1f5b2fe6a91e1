"""Turn labelled addresses into questions about them, in SQuAD's form: the answer is a piece of the address, or none.

Pure functions only: fetch_assets.py does the reading and writing.
"""

import hashlib
from typing import Any

from asset_addresses import Address

QUESTIONS = {
    "Number": ("What is the house number?", "Which number does the building have?"),
    "Street": ("What is the street?", "On which street is it?"),
    "Unit": ("Which unit is it?", "What is the apartment, suite or floor?"),
    "Box": ("What is the post office box?", "Which box is the mail sent to?"),
    "Building": ("What is the building called?", "Which building is it?"),
    "City": ("Which city is it in?", "What is the name of the town?"),
    "State": ("Which state is it in?", "What is the state?"),
    "Zip": ("What is the zip code?", "Which postal code does it have?"),
    "Country": ("Which country is it in?", "What is the country?"),
}
# It belongs to the address, not to the answer.
_PUNCTUATION = ",.;:()"


def questions_about(addresses: list[Address]) -> list[dict[str, Any]]:
    """A question with an answer about every address, and one without an answer about every other one.

    Which field is asked for, and in which words, follows from the address's hash.
    """
    rows = []
    for number, address in enumerate(addresses):
        draw = int.from_bytes(hashlib.sha256(address.text.encode()).digest(), "big")
        spans = _answers(address)
        known = sorted(field for field, answers in spans.items() if len(answers) == 1)
        absent = sorted(field for field in QUESTIONS if field not in spans)
        if known:
            field = known[draw % len(known)]
            rows.append(_row(address, field, draw, spans[field]))
        if absent and number % 2:
            rows.append(_row(address, absent[draw % len(absent)], draw, []))
    return rows


def _row(address: Address, field: str, draw: int, answers: list[tuple[str, int]]) -> dict[str, Any]:
    words = QUESTIONS[field]
    return {
        "question": words[(draw >> 64) % len(words)],
        "context": address.text,
        "answers": {"text": [text for text, _ in answers], "answer_start": [start for _, start in answers]},
    }


def _answers(address: Address) -> dict[str, list[tuple[str, int]]]:
    """What an address has of each field: text without punctuation around it, and its place in the address."""
    spans: dict[str, list[list[int]]] = {}
    for number, tag in enumerate(address.tags):
        if tag.startswith("B-"):
            spans.setdefault(tag[2:], []).append([number, number])
        elif tag.startswith("I-"):
            spans[tag[2:]][-1][1] = number
    starts = [sum(len(token) + 1 for token in address.tokens[:number]) for number in range(len(address.tokens))]
    found: dict[str, list[tuple[str, int]]] = {}
    for field, places in spans.items():
        for first, last in places:
            text = address.text[starts[first] : starts[last] + len(address.tokens[last])]
            answer = text.rstrip(_PUNCTUATION)
            lead = len(answer) - len(answer.lstrip(_PUNCTUATION))
            if answer[lead:]:
                found.setdefault(field, []).append((answer[lead:], starts[first] + lead))
    return found

"""Turn usaddress' hand-labelled addresses into rows of words and tags with a fixed split.

Pure functions only: fetch_assets.py does the reading and writing.
"""

import hashlib
import xml.etree.ElementTree as ElementTree
from typing import NamedTuple

from asset_rows import AssetError, normalise

# The 29 element names of the file by what a reader of an address asks for. Nine kinds, and words of none.
FIELDS = {
    "Number": ("AddressNumberPrefix", "AddressNumber", "AddressNumberSuffix"),
    "Street": (
        "StreetNamePreModifier",
        "StreetNamePreDirectional",
        "StreetNamePreType",
        "StreetName",
        "StreetNamePostType",
        "StreetNamePostDirectional",
        "StreetNamePostModifier",
    ),
    "Unit": ("OccupancyType", "OccupancyIdentifier", "SubaddressType", "SubaddressIdentifier"),
    "Box": ("USPSBoxType", "USPSBoxID", "USPSBoxGroupType", "USPSBoxGroupID"),
    "Building": ("BuildingName", "LandmarkName"),
    "City": ("PlaceName",),
    "State": ("StateName",),
    "Zip": ("ZipCode", "ZipPlus4"),
    "Country": ("CountryName",),
}
OUTSIDE = ("IntersectionSeparator", "CornerOf", "NotAddress")
# May name people, so no address that has one is used.
PERSONAL = "Recipient"
_FIELD_OF = {name: field for field, names in FIELDS.items() for name in names} | dict.fromkeys(OUTSIDE, "")


class Address(NamedTuple):
    tokens: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.tokens)


def rows_of_addresses(content: str) -> list[Address]:
    """The different addresses of labeled.xml: words as they stand, punctuation and all, with tags B-, I- and O."""
    # The file is checked by hash before it is read, so it is not one made to harm a parser.
    try:
        collection = ElementTree.fromstring(content)  # noqa: S314
    except ElementTree.ParseError as error:
        raise AssetError(f"the addresses are not XML: {error}") from None
    first: dict[str, Address] = {}
    for element in collection:
        if (address := _address(element)) is not None:
            first.setdefault(normalise(address.text), address)
    return list(first.values())


def split_addresses(addresses: list[Address], evaluation: int) -> tuple[list[Address], list[Address]]:
    """The train and evaluation addresses, in the order of their texts' hashes."""
    if len(addresses) <= evaluation:
        raise AssetError(f"{evaluation} addresses are to be held out, but only {len(addresses)} are left")
    ordered = sorted(addresses, key=lambda row: hashlib.sha256(normalise(row.text).encode()).hexdigest())
    return ordered[evaluation:], ordered[:evaluation]


def _address(element: ElementTree.Element) -> Address | None:
    """An address, or None where it is empty or may name a person."""
    if any(part.tag == PERSONAL for part in element):
        return None
    tokens, tags, previous = [], [], ""
    for part in element:
        if part.tag not in _FIELD_OF:
            raise AssetError(f"the addresses have an element {part.tag} that is not known")
        field = _FIELD_OF[part.tag]
        for token in (part.text or "").split():
            tokens.append(token)
            tags.append(("I-" if field == previous else "B-") + field if field else "O")
            previous = field
    return Address(tuple(tokens), tuple(tags)) if tokens else None

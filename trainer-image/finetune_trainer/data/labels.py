"""One name for a label that two sources spell differently: a table writes 1.0 and True where JSON has 1 and true."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

_WHOLE = re.compile(r"([+-]?[0-9]{1,18})(\.0+)?")


def one_name_each(trained: Iterable[str]) -> Callable[[str], str]:
    """How the labels of every source are to be named: as the training rows have them, but whole numbers without `.0`.

    Where `1.0` is beside names or fractions it may be a name too, such as a version, and stays as it is.
    """
    known = set(trained)
    if all(map(_WHOLE.fullmatch, known)):
        known = {plain(label) for label in known}
    names = {plain(label): label for label in sorted(known)}
    return lambda label: label if label in known else names.get(plain(label), label)


def plain(label: str) -> str:
    """What a label says, without what only a table's way of writing adds."""
    match = _WHOLE.fullmatch(label)
    if match and match[2]:
        return str(int(match[1]))
    return label.lower() if label.lower() in ("true", "false") else label

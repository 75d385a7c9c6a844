"""What messages have in common: values shown shortly, and the name that was probably meant."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Collection

__all__ = ["one_line", "remedy", "shown", "words"]

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxlong = 3, 6, 6, 60


def shown(value: object) -> str:
    """`value` as Python writes it, on one line and cut short in the middle."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # Python writes no number of over 4300 digits
        return "a number of thousands of digits"
    return one_line(text)


def one_line(text: str) -> str:
    """`text` without line ends, and with nothing in it that UTF-8 cannot hold."""
    return " ".join(text.split()).encode(errors="backslashreplace").decode()


def remedy(name: object, known: Collection[str], otherwise: str | None = None) -> str:
    """What to do about a name that is not among `known`: take the nearest, else one of them.

    Parameters
    ----------
    otherwise : said where none is near, instead of listing `known`
    """
    near = difflib.get_close_matches(str(name)[:100], list(known), n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return otherwise or f"known: {', '.join(known)}"


def words(name: str) -> str:
    """A behaviour's name in words; the user's own, which have a colon, stay as they are."""
    return name if ":" in name else name.replace("_", " ")

"""Which folders are versions of a model."""

import re

_NUMBER = re.compile(r"\s*[+-]?[0-9]+\s*", re.ASCII)
_INT64 = range(-(2**63), 2**63)


def version_number(name: str) -> int | None:
    """Return the version that a file or folder of this name in a base path stands for, or None.

    The whole name is an integer that fits 64 bits; leading zeros, a sign and surrounding blanks are allowed.
    """
    if not _NUMBER.fullmatch(name):
        return None
    number = int(name)
    return number if number in _INT64 else None

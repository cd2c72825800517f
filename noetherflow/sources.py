"""Sources: the bibliography behind every rule and law, and the BibTeX of exactly what was used.

One file, `references.bib`, lies beside this module and is installed with it; derivations cite the same keys.
"""

import difflib
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Final

from noetherflow.errors import SourceError

# An entry starts at the beginning of a line and ends at the next line that is a lone closing brace.
_ENTRY: Final = re.compile(r"^@\w+\{(?P<key>[^,\s]+),\n(?P<body>.*?)^\}$", re.MULTILINE | re.DOTALL)


def parse_bibtex(text: str) -> dict[str, str]:
    r"""Split BibTeX into entries by key, in the order of the text.

    Parameters
    ----------
    text
        BibTeX with one field a line and each entry closed by a brace on a line of its own.

    Returns
    -------
    dict of str to str
        Every entry, verbatim, under its key.

    Raises
    ------
    SourceError
        A key occurs twice, or an entry is not closed as described.

    Examples
    --------
    >>> list(parse_bibtex("@misc{a1,\n  title = {A}\n}\n"))
    ['a1']
    """
    entries: dict[str, str] = {}
    for match in _ENTRY.finditer(text):
        if match["key"] in entries:
            raise SourceError(f"The bibliography holds the key {match['key']!r} twice. Keep one of the two entries.", key=match["key"])
        entries[match["key"]] = match[0]
    announced = len(re.findall(r"^@", text, re.MULTILINE))
    if announced != len(entries):
        raise SourceError(
            f"The bibliography announces {announced} entries, of which {len(entries)} could be read. "
            "Close every entry with a brace on a line of its own.",
            announced=announced,
            read=len(entries),
        )
    return entries


@cache
def references() -> Mapping[str, str]:
    """Read the bibliography that is installed with the package.

    Returns
    -------
    Mapping of str to str
        BibTeX entries by key, read-only.

    Examples
    --------
    >>> "tanaka2021noether" in references()
    True
    """
    text = resources.files("noetherflow").joinpath("references.bib").read_text(encoding="utf-8")
    return MappingProxyType(parse_bibtex(text))


def cite(*keys: str) -> str:
    """BibTeX of the given keys, each once, in the order given.

    Parameters
    ----------
    *keys
        Citation keys. The key ``own`` marks what is proved by a derivation of this project; it has no entry and is left out.

    Returns
    -------
    str
        The entries, separated by empty lines.

    Raises
    ------
    SourceError
        A key is unknown.

    Examples
    --------
    >>> print(cite("marcotte2023abide").splitlines()[0])
    @inproceedings{marcotte2023abide,
    """
    return "\n\n".join(_entry(key) for key in dict.fromkeys(keys) if key != "own")


def _entry(key: str) -> str:
    known = references()
    if key in known:
        return known[key]
    near = difflib.get_close_matches(key, known, n=3)
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else "See noetherflow.sources.references() for all keys."
    raise SourceError(f"No source has the key {key!r}; the bibliography holds {len(known)} others. {hint}", key=key, near=tuple(near))

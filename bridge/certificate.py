"""Certificates: a claim about the number of laws, with all that anybody needs to compute every number in it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from noetherflow.errors import ReportError

FORMAT: Final = 1
DIGEST: Final = "sha256"


@dataclass(frozen=True)
class Certificate:
    """What was computed, and from what.

    Attributes
    ----------
    data : mapping
        JSON values: the graph, the claim and its assumptions, the recipe of points and samples, seed, prime, every rank on the way.

    Examples
    --------
    >>> certificate = Certificate({"format": 1, "laws_found": 3})
    >>> Certificate.read(certificate.text()) == certificate
    True
    """

    data: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the data as JSON with sorted keys and no spaces."""
        return hashlib.sha256(json.dumps(self.data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def text(self) -> str:
        """The certificate as JSON, its digest with it."""
        return json.dumps({**self.data, DIGEST: self.digest}, indent=1)

    def save(self, path: str | Path) -> Path:
        """Write it to a file.

        Raises
        ------
        ReportError
            If the file cannot be written.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.text() + "\n", encoding="utf-8")
        except OSError as err:
            raise ReportError(f"'{path}' cannot be written: {err.strerror}. Choose another.", path=str(path)) from err
        return path

    @classmethod
    def read(cls, text: str) -> Certificate:
        """From what `text` gives.

        Raises
        ------
        ReportError
            If this is no certificate, one of another format, or it was changed since it was written.
        """
        try:
            data = json.loads(text, object_pairs_hook=_once)
            digest = data.pop(DIGEST)
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as err:
            raise ReportError(f"This is not a certificate of completeness: {err!r}. Write one with certificate.save.") from err
        found = cls(data)
        if data.get("format") != FORMAT:
            raise ReportError(f"Certificate format {data.get('format')} found, {FORMAT} expected; write it again with this version.")
        if found.digest != digest:
            raise ReportError(
                f"The certificate was changed after it was written: the digest of its contents is {found.digest[:16]}..., "
                f"it says {str(digest)[:16]}.... Write it again with certificate.save.",
                digest=found.digest,
            )
        return found

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """From a file; errors as for `read`."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as err:
            raise ReportError(f"'{path}' cannot be read: {err}. Name a file that certificate.save wrote.", path=str(path)) from err
        return cls.read(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON keeps the last of equal keys; a reader may see the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key stands twice among {sorted(found)[:8]}")
    return found

"""Fetch Wikidata5m (arXiv 1911.06136) from the Hugging Face hub.

Downloads resume after an interruption, and size and SHA-256 of every file are checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from beliefedit.errors import GraphError
from beliefedit.graph.wikidata5m import ALIAS_ARCHIVE, TRIPLE_ARCHIVE

REPOSITORY, REVISION = "intfloat/wikidata5m", "6b2b09672129e280c0c9da97ab58154e9d535e6b"
"""A copy of Wikidata5m at a fixed revision."""
HOMEPAGE = "https://deepgraphlearning.github.io/project/wikidata5m"


class Archive(NamedTuple):
    """A file to fetch with its size in bytes and its SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


ARCHIVES = (
    Archive(ALIAS_ARCHIVE, 197_449_751,
            "0330f580c9f7a57cbad949ac380835fdd2a2e14d96cc0f13fc435401d6b463a8"),
    Archive(TRIPLE_ARCHIVE, 168_258_214,
            "383160990b41c0905fc03f4a8afbb9b12be1ca3591e026bde6cdc94a59542597"),
)


def download(folder: str | Path, archives: Sequence[Archive] = ARCHIVES) -> list[Path]:
    """Fetch archives into a folder; a complete archive is not fetched again.

    Raises:
        GraphError: no connection, a file that differs, or a folder that cannot be written.
    """
    from huggingface_hub import hf_hub_download

    folder = Path(folder)
    for archive in archives:
        target = folder / archive.name
        try:
            if not target.exists():
                hf_hub_download(REPOSITORY, archive.name, repo_type="dataset", revision=REVISION,
                                local_dir=folder)
        except Exception as error:  # the hub's client raises its own and its HTTP library's
            names = " and ".join(item.name for item in archives)
            raise GraphError(f"{archive.name} could not be fetched: {error}", where=str(folder),
                             hint=f"run again to resume, or put {names} from {HOMEPAGE} into "
                                  "this folder") from error
        with open(target, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if (target.stat().st_size, sha256) != archive[1:]:
            raise GraphError(f"{archive.name} is not the file of {archive.size} bytes and SHA-256 "
                             f"{archive.sha256[:12]}…", where=str(target),
                             hint="delete it and run again, or use it as it is if you trust it")
    return [folder / archive.name for archive in archives]

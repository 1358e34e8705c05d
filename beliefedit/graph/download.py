"""Fetch Wikidata5m: resumable, checked by size and SHA-256, put in place only when whole."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from beliefedit.errors import GraphError
from beliefedit.graph.wikidata5m import ALIAS_ARCHIVE, TRIPLE_ARCHIVE

log = logging.getLogger(__name__)


MIRROR = "https://huggingface.co/datasets/intfloat/wikidata5m/resolve/6b2b09672129e280c0c9da97ab58154e9d535e6b"
"""A copy of Wikidata5m pinned to one revision, so that its bytes cannot change."""
HOMEPAGE = "https://deepgraphlearning.github.io/project/wikidata5m"
TIMEOUT = 60
"""Seconds without a byte before a connection counts as lost."""
CHUNK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """A file to fetch and what it must be: size in bytes, SHA-256 in hexadecimal."""

    name: str
    url: str
    size: int
    sha256: str


ARCHIVES = (
    Archive(ALIAS_ARCHIVE, f"{MIRROR}/{ALIAS_ARCHIVE}", 197_449_751,
            "0330f580c9f7a57cbad949ac380835fdd2a2e14d96cc0f13fc435401d6b463a8"),
    Archive(TRIPLE_ARCHIVE, f"{MIRROR}/{TRIPLE_ARCHIVE}", 168_258_214,
            "383160990b41c0905fc03f4a8afbb9b12be1ca3591e026bde6cdc94a59542597"),
)


def download(folder: str | Path, archives: Sequence[Archive] = ARCHIVES) -> list[Path]:
    """Fetch archives into a folder; one that is there and whole is not fetched again.

    What has arrived of an interrupted download waits in a .part file, from which the next call goes on.

    Raises:
        GraphError: no connection, a wrong file, or no place to write.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GraphError(f"cannot make the folder: {error.strerror or error}", where=str(folder),
                         remedy="choose another folder") from error
    return [_fetch(archive, folder / archive.name) for archive in archives]


def _fetch(archive: Archive, target: Path) -> Path:
    if target.exists():
        if not _is_whole(archive, target):
            raise GraphError(f"{target.name} is there, but is not the file of {archive.size} bytes and SHA-256 "
                             f"{archive.sha256[:12]}…", where=str(target),
                             remedy="delete it to fetch it again; if you trust it, there is nothing to download")
        log.info("%s: already there", target)
        return target
    part = target.with_name(f"{target.name}.part")
    arrived, reason = -1, ""
    while (size := _size(part)) < archive.size:
        if size <= arrived:  # the last connection brought nothing
            raise GraphError(f"the download stopped at {size} of {archive.size} bytes: {reason}", where=archive.url,
                             remedy=f"run again to go on from there, or {_by_hand(target)}")
        arrived, reason = size, _continue(archive, part)
    if not _is_whole(archive, part):
        part.unlink()
        raise GraphError(f"what arrived is not the file of {archive.size} bytes and SHA-256 {archive.sha256[:12]}…, "
                         "and was deleted", where=archive.url, remedy=f"run again, or {_by_hand(target)}")
    os.replace(part, target)
    return target


def _continue(archive: Archive, part: Path) -> str:
    """Append to the .part file until the connection ends; returns why it ended."""
    start = _size(part)
    request = urllib.request.EditRequest(archive.url, headers={"Range": f"bytes={start}-", "User-Agent": "beliefedit"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            resumes = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
            start = start if resumes else 0  # a server that cannot resume sends all of it
            with (open(part, "ab" if resumes else "wb") as file,
                  tqdm(total=archive.size, initial=start, unit="B", unit_scale=True, desc=archive.name) as progress):
                while start <= archive.size and (chunk := response.read(CHUNK)):
                    file.write(chunk)
                    start += len(chunk)
                    progress.update(len(chunk))
        return "the connection was closed early"
    except (OSError, http.client.HTTPException) as error:
        log.warning("%s: %s", archive.name, error)
        return str(error)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_whole(archive: Archive, path: Path) -> bool:
    if _size(path) != archive.size:
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == archive.sha256


def _by_hand(target: Path) -> str:
    return f"fetch {target.name} yourself from {HOMEPAGE} and put it into {target.parent}"

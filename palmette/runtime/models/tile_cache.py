"""Packed weights on disk, which the next process maps instead of packing: nothing is computed, and processes share it.

    <folder>/<name>.tiles      magic | length u64 | identity, JSON | tiles' bytes u64 | padding to 4096 | tiles

The folder is $PALMETTE_CACHE/tiles, or palmette/tiles in the user's cache; PALMETTE_CACHE=0 keeps nothing. A model's
files, named by path, size and time, its config and its precision are the identity: a file that changed is packed again
and replaces what was kept of it. Nothing is kept where it would take more than a tenth of the disk's free space, and
what fails here only costs time. Knows bytes; nothing of tiles.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import shutil
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_MAGIC: Final = b"PMTILES\x01"  # its last byte is the version of what stands before the tiles
_U64: Final = struct.Struct("<Q")
_PAGE: Final = 4096
_SHARE = 10  # of the free space, one part may be taken
_ABANDONED = 86_400.0  # seconds after which a file that nobody finished is removed


class TileCache:
    """What is kept of one model in one precision."""

    def __init__(self, folder: Path, files: Sequence[Path], precision: str, what: str) -> None:
        """
        Args:
            files: what the tiles are made from.
            what: all else that decides them; another one replaces what is kept.

        Raises:
            OSError: a file is not there.
        """
        found = [(str(file.resolve()), file.stat()) for file in sorted(files)]
        self._identity = json.dumps(
            [precision, what, *([path, stat.st_size, stat.st_mtime_ns] for path, stat in found)]
        )
        name = hashlib.sha256(json.dumps([precision, *(path for path, _ in found)]).encode()).hexdigest()[:32]
        self.path = folder / f"{name}.tiles"

    def open(self) -> NDArray[np.uint8] | None:
        """All tiles, read-only, one behind the other as they were written; None where none of this identity are."""
        try:
            with self.path.open("rb") as file:
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # there is no such file, or nothing in it
            return None
        head = self._head()
        if pages[: len(head)] != head or len(pages) < len(head) + _U64.size:
            return None
        size, begin = _U64.unpack_from(pages, len(head))[0], _aligned(len(head) + _U64.size)
        if len(pages) != begin + size:
            return None
        return np.frombuffer(pages, np.uint8, size, begin)

    def write_later(self, pieces: Sequence[NDArray[np.uint8]]) -> threading.Thread:
        """Write tiles beside whatever else the process does; they must not change any more."""
        thread = threading.Thread(target=self._write, args=(pieces,), name="palmette-tiles", daemon=True)
        thread.start()
        return thread

    def _write(self, pieces: Sequence[NDArray[np.uint8]]) -> None:
        folder, size = self.path.parent, sum(piece.nbytes for piece in pieces)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(folder)
            free = shutil.disk_usage(folder).free
            if size * _SHARE > free:
                logger.info("packed weights are not kept: %d MB of %d MB free in %s", size >> 20, free >> 20, folder)
                return
            head = self._head() + _U64.pack(size)
            with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as file:
                try:
                    file.write(head.ljust(_aligned(len(head)), b"\0"))
                    for piece in pieces:
                        file.write(piece.data)
                    file.close()
                    Path(file.name).replace(self.path)  # whoever has mapped the old one keeps it
                except BaseException:
                    file.close()
                    Path(file.name).unlink(missing_ok=True)
                    raise
        except OSError as error:
            logger.info("packed weights are not kept in %s: %s", folder, error)

    def _head(self) -> bytes:
        identity = self._identity.encode()
        return _MAGIC + _U64.pack(len(identity)) + identity


def tile_cache(files: Sequence[Path], precision: str, what: str) -> TileCache | None:
    """Where a model's tiles are kept; None where the user wants none, or the model is in no file."""
    folder = cache_folder()
    if folder is None or not files:
        return None
    try:
        return TileCache(folder / "tiles", files, precision, what)
    except OSError:
        return None


def cache_folder() -> Path | None:
    """Where things are kept that can be made again; None where the user wants none to be."""
    wanted = os.environ.get("PALMETTE_CACHE", "")
    if wanted == "0":
        return None
    if wanted:
        return Path(wanted).expanduser()
    try:
        home = Path.home()
    except RuntimeError:  # a user without one
        return None
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "palmette"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "palmette"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "palmette"


def _remove_abandoned(folder: Path) -> None:
    for part in folder.glob("*.part"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > _ABANDONED:
                part.unlink()


def _aligned(offset: int) -> int:
    return -(-offset // _PAGE) * _PAGE

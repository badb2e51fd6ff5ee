"""The cache: a folder with every image decoded once, readable by numpy alone; docs/data.md describes its files.

The name of a folder is a hash of the source (paths, sizes, modification times, columns), of the preprocessing and of
the autoencoder, if there is one; a folder gets its name when it is complete (see `build`). It can be deleted at any
time: it is built again when needed.
"""

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from pictures.preprocessing import Preprocessing
from storage.write import expand_home
from training.data.cache.build import build
from training.data.cache.files import FORMAT_VERSION, damage
from training.data.cache.place import default_caches, writable_caches
from training.data.sources.records import Source


def find_cache(source: Source, preprocessing: Preprocessing, caches: Path | None, max_bad: int) -> Path:
    """The cache of a source in the folder `caches`, which is built if it does not exist or is damaged.

    Without `caches` it is in the default folder, or in a temporary one if nothing can be written there. Raises
    ValueError as `build` and `writable_caches` do.
    """
    encoded = [] if source.autoencoder is None else [source.autoencoder.fingerprint]
    key = json.dumps([FORMAT_VERSION, source.key, asdict(preprocessing), *encoded])
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", source.name).strip("-")[:40] or "images"
    name = f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    given = None if caches is None else expand_home("data.cache", caches)
    usual = given or default_caches()
    with suppress(PermissionError):
        if usual is not None and not damage(usual / name):
            return usual / name
    folder = writable_caches(given) / name
    if folder.parent == usual or damage(folder):
        build(source, preprocessing, folder, max_bad)
    return folder

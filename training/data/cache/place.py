"""Where caches are: in the folder that the settings give, in the default folder of the user, or in a temporary one."""

import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

NAME = "residual-diffusion"


def default_caches() -> Path | None:
    """`residual-diffusion` in `$XDG_CACHE_HOME`, by default `~/.cache`; None if the user has no home folder.

    A relative path is ignored, as the XDG Base Directory Specification requires.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        folder = given if given.is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # neither HOME nor an entry of the user, as in some containers
        return None
    return folder / NAME if folder.is_absolute() else None


def writable_caches(given: Path | None) -> Path:
    """The folder `given`, by default that of the user, created if needed. If that cannot be written: a temporary one.

    The temporary folder is printed. Raises ValueError if a given folder cannot be written.
    """
    if given is not None:
        if fault := write_fault(given):
            raise ValueError(f"data.cache {str(given)!r} cannot be used: {fault}; give a folder that can be written")
        return given
    folder = default_caches()
    fault = "there is no home folder" if folder is None else write_fault(folder)
    if folder is not None and not fault:
        return folder
    temporary = temporary_caches()
    print(f"cache: {temporary}, because {fault}; set data.cache to a folder that is kept", file=sys.stderr)
    return temporary


def write_fault(folder: Path) -> str:
    """Why no file can be written in a folder, which is created if needed; an empty text if one can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except FileExistsError:
        return f"{folder} is not a folder"
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        return f"{folder} cannot be written ({getattr(error, 'strerror', None) or error})"
    return ""


def temporary_caches() -> Path:
    """The folder of this user for caches among the temporary files; another one if somebody else owns that."""
    try:
        root = Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise ValueError("there is no folder for temporary files; set data.cache to a folder") from None
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = root / f"{NAME}-{user}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "getuid") and status.st_uid != user):
        return Path(tempfile.mkdtemp(prefix=f"{NAME}-"))
    return folder

"""Packages of the optional extras: one that is missing is named, with the command that installs it."""

from importlib.util import find_spec


def require_extra(package: str, extra: str, feature: str) -> None:
    """Raises ValueError if `package`, which `feature` needs, is not installed, with the command that installs `extra`.

    The package is not imported.
    """
    if find_spec(package) is None:
        raise ValueError(f'{feature} needs {package}, which is not installed: pip install -e ".[{extra}]"')

"""Makes the suite's type checker importable by the name that pyproject.toml gives it."""

import tests.typecheck  # noqa: F401

"""The type checker of the test suite: beartype, for which an int is a float as it is for Python's own type checkers."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))

import pytest

from training.processes import on_main, process_state


def test_processes_that_do_not_see_each_other(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE=2 processes were launched, but each would train alone"):
        process_state()


def test_on_main_returns_and_raises():
    assert on_main(lambda: 3) == 3
    with pytest.raises(OSError, match="disk full"):
        on_main(lambda: (_ for _ in ()).throw(OSError("disk full")))

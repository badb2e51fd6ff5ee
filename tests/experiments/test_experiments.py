"""The experiments: their shared parts, and each of them in its short form."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from experiments import claims, nets
from experiments.finding import Claim, Curve, Finding, Panel, compare, holds, show
from experiments.run import Settings, measurements, parse, run

ROOT = Path(__file__).parents[2]
QUICK = ("bunny", "variation", "dead_activations", "collapse")
"""experiments whose short form takes less than half a second"""


def finding(**changes: Any) -> Finding:
    """A small finding."""
    panel = Panel("x (s)", "y (m)", [Curve("a", [1, 2], [[1.0, 2.0], [3.0, 4.0]]), Curve("b", [1, 2], [1.0, 2.0])], "y")
    rows = [["first", 1, [1.0, 2.0, 4.0]], ["second", 2, 0.1234567]]
    fields = {
        "message": "A message",
        "columns": {"name": "", "count": "", "value": "m"},
        "rows": rows,
        "claims": [Claim(3, "2 m", "holds")],
        "panels": [panel],
        "seeds": 3,
    }
    return Finding(**fields | changes)


def test_a_finding_is_a_table_with_units_and_the_range_over_seeds() -> None:
    lines = finding().table().splitlines()
    assert lines[0] == "| name | count | value (m) |"
    assert lines[2] == "| first | 1 | 2 (1 to 4) |"
    assert lines[3] == "| second | 2 | 0.123457 |"
    assert "holds: 2 m" in finding().verdicts()


def test_a_finding_is_read_as_it_was_written(tmp_path: Path) -> None:
    finding().write(tmp_path / "a.json", experiment="a")
    read = Finding.read(json.loads((tmp_path / "a.json").read_text()))
    assert read.table() == finding().table()
    assert (read.message, read.claims, read.seeds) == ("A message", [Claim(3, "2 m", "holds")], 3)
    assert [curve.name for curve in read.panels[0].curves] == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rows": [["a", 1]]}, r"\['a', 1\].*3"),
        ({"rows": [["a", 1, float("nan")]]}, "rows.*nan"),
        ({"panels": [Panel("x", "y", [Curve("a", [1], [float("inf")])])]}, "panels.*inf"),
        ({"claims": [Claim(3, "", "perhaps")]}, "item 3.*perhaps"),  # type: ignore[arg-type]
    ],
)
def test_a_finding_that_cannot_be_shown_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        finding(**changes)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([1.0, 2.0], "holds"),
        ([-1.0, -2.0], "does not hold"),
        ([1.0, -2.0], "too small to tell"),
        ([0.05], "too small to tell"),
    ],
)
def test_seeds_decide_the_verdict(differences: list[float], verdict: str) -> None:
    assert compare(differences, least=0.1) == verdict


def test_a_limit_is_part_of_the_verdict() -> None:
    assert [holds(True), holds(True, limit=True), holds(False, limit=True)] == [
        "holds",
        "holds with a limit",
        "does not hold",
    ]
    assert show([1.0]) == "1"


@pytest.mark.parametrize(
    ("arguments", "named"), [(["--seeds", "0"], "seeds=0"), (["--sed", "1"], "--sed"), (["--seeds", "x"], "--seeds.*x")]
)
def test_wrong_options_are_named(arguments: list[str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse(arguments, None)


def test_options_reach_the_settings(tmp_path: Path) -> None:
    assert parse(["--short", "--out", str(tmp_path)], None) == Settings(short=True, seeds=1, out=tmp_path)
    assert parse(["--seeds", "5"], None) == Settings(seeds=5)
    assert Settings(short=True).pick(3, 1) == 1


def check(name: str, folder: Path) -> dict[str, Any]:
    """Runs an experiment in its short form and checks its files."""
    run(name, measurements()[name], Settings(short=True, seeds=1, out=folder))
    found = json.loads((folder / f"{name}.json").read_text())
    assert found["experiment"] == name
    assert found["short"]
    assert found["claims"]
    assert all(len(row) == len(found["columns"]) for row in found["rows"])
    assert all(curve["x"] for panel in found["panels"] for curve in panel["curves"])
    with Image.open(folder / f"{name}.png") as picture:
        assert picture.format == "PNG"
        assert np.ptp(np.asarray(picture)) > 0
    assert (folder / f"{name}.png").stat().st_size < 100_000
    return found


@pytest.mark.parametrize("name", QUICK)
def test_quick_experiments_write_their_files(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(measurements()) - set(QUICK)))
def test_all_experiments_write_their_files(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    check(name, tmp_path_factory.getbasetemp() / "experiments")


def test_closed_forms_are_exact(tmp_path: Path) -> None:
    found = check("bunny", tmp_path)
    values = {(row[0], row[1]): row[3] for row in found["rows"]}
    assert values["euler", 2] == 225
    assert values["midpoint", 2] == values["heun", 2] == 264.062  # 264.0625 in six digits
    assert_close(values["rk4", 2], 271.7346, atol=1e-3, rtol=0)
    assert_close(values["backward_euler", 2], 400.0)
    assert {claim["verdict"] for claim in found["claims"]} == {"holds"}


def test_every_experiment_states_its_claim() -> None:
    found = measurements()
    assert len(found) >= 11
    for name, measure in found.items():
        page = importlib.import_module(f"experiments.{name}").__doc__ or ""
        assert "Claim: " in page, name
        assert "refute" in page, name
        assert measure.__doc__, name


def test_the_page_lists_all_experiments_and_its_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "experiments.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(measurements())
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, {})
    assert re.fullmatch(r"  1 holds: the mean is 0\.\d+ \(.*\)\n", capsys.readouterr().out)


def test_the_page_of_claims_is_that_of_the_results() -> None:
    assert claims.PAGE.read_text() == claims.page(claims.read_results(claims.RESULTS), claims.read_items())


def test_every_item_has_a_claim_and_only_these_fields() -> None:
    items = claims.read_items()
    assert list(items) == list(range(1, len(items) + 1))
    for number, item in items.items():
        assert item["claim"].endswith("."), number
        assert item.keys() <= {"claim", "paper", "correction", "note"}, number


def result(**changes: Any) -> dict[str, Any]:
    """A result with one claim."""
    return {"short": False, "claims": [{"item": 1, "measured": "2 | 3", "verdict": "holds"}]} | changes


def test_the_page_has_measured_and_unmeasured_items_and_corrections() -> None:
    items = {1: {"claim": "One.", "paper": "A 2000"}, 2: {"claim": "Two.", "correction": "Three.", "note": "history"}}
    page = claims.page({"some": result()}, items)
    assert "| 1 | One. | A 2000 | holds | 2 \\| 3 | [some](experiments/some.png) |" in page
    assert "1 of 2 items" in page
    assert "- 2. Two. **Correction**: Three." in page
    assert "- 2. Two. (history)" in page


def test_results_that_cannot_make_a_page_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        claims.read_results(tmp_path)
    (tmp_path / "some.json").write_text(json.dumps(result(short=True)))
    with pytest.raises(ValueError, match=r"some\.json.*--short"):
        claims.read_results(tmp_path)
    with pytest.raises(ValueError, match=r"some.*item 1"):
        claims.page({"some": result()}, {})


def test_nets_are_trained_once(tmp_path: Path) -> None:
    settings = Settings(short=True, seeds=1, out=tmp_path)
    first = nets.trained(nets.classifier(2, blocks_per_stage=(1,)), 2, settings)
    (file,) = (tmp_path / "cache" / "nets").iterdir()
    stamp = file.stat().st_mtime_ns
    again = nets.trained(nets.classifier(2, blocks_per_stage=(1,)), 2, settings)
    assert file.stat().st_mtime_ns == stamp
    x, label = nets.digits(settings, held_out=True, count=8)
    assert torch.equal(first.net(x), again.net(x))
    assert torch.equal(first.losses, again.losses)
    assert len(again.losses) == 2
    other = nets.trained(nets.classifier(2, seed=1, blocks_per_stage=(1,)), 2, settings)
    assert not torch.equal(first.net(x), other.net(x))
    assert 0 <= nets.error_rate(other.net, x, label) <= 100


def zero_last(net: torch.nn.Module) -> None:
    """An edit for the test below."""
    torch.nn.init.zeros_(net.get_parameter("fc.weight"))


def test_an_edit_changes_the_fresh_network_and_the_key(tmp_path: Path) -> None:
    settings = Settings(short=True, seeds=1, out=tmp_path)
    config = nets.classifier(1, blocks_per_stage=(1,))
    edited = nets.trained(config, 0, settings, zero_last)
    assert not edited.net.get_parameter("fc.weight").any()
    for edit in (None, zero_last):
        nets.trained(config, 1, settings, edit)
    assert len(list((tmp_path / "cache" / "nets").iterdir())) == 2


def test_the_halves_of_the_digits_differ(tmp_path: Path) -> None:
    settings = Settings(out=tmp_path)
    (train, _), (test, label) = (nets.digits(settings, held_out) for held_out in (False, True))
    assert len(train) + len(test) == 1797
    assert set(label.tolist()) == set(range(10))
    assert not set(map(tuple, train.flatten(1).tolist())) & set(map(tuple, test.flatten(1).tolist()))

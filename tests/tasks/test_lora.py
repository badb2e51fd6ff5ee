"""LoRA as a setting of a diffusion run: what is trained, saved, resumed and merged, and what is refused."""

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from torch.testing import assert_close

import export
import sample
import train as script
from diffusion import EDM
from pipelines.diffusion_folder import load_model
from residual.lora import add_lora, lora_state
from tasks import RUNS
from tasks.denoising import DiffusionTask
from tests.tasks.small import ROOT, digits, small_run
from tests.training.toy import hashes, tensors
from training.averages import RunAverages
from training.cli import parse
from training.ema import EmaConfig
from training.lora import LoraConfig, adapt
from unet import EDM2Config

RUN = """
init: {init}
lora: {{rank: 2, alpha: 4, also: [embedding.label]}}
train: {{images: 192, batch: 32, checkpoint_every_images: 64, trackers: [], precision: float32, log_every_images: 32}}
optimizer: {{learning_rate: 0.01, weight_decay: 0.1}}
schedule: {{warmup_images: 0}}
sample: {{num: 0}}
"""
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def begin(conditional: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains in the run folder of a name, with LoRA beside a network that draws digits; returns the folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    Path("run.yaml").write_text(RUN.format(init=conditional))

    def run(name: str, *flags: str) -> Path:
        AcceleratorState._reset_state()
        GradientState._reset_state()
        script.main(["--config", "run.yaml", "--run", name, *flags])
        return Path(name)

    return run


def base(conditional: Path, **options: Any) -> torch.nn.Module:
    """The network that the run starts from, with LoRA if there are options."""
    net = load_model(str(conditional)).net
    if options:
        add_lora(net, **options)
    return net.eval()


@pytest.mark.slow
@quiet
def test_a_run_trains_saves_and_merges_the_additions_alone(begin: Any, conditional: Path, capsys: Any) -> None:
    run = begin("run")
    adapted = base(conditional, rank=2, alpha=4, also=("embedding.label",))
    trained = lora_state(adapted).keys()
    count = sum(value.numel() for value in lora_state(adapted).values())
    assert f"lora: {count:,} of" in capsys.readouterr().out
    names = {name.rpartition(".")[0] for name in tensors(run, "optimizer")}
    assert names == trained
    before, own = load_file(conditional / "model.safetensors"), dict(adapted.named_parameters())
    for file in ("model", "ema"):
        for name, value in tensors(run, file).items():
            plain = name.replace("base_layer.", "")
            if name in trained:
                assert not torch.equal(value, own[name]), name
            else:
                assert torch.equal(value, before[plain]), name

    x, time = torch.randn(4, 1, 8, 8), torch.tensor([0.0, 5, 100, 900])
    label = torch.tensor([0, 3, 9, 10])
    adapted.load_state_dict(tensors(run, "ema"))
    expected, model = adapted(x, time, label), load_model("run")
    assert (expected - base(conditional)(x, time, label)).abs().max() > 0.01
    assert {path.name for path in (run / "model").iterdir()} == {
        "config.json", "diffusion.json", "model.safetensors", "adapter",
    }  # fmt: skip
    assert model.net.state_dict().keys() == before.keys()
    assert_close(model.net(x, time, label), expected, rtol=1e-4, atol=1e-4)

    from peft import PeftModel

    loaded = PeftModel.from_pretrained(base(conditional), str(run / "model/adapter"))
    assert_close(loaded(x, time, label), expected, rtol=1e-5, atol=1e-6)
    small = sum(path.stat().st_size for path in (run / "model/adapter").iterdir())
    assert small < 0.6 * (run / "model/model.safetensors").stat().st_size

    sample.main(["run", "--num", "2", "--steps", "2", "--out", "drawn"])
    assert len(list(Path("drawn").rglob("*.png"))) >= 2
    export.main(["run", "--to", "diffusers", "--out", "exported"])
    assert_close(load_model("exported").net(x, time, label), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"lora\.rank=2.*ema"):
        RunAverages("run")


@pytest.mark.slow
@quiet
@pytest.mark.parametrize("flags", [(), ("--optimizer.kind", "muon")], ids=["adamw", "muon"])
def test_a_resumed_run_is_the_same_bit_for_bit(begin: Any, flags: tuple[str, ...], capsys: Any) -> None:
    straight = begin("straight", *flags)
    begin("pieces", "--train.images", "128", *flags)
    (Path("pieces") / "model/adapter/adapter_config.json").unlink()
    pieces = begin("pieces", *flags)
    assert "(adapter/adapter_config.json); restored" in capsys.readouterr().out
    assert len(hashes(straight)) == 3
    assert hashes(pieces) == hashes(straight)
    for file in ("model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (pieces / "model" / file).read_bytes() == (straight / "model" / file).read_bytes()
    for change in ("--lora.rank", "--lora.alpha"):
        with pytest.raises(SystemExit, match="2"):
            begin("pieces", *flags, change, "1")
        assert change.removeprefix("--") in capsys.readouterr().err


@pytest.mark.slow
@quiet
def test_an_update_that_is_not_finite_changes_nothing(begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = DiffusionTask.loss

    def loss(self: DiffusionTask, model: Any, batch: Any, random: Any) -> torch.Tensor:
        return whole(self, model, batch, random) * (float("nan") if random.update >= 3 else 1)

    finite = tensors(begin("finite", "--train.images", "96"))
    monkeypatch.setattr(DiffusionTask, "loss", loss)
    assert_close(tensors(begin("skipped", "--train.images", "128")), finite, rtol=0, atol=0)


@pytest.mark.slow
@quiet
def test_two_processes_train_what_one_does(begin: Any) -> None:
    one = begin("one")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--",
         str(ROOT / "train.py"), "--config", "run.yaml", "--run", "two"],
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for file in ("model", "ema"):
        assert_close(tensors(Path("two"), file), tensors(one, file), rtol=0, atol=1e-4)


@pytest.mark.slow
@quiet
def test_every_field_has_an_effect(conditional: Path) -> None:
    states = []
    for config in (LoraConfig(rank=2), LoraConfig(rank=1), LoraConfig(rank=2, also=("embedding.label",))):
        net = base(conditional)
        assert len(adapt(net, config, seed=0)) == 1
        states.append({name: value.shape for name, value in lora_state(net).items()})
    assert states[0] != states[1]
    assert states[2].keys() - states[0].keys() == {"embedding.label.weight"}
    outputs = []
    for alpha in (None, 2.0, 8.0):
        net = base(conditional)
        adapt(net, LoraConfig(rank=2, alpha=alpha), seed=0)
        for name, weight in net.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(weight, 0.1)
        outputs.append(net(torch.ones(1, 1, 8, 8), torch.tensor([5.0])))
    assert_close(outputs[1], outputs[0])
    assert not torch.allclose(outputs[2], outputs[0], atol=1e-3)
    assert {field.name for field in fields(LoraConfig)} == {"rank", "alpha", "also"}


@pytest.mark.slow
@quiet
def test_memory_and_dry_run_know_that_few_weights_are_trained(begin: Any, capsys: Any) -> None:
    begin("run", "--dry-run")
    assert "lora: " in capsys.readouterr().out
    run = parse(RUNS, ["--config", "run.yaml"]).run
    trained = [weight for weight in run.outline().parameters() if weight.requires_grad]
    assert 0 < sum(weight.numel() for weight in trained) < 0.3 * sum(w.numel() for w in run.outline().parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init": None}, r"lora\.rank=2.*init"),
        ({"freeze": ("encoder.*",)}, r"freeze=encoder\.\*.*lora\.rank=2"),
        ({"ema": EmaConfig(more_halflife_images=(10, 20))}, r"ema\.more_halflife_images=10,20.*lora\.rank=2"),
        ({"ema": EmaConfig(power_widths=(0.1,))}, r"ema\.power_widths=0\.1.*lora\.rank=2"),
    ],
)
def test_settings_that_contradict_lora_are_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"init": "model", "lora": LoraConfig(rank=2)}
    with pytest.raises(ValueError, match=message):
        small_run(**given | change)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "rank=0"),
        ({"rank": 2, "alpha": 0.0}, r"alpha=0\.0"),
        ({"rank": 2, "alpha": float("nan")}, "alpha=nan"),
        ({"alpha": 2.0}, r"alpha=2\.0.*lora\.rank"),
        ({"also": ("head",)}, r"also=\('head',\).*lora\.rank"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraConfig(**values)


def test_what_the_network_or_the_machine_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    run = small_run(init="model", lora=LoraConfig(rank=2))
    with pytest.raises(ValueError, match=r"peft.*\[lora\]"):
        run.outline()
    with pytest.raises(ValueError, match=r"rank=17.*at most 16"):
        small_run(init="model", lora=LoraConfig(rank=17)).outline()
    net = small_run().build(digits()).model
    with pytest.raises(ValueError, match=r"'embedding\.lable'; did you mean embedding\.label"):
        adapt(net, LoraConfig(rank=2, also=("embedding.lable",)), seed=0)
    with pytest.raises(ValueError, match="EDM2UNet has a convolution for LoRA"):
        small_run(init="model", lora=LoraConfig(rank=2), model=EDM2Config(), objective=EDM()).outline()


@pytest.mark.parametrize(("rank", "message"), [(99, "rank=99"), (2, "peft")])
def test_they_are_refused_before_any_work(
    rank: int, message: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    if rank == 2:
        monkeypatch.setitem(sys.modules, "peft", None)
    task = small_run().build(digits())
    task.save(task.model, tmp_path / "model")
    with pytest.raises(SystemExit) as ended:
        script.main(["--init", str(tmp_path / "model"), "--lora.rank", str(rank), "--run", str(tmp_path / "run")])
    out, error = capsys.readouterr()
    assert (ended.value.code, out, error.count("\n")) == (2, "", 1)
    assert message in error
    assert not (tmp_path / "run").exists()

"""Training that starts from a trained network: what is read, what is adapted, what is refused and in which words."""

import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

import train as script
from diffusion import DDPM
from evaluating.command import kind_of
from exporting.diffusers_folder import save_diffusers
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from tasks import RUNS
from tasks.denoising import DiffusionAugment
from tasks.diffusion import DiffusionRun
from tests.tasks.small import SMALL, digits, shaken, small_run
from training.cli import parse
from unet import EDM2Config, EDM2UNet, UNet, UNetConfig, diffusers_config
from web.models import require_folder

ADM = replace(SMALL, base_channels=32, groups=32, conditioning="scale_shift", resample="block", time_embedding="adm")
SONG = replace(
    SMALL,
    base_channels=32,
    groups=32,
    group_channels=4,
    resample="block_fir",
    input_skips=True,
    time_embedding="fourier",
    label_embedding="linear_first",
    decoder_attention="last",
    residual_scale=0.5**0.5,
    eps=1e-6,
)
TINY = (
    "model: {base_channels: 16, channel_multipliers: [1, 2], attention_levels: [1], blocks_per_level: 1, groups: 8}\n"
    "train: {images: 64, batch: 32, trackers: [], precision: float32}\nschedule: {warmup_images: 0}\nsample: {num: 0}\n"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    AcceleratorState._reset_state()
    GradientState._reset_state()
    return tmp_path


def net(config: UNetConfig) -> UNet:
    """A network with weights that are zero nowhere, as it would come from training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(config)
        for weight in network.parameters():
            weight.data.add_(torch.randn_like(weight), alpha=0.05)
    return network.eval()


def started(run: DiffusionRun, labels: bool = True) -> tuple[UNet, list[str]]:
    task = run.build(digits(labels))
    lines = run.load_init(task)
    assert isinstance(task.model, UNet)
    return task.model, lines


def same(a: UNet, b: UNet) -> None:
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


# --- the four homes of a checkpoint ---


def test_a_model_folder_of_ours(conditional: Path) -> None:
    network, lines = started(small_run(init=str(conditional)))
    same(network, load_model(conditional).net)
    assert lines == [f"init: {conditional}, 1 x 8 x 8, 10 classes"]


def test_a_pipeline_of_diffusers_at_the_root_or_under_unet(conditional: Path) -> None:
    model = load_model(conditional)
    save_diffusers(model, Path("pipeline"))
    network, lines = started(small_run(init="pipeline"))
    same(network, model.net)
    assert lines[1:] == []
    Path("pipeline/diffusion.json").unlink()  # a pipeline of another source: its classes have no names
    _, lines = started(small_run(init="pipeline"))
    assert lines[1:] == ["init: labels: number 10 of the 11 in the source is taken for “no label”"]
    network, lines = started(small_run(init="pipeline/unet"))
    same(network, model.net)
    assert "formulation" not in lines[0]
    shutil.copytree("pipeline/unet", "root")
    assert started(small_run(init="root"))[1][0].endswith(f"; its formulation is unknown, the run trains {DDPM()}")
    shutil.copy("pipeline/scheduler/scheduler_config.json", "root")
    assert started(small_run(init="root"))[1][0] == "init: root, 1 x 8 x 8, 11 classes"


def described(classes: tuple[str, ...] | None = ("a", "b"), null_label: bool = True, net_null: bool = True) -> None:
    """A model folder of two classes whose description has these."""
    config = replace(SMALL, in_channels=1, out_channels=1, classes=2, null_label=net_null)
    DiffusionModel(net(config), DDPM(), classes, null_label).save(Path("m"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.diffusion_model.", "ema_model.module."])
def test_a_file_whose_names_share_a_prefix(prefix: str) -> None:
    trained = net(replace(SMALL, in_channels=1, out_channels=1))
    state = {prefix + name: tensor for name, tensor in trained.export_weights("diffusers").items()}
    save_file(state | {"n_averaged": torch.tensor(7)}, "weights.safetensors")
    network, lines = started(small_run(init="weights.safetensors"), labels=False)
    same(network, trained)
    assert [text in line for text, line in zip(("n_averaged", prefix), lines[1:], strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("layout", "config"),
    [("diffusers", SMALL), ("adm", ADM), ("adm-new-order", ADM), ("edm", replace(SONG, size=(16, 16)))],
)
def test_a_file_in_every_layout(layout: str, config: UNetConfig) -> None:
    trained = net(replace(config, in_channels=1, out_channels=1))
    save_file(trained.export_weights(layout), "weights.safetensors")
    run = small_run(model=config, init="weights.safetensors", init_layout=layout)
    network, lines = started(run, labels=False)
    same(network, trained)
    assert len(lines) == 1
    if not layout.startswith("adm"):
        same(started(replace(run, init_layout=None), labels=False)[0], trained)


def test_a_file_of_a_network_with_other_channels_labels_and_a_learned_variance() -> None:
    trained = net(replace(ADM, classes=3, null_label=False, learned_variance=True))
    save_file(trained.export_weights("adm"), "weights.safetensors")
    network, lines = started(small_run(model=ADM, init="weights.safetensors", init_layout="adm"))
    assert [line.partition(":")[2].partition(":")[0].strip() for line in lines[1:]] == [
        "output",
        "input",
        "output",
        "labels",
    ]
    x, t, label = torch.randn(2, 1, 8, 8), torch.tensor([3, 800]), torch.tensor([0, 2])
    with torch.no_grad():
        expected = trained(x.repeat(1, 3, 1, 1), t, label)[:, :3].mean(dim=1, keepdim=True)
        torch.testing.assert_close(network.eval()(x, t, label), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("home", ["folder", "edm"])
def test_images_as_they_are_mean_the_same_with_and_without_augmentation(home: str) -> None:
    song = replace(SONG, size=(8, 8), in_channels=1, out_channels=1)
    augmented, plain = net(replace(song, augment_channels=9)), net(song)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 800])

    def through_init(trained: UNet, non_leaky: float) -> tuple[UNet, str]:
        shutil.rmtree("there", ignore_errors=True)
        trained.save_pretrained("there")
        save_file(trained.export_weights("edm"), "there/edm.safetensors")
        init = "there" if home == "folder" else "there/edm.safetensors"
        run = small_run(model=SONG, init=init, augment=DiffusionAugment(non_leaky=non_leaky))
        network, (_, line) = started(run, labels=False)
        with torch.no_grad():
            torch.testing.assert_close(network.eval()(x, t), trained(x, t), rtol=0, atol=0)
        return network, line

    network, line = through_init(augmented, 0.0)
    assert network.config.augment_channels is None
    assert "augmentation" in line
    assert "augment_channels=9" in line
    network, line = through_init(plain, 0.1)
    assert network.config.augment_channels == 9
    assert "augmentation" in line
    assert "9" in line
    augmented.save_pretrained("there")
    kept, lines = started(small_run(model=SONG, init="there", augment=DiffusionAugment(non_leaky=0.1)), labels=False)
    same(kept, augmented)
    assert len(lines) == 1


def test_a_model_folder_of_edm2_gives_weights_and_config() -> None:
    config = EDM2Config(
        size=(8, 8),
        in_channels=1,
        out_channels=1,
        classes=10,
        base_channels=16,
        channel_multipliers=(1, 2),
        attention_levels=(1,),
        blocks_per_level=1,
        head_channels=16,
    )
    trained = EDM2UNet(config)
    trained.save_pretrained("edm2")
    Path("plain.yaml").write_text("task: diffusion")
    run = parse(RUNS, ["--config", "plain.yaml", "--init", "edm2", "--objective.kind", "edm"]).run
    assert (type(run.model), run.model.base_channels, run.model.head_channels) == (EDM2Config, 16, 16)
    run.check_init()
    task = run.build(digits())
    assert len(run.load_init(task)) == 1
    torch.testing.assert_close(task.model.state_dict(), trained.state_dict(), rtol=0, atol=0)
    save_file(trained.export_weights("edm2"), "edm2.safetensors")
    replace(run, init="edm2.safetensors").check_init()
    other = replace(run, init="edm2.safetensors").build(digits())
    replace(run, init="edm2.safetensors").load_init(other)
    torch.testing.assert_close(other.model.state_dict(), trained.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"init=edm2: .*EDM2Config .*UNetConfig"):
        started(small_run(init="edm2"))


def test_a_run_folder_gives_weights_and_config() -> None:
    Path("first.yaml").write_text(TINY)
    script.main(["--config", "first.yaml"])
    trained = load_file("runs/first/model/model.safetensors")
    Path("second.yaml").write_text(TINY.partition("\n")[2])
    command = ["--config", "second.yaml", "--init", "runs/first", "--freeze", "*.norm1.*,head.*"]
    script.main(command)
    first = min(Path("runs/second/checkpoints").iterdir())
    last = max(Path("runs/second/checkpoints").iterdir())
    assert (first.name, last.name) == ("000000000", "000000064")
    for file in ("model", "ema"):
        begun, done = (load_file(place / f"{file}.safetensors") for place in (first, last))
        for name, tensor in trained.items():
            assert torch.equal(begun[name], tensor), name
            if "norm1." in name or name.startswith("head."):
                assert torch.equal(done[name], tensor), name
        assert not torch.equal(done["encoder.0.conv.weight"], trained["encoder.0.conv.weight"])


def test_a_run_that_is_gone_on_with_does_not_need_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    Path("first.yaml").write_text(TINY)
    script.main(["--config", "first.yaml"])
    Path("second.yaml").write_text(TINY.partition("\n")[2])
    command = ["--config", "second.yaml", "--init", "runs/first"]
    script.main(command)
    shutil.rmtree("runs/first")
    capsys.readouterr()
    script.main([*command, "--train.images", "128"])
    lines = capsys.readouterr().out
    assert "resuming runs/second from 64 images" in lines
    assert "init:" not in lines
    for changed in (["--config", "second.yaml", "--init", "runs/second"], [*command, "--fresh"]):
        with pytest.raises(SystemExit, match="2"):
            script.main(changed)
    errors = capsys.readouterr().err.splitlines()
    assert re.search(r"init=runs/first .*runs/second", errors[-2])
    assert "init=runs/first: 'runs/first' is neither a local folder nor" in errors[-1]


# --- the config ---


def test_the_checkpoint_gives_the_defaults_of_the_model(conditional: Path) -> None:
    Path("plain.yaml").write_text("task: diffusion")
    run = parse(RUNS, ["--config", "plain.yaml", "--init", str(conditional), "--model.dropout", "0.2"]).run
    assert (run.model.base_channels, run.model.groups, run.model.dropout) == (16, 8, 0.2)
    assert parse(RUNS, ["--config", "plain.yaml", "--init", "null"]).run.init is None
    given = ["--config", "plain.yaml", "--init", str(conditional), "--model.preset", "ddpm-cifar10"]
    assert parse(RUNS, given).run.model.base_channels == 128  # and the difference is shown when the weights are read


def test_a_file_has_no_config_to_give() -> None:
    Path("plain.yaml").write_text("task: diffusion")
    run = parse(RUNS, ["--config", "plain.yaml", "--init", "w.safetensors", "--init_layout", "adm"]).run
    assert run.model == DiffusionRun().model
    assert (run.init, run.init_layout) == ("w.safetensors", "adm")


def test_patterns_may_begin_with_a_star() -> None:
    Path("plain.yaml").write_text("task: diffusion")
    flags = ["--config", "plain.yaml", "--freeze"]
    assert parse(RUNS, [*flags, "*.norm1.*,head.conv.*"]).run.freeze == ("*.norm1.*", "head.conv.*")
    assert parse(RUNS, [*flags, "encoder.[01].*"]).run.freeze == ("encoder.[01].*",)


# --- refusals ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": "v"},
         r"objective\.prediction is epsilon .* v .*--objective\.prediction epsilon"),
        ({"schedule": "cosine", "timesteps": 500},
         r"objective\.schedule is linear .* cosine .*objective\.timesteps is 1000 .* 500 .*"
         r"--objective\.schedule linear --objective\.timesteps 1000"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("theirs", [False, True])
def test_another_formulation_is_refused(conditional: Path, change: dict, message: str, theirs: bool) -> None:
    if theirs:
        save_diffusers(load_model(conditional), Path("pipeline"))
    init = "pipeline" if theirs else str(conditional)
    with pytest.raises(ValueError, match=message):
        started(small_run(init=init, objective=DDPM(**change)))


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ({"beta_end": 0.03}, "linear betas from 0.0001 to 0.03"),
        ({"beta_schedule": "sigmoid"}, "sigmoid betas from 0.0001 to 0.02"),
        ({"trained_betas": [0.1] * 1000}, "trained_betas"),
        ({"prediction_type": "flow"}, "prediction_type='flow'"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True"),
        ({"beta_schedule": "squaredcos_cap_v2"}, r"--objective\.schedule cosine"),
        (
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
            r"objective\.schedule is scaled_linear .*linear.*--objective\.schedule scaled_linear",
        ),
    ],
)
def test_other_betas_are_refused(betas: dict, message: str) -> None:
    UNet2DModel(**diffusers_config(SMALL)).save_pretrained("pipeline/unet")
    DDPMScheduler(**betas).save_pretrained("pipeline/scheduler")
    with pytest.raises(ValueError, match=message):
        started(small_run(init="pipeline"))


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (lambda: None, {"init": "w.safetensors"}, "init=w.safetensors: no weights at w.safetensors"),
        (lambda: Path("w.pt").write_bytes(pickle.dumps({}, protocol=2)), {"init": "w.pt"}, "w.pt is a pickle"),
        (lambda: save_file(net(ADM).export_weights("adm"), "w.safetensors"), {"init": "w.safetensors"},
         "its names fit adm and adm-new-order, .*; give --init_layout adm .* or adm-new-order"),
        (lambda: save_file(net(ADM).state_dict(), "w.safetensors"), {"init": "w.safetensors"},
         "names are those of this project"),
        (lambda: save_file({"x": torch.zeros(1)}, "w.safetensors"), {"init": "w.safetensors"},
         "such as 'x'"),
        (lambda: save_file(net(SMALL).export_weights("diffusers"), "w.safetensors"),
         {"init": "w.safetensors", "init_layout": "adm"},
          "layout 'adm' does not fit: .*'diffusers'"),
        (lambda: save_file(net(SMALL).export_weights("diffusers"), "w.safetensors"),
         {"init": "w.safetensors", "model": replace(SMALL, blocks_per_level=2)}, "the weights do not fit .* missing"),
        (lambda: net(SMALL).save_pretrained("m"), {"init": "m", "model": replace(SMALL, eps=1e-6)},
         "init=m: the networks differ in eps=1e-05 .*, 1e-06 here"),
        (lambda: net(SMALL).save_pretrained("m"), {"init": "m", "init_layout": "adm"},
         "init_layout=adm"),
        (lambda: Path("m").mkdir(), {"init": "m"}, "init=m: m is not a model folder: it has no config.json"),
        (lambda: save_file({f"{first}.{name}": tensor for first in ("model", "ema")
                            for name, tensor in net(SMALL).export_weights("diffusers").items()}, "w.safetensors"),
         {"init": "w.safetensors"}, r"several networks.* begin with (ema|model)\..*diffusers"),
        (lambda: described(classes=("a", "b", "c")), {"init": "m"}, r"m/diffusion\.json names 3 classes, .* has 2"),
        (lambda: described(None, null_label=False), {"init": "m"}, r"diffusion\.json names 0 classes, .* has 2"),
        (lambda: described(net_null=False), {"init": "m"}, r"diffusion\.json has a null label, .* only 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_started_from_is_refused(make, fields: dict, message: str) -> None:
    make()
    with pytest.raises(ValueError, match=message):
        started(small_run(**fields))


def test_a_checkpoint_names_its_run() -> None:
    Path("run/checkpoints/000000064").mkdir(parents=True)
    Path("run/checkpoints/000000064/state.json").write_text("{}")
    for read in (DiffusionRun.init_config, load_model, kind_of, require_folder):
        with pytest.raises(ValueError, match=r"run/checkpoints/000000064 is a checkpoint.* give run$"):
            read("run/checkpoints/000000064")


def test_labels_by_number_are_named_where_names_differ() -> None:
    described(classes=("0", "1"))
    _, lines = started(small_run(init="m"))
    assert any("by number" in line and "only numbers" in line for line in lines)


def test_a_run_without_a_model_yet() -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text(json.dumps({"task": "diffusion"}))
    with pytest.raises(ValueError, match="init=run"):
        DiffusionRun.init_config("run")


@pytest.mark.parametrize(
    ("make", "init", "message"),
    [
        (lambda: None, "w.safetensors", "init=w.safetensors: no weights at w.safetensors"),
        (lambda: Path("w.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{"), "w.safetensors",
         "init=w.safetensors: w.safetensors is not a complete safetensors file"),
        (lambda: save_file(net(ADM).export_weights("adm"), "w.safetensors"), "w.safetensors",
         "its names fit adm and adm-new-order"),
        (lambda: save_file(net(SMALL).export_weights("diffusers"), "w.safetensors"), "w.safetensors",
         "init=w.safetensors: the weights do not fit"),
        (lambda: None, "nowhere", "init=nowhere: no folder 'nowhere'; give a model folder or a hub id"),
    ],
)  # fmt: skip
def test_it_is_refused_before_images_are_read(make, init: str, message: str, capsys) -> None:
    make()
    Path("plain.yaml").write_text(TINY.replace("blocks_per_level: 1", "blocks_per_level: 2"))
    with pytest.raises(SystemExit, match="2"):
        script.main(["--config", "plain.yaml", "--init", init, "--data.source", "there-are-no-images"])
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert message in line
    assert "data:" not in printed.out


def test_a_layout_needs_a_file() -> None:
    with pytest.raises(ValueError, match="init_layout=adm"):
        DiffusionRun(init_layout="adm")


def test_a_model_beyond_the_memory_is_refused_before_any_work(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    Path("plain.yaml").write_text("task: diffusion")
    with pytest.raises(SystemExit, match="2"):
        script.main(["--config", "plain.yaml", "--model.base_channels", "1048576", "--data.source", "nothing"])
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"error: .* 47\.9 PB \(.*2\.39 P parameters\)", line)
    assert not (folder / "runs").exists()


def test_nothing_is_started_from_without_init() -> None:
    task = shaken(small_run().build(digits()))
    assert small_run().load_init(task) == []

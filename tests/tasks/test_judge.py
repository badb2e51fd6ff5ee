"""Judges of TorchScript: how images are prepared, the interface of Inception by a stand-in, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from tasks.comparison import Comparison, QualityConfig
from tasks.judge import Preparation, open_judge
from training.data import Images


class Inception(nn.Module):
    """Stands for the published Inception network: takes bytes (n, 3, 299, 299), gives 2048 features."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.uint8
        assert x.shape[1:] == (3, 299, 299)
        return F.adaptive_avg_pool2d(x.float(), (32, 64)).mean(dim=1).flatten(1)


class Flat(nn.Module):
    """The values themselves as features."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).float()


class Whole(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Integers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).long()


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class One(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(0, 2, 3))[None]


class Squeezed(nn.Module):
    """Another shape for one image alone, as the last batch may be."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).squeeze(0)


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 64)


class AsWide(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, : len(x)]


class Infinite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) / 0


def script(net: nn.Module, folder: Path) -> str:
    path = folder / f"{type(net).__name__}.pt"
    torch.jit.script(net).save(str(path))
    return str(path)


def images(count: int = 40, channels: int = 1, side: int = 8, seed: int = 0) -> Images:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, channels, side, side), dtype=np.uint8)
    return Images(pixels)


def test_the_interface_of_inception(tmp_path: Path) -> None:
    judge = open_judge(script(Inception(), tmp_path), images(channels=3, side=32), "bytes", 299, False)
    assert judge.num_features == 2048
    assert (judge.classes, judge.probabilities) == (None, None)
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    pixels = F.interpolate((x + 1) / 2 * 255, (299, 299), mode="bilinear", antialias=True).round()
    assert_close(judge.features(x), F.adaptive_avg_pool2d(pixels, (32, 64)).mean(dim=1).flatten(1), atol=0.02, rtol=0)


def test_images_are_prepared_as_stated() -> None:
    x = torch.rand(2, 3, 6, 6) * 2 - 1
    unit = (x + 1) / 2
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert_close(Preparation("unit")(x), unit)
    assert_close(Preparation("signed")(x), x)
    assert_close(Preparation("bytes")(x), (unit * 255).round().to(torch.uint8))
    assert_close(Preparation("imagenet")(x), ((unit.permute(0, 2, 3, 1) - mean) / std).permute(0, 3, 1, 2))
    small = F.interpolate(unit, (3, 3), mode="bilinear", antialias=True)
    assert_close(Preparation("unit", size=3)(x), small)
    assert_close(Preparation("unit", rgb=True)(x[:, :1]), unit[:, :1].repeat(1, 3, 1, 1))


def test_what_is_stated_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    path, grey = script(Flat(), tmp_path), images()
    settings = [("unit", None, False), ("signed", None, False), ("unit", 4, False), ("unit", None, True)]
    found = [open_judge(path, grey, *each).fingerprint for each in settings]
    assert len(set(found)) == len(settings)
    assert open_judge(path, grey, "unit", None, False).fingerprint == found[0]


def test_without_classes_there_are_no_class_metrics(tmp_path: Path) -> None:
    config = QualityConfig(judge=script(Flat(), tmp_path), judge_input="unit", judge_size=2)
    comparison = Comparison(config, images(seed=0), images(seed=1))
    found = comparison.compare(comparison.features(images(seed=2)), None)
    assert found["frechet_distance"] > 0
    assert not {"inception_score", "class_accuracy"} & found.keys()
    assert comparison.judge.num_features == 4


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (Whole(), r"Whole\.pt gives a tensor of float32 with shape \(2, 1, 8, 8\)"),
        (Integers(), r"Integers\.pt gives a tensor of int64"),
        (Pair(), r"Pair\.pt gives a tuple"),
        (One(), r"One\.pt gives a tensor of float32 with shape \(1, 1\)"),
        (Squeezed(), r"Squeezed\.pt gives .*shape \(64,\) for 1 image"),
        (Fixed(), r"Fixed\.pt fails on images of shape \(1, 1, 8, 8\)"),
        (AsWide(), r"AsWide\.pt gives 2 features.*1 of one alone"),
        (Infinite(), r"Infinite\.pt.*not finite"),
        (Inception(), r"Inception\.pt fails on images of shape \(2, 1, 8, 8\) of float32.*judge_input"),
    ],
)
def test_networks_of_another_interface_are_refused(net: nn.Module, match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        open_judge(script(net, tmp_path), images(), "unit", None, False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "channels", "match"),
    [
        ((None, None, False), 1, r"Flat\.pt.*code.*trust.*judge_input=unit, signed, bytes or imagenet"),
        (("imagenet", None, False), 1, r"imagenet takes 3 channels.*have 1.*judge_rgb"),
        (("unit", None, True), 3, r"judge_rgb.*3 channels"),
    ],
)
def test_preparations_that_do_not_fit_are_refused(settings: tuple, channels: int, match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        open_judge(script(Flat(), tmp_path), images(channels=channels), *settings)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("text.pt", b"not a network", r"text\.pt is not a TorchScript file"),
        ("empty.pt", b"", r"empty\.pt is not a TorchScript file"),
        ("state.pt", None, r"state\.pt is not a TorchScript file"),
        ("cut.pt", ..., r"cut\.pt is not a TorchScript file"),
    ],
)
def test_files_that_are_no_torchscript_are_refused(name: str, content: object, match: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is None:
        torch.save({"weight": torch.zeros(3)}, path)
    else:
        whole = Path(script(Flat(), tmp_path)).read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content is ... else content)
    with pytest.raises(ValueError, match=match) as caught:
        open_judge(str(path), images(), "unit", None, False)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.pt"):
        open_judge(str(tmp_path / "missing.pt"), images(), "unit", None, False)
    with pytest.raises(ValueError, match=r"judge=.*missing.*no folder"):
        open_judge(str(tmp_path / "missing"), images(), None, None, False)


@pytest.mark.parametrize("settings", [("unit", None, False), (None, 8, False), (None, None, True)])
def test_a_classifier_has_its_preprocessing(settings: tuple, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"classifier.*judge_input"):
        open_judge(str(tmp_path), images(), *settings)


def test_features_are_checked_for_every_image(tmp_path: Path) -> None:
    """Finite for random images, but not for dark ones."""

    class Inverse(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1 / x.flatten(1)

    judge = open_judge(script(Inverse(), tmp_path), images(), "unit", None, False)
    with pytest.raises(ValueError, match=r"Inverse\.pt.*not finite"):
        judge.features(-torch.ones(3, 1, 8, 8))


@pytest.mark.parametrize("size", [0, 100_000])
def test_sizes_are_limited(size: int) -> None:
    with pytest.raises(ValueError, match=rf"judge_size={size}"):
        QualityConfig(judge_size=size)

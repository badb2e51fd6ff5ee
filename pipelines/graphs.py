"""Graphs of trained models, as ONNX or as programs of torch.export: the network, and one step of a sampler.

Each graph is checked against PyTorch before it is used: see `save_graphs`.
"""

import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.export import Dim

from diffusion import DDPM, Condition, NetworkDenoiser
from diffusion.denoiser import run_network
from diffusion.noise import Images
from diffusion.options import STEPS
from pictures.files import are_saved_as_bytes
from pipelines.classification import ImageClassifier
from pipelines.diffusion import DiffusionModel
from pipelines.graph_formats import SUFFIXES
from pipelines.kinds import Model
from pipelines.superresolution import DiffusionUpscaler, EDSRUpscaler
from storage.extra import require_extra

DESCRIPTION = "graph.json"
TOLERANCE = 1e-4
"""largest difference from PyTorch, as a share of the largest absolute value of the output (at least 1)"""
BATCHES = (1, 2, 3)
"""batch sizes with which a graph is compared; it is recorded with the middle one"""
SIDE_PX = 24
"""height and width of the picture with which a network for pictures of any size is recorded"""
MODULES = ("onnx", "onnxscript", "onnxruntime")
CARD_IMAGES = 4
"""images that the code of the README draws"""


class NetworkGraph(nn.Module):
    """The network of a diffusion model: scaled noisy images and noise levels to the network's output."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        x: Images,
        time: Float[Tensor, "b"],
        label: Int[Tensor, "b"] | None = None,
        image: Images | None = None,
    ) -> Images:
        return run_network(self.net, x, time, Condition(label, image))


class StepGraph(nn.Module):
    """One step of a sampler: noisy images at `time` to those at `time_after`, both one number for all images.

    The step is Euler's (Karras et al. 2022, algorithm 1 without the correction). For DDPM it is DDIM's (Song et al.
    2021, eq. 12), with denoised images clipped as by diffusers, whose noise is that of the images before.

    `guidance` is the scale of classifier-free guidance, one number for all images: see `diffusion.classifier_free`, of
    which every step makes both evaluations.
    """

    def __init__(self, model: DiffusionModel) -> None:
        super().__init__()
        self.net = model.net
        self.denoise = NetworkDenoiser(model.net, model.formulation)
        self.null = model.null
        self.limit = model.pixel_format.limit
        self.clips = model.formulation.clips_x0 and self.limit == 1

    def forward(
        self,
        x: Images,
        time: Float[Tensor, ""],
        time_after: Float[Tensor, ""],
        label: Int[Tensor, "b"] | None = None,
        image: Images | None = None,
        guidance: Float[Tensor, ""] | None = None,
    ) -> Images:
        times = time.expand(x.shape[0])
        x0 = self.denoise(x, times, Condition(label, image))
        if guidance is not None and label is not None and self.null is not None:
            free = self.denoise(x, times, Condition(torch.full_like(label, self.null), image))
            x0 = free + guidance * (x0 - free)
            bound = torch.where((guidance < 0) | (guidance > 1), self.limit, torch.inf)
            x0 = x0.minimum(bound).maximum(-bound)
        now, after = (self.denoise.formulation.level(each.reshape(1)) for each in (time, time_after))
        noise = now.noise_in(x, x0)
        return after.noisy(x0.clamp(-1, 1) if self.clips else x0, noise)


class ClassifierGraph(nn.Module):
    """A classifier: images in [-1, 1] to the logits of the classes."""

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.net = model.net
        self.logits = model.logits

    def forward(self, x: Images) -> Float[Tensor, "b classes"]:
        return self.logits(x)


class EDSRGraph(nn.Module):
    """A super-resolution network: pictures in [-1, 1] to enlarged ones, not clipped."""

    def __init__(self, model: EDSRUpscaler) -> None:
        super().__init__()
        self.net = model.net

    def forward(self, x: Images) -> Float[Tensor, "b c h2 w2"]:
        return self.net(127.5 * (x + 1)) / 127.5 - 1


@dataclass(frozen=True)
class Graph:
    """A module, the inputs with which it is recorded and compared, and which of their axes may vary."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    """by name, for the middle one of `BATCHES`"""
    any_size: bool = False
    """whether height and width may vary, too"""

    @property
    def axes(self) -> dict[str, dict[int, Any]]:
        """The axes of each input that may vary."""
        sides = {2: Dim("height"), 3: Dim("width")} if self.any_size else {}
        batch = Dim("batch")
        return {
            name: {0: batch, **(sides if value.dim() == 4 else {})} if value.dim() else {}
            for name, value in self.inputs.items()
        }

    def of(self, batch: int) -> dict[str, Tensor]:
        """The inputs for another batch size; pictures of any size also get another height."""
        found = {}
        for name, value in self.inputs.items():
            if value.dim():
                value = torch.cat([value, value.flip(0)])[:batch]
            if value.dim() == 4 and self.any_size:
                value = value[:, :, : value.shape[2] - batch]
            found[name] = value.contiguous()
        return found


def check_graphs(model: Model, kind: str) -> None:
    """Raises ValueError for a model whose networks are no such graphs, and for packages that ONNX needs and lacks."""
    for package in MODULES if kind == "onnx" else ():
        require_extra(package, "onnx", "ONNX")
    if not isinstance(model, DiffusionModel):
        return
    reasons = {
        "adds the prediction of a regression": model.base is not None,
        "takes fields or numbers as conditions": model.inputs is not None,
        "draws in windows": model.windows is not None,
        "draws latents of an autoencoder": model.autoencoder is not None,
    }
    if found := [reason for reason, applies in reasons.items() if applies]:
        raise ValueError(f"this model {found[0]}, which no graph of one network holds; draw with sample.py")


def graphs(model: Model) -> dict[str, Graph]:
    """The graphs of a model by name: `network`, and for diffusion models `step`."""
    random = torch.Generator().manual_seed(0)
    batch = BATCHES[1]
    normal = partial(torch.randn, generator=random)
    if isinstance(model, ImageClassifier):
        return {"network": Graph(ClassifierGraph(model).eval(), {"x": normal(batch, *model.shape).clamp(-1, 1)})}
    if isinstance(model, EDSRUpscaler):
        x = normal(batch, model.channels, SIDE_PX, SIDE_PX + 1).clamp(-1, 1)
        return {"network": Graph(EDSRGraph(model).eval(), {"x": x}, any_size=True)}
    if isinstance(model, DiffusionUpscaler):
        model = model.model
    given: dict[str, Tensor] = {}
    if model.classes is not None:
        given["label"] = torch.arange(batch) % len(model.classes)
    if model.upscale is not None:
        given["image"] = normal(batch, *model.shape).clamp(-1, 1)
    guided = {} if model.null is None else {"guidance": torch.tensor(2.0)}
    times = _times(model)
    middle = len(times) // 2
    level = model.formulation.level(times[middle : middle + 1])
    x = normal(batch, *model.shape)
    network = {"x": x, "time": level.c_noise.expand(batch).contiguous(), **given}
    step = {"x": level.scale() * x, "time": times[middle], "time_after": times[middle + 1], **given, **guided}
    return {"network": Graph(NetworkGraph(model.net).eval(), network), "step": Graph(StepGraph(model).eval(), step)}


def _times(model: DiffusionModel) -> Float[Tensor, "times"]:
    """The falling times of a sampler of `STEPS` steps."""
    formulation = model.formulation
    steps = min(STEPS, formulation.timesteps) if isinstance(formulation, DDPM) else STEPS
    return formulation.times(steps, "leading")


def save_graphs(model: Model, folder: Path, kind: str) -> None:
    """Writes the graphs of a model, their description (graph.json) and a README.md with code that uses them.

    `kind` is a key of `SUFFIXES`: files of ONNX are made by PyTorch's exporter, others by `torch.export.save`. The
    batch size may vary in both, and so may the size of pictures that EDSR enlarges.

    Each file is opened again, by onnxruntime or by `torch.export.load`, and its outputs for each of `BATCHES` are
    compared with those of PyTorch. Raises ValueError if they differ by more than `TOLERANCE`.
    """
    found, described = graphs(model), {}
    for name, graph in found.items():
        file = folder / f"{name}{SUFFIXES[kind]}"
        described[file.name] = {
            "inputs": {key: _axes(value, graph.any_size) for key, value in graph.inputs.items()},
            "difference": _save(graph, file),
        }
    document = {"graphs": described, "tolerance": TOLERANCE, **_facts(model)}
    (folder / DESCRIPTION).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(model, kind), encoding="utf-8")


def _save(graph: Graph, file: Path) -> float:
    """Writes one graph, and compares the file with PyTorch. Returns the largest difference."""
    with torch.no_grad(), _quiet():
        # Computed before the module is recorded: what formulations cache must not be tensors of the recording.
        expected = [graph.module(**graph.of(batch)) for batch in BATCHES]
        program = torch.export.export(graph.module, (), dict(graph.inputs), dynamic_shapes=graph.axes)
        if file.suffix == SUFFIXES["pt2"]:
            torch.export.save(program, file)
            run = torch.export.load(file).module()
            outputs = [run(**graph.of(batch)) for batch in BATCHES]
        else:
            program = program.run_decompositions({torch.ops.aten.hypot.default: lambda a, b: (a * a + b * b).sqrt()})
            names = list(graph.inputs)
            made = torch.onnx.export(program, input_names=names, output_names=["output"], dynamo=True, verbose=False)
            assert made is not None, "the exporter based on torch.export returns a program"
            made.save(file)
            outputs = [_run_onnx(file, graph.of(batch)) for batch in BATCHES]
    return max(_difference(file, output, wanted) for output, wanted in zip(outputs, expected, strict=True))


def _run_onnx(file: Path, inputs: Mapping[str, Tensor]) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])


def _difference(file: Path, output: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest value. Raises ValueError if it is above `TOLERANCE`."""
    if output.shape != wanted.shape:
        raise ValueError(f"{file.name} returns {tuple(output.shape)}, but PyTorch {tuple(wanted.shape)}; report it")
    share = float((output - wanted).abs().max() / wanted.abs().max().clamp(min=1))
    if not share <= TOLERANCE:
        raise ValueError(
            f"{file.name} differs from PyTorch by {share:.1e}, more than {TOLERANCE:g}; draw with sample.py"
        )
    return share


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and messages by which PyTorch's exporter reports on its own parts."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _axes(value: Tensor, any_size: bool) -> dict[str, Any]:
    """The dtype and shape of an input, with the names of axes that vary."""
    shape: list[int | str] = list(value.shape)
    if shape:
        shape[0] = "batch"
    if any_size and len(shape) == 4:
        shape[2:] = ["height", "width"]
    return {"dtype": str(value.dtype).removeprefix("torch."), "shape": shape}


def _facts(model: Model) -> dict[str, Any]:
    """What the code that runs the graphs needs besides them."""
    if isinstance(model, EDSRUpscaler):
        return {"scale": model.scale}
    if isinstance(model, DiffusionUpscaler):
        model = model.model
    facts: dict[str, Any] = {
        "shape": model.shape,
        "classes": model.classes,
        "pixel_format": {key: value for key, value in asdict(model.pixel_format).items() if value is not None},
    }
    if isinstance(model, ImageClassifier):
        return facts
    times = _times(model)
    first = model.formulation.level(times[:1])
    scale = first.scale() if isinstance(model.formulation, DDPM) else first.sigma
    more = {"null_label": model.null, "upscale": model.upscale}
    return facts | more | {"start_scale": float(scale), "times": times.tolist()}


def _readme(model: Model, kind: str) -> str:
    """Code that runs the graphs, without this project."""
    if isinstance(model, DiffusionUpscaler):
        model = model.model
    name, code = "network", ENLARGE
    if isinstance(model, EDSRUpscaler):
        what = f"A super-resolution network: pictures of any size become {model.scale} times as high and wide."
    elif isinstance(model, ImageClassifier):
        what, code = "A classifier. The names of its classes are in graph.json.", CLASSIFY.format(shape=model.shape)
    else:
        name, what, code = "step", model.summary(), _sampling_code(model)
    return README.format(what=what, tolerance=TOLERANCE, code=f"{OPEN[kind].format(name=name)}\n\n{code}")


def _sampling_code(model: DiffusionModel) -> str:
    given = ""
    if model.classes is not None:
        given += f'given["label"] = np.arange({CARD_IMAGES}) % {len(model.classes)}\n'
    if model.null is not None:
        given += 'given["guidance"] = np.array(1, np.float32)  # above 1, labels count more\n'
    if model.upscale is not None:
        given += 'given["image"] = np.zeros_like(x)  # yours, in [-1, 1], enlarged linearly to this size\n'
    limit = model.pixel_format.limit
    last = "" if limit == math.inf else f"x = x.clip(-{limit:g}, {limit:g})\n"
    if are_saved_as_bytes(model.shape[0], model.pixel_format):
        last += "images = (127.5 * (x + 1)).round().astype(np.uint8)  # (image, channel, height, width)\n"
    return SAMPLE.format(count=CARD_IMAGES, given=given, last=last)


README = """# Graphs of a trained model

{what} Inputs, their types and shapes are in graph.json. Outputs were compared with PyTorch (within {tolerance:g} of
the largest value).

Run this in this folder:

```python
{code}```
"""

OPEN = {
    "onnx": """import json
from pathlib import Path

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{name}.onnx")


def run(**given):
    return session.run(None, given)[0]
""",
    "pt2": """import json
from pathlib import Path

import numpy as np
import torch

program = torch.export.load("{name}.pt2").module()


@torch.no_grad()
def run(**given):
    return program(**{{key: torch.from_numpy(value) for key, value in given.items()}}).numpy()
""",
}

CLASSIFY = """classes = json.loads(Path("graph.json").read_text())["classes"]
x = np.zeros((1, *{shape}), np.float32)  # yours, in [-1, 1]
found = [classes[k] for k in run(x=x).argmax(axis=1)]
"""

ENLARGE = """x = np.zeros((1, 3, 40, 30), np.float32)  # yours, in [-1, 1]
enlarged = run(x=x).clip(-1, 1)
"""

SAMPLE = """graph = json.loads(Path("graph.json").read_text())
times = np.array(graph["times"], np.float32)  # times[::5]: a fifth of the steps
x = np.random.default_rng(0).standard_normal(({count}, *graph["shape"]), np.float32)
x, given = np.float32(graph["start_scale"]) * x, {{}}
{given}for k in range(len(times) - 1):
    x = run(x=x, time=np.array(times[k]), time_after=np.array(times[k + 1]), **given)
{last}"""

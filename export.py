"""Write a trained model as a folder for another library, or upload it to the Hugging Face hub.

python export.py RUN_OR_MODEL --to diffusers --out DIR
python export.py RUN_OR_MODEL --to onnx --out DIR          (or pt2: a program of torch.export)
python export.py RUN_OR_MODEL --to torchvision --out DIR   (weights under the names of another library)
python export.py RUN_OR_MODEL --to space --out DIR         (the page of demo.py, for a Hugging Face Space)
python export.py RUN_OR_MODEL --push OWNER/NAME
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

from diffusion import DDPM, SCHEDULERS
from pictures.files import are_saved_as_bytes
from pictures.pixel_format import PixelFormat
from pipelines import classification, graphs
from pipelines.classification import ImageClassifier, load_classifier
from pipelines.diffusion import DESCRIPTION_FILE, DiffusionModel
from pipelines.diffusion_folder import load_model
from pipelines.formulation import describe_formulation
from pipelines.superresolution import is_upscaler, load_upscaler
from residual.names import require_known
from residual.weights.pretrained import local_folder, upload
from residual.weights.read import note
from resnet import DenseNet, ResNet, edsr
from storage.show import markdown, printable
from storage.write import expand_home
from tasks.card import check_licence, complete_card
from training.averages import OPTION, Average, RunAverages, load_average
from training.disk_space import is_full
from training.log import print_line
from training.output_folder import OutputFolder, weights_sha256
from training.script import VERSION, ScriptParser, command
from unet import EDM2UNet, UNet, diffusers_config
from unet.adapt import adapt_weights
from unet.layouts import export_weights
from web import space

Model = TypeVar("Model")
LAYOUTS = sorted({*UNet.layouts, *EDM2UNet.layouts, *ResNet.layouts, *DenseNet.layouts, edsr.LAYOUT} - {"diffusers"})
"""layouts whose names weights can have; that of diffusers is part of its folder"""
TARGETS = ("diffusers", space.TARGET, *graphs.SUFFIXES, *LAYOUTS)
RECORD = "export.json"
WEIGHTS = "weights.safetensors"
GRAPHS = [f"{name}{suffix}" for name in ("network", "step") for suffix in graphs.SUFFIXES.values()]
NAMES = (
    "README.md",
    DESCRIPTION_FILE,
    "model_index.json",
    "scheduler",
    "unet",
    WEIGHTS,
    graphs.DESCRIPTION,
    *GRAPHS,
    *space.NAMES,
)
MAX_LABELS = 10
"""labels in the code of the card"""
FEW_STEPS = "dpmpp_2m"
"""the sampler that the card recommends where time is short"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = ScriptParser(prog="export.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    p.add_argument("model", metavar="RUN_OR_MODEL", help="run folder of train.py (its averaged model), or model folder")
    p.add_argument(
        "--to",
        metavar="TARGET",
        help="diffusers: a folder for its pipelines; space: a folder for a Hugging Face Space; onnx or pt2: network "
        "and sampler step as ONNX or as programs of "
        f"torch.export; {', '.join(LAYOUTS)}: weights under the names of that library or code (default: diffusers "
        "with --out, the model folder itself with --push)",
    )
    place = p.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", type=Path, metavar="DIR", help="the folder to write; an earlier export is replaced")
    place.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="the repository of the Hugging Face hub to upload to; sample.py, train.py --init and load_model (or "
        "load_classifier) then open the model by this name",
    )
    p.add_argument("--private", action="store_true", help="a new repository is private")
    p.add_argument("--ema", type=float, metavar="WIDTH|IMAGES", help=OPTION)
    p.add_argument("--license", metavar="NAME", help="licence of the model in its card, such as apache-2.0")
    p.add_argument(
        "--label",
        metavar="CLASS|none",
        help="export one class of a model with classes (by name or number), or the model without labels (none), for "
        "diffusers' pipelines; without this flag all classes are exported, for a loop of your own",
    )
    return p


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, converts, writes."""
    args = parser().parse_args(argv)
    if args.to is not None:
        require_known("target of --to", args.to, TARGETS)
    check_licence(args.license)
    if args.push is not None:
        _push(args)
        return
    if args.private:
        raise ValueError("private belongs to a repository of the hub; give --push, or leave it out")
    args.out = expand_home("out", args.out)
    export = _export(args)
    out = OutputFolder(args.out, args.model, RECORD, NAMES)
    out.check()
    facts = {
        "written_by": f"export.py of {VERSION}",
        "model": printable(args.model),
        "model_folder": out.model,
        "images_seen": export.model.images_seen,
        "ema": args.ema,
        "weights_sha256": weights_sha256(export.model.net),
        "label": export.label,
    }
    with _discarded(out):
        folder = out.begin(facts)
        export.save(folder)
        text = (folder / "README.md").read_text(encoding="utf-8")
        (folder / "README.md").write_text(_complete(args, text, export.model), encoding="utf-8")
        out.publish(facts)
    print_line(f"model: {args.out} (how to use it: {args.out / 'README.md'})")


@dataclass(frozen=True)
class Export:
    """What is exported, and how it is written to a folder."""

    model: graphs.Model
    save: Callable[[Path], None]
    label: int | None = None


def _export(args: argparse.Namespace) -> Export:
    """The export to a folder. Raises ValueError for a model, a label or a package that does not go with the target."""
    if args.to in (None, "diffusers"):
        model, label = _for_diffusers(args)
        return Export(model, partial(save_diffusers, model, label=label), label)
    if args.label is not None:
        raise ValueError(f"label={args.label!r} is for --to diffusers; leave it out")
    found = _any_model(args)
    if args.to == space.TARGET:
        space.require_gradio()
        return Export(found, partial(space.write_space, found))
    if args.to in graphs.SUFFIXES:
        graphs.check_graphs(found, args.to)
        return Export(found, partial(graphs.save_graphs, found, kind=args.to))
    weights = found.net.export_weights(args.to)  # type: ignore[operator]
    return Export(found, partial(save_weights, weights, layout=args.to))


def _any_model(args: argparse.Namespace) -> graphs.Model:
    load: Callable[..., graphs.Model] = load_upscaler if is_upscaler(local_folder(args.model)) else _loader(args)
    return load_average(load, args.model, _average(args))


def save_weights(weights: Mapping[str, Tensor], folder: Path, layout: str) -> None:
    """Writes weights under the names of another library, with a README.md on how to read them."""
    from safetensors.torch import save_file

    state = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "README.md").write_text(WEIGHTS_CARD.format(layout=layout, file=WEIGHTS), encoding="utf-8")


def _for_diffusers(args: argparse.Namespace) -> tuple[DiffusionModel, int | None]:
    """The model, and the label to export."""
    model = _drawing(load_average(load_model, args.model, _average(args)))
    return model, None if args.label is None else model.label(args.label)


def _push(args: argparse.Namespace) -> None:
    """Uploads the model folder, or the folder for another library."""
    if args.to not in (None, "diffusers"):
        raise ValueError(f"push uploads the model folder, or --to diffusers; write --to {args.to} to a folder by --out")
    if args.to is None:
        if args.label is not None:
            raise ValueError(f"label={args.label!r} is for another library, give --to diffusers; or leave it out")
        found = _load(args)
        model_card, save = _complete(args, found.model_card(args.push), found), found.save
    else:
        model, label = _for_diffusers(args)
        model_card = _complete(args, card(model, label, args.push), model)
        save = partial(save_diffusers, model, label=label)
    print_line(f"model: {upload(args.push, save, model_card, private=args.private)}")


def _complete(args: argparse.Namespace, text: str, model: graphs.Model) -> str:
    """A card with the licence, and with what is known of the run."""
    return complete_card(text, args.model, model.images_seen, args.license, is_main=args.ema is None)


def _load(args: argparse.Namespace) -> DiffusionModel | ImageClassifier:
    return _drawing(load_average(_loader(args), args.model, _average(args)))


def _loader(args: argparse.Namespace) -> Callable[..., DiffusionModel | ImageClassifier]:
    folder = local_folder(args.model)
    is_classifier = any((place / classification.DESCRIPTION_FILE).is_file() for place in (folder, folder / "model"))
    return load_classifier if is_classifier else load_model


def _drawing(model: Model) -> Model:
    """The model, if others can use it alone. Raises ValueError for one that enlarges pictures, that needs more than a
    label, or whose values are standardised."""
    if isinstance(model, DiffusionModel) and model.upscale is not None:
        raise ValueError(
            f"this model enlarges pictures (upscale={model.upscale}), which neither diffusers nor a model card knows; "
            "give its folder, RUN/model, to sample.py --upscale"
        )
    if isinstance(model, DiffusionModel) and model.autoencoder is not None:
        raise ValueError(
            "this model draws latents of an autoencoder, which neither diffusers' DDPMPipeline nor a model card knows; "
            "give its folder, RUN/model, to sample.py"
        )
    if isinstance(model, DiffusionModel) and (model.inputs is not None or model.pixel_format.limit != 1):
        what = "draws standardised values" if model.inputs is None else "takes more than noise and a label"
        raise ValueError(
            f"this model {what}, which neither diffusers nor a model card knows; give its folder, RUN/model, to "
            "sample.py"
        )
    return model


def _average(args: argparse.Namespace) -> Average | None:
    """The average that is exported in the place of the main one."""
    return None if args.ema is None else RunAverages(args.model).choose(args.ema)


@contextmanager
def _discarded(out: OutputFolder) -> Iterator[None]:
    """After an error nothing unfinished stays, and a full disk is one line."""
    try:
        yield
    except BaseException as error:
        out.leave(discard=True)
        if is_full(error):
            raise ValueError(f"the disk of {str(out.path)!r} is full; nothing was written, free some space") from None
        raise


def save_diffusers(model: DiffusionModel, folder: Path, label: int | None = None) -> None:
    """Writes a pipeline folder of diffusers: unet/, scheduler/, model_index.json and a card with instructions.

    diffusion.json, with the names of the classes, lets `load_model` and `--init` read the folder as the model folder.

    With `label` the exported network takes no labels and always draws that class (or the null label): the class's
    embedding is added to the output of the time embedding's last layer, so it becomes part of that layer's bias. The
    augmentation label (`augment.non_leaky`) is left out, because it is zero for images without augmentation. So are a
    learned variance, which diffusers' DDIM cannot read, and the log-variance of the loss, which only training uses;
    both are reported.

    Raises ValueError for a network that `UNet2DModel` cannot express, and for a formulation other than DDPM.
    """
    net, formulation = model.net, ddpm_of(model)
    if not isinstance(net, UNet):
        raise ValueError(f"diffusers' UNet2DModel cannot express a {type(net).__name__}; export a model of kind unet")
    for name in ("learned_variance", "logvar_channels"):
        if getattr(net.config, name):
            note(f"model.{name}={getattr(net.config, name)} is left out of the export")
    config = replace(net.config, augment_channels=None, learned_variance=False, logvar_channels=None)
    state = export_weights(config, adapt_weights(net.state_dict(), net.config, config)[0], "diffusers")
    if label is not None:
        config = replace(config, classes=None)
        rows = state.pop("class_embedding.weight")
        state["time_embedding.linear_2.bias"] = state["time_embedding.linear_2.bias"] + rows[label]
    unet = UNet2DModel(**diffusers_config(config))
    unet.load_state_dict(state)
    scheduler = DDPMScheduler(**formulation.scheduler_config())
    DDPMPipeline(unet=unet.eval(), scheduler=scheduler).save_pretrained(folder)
    described = model if label is None else replace(model, classes=None, null_label=False, class_counts=None)
    described.write_description(folder)
    (folder / "README.md").write_text(card(model, label), encoding="utf-8")


def ddpm_of(model: DiffusionModel) -> DDPM:
    """The formulation of a model that diffusers' DDPM and DDIM pipelines can run. Raises ValueError for others."""
    if not isinstance(model.formulation, DDPM):
        raise ValueError(
            f"objective.kind={describe_formulation(model.formulation)['kind']} cannot be exported, because diffusers' "
            "unconditional pipelines run ddpm models; draw with sample.py"
        )
    return model.formulation


def card(model: DiffusionModel, label: int | None, place: str = ".") -> str:
    """The model card: what the model is, and code that draws with it.

    `place` is the folder, or the name on the hub, that the code opens; ".": the current folder.
    """
    pixels, facts, steps = model.pixel_format, model.summary(), min(50, ddpm_of(model).timesteps)
    assert isinstance(pixels, PixelFormat), "_drawing checks it"
    if model.classes is None or label is not None:
        name = "" if label is None or label == model.null else (model.names([label]) or [""])[0]
        usage = f"{facts} It draws only this class: {markdown(name)}." if name else facts
        code = _pipeline_code(model, steps, json.dumps(place))
    else:
        usage = (
            f"{facts} It takes a class as label, which diffusers' pipelines cannot pass on; the loop below does.\n\n"
            f"Labels:\n\n{model.list_labels()}"
        )
        images = "x / 2 + 0.5" if _are_bytes(model) else f"{pixels.low} + {pixels.high - pixels.low} * (x / 2 + 0.5)"
        code = LOOP_CODE.format(
            place=json.dumps(place), labels=min(len(model.classes), MAX_LABELS), shape=model.shape, steps=steps,
            images=images,
            low=f"{0.0 if _are_bytes(model) else pixels.low:g}", high=f"{1.0 if _are_bytes(model) else pixels.high:g}",
        )  # fmt: skip
    scheduler, options = SCHEDULERS[FEW_STEPS]
    settings = ", ".join(f"{name}={value!r}" for name, value in options.items())
    faster = f"diffusers.{scheduler.__name__}.from_config(scheduler.config, {settings})"
    where = 'Run this in this folder, or put the folder\'s path, or its name on the hub, in the place of `"."`:\n\n'
    return CARD.format(usage=usage, where=where if place == "." else "", code=code, faster=faster, sampler=FEW_STEPS)


def _are_bytes(model: DiffusionModel) -> bool:
    """Whether sample.py writes its images as diffusers' pipelines do."""
    return are_saved_as_bytes(model.shape[0], model.pixel_format)


def _pipeline_code(model: DiffusionModel, steps: int, place: str) -> str:
    """Code that draws with a pipeline of diffusers and writes the images as sample.py does."""
    pixels, timesteps = model.pixel_format, ddpm_of(model).timesteps
    assert isinstance(pixels, PixelFormat), "_drawing checks it"
    if _are_bytes(model):
        return PIPELINE_CODE.format(
            imports="", place=place, timesteps=timesteps, steps=steps, output="",
            save='image.save(f"{k:06d}.png")',
        )  # fmt: skip
    values = f"{pixels.low} + {pixels.high - pixels.low} * image.transpose(2, 0, 1)  # (channel, height, width)"
    rounded = ".round()" if pixels.dtype.startswith(("int", "uint")) else ""
    save, imports = 'np.save(f"{k:06d}.npy", values)', "import numpy as np\n"
    if pixels.file == "png":
        save, imports = 'Image.fromarray(values[0]).save(f"{k:06d}.png")', "from PIL import Image\n"
    lines = (f"values = {values}", f'values = values{rounded}.astype("{pixels.dtype}")', save)
    return PIPELINE_CODE.format(
        imports=imports, place=place, timesteps=timesteps, steps=steps, output=', output_type="np"',
        save="\n    ".join(lines),
    )  # fmt: skip


WEIGHTS_CARD = """# Weights under the names of {layout}

```python
from safetensors.torch import load_file

state = load_file("{file}")  # for `load_state_dict` of the network in {layout}
```
"""

CARD = """---
library_name: diffusers
tags:
- diffusion
- ddpm
---

# Diffusion model

{usage}

{where}```python
{code}```

Image k drawn with a generator seeded with k is image k of `sample.py --seed 0` with the same label, sampler and steps.

Ten to twenty steps are enough for

    scheduler = {faster}

in the place of the `scheduler` of the loop, or of a `DDPMPipeline`. That is `sample.py --sampler {sampler}`.
"""

PIPELINE_CODE = """{imports}import torch
from diffusers import DDIMPipeline  # or DDPMPipeline, with num_inference_steps={timesteps}

pipeline = DDIMPipeline.from_pretrained({place})
generators = [torch.Generator().manual_seed(k) for k in range(4)]
images = pipeline(batch_size=4, generator=generators, num_inference_steps={steps}{output}).images
for k, image in enumerate(images):
    {save}
"""

LOOP_CODE = """import torch
from diffusers import DDIMScheduler, UNet2DModel

unet = UNet2DModel.from_pretrained({place}, subfolder="unet").eval()
scheduler = DDIMScheduler.from_pretrained({place}, subfolder="scheduler")
scheduler.set_timesteps({steps})
label = torch.arange({labels})  # one image of each of these classes
x = torch.stack([torch.randn({shape}, generator=torch.Generator().manual_seed(k)) for k in range(len(label))])
for t in scheduler.timesteps:
    with torch.no_grad():
        x = scheduler.step(unet(x, t, label).sample, t, x).prev_sample
images = ({images}).clamp({low}, {high})  # (image, channel, height, width)
"""


if __name__ == "__main__":
    main()

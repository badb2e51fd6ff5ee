"""Write a trained diffusion model as a folder for another library.

python export.py RUN_OR_MODEL --to diffusers --out DIR
diffusers.DDPMPipeline.from_pretrained("DIR")
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from diffusion import DDPM, SCHEDULERS
from pipelines.diffusion import DiffusionModel, describe_formulation, load_model
from residual.names import require_known
from storage.show import markdown, printable
from training.disk_space import is_full
from training.log import print_line
from training.output_folder import OutputFolder, weights_sha256
from training.script import VERSION, ScriptParser, command
from unet import UNet, diffusers_config

TARGETS = ("diffusers",)
RECORD = "export.json"
NAMES = ("README.md", "model_index.json", "scheduler", "unet")
MAX_LABELS = 10
"""labels in the code of the card"""
FEW_STEPS = "dpmpp_2m"
"""the sampler that the card recommends where time is short"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = ScriptParser(prog="export.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    p.add_argument("model", metavar="RUN_OR_MODEL", help="run folder of train.py (its averaged model), or model folder")
    p.add_argument("--to", default="diffusers", help=f"the library: {', '.join(TARGETS)} (default: diffusers)")
    p.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the folder to write; an earlier export is replaced"
    )
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
    require_known("target of --to", args.to, TARGETS)
    out = OutputFolder(args.out, args.model, RECORD, NAMES)
    out.check()
    model = load_model(args.model)
    label = None if args.label is None else model.label(args.label)
    facts = {
        "written_by": f"export.py of {VERSION}",
        "model": printable(args.model),
        "model_folder": out.model,
        "images_seen": model.images_seen,
        "weights_sha256": weights_sha256(model.net),
        "label": label,
    }
    with _discarded(out):
        save_diffusers(model, out.begin(facts), label)
        out.publish(facts)
    print_line(f"model: {args.out} (how to draw with it: {args.out / 'README.md'})")


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

    With `label` the exported network takes no labels and always draws that class (or the null label): the class's
    embedding is added to the output of the time embedding's last layer, so it becomes part of that layer's bias. The
    augmentation label (`augment.non_leaky`) is left out, because it is zero for images without augmentation. So is a
    learned variance, which diffusers' DDIM cannot read.

    Raises ValueError for a network that `UNet2DModel` cannot express, and for a formulation other than DDPM.
    """
    net, formulation = model.net, ddpm_of(model)
    if not isinstance(net, UNet):
        raise ValueError(f"diffusers' UNet2DModel cannot express a {type(net).__name__}; export a model of kind unet")
    if net.config.augment_channels is not None:
        net = UNet(replace(net.config, augment_channels=None))
        net.load_state_dict({k: v for k, v in model.net.state_dict().items() if k != "embedding.augment.weight"})
    config, state = net.config, net.export_weights("diffusers")
    if config.learned_variance:
        config = replace(config, learned_variance=False)
        for name in ("conv_out.weight", "conv_out.bias"):
            state[name] = state[name][: config.out_channels]
    if label is not None:
        config = replace(config, classes=None)
        rows = state.pop("class_embedding.weight")
        state["time_embedding.linear_2.bias"] = state["time_embedding.linear_2.bias"] + rows[label]
    unet = UNet2DModel(**diffusers_config(config))
    unet.load_state_dict(state)
    scheduler = DDPMScheduler(**formulation.scheduler_config())
    DDPMPipeline(unet=unet.eval(), scheduler=scheduler).save_pretrained(folder)
    (folder / "README.md").write_text(card(model, label), encoding="utf-8")


def ddpm_of(model: DiffusionModel) -> DDPM:
    """The formulation of a model that diffusers' DDPM and DDIM pipelines can run. Raises ValueError for others."""
    if not isinstance(model.formulation, DDPM):
        raise ValueError(
            f"objective.kind={describe_formulation(model.formulation)['kind']} cannot be exported, because diffusers' "
            "unconditional pipelines run ddpm models; draw with sample.py"
        )
    return model.formulation


def card(model: DiffusionModel, label: int | None) -> str:
    """The model card: what the model is, and code that draws with it."""
    channels, height, width = model.shape
    formulation, pixels = ddpm_of(model), model.pixel_format
    steps = min(50, formulation.timesteps)
    seen = "" if model.images_seen is None else f" after {model.images_seen:,} training images"
    facts = (
        f"A denoising diffusion model of images of {height}x{width} px with {channels} "
        f"channel{'s' if channels > 1 else ''}{seen}; {formulation.schedule} schedule, "
        f"{formulation.timesteps} timesteps, {formulation.prediction} prediction."
    )
    if not _are_bytes(model):
        facts += f" Its values are {pixels.dtype} from {pixels.low:g} to {pixels.high:g}."
    if model.classes is None or label is not None:
        name = "" if label is None or label == model.null else (model.names([label]) or [""])[0]
        usage = f"{facts} It draws only this class: {markdown(name)}." if name else facts
        code = _pipeline_code(model, steps)
    else:
        listed = "\n".join(f"- {number}: {markdown(name)}" for number, name in enumerate(model.classes))
        null = "" if model.null is None else f"\n- {model.null}: no label"
        usage = (
            f"{facts} It takes a class as label, which diffusers' pipelines cannot pass on; the loop below does.\n\n"
            f"Labels:\n\n{listed}{null}"
        )
        images = "x / 2 + 0.5" if _are_bytes(model) else f"{pixels.low} + {pixels.high - pixels.low} * (x / 2 + 0.5)"
        code = LOOP_CODE.format(
            labels=min(len(model.classes), MAX_LABELS), shape=model.shape, steps=steps, images=images,
            low=f"{0.0 if _are_bytes(model) else pixels.low:g}", high=f"{1.0 if _are_bytes(model) else pixels.high:g}",
        )  # fmt: skip
    scheduler, options = SCHEDULERS[FEW_STEPS]
    settings = ", ".join(f"{name}={value!r}" for name, value in options.items())
    faster = f"diffusers.{scheduler.__name__}.from_config(scheduler.config, {settings})"
    return CARD.format(usage=usage, code=code, faster=faster, sampler=FEW_STEPS)


def _are_bytes(model: DiffusionModel) -> bool:
    """Whether sample.py writes its images as PNG files of 8 bits, as diffusers' pipelines do."""
    return model.pixel_format.file == "png" and (model.pixel_format.dtype == "uint8" or model.shape[0] == 3)


def _pipeline_code(model: DiffusionModel, steps: int) -> str:
    """Code that draws with a pipeline of diffusers and writes the images as sample.py does."""
    pixels, timesteps = model.pixel_format, ddpm_of(model).timesteps
    if _are_bytes(model):
        return PIPELINE_CODE.format(
            imports="", timesteps=timesteps, steps=steps, output="", save='image.save(f"{k:06d}.png")'
        )
    values = f"{pixels.low} + {pixels.high - pixels.low} * image.transpose(2, 0, 1)  # (channel, height, width)"
    rounded = ".round()" if pixels.dtype.startswith(("int", "uint")) else ""
    save, imports = 'np.save(f"{k:06d}.npy", values)', "import numpy as np\n"
    if pixels.file == "png":
        save, imports = 'Image.fromarray(values[0]).save(f"{k:06d}.png")', "from PIL import Image\n"
    lines = (f"values = {values}", f'values = values{rounded}.astype("{pixels.dtype}")', save)
    return PIPELINE_CODE.format(
        imports=imports, timesteps=timesteps, steps=steps, output=', output_type="np"', save="\n    ".join(lines)
    )


CARD = """---
library_name: diffusers
tags:
- diffusion
- ddpm
---

# Diffusion model

{usage}

Run this in this folder, or put the folder's path, or its name on the hub, in the place of `"."`:

```python
{code}```

Image k drawn with a generator seeded with k is image k of `sample.py --seed 0` with the same label, sampler and steps.

Ten to twenty steps are enough for

    scheduler = {faster}

in the place of the `scheduler` of the loop, or of a `DDPMPipeline`. That is `sample.py --sampler {sampler}`.
"""

PIPELINE_CODE = """{imports}import torch
from diffusers import DDIMPipeline  # or DDPMPipeline, with num_inference_steps={timesteps}

pipeline = DDIMPipeline.from_pretrained(".")
generators = [torch.Generator().manual_seed(k) for k in range(4)]
images = pipeline(batch_size=4, generator=generators, num_inference_steps={steps}{output}).images
for k, image in enumerate(images):
    {save}
"""

LOOP_CODE = """import torch
from diffusers import DDIMScheduler, UNet2DModel

unet = UNet2DModel.from_pretrained(".", subfolder="unet").eval()
scheduler = DDIMScheduler.from_pretrained(".", subfolder="scheduler")
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

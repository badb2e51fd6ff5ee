"""Writes a diffusion model as a pipeline folder of diffusers, with a card."""

import json
from dataclasses import replace
from pathlib import Path

from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline, LDMPipeline, UNet2DModel

from diffusion import DDPM, SCHEDULERS
from exporting.latents import fold_units
from pictures.files import are_saved_as_bytes
from pictures.pixel_format import PixelFormat
from pipelines.diffusion import DiffusionModel
from pipelines.formulation import describe_formulation
from residual.names import amount
from residual.weights.note import note
from storage.show import markdown
from unet import UNet, diffusers_config
from unet.adapt import adapt_weights
from unet.layouts import export_weights

MAX_LABELS = 10
"""labels in the code of the card"""
FEW_STEPS = "dpmpp_2m"
"""the sampler that the card recommends where time is short"""


def save_diffusers(model: DiffusionModel, folder: Path, label: int | None = None) -> None:
    """Writes a pipeline folder of diffusers: unet/, scheduler/, model_index.json and a card with instructions.

    diffusion.json, with the names of the classes, lets `load_model` and `--init` read the folder as the model folder.

    With `label` the exported network takes no labels and always draws that class (or the null label): the class's
    embedding is added to the output of the time embedding's last layer, so it becomes part of that layer's bias. The
    augmentation label (`augment.non_leaky`) is left out, because it is zero for images without augmentation. So are a
    learned variance, which diffusers' DDIM cannot read, and the log-variance of the loss, which only training uses;
    both are reported.

    A model of latents becomes an `LDMPipeline`, whose vqvae/ is the autoencoder in the units of `fold_units`.

    Raises ValueError for a network that `UNet2DModel` cannot express, for a formulation other than DDPM, and, for a
    model of latents, for labels without `label` and for pictures that are not square.
    """
    net, formulation, text = model.net, ddpm_of(model), card(model, label)
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
    described = model if label is None else replace(model, classes=None, null_label=False, class_counts=None)
    pipeline: DiffusionPipeline
    if model.autoencoder is None:
        pipeline = DDPMPipeline(unet=unet.eval(), scheduler=scheduler)
    else:
        autoencoder = fold_units(model.autoencoder)
        described = replace(described, autoencoder=autoencoder, pixel_format=autoencoder.units)
        unclipped = DDIMScheduler.from_config(scheduler.config, clip_sample=False)
        pipeline = LDMPipeline(vqvae=autoencoder.net, unet=unet.eval(), scheduler=unclipped)
    pipeline.save_pretrained(folder)
    described.write_description(folder)
    (folder / "README.md").write_text(text, encoding="utf-8")


def ddpm_of(model: DiffusionModel) -> DDPM:
    """The formulation of a model that diffusers' DDPM and DDIM pipelines can run. Raises ValueError for others."""
    if not isinstance(model.formulation, DDPM):
        raise ValueError(
            f"objective.kind={describe_formulation(model.formulation)['kind']} cannot be exported, because diffusers' "
            "unconditional pipelines run ddpm models; draw with sample.py"
        )
    return model.formulation


def _check_latents(model: DiffusionModel, label: int | None) -> None:
    """Raises ValueError for a model of latents that diffusers' LDMPipeline cannot draw with."""
    if model.autoencoder is None:
        return
    if model.classes is not None and label is None:
        none = "" if model.null is None else ", or --label none"
        raise ValueError(
            f"this model of latents takes labels ({amount(len(model.classes), 'class')}), which diffusers' LDMPipeline "
            f"cannot pass on; export one class by --label CLASS{none}"
        )
    _, height, width = model.output_shape
    if height != width:
        raise ValueError(
            f"this model of latents draws pictures of {height}x{width} px, but diffusers' LDMPipeline draws squares; "
            "draw with sample.py"
        )


def card(model: DiffusionModel, label: int | None, place: str = ".") -> str:
    """The model card: what the model is, and code that draws with it.

    `place` is the folder, or the name on the hub, that the code opens; ".": the current folder.

    Raises ValueError as `save_diffusers`, but for the network.
    """
    _check_latents(model, label)
    pixels, facts, steps = model.output_format, model.summary(), min(50, ddpm_of(model).timesteps)
    assert isinstance(pixels, PixelFormat), "export.py checks it"
    if model.classes is None or label is not None:
        name = "" if label is None or label == model.null else (model.names([label]) or [""])[0]
        usage = f"{facts} It draws only this class: {markdown(name)}." if name else facts
        usage += "" if model.autoencoder is None else OF_LATENTS
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
    if model.autoencoder is not None:
        options = {name: value for name, value in options.items() if name != "thresholding"}  # latents have no range
    settings = ", ".join(f"{name}={value!r}" for name, value in options.items())
    faster = f"diffusers.{scheduler}.from_config(scheduler.config, {settings})"
    where = 'Run this in this folder, or put the folder\'s path, or its name on the hub, in the place of `"."`:\n\n'
    return CARD.format(
        usage=usage, where=where if place == "." else "", code=code, faster=faster, sampler=FEW_STEPS,
        pipeline="a `DDPMPipeline`" if model.autoencoder is None else "an `LDMPipeline`",
    )  # fmt: skip


def _are_bytes(model: DiffusionModel) -> bool:
    """Whether sample.py writes its images as diffusers' pipelines do."""
    return are_saved_as_bytes(model.output_shape[0], model.output_format)


def _pipeline_code(model: DiffusionModel, steps: int, place: str) -> str:
    """Code that draws with a pipeline of diffusers and writes the images as sample.py does."""
    pixels = model.output_format
    assert isinstance(pixels, PixelFormat), "export.py checks it"
    kind, comment = "LDMPipeline", ""
    if model.autoencoder is None:
        kind = "DDIMPipeline"
        comment = f"  # or DDPMPipeline, with num_inference_steps={ddpm_of(model).timesteps}"
    given = {"place": place, "steps": steps, "kind": kind, "comment": comment}
    if _are_bytes(model):
        return PIPELINE_CODE.format(imports="", output="", save='image.save(f"{k:06d}.png")', **given)
    values = f"{pixels.low} + {pixels.high - pixels.low} * image.transpose(2, 0, 1)  # (channel, height, width)"
    rounded = ".round()" if pixels.dtype.startswith(("int", "uint")) else ""
    save, imports = 'np.save(f"{k:06d}.npy", values)', "import numpy as np\n"
    if pixels.file == "png":
        save, imports = 'Image.fromarray(values[0]).save(f"{k:06d}.png")', "from PIL import Image\n"
    lines = (f"values = {values}", f'values = values{rounded}.astype("{pixels.dtype}")', save)
    return PIPELINE_CODE.format(
        imports=imports, output=', output_type="np"', save="\n    ".join(lines), **given
    )  # fmt: skip


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

in the place of the `scheduler` of the loop, or of {pipeline}. That is `sample.py --sampler {sampler}`.
"""

OF_LATENTS = """

It draws latents, which an `AutoencoderKL` decodes. diffusers warns that `LDMPipeline` expects a `VQModel`, which has no
effect on the pictures."""

PIPELINE_CODE = """{imports}import torch
from diffusers import {kind}{comment}

pipeline = {kind}.from_pretrained({place})
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

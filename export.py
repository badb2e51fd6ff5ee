"""Write a trained diffusion model as a folder for another library.

python export.py RUN_OR_MODEL --to diffusers --out DIR
diffusers.DDPMPipeline.from_pretrained("DIR")
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from diffusion import DDPM, SCHEDULERS
from pipelines.diffusion import DiffusionModel, describe_formulation, load_model
from residual.names import require_known
from training.script import ScriptParser, command
from unet import UNet, diffusers_config

TARGETS = ("diffusers",)
FEW_STEPS = "dpmpp_2m"
"""the sampler that the card recommends where time is short"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = ScriptParser(prog="export.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    p.add_argument("model", metavar="RUN_OR_MODEL", help="run folder of train.py (its averaged model), or model folder")
    p.add_argument("--to", default="diffusers", help=f"the library: {', '.join(TARGETS)} (default: diffusers)")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
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
    if (
        args.out.exists()
        and not (args.out / "model_index.json").is_file()
        and (args.out.is_file() or any(args.out.iterdir()))
    ):
        raise ValueError(f"out={str(args.out)!r} is neither empty nor an earlier export; give another folder")
    model = load_model(args.model)
    label = None if args.label is None else model.label(args.label)
    save_diffusers(model, args.out, label)
    print(f"model: {args.out} (how to draw with it: {args.out / 'README.md'})")


def save_diffusers(model: DiffusionModel, folder: Path, label: int | None = None) -> None:
    """Writes a pipeline folder of diffusers: unet/, scheduler/, model_index.json and a card with instructions.

    With `label` the exported network takes no labels and always draws that class (or the null label): the class's
    embedding is added to the output of the time embedding's last layer, so it becomes part of that layer's bias. The
    augmentation label (`augment.non_leaky`) is left out, because it is zero for images without augmentation.

    Raises ValueError for a network that `UNet2DModel` cannot express, and for a formulation other than DDPM.
    """
    net, formulation = model.net, ddpm_of(model)
    if not isinstance(net, UNet):
        raise ValueError(f"diffusers' UNet2DModel cannot express a {type(net).__name__}; export a model of kind unet")
    if net.config.augment_channels is not None:
        net = UNet(replace(net.config, augment_channels=None))
        net.load_state_dict({k: v for k, v in model.net.state_dict().items() if k != "embedding.augment.weight"})
    config, state = net.config, net.export_weights("diffusers")
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
    formulation = ddpm_of(model)
    steps = min(50, formulation.timesteps)
    seen = "" if model.images_seen is None else f" after {model.images_seen:,} training images"
    facts = (
        f"A denoising diffusion model of {height}x{width} images with {channels} "
        f"channel{'s' if channels > 1 else ''}{seen}; {formulation.schedule} schedule, "
        f"{formulation.timesteps} timesteps, {formulation.prediction} prediction."
    )
    if model.classes is None or label is not None:
        name = "" if label is None or label == model.null else (model.names([label]) or [""])[0]
        only = f" It draws only this class: {name}." if name else ""
        usage, code = f"{facts}{only}", PIPELINE_CODE.format(steps=steps, timesteps=formulation.timesteps)
    else:
        listed = "\n".join(f"- {number}: {name}" for number, name in enumerate(model.classes))
        null = "" if model.null is None else f"\n- {model.null}: no label"
        usage = (
            f"{facts} It takes a class as label, which diffusers' pipelines cannot pass on; the loop below does.\n\n"
            f"Labels:\n\n{listed}{null}"
        )
        code = LOOP_CODE.format(classes=len(model.classes), shape=model.shape, steps=steps)
    scheduler, options = SCHEDULERS[FEW_STEPS]
    settings = ", ".join(f"{name}={value!r}" for name, value in options.items())
    faster = f"diffusers.{scheduler.__name__}.from_config(scheduler.config, {settings})"
    return CARD.format(usage=usage, code=code, faster=faster, sampler=FEW_STEPS)


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

PIPELINE_CODE = """import torch
from diffusers import DDIMPipeline  # or DDPMPipeline, with num_inference_steps={timesteps}

pipeline = DDIMPipeline.from_pretrained(".")
generators = [torch.Generator().manual_seed(k) for k in range(4)]
images = pipeline(batch_size=4, generator=generators, num_inference_steps={steps}).images
for k, image in enumerate(images):
    image.save(f"{{k:06d}}.png")
"""

LOOP_CODE = """import torch
from diffusers import DDIMScheduler, UNet2DModel

unet = UNet2DModel.from_pretrained(".", subfolder="unet").eval()
scheduler = DDIMScheduler.from_pretrained(".", subfolder="scheduler")
scheduler.set_timesteps({steps})
label = torch.arange({classes})  # one image of each class
x = torch.stack([torch.randn({shape}, generator=torch.Generator().manual_seed(k)) for k in range(len(label))])
for t in scheduler.timesteps:
    with torch.no_grad():
        x = scheduler.step(unet(x, t, label).sample, t, x).prev_sample
images = (x / 2 + 0.5).clamp(0, 1)  # (image, channel, height, width), from 0 to 1
"""


if __name__ == "__main__":
    main()

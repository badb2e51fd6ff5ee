"""The model card of a diffusion model: what it draws, and code that draws with it."""

import json
import shlex
from collections.abc import Sequence

from diffusion import DDPM, Formulation
from pictures.files import are_saved_as_bytes
from pictures.units import AnyFormat
from pipelines.formulation import describe_formulation
from pipelines.inputs import Inputs
from residual.names import amount, shorten
from storage.show import markdown, printable


def model_card(
    repo_id: str,
    formulation: Formulation,
    shape: tuple[int, int, int],
    pixel_format: AnyFormat,
    inputs: Inputs | None,
    about: str,
    labels: str | None,
    steps: int,
) -> str:
    """The README.md of a model folder, as Markdown, with `about` and `labels` as `summary` and `list_labels` return
    them. Its code draws in `steps` steps, or in as many as the formulation has at most."""
    most = formulation.timesteps if isinstance(formulation, DDPM) else steps
    inputs = inputs or Inputs()
    needed = {"image": inputs.channels, "vector": inputs.numbers}
    option = "".join(f", {name}={name}" for name, value in needed.items() if value)
    flag = " --condition FILES" if inputs.channels else ""
    return CARD.format(
        title=markdown(repo_id.rpartition("/")[2]),
        kind=describe_formulation(formulation)["kind"],
        about=about,
        labels="" if labels is None else f"\nLabels:\n\n{labels}\n",
        repo_id=json.dumps(repo_id),
        command=shlex.quote(printable(repo_id)),
        shape=(4, *shape),
        unit="in [-1, 1]" if pixel_format.limit == 1 else "standardised",
        option=option if most >= steps else f"{option}, steps={most}",
        flag=flag if most >= steps else f"{flag} --steps {most}",
    )


def summary(
    formulation: Formulation,
    shape: tuple[int, int, int],
    pixel_format: AnyFormat,
    inputs: Inputs | None,
    images_seen: int | None,
) -> str:
    """A few words on the images (`shape`: channels, height, width in pixels), the training and the formulation, as one
    line of Markdown."""
    channels, height, width = shape
    seen = "" if images_seen is None else f" after {images_seen:,} training images"
    of = f"images of {height}x{width} px with {amount(channels, 'channel')}"
    text = f"A denoising diffusion model of {of}{seen}; "
    match formulation:
        case DDPM(schedule=schedule, timesteps=timesteps, prediction=prediction):
            text += f"{schedule} schedule, {timesteps} timesteps, {prediction} prediction."
        case other:
            text += f"its formulation is {describe_formulation(other)['kind']}."
    if not are_saved_as_bytes(channels, pixel_format):
        text += f" Its values are {pixel_format.about}."
    if inputs is not None and inputs.channels:
        text += f" It takes a condition of {amount(inputs.channels, 'channel')} for each image (image)."
    if inputs is not None and inputs.numbers is not None:
        text += f" It takes numbers of each image (vector): {markdown(shorten(inputs.numbers.names))}."
    return text


def list_labels(classes: Sequence[str], null: int | None) -> str:
    """The labels and the names of their classes, and the label that means “no label”, as a list in Markdown."""
    rows = [f"- {number}: {markdown(name)}" for number, name in enumerate(classes)]
    return "\n".join(rows if null is None else [*rows, f"- {null}: no label"])


CARD = """---
library_name: residual-diffusion
tags:
- residual-diffusion
- diffusion
- {kind}
# license: name yours here, such as apache-2.0
---

# {title}

{about}
{labels}
```python
from pipelines.diffusion_folder import load_model

model = load_model({repo_id})
images = model.draw(range(4), model.cycle(range(4)){option})  # {shape} {unit}; classes in turn
values = model.pixel_format.from_unit(images)  # a numpy array in the values of the training data
```

On the command line, `python sample.py {command} --num 64{flag}` draws files, and
`python train.py --init {command}` starts a training from these weights.
"""

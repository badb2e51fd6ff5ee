"""What `export.py` does with its options: converts a model and writes a folder, or uploads it."""

import argparse
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from exporting.diffusers_folder import card, save_diffusers
from exporting.options import DIFFUSERS, SPACE
from pipelines import graphs, kinds
from pipelines.classification import ImageClassifier, load_classifier
from pipelines.diffusion import DESCRIPTION_FILE, DiffusionModel
from pipelines.diffusion_folder import VQVAE, load_model
from residual.weights.pretrained import upload
from storage.show import printable
from storage.write import expand_home
from tasks.card import check_licence, complete_card
from training.averages import Average, RunAverages, load_average
from training.disk_space import is_full
from training.output_folder import OutputFolder, weights_sha256
from training.progress import print_line
from training.script import VERSION, show_next
from web import space

Model = TypeVar("Model")
RECORD = "export.json"
WEIGHTS = "weights.safetensors"
GRAPHS = [f"{name}{suffix}" for name in ("network", "step") for suffix in graphs.SUFFIXES.values()]
NAMES = (
    "README.md",
    DESCRIPTION_FILE,
    "model_index.json",
    "scheduler",
    "unet",
    VQVAE,
    WEIGHTS,
    graphs.DESCRIPTION,
    *GRAPHS,
    *space.NAMES,
)
WEIGHTS_CARD = """# Weights under the names of {layout}

```python
from safetensors.torch import load_file

state = load_file("{file}")  # for `load_state_dict` of the network in {layout}
```
"""


def run(args: argparse.Namespace) -> None:
    """Converts and writes, or uploads. Raises ValueError for a model that does not go with the options."""
    check_licence(args.license)
    if args.push is not None:
        _push(args)
        return
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
    show_next(next_command(args, export.model))


def next_command(args: argparse.Namespace, model: kinds.Model) -> str | None:
    """The command that uses what was written or uploaded, quoted for a shell; None for programs of one's own."""
    place = args.push or shlex.quote(str(args.out))
    if args.to == SPACE:
        return f"hf upload OWNER/NAME {place} --repo-type space"
    if args.to not in (None, DIFFUSERS):
        return None
    if isinstance(model, ImageClassifier):
        return f"python evaluate.py {place} --data.source IMAGES --data.validation 0.5"
    return f"python sample.py {place} --num 64"


@dataclass(frozen=True)
class Export:
    """What is exported, and how it is written to a folder."""

    model: kinds.Model
    save: Callable[[Path], None]
    label: int | None = None


def _export(args: argparse.Namespace) -> Export:
    """The export to a folder. Raises ValueError for a model, a label or a package that does not go with the target."""
    if args.to in (None, DIFFUSERS):
        model, label = _for_diffusers(args)
        return Export(model, partial(save_diffusers, model, label=label), label)
    found = _any_model(args)
    if args.to == SPACE:
        space.require_gradio()
        return Export(found, partial(space.write_space, found))
    if args.to in graphs.SUFFIXES:
        graphs.check_graphs(found, args.to)
        return Export(found, partial(graphs.save_graphs, found, kind=args.to))
    weights = found.net.export_weights(args.to)  # type: ignore[operator]
    return Export(found, partial(save_weights, weights, layout=args.to))


def _any_model(args: argparse.Namespace) -> kinds.Model:
    return load_average(kinds.loader(args.model), args.model, _average(args))


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
    model: DiffusionModel | ImageClassifier
    if args.to is None:
        model = _load(args)
        model_card, save = _complete(args, model.model_card(args.push), model), model.save
    else:
        model, label = _for_diffusers(args)
        model_card = _complete(args, card(model, label, args.push), model)
        save = partial(save_diffusers, model, label=label)
    print_line(f"model: {upload(args.push, save, model_card, private=args.private)}")
    show_next(next_command(args, model))


def _complete(args: argparse.Namespace, text: str, model: kinds.Model) -> str:
    """A card with the licence, and with what is known of the run."""
    return complete_card(text, args.model, model.images_seen, args.license, is_main=args.ema is None)


def _load(args: argparse.Namespace) -> DiffusionModel | ImageClassifier:
    is_classifier = kinds.loader(args.model) is load_classifier
    load: Callable[..., DiffusionModel | ImageClassifier] = load_classifier if is_classifier else load_model
    model = _drawing(load_average(load, args.model, _average(args)))
    if isinstance(model, DiffusionModel) and model.autoencoder is not None:
        raise ValueError(
            "this model draws latents of an autoencoder, which the code of a model card does not decode; add --to "
            "diffusers, or give its folder, RUN/model, to sample.py"
        )
    return model


def _drawing(model: Model) -> Model:
    """The model, if others can use it alone. Raises ValueError for one that enlarges pictures, that needs more than a
    label, or whose values are standardised."""
    if isinstance(model, DiffusionModel) and model.upscale is not None:
        raise ValueError(
            f"this model enlarges pictures (upscale={model.upscale}), which diffusers and model cards do not support; "
            "give its folder, RUN/model, to sample.py --upscale"
        )
    if isinstance(model, DiffusionModel) and (model.inputs is not None or model.output_format.limit != 1):
        what = "draws standardised values" if model.inputs is None else "takes more than noise and a label"
        raise ValueError(
            f"this model {what}, which diffusers and model cards do not support; give its folder, RUN/model, to "
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

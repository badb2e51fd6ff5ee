"""Reads the trained network from which a diffusion run starts (`--init`), and adapts its weights.

A run folder or model folder of this project, a model or pipeline folder of diffusers, such a repository on the Hugging
Face hub, or a safetensors file with the names of another library.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from diffusion import FORMULATIONS, Formulation, differences
from pipelines.diffusion import Network
from pipelines.diffusion_folder import description_file, read_description, read_network
from pipelines.folder import model_folder
from pipelines.from_diffusers import average_beside, check_pipeline, formulation_of, has_learned_range
from residual.names import amount, rows_by_name
from residual.weights.keymap import check_state
from residual.weights.read import plain_names, read_weights
from unet import EDM2Config, UNetConfig
from unet.adapt import adapt_weights
from unet.layouts import likely_layouts
from unet.registry import network_class

WEIGHT_FILES = {".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}


def init_config(init: str) -> UNetConfig | EDM2Config | None:
    """The config of the network `init`, which gives the defaults of the section `model`.

    None for a file of weights, which holds no config. Raises ValueError if `init` cannot be opened.
    """
    if is_weights_file(init):
        return None
    try:
        folder = model_folder(init)
        return network_class(folder).read_config(folder)
    except ValueError as error:
        raise ValueError(f"init={init}: {error}") from None


def read_init(
    net: Network, init: str, layout: str | None, formulation: Formulation, classes: Sequence[str] | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of `init`, adapted to the channels and labels of `net`, and messages to print.

    `classes` are the names of the labels of `net`. Labels keep their rows by name, or by number if one of the networks
    has no names.

    Raises ValueError if `init` cannot be opened, if the networks differ in more than `adapt_weights` can bridge, or if
    the network was trained under another formulation than that of the run.
    """
    try:
        if layout is not None and not is_weights_file(init):
            raise ValueError(f"init_layout={layout} is for files of weights; leave it out for a folder")
        if not is_weights_file(init) and description_file(model_folder(init)) is None:
            check_pipeline(model_folder(init))
        trained = None if is_weights_file(init) else _formulation_of(model_folder(init))
        if trained is not None:
            _check_formulation(trained, formulation)
        weights, note, messages = _read(net, init, layout, classes)
        check_state(weights, net.state_dict())
    except ValueError as error:
        raise ValueError(f"init={init}: {error}") from None
    if trained is None:
        note += f"; its formulation is unknown, the run trains {formulation}"
    return weights, [f"init: {init}{note}", *(f"init: {line}" for line in messages)]


def _read(
    net: Network, init: str, layout: str | None, classes: Sequence[str] | None
) -> tuple[dict[str, Tensor], str, list[str]]:
    """The adapted weights, a note about their network, and messages."""
    if is_weights_file(init):
        state = read_weights(Path(init))
        weights, messages = net.convert_weights(state, layout or _layout_of(plain_names(state)[0]))
        return weights, "", messages
    folder = model_folder(init)
    trained, description = read_network(folder)
    if trained.config.learned_variance and net.config.learned_variance and not has_learned_range(folder):
        raise ValueError(
            "model.learned_variance=true interpolates between two bounds, but the network predicts the variance itself "
            "(variance_type=learned); give --model.learned_variance false, which drops it"
        )
    names = None if description is None else description[1]
    rows = rows_by_name(names, classes)
    weights, messages = adapt_weights(trained.state_dict(), trained.config, net.config, rows)
    messages += by_number(names, classes) if rows is None else []
    beside = average_beside(folder)
    return weights, _shape(trained.config), messages if beside is None else [beside, *messages]


def by_number(source: Sequence[str] | None, target: Sequence[str] | None) -> list[str]:
    """A message if classes with different names go by their numbers, which `rows_by_name` decides."""
    if source is None or target is None or tuple(source) == tuple(target):
        return []
    return ["classes go by number, because those of one of the two are only numbers"]


def is_weights_file(init: str) -> bool:
    """Whether `init` is, or should be, a file of weights, not a folder or a hub id."""
    return Path(init).is_file() or Path(init).suffix in WEIGHT_FILES


def _layout_of(state: Mapping[str, Tensor]) -> str | None:
    """The layout that the names fit; None if there is none. Raises ValueError for more than one, and for our own."""
    likely = likely_layouts(state)
    if len(likely) == 1:
        return likely[0]
    if likely:
        raise ValueError(
            f"its names fit {' and '.join(likely)}, which differ only in the order of rows; give --init_layout adm "
            "(improved-diffusion, and guided-diffusion but for its 64x64 model) or adm-new-order (that one)"
        )
    if "embedding.linear1.weight" in state or "embedding.noise.weight" in state:
        raise ValueError("its names are those of this project; give the model folder that holds the file")
    return None


def _check_formulation(trained: Formulation, formulation: Formulation) -> None:
    """Raises ValueError with the fields that differ, and the flags that make them equal."""
    if different := differences(trained, formulation, FORMULATIONS):
        rows = [
            f"objective.{name} is {pair[0]} in the source and {pair[1]} in this run" for name, pair in different.items()
        ]
        flags = " ".join(f"--objective.{name} {theirs}" for name, (theirs, _) in different.items())
        raise ValueError(f"it was trained under another formulation ({'; '.join(rows)}); give {flags}")


def _shape(config: UNetConfig | EDM2Config) -> str:
    height, width = config.size
    classes = amount(config.classes, "class") if config.classes else "no classes"
    return f", {config.in_channels} x {height} x {width}, {classes}"


def _formulation_of(folder: Path) -> Formulation | None:
    """The formulation of a model folder; None if it does not hold one."""
    path = description_file(folder)
    return formulation_of(folder) if path is None else read_description(path)[0]

"""Pictures and masks that are drawn on the page, as the files that `sample.py --from --mask` reads."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from PIL import Image

from pictures.decode import decode
from pictures.files import are_pictures, picture_bytes, save_image, to_picture
from pictures.preprocessing import Preprocessing
from pipelines.diffusion import DiffusionModel
from pipelines.diffusion_folder import load_model
from web.models import require_drawing

SHOWN_PX = 384
"""about the side of a picture on which a mask is drawn"""


def open_drawing(folder: str) -> DiffusionModel:
    """The model of a folder. Raises ValueError if there is none, and if it draws arrays."""
    model = load_model(require_drawing(folder))
    if model.autoencoder is not None:
        raise ValueError("this model draws latents of an autoencoder, on which the page draws no mask; use another")
    if not are_pictures(model.shape[0], model.pixel_format):
        raise ValueError("this model draws arrays, on which the page draws no mask; use sample.py --from --mask")
    return model


def fit(model: DiffusionModel, file: Path) -> tuple[Shaped[np.ndarray, "c h w"], str]:
    """A picture, scaled and cropped to the size and channels of the model, and a line about it.

    Raises ValueError for a file that is no picture, and for one whose pixels have no agreed range.
    """
    channels, height, width = model.shape
    preprocessing = Preprocessing(channels=channels, bits=16 if model.pixel_format.dtype == "uint16" else 8)
    found = read_picture(file, preprocessing)
    fitted = read_picture(file, replace(preprocessing, size=(height, width)))
    if found.shape == fitted.shape:
        return fitted, f"the picture has the {height}×{width} px of the model"
    own = f"{found.shape[1]}×{found.shape[2]} px"
    return fitted, f"the picture of {own} was scaled and cropped to the {height}×{width} px of the model"


def read_picture(file: Path, preprocessing: Preprocessing) -> Shaped[np.ndarray, "c h w"]:
    """The pixels of an uploaded file. Raises ValueError, which names it, if it cannot be read."""
    try:
        return decode(file, preprocessing)
    except ValueError as error:
        raise ValueError(f"{file.name} cannot be read as a picture: {error}") from None


def shown(values: Shaped[np.ndarray, "c h w"]) -> Image.Image:
    """A picture in colours, enlarged to about `SHOWN_PX` without smoothing."""
    picture = to_picture(picture_bytes(values)).convert("RGB")
    scale = max(1, round(SHOWN_PX / max(picture.size)))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def painted(layer: Image.Image, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels of an image of this height and width of which a layer covers half or more."""
    cover = layer.convert("RGBA").getchannel("A").resize(size[::-1], Image.Resampling.BOX)
    return np.asarray(cover) >= 128


def write_inputs(
    folder: Path, model: DiffusionModel, values: Shaped[np.ndarray, "c h w"], mask: Bool[np.ndarray, "h w"]
) -> dict[str, str]:
    """Writes a picture and a mask into a folder. Returns the options of sample.py that name them."""
    picture, drawn = folder / "picture.png", folder / "mask.png"
    save_image(model.pixel_format.to_unit(torch.from_numpy(values[None].copy()))[0], model.pixel_format, picture)
    Image.fromarray(mask.astype(np.uint8) * 255).save(drawn)
    return {"from": str(picture), "mask": str(drawn)}

"""Data: images from a source, cached or streamed, read by position."""

from pictures.pixel_format import PixelFormat
from pictures.preprocessing import Preprocessing
from training.data.config import DataConfig
from training.data.images import Images
from training.data.open import open_as_trained, open_images, open_validation
from training.data.order import image_index
from training.data.originals import DataLost
from training.data.reader import BatchReader
from training.data.stream import ImageSet, StreamedImages

__all__ = [
    "BatchReader",
    "DataConfig",
    "DataLost",
    "ImageSet",
    "Images",
    "PixelFormat",
    "Preprocessing",
    "StreamedImages",
    "image_index",
    "open_as_trained",
    "open_images",
    "open_validation",
]

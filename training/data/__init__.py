"""Data: a source of images, decoded once into a cache or as needed, handed out by position, augmented on the device."""

from training.data.augment import augment
from training.data.cache.open import open_images, open_validation
from training.data.config import DataConfig
from training.data.images import Images
from training.data.nonleaky import non_leaky
from training.data.order import image_index
from training.data.pixel_format import PixelFormat
from training.data.reader import BatchReader
from training.data.stream.stream import ImageSet, StreamedImages

__all__ = [
    "BatchReader",
    "DataConfig",
    "ImageSet",
    "Images",
    "PixelFormat",
    "StreamedImages",
    "augment",
    "image_index",
    "non_leaky",
    "open_images",
    "open_validation",
]

"""Data: a source of images, decoded once into a cache or as needed, handed out by position."""

from training.data.cache import open_images, open_validation
from training.data.config import DataConfig
from training.data.feed import Feed
from training.data.images import Images
from training.data.order import image_index
from training.data.pixels import Pixels
from training.data.stream import ImageSet, StreamedImages

__all__ = [
    "DataConfig",
    "Feed",
    "ImageSet",
    "Images",
    "Pixels",
    "StreamedImages",
    "image_index",
    "open_images",
    "open_validation",
]

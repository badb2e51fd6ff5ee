"""Names of the layouts of networks in other libraries. Needs no PyTorch, so that a command line shows them at once."""

from typing import Literal

ResNetLayoutName = Literal["torchvision", "timm", "akamaster", "kuangliu", "chenyaofo", "transformers"]
DenseNetLayoutName = Literal["torchvision", "timm"]
EDSR_LAYOUT = "edsr-pytorch"

"""Names of the layouts of U-Nets in other libraries. Needs no PyTorch, so that a command line shows them at once."""

from typing import Literal

UNetLayoutName = Literal["diffusers", "adm", "adm-new-order", "edm"]
EDM2LayoutName = Literal["edm2"]

"""The diffusion U-Net: an encoder, a middle, a decoder that takes the encoder's outputs back, and a head."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from residual import (
    Add,
    AveragePool,
    Chain,
    FIRDown,
    FIRDownConv,
    FIRUp,
    Nearest,
    NearestConv,
    NormAct,
    Residual,
    SelfAttention,
    SinusoidalEmbedding,
    StridedConv,
    ZeroConv2d,
    attention_branch,
    unet_branch,
    unet_shortcut,
)
from residual.block import PaddedConv2d, extend, set_borders
from residual.recompute import Recomputed
from residual.weights.note import note
from residual.weights.pretrained import build_on_meta, local_folder
from residual.weights.read import plain_names, read_folder_weights
from unet.config import Block, Level, Resample, UNetConfig, check_size
from unet.embedding import DivideByTime, Embedding, LogVariance, check_images, label_per_image, per_image
from unet.layouts import UNET_LAYOUTS, diffusers, import_weights
from unet.network import Network


@dataclass(frozen=True)
class Resampling:
    """The parts of one way to halve and double the size."""

    down: Callable[..., nn.Module]
    up: Callable[..., nn.Module]
    in_block: bool
    """whether the parts stand in a residual block, on both paths; otherwise they are convolutions on their own"""
    project: bool = False
    """whether the shortcut of that block has a 1×1 convolution"""


RESAMPLING: Mapping[Resample, Resampling] = {
    "conv": Resampling(StridedConv, NearestConv, in_block=False),
    "conv_same": Resampling(partial(StridedConv, padding="end"), NearestConv, in_block=False),
    "block": Resampling(AveragePool, Nearest, in_block=True),
    "block_project": Resampling(AveragePool, Nearest, in_block=True, project=True),
    "block_fir": Resampling(FIRDown, FIRUp, in_block=True, project=True),
}


class UNet(Network):
    """A U-Net of residual blocks that predicts from a noisy image and its timestep (Ho et al. 2020, appendix B).

    `encoder` and `decoder` are flat lists of chains; the decoder takes each of the encoder's outputs once.
    Raises ValueError if the levels cannot halve the config's size.
    """

    config_class = UNetConfig
    hub_tags = ("diffusion",)
    layouts = UNET_LAYOUTS
    later_fields = frozenset({"pyramid", "middle", "padding", "pad", "logvar_channels"})
    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        skeleton = config.skeleton
        check_size(config)
        self.stride = skeleton.stride
        """in pixels, of the lowest level"""
        first, last = skeleton.levels[0].channels, skeleton.levels[-1]
        self.embedding = Embedding(config)
        stem = Chain(conv=PaddedConv2d(config.in_channels, config.base_channels, kernel_size=3, padding=1))
        self.encoder = nn.ModuleList([stem, *(self._encoder_chain(block) for block in skeleton.encoder())])
        self.input_skips = nn.ModuleDict(self._input_skips())
        blocks = config.middle != "none"
        self.middle = level_chain(
            last,
            res1=self._residual(last.channels, last.channels) if blocks else None,
            attn=self._attention(last) if config.middle == "attention" else None,
            res2=self._residual(last.channels, last.channels) if blocks else None,
        )
        self.decoder = nn.ModuleList(self._decoder_chain(block) for block in skeleton.decoder())
        self.output_skips = nn.ModuleDict(self._output_skips() if config.pyramid else {})
        self.head = self._head(first)
        self.enlarge = FIRUp() if config.pyramid else None
        self.divide = DivideByTime() if config.time_embedding == "log_fourier" else None
        set_borders(self, config.padding)
        if config.init == "xavier":
            self.apply(_xavier)
        self.logvar = None if config.logvar_channels is None else _log_variance(config.logvar_channels)

    def forward(
        self,
        x: Float[Tensor, "b c_in h w"],
        t: Shaped[Tensor, "#b"] | Shaped[Tensor, ""] | float,
        label: Int[Tensor, "#b"] | Int[Tensor, ""] | int | None = None,
        *,
        emb: Float[Tensor, "b e"] | None = None,
        augment: Float[Tensor, "b a"] | None = None,
        return_logvar: bool = False,
    ) -> Float[Tensor, "b c_out h w"] | tuple[Float[Tensor, "b c_out h w"], Float[Tensor, "b"]]:
        """The network's output for noisy images `x` at timesteps `t` (0 … T - 1, whole or fractional; one or one each).

        `label` counts from 0 (one, or one each); without it the null label is used. `emb` is added to the embedding
        after the time MLP (`config.emb_channels` wide). `augment` is the augmentation label (`config.augment_channels`
        numbers). With learned variance the second half of the channels interpolates the variance. With `return_logvar`,
        the log-variance of the loss at `t` is returned too; so every parameter takes part in the forward pass, as
        training on several processes needs.

        Raises ValueError for images that are not floats (b, c, h, w) with `config.in_channels` channels, for a size
        that the levels cannot halve without `config.pad`, for a label if there are no classes, for a missing one
        without a null label, and for a log-variance without `config.logvar_channels`.
        """
        check_images(x, self.config.in_channels)
        height, width = x.shape[2:]
        if any(side == 0 or side % self.stride for side in (height, width)):
            x = self._continued(x)
        t, label = per_image(t, x), label_per_image(label, x)
        e = self.embedding(t, label, emb, augment)
        skips = self.encode(x, e)
        x, image = self.middle(skips[-1], e), None
        for i, block in enumerate(self.decoder):
            x = block(torch.cat([x, skips.pop()], dim=1), e)
            if str(i) in self.output_skips:
                x, image = self.output_skips[str(i)](x, image, e)
        x = self.head(x)
        if self.enlarge is not None and image is not None:
            x = x + self.enlarge(image)
        if x.shape[2:] != (height, width):
            top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
            x = x[:, :, top : top + height, left : left + width]
        output = x if self.divide is None else self.divide(x, t)
        if not return_logvar:
            return output
        if self.logvar is None:
            raise ValueError("this network has no log-variance (logvar_channels is not set); train one with it")
        return output, self.logvar(t)

    def _continued(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Images of the next size that the levels can halve. Raises ValueError without `config.pad`."""
        if reason := self.config.size_error(*x.shape[2:]):
            raise ValueError(reason)
        vertical, horizontal = map(self.config.margins, x.shape[2:])
        return extend(x, (*horizontal, *vertical), self.config.padding)

    def encode(self, x: Float[Tensor, "b c_in h w"], e: Float[Tensor, "b e"]) -> list[Tensor]:
        """The outputs of the encoder's entries. The decoder takes each of them once, in reverse order."""
        outputs, image = [], x
        for i, block in enumerate(self.encoder):
            x = block(x, e)
            if str(i) in self.input_skips:
                x, image = self.input_skips[str(i)](x, image)
            outputs.append(x)
        return outputs

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | Path) -> "UNet":
        """The network of a model folder, or of a repository on the Hugging Face hub, on the CPU and in eval mode.

        A folder of diffusers (a `UNet2DModel` or a pipeline around one) is also read. Raises ValueError if there is no
        such folder, if its config cannot be expressed, or if the weights do not fit.
        """
        folder = local_folder(folder_or_hub_id)
        if (network := diffusers.find_network(folder)) is None:
            return super().from_pretrained(folder)
        config = diffusers.read_network_config(network)
        net = build_on_meta(cls, config, network / "config.json")
        state, messages = plain_names(read_folder_weights(network, diffusers.WEIGHTS_STEM))
        try:
            weights = import_weights(config, state, net.state_dict(), "diffusers")
        except ValueError as error:
            raise ValueError(f"{network / diffusers.WEIGHTS_STEM}.safetensors: {error}") from None
        for message in messages:
            note(f"{network}: {message}")
        net.load_state_dict(weights, assign=True)
        return net.requires_grad_(True).eval()

    @classmethod
    def read_config(cls, folder: Path) -> UNetConfig:
        """The config of a folder that `from_pretrained` opens. Raises ValueError as `from_pretrained` does."""
        network = diffusers.find_network(folder)
        return super().read_config(folder) if network is None else diffusers.read_network_config(network)

    @property
    def _norm(self) -> partial[NormAct]:
        config = self.config
        return partial(NormAct, groups=config.groups, group_channels=config.group_channels, eps=config.eps)

    def _residual(
        self, c_in: int, c_out: int, resample: Callable[[], nn.Module] | None = None, project: bool = False
    ) -> Residual:
        config, make = self.config, (lambda: None) if resample is None else resample
        branch = unet_branch(
            c_in,
            c_out,
            config.emb_channels,
            conditioning=config.conditioning,
            norm=self._norm,
            resample=make(),
            dropout=config.dropout,
        )
        return Residual(branch, unet_shortcut(c_in, c_out, make(), project), self._merge())

    def _attention(self, level: Level) -> Residual:
        branch = attention_branch(level.channels, SelfAttention(level.channels, level.heads), self._norm)
        return Residual(branch, merge=self._merge())

    def _merge(self) -> Add:
        return Add(scale=self.config.residual_scale, branch_scale=self.config.residual_scale)

    def _encoder_chain(self, block: Block) -> Chain:
        if block.resample is None:
            return level_chain(block.level, **self._block_nodes(block))
        kind = RESAMPLING[block.resample]
        return level_chain(block.level, down=self._resample(block.c_out, kind.down, kind))

    def _decoder_chain(self, block: Block) -> Chain:
        nodes = self._block_nodes(block)
        if block.resample is not None and not self.config.pyramid:
            nodes["up"] = self._up(block.c_out, block.resample)
        return level_chain(block.level, **nodes)

    def _up(self, c: int, resample: Resample) -> nn.Module:
        kind = RESAMPLING[resample]
        return self._resample(c, kind.up, kind)

    def _head(self, c: int) -> Chain:
        c_out = self.config.out_channels * (1 + self.config.learned_variance)
        return Chain(norm=self._norm(c), conv=ZeroConv2d(c, c_out, kernel_size=3, padding=1))

    def _resample(self, c: int, part: Callable[..., nn.Module], kind: Resampling) -> nn.Module:
        return self._residual(c, c, part, kind.project) if kind.in_block else part(c, c)

    def _block_nodes(self, block: Block) -> dict[str, nn.Module | None]:
        return {
            "res": self._residual(block.c_in, block.c_out),
            "attn": self._attention(block.level) if block.attention else None,
        }

    def _input_skips(self) -> dict[str, nn.Module]:
        width, skips = self.config.in_channels, dict[str, nn.Module]()
        for i, block in enumerate(self.config.skeleton.encoder(), start=1):
            if block.resample is not None and self.config.pyramid:
                skips[str(i)] = ImageInput(width, block.c_out)
            elif block.resample is not None and self.config.input_skips:
                skips[str(i)] = InputSkip(FIRDownConv(width, block.c_out), self._merge())
                width = block.c_out
        return skips

    def _output_skips(self) -> dict[str, nn.Module]:
        return {
            str(i): ImageOutput(self._head(block.c_out), level_chain(block.level, up=self._up(block.c_out, resample)))
            for i, block in enumerate(self.config.skeleton.decoder())
            if (resample := block.resample) is not None
        }


class InputSkip(nn.Module):
    """Adds the downsampled and convolved input, or the output of the skip above, to the encoder's output (NCSN++)."""

    def __init__(self, branch: nn.Module, merge: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.merge = merge

    def forward(
        self, x: Float[Tensor, "b c h w"], image: Float[Tensor, "b c2 h2 w2"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """The sum, twice: the encoder's output, and the input of the skip below."""
        x = self.merge(x, self.branch(image))
        return x, x


class ImageInput(nn.Module):
    """Halves the image, and adds it to the encoder's output through a 1×1 convolution (NCSN++, `input_skip`)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.down = FIRDown()
        self.conv = nn.Conv2d(c_in, c_out, kernel_size=1)

    def forward(
        self, x: Float[Tensor, "b c h w"], image: Float[Tensor, "b c2 h2 w2"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c2 h w"]]:
        """The encoder's output with the image, and the image at this size."""
        image = self.down(image)
        return x + self.conv(image), image


class ImageOutput(nn.Module):
    """The end of a level of the decoder: adds an image to the doubled one from below (NCSN++, `output_skip`).

    `head` makes the image of the level, `grow` doubles the size of the decoder's output.
    """

    def __init__(self, head: nn.Module, grow: nn.Module) -> None:
        super().__init__()
        self.enlarge = FIRUp()
        self.head = head
        self.grow = grow

    def forward(
        self, x: Float[Tensor, "b c h w"], image: Float[Tensor, "b c2 h2 w2"] | None, emb: Float[Tensor, "b e"]
    ) -> tuple[Float[Tensor, "b c h3 w3"], Float[Tensor, "b c2 h w"]]:
        """The decoder's output at twice the size, and the image at the present size."""
        added = self.head(x)
        return self.grow(x, emb), added if image is None else self.enlarge(image) + added


def level_chain(level: Level, **nodes: nn.Module | None) -> Chain:
    """A chain of the nodes, whose activations are recomputed in the backward pass if `level.recompute`."""
    return (Recomputed if level.recompute else Chain)(**nodes)


def _log_variance(channels: int) -> LogVariance:
    """A head whose log-variance is zero at first, so that the loss is the plain one. Times may be whole timesteps."""
    linear = nn.Linear(channels, 1, bias=False)
    nn.init.zeros_(linear.weight)
    return LogVariance(SinusoidalEmbedding(channels), linear)


def _xavier(module: nn.Module) -> None:
    """Variance 2 / (fan in + fan out), uniform, as in the original DDPM; layers that start at zero stay at zero."""
    if isinstance(module, (nn.Conv2d, nn.Linear)) and not isinstance(module, ZeroConv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

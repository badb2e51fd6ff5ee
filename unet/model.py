"""The diffusion U-Net: an encoder, a middle, a decoder that takes the encoder's outputs back, and a head."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

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
    StridedConv,
    ZeroConv2d,
    attention_branch,
    unet_branch,
    unet_shortcut,
)
from residual.recompute import Recomputed
from residual.weights.config import read_json
from residual.weights.pretrained import Pretrained, build_on_meta, local_folder, read_weights
from unet.config import Block, Level, UNetConfig, decoder_blocks, encoder_blocks
from unet.embedding import DivideByTime, Embedding
from unet.layouts import export_weights, import_weights
from unet.layouts.diffusers import config_from


class UNet(Pretrained):
    """A U-Net of residual blocks that predicts from a noisy image and its timestep (Ho et al. 2020, appendix B).

    `encoder` and `decoder` are flat lists of chains; each of the encoder's outputs is taken once by the decoder.
    Raises ValueError if the levels cannot halve the config's size.
    """

    config_class = UNetConfig
    hub_tags = ("diffusion",)

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        if reason := config.size_error(*config.size):
            raise ValueError(f"size={config.size}: {reason}")
        self.stride = 2 ** (config.depth - 1)
        """in pixels, of the lowest level"""
        first, last = config.levels[0], config.levels[-1]
        self.embedding = Embedding(config)
        stem = Chain(conv=nn.Conv2d(config.in_channels, config.base_channels, kernel_size=3, padding=1))
        self.encoder = nn.ModuleList([stem, *(self._encoder_chain(block) for block in encoder_blocks(config))])
        self.input_skips = nn.ModuleDict(self._input_skips() if config.input_skips else {})
        self.middle = level_chain(
            last,
            {
                "res1": self._residual(last.channels, last.channels),
                "attn": self._attention(last),
                "res2": self._residual(last.channels, last.channels),
            },
        )
        self.decoder = nn.ModuleList(self._decoder_chain(block) for block in decoder_blocks(config))
        self.head = Chain(
            norm=self._norm(first.channels),
            conv=ZeroConv2d(
                first.channels, config.out_channels * (1 + config.learned_variance), kernel_size=3, padding=1
            ),
            divide=DivideByTime() if config.time_embedding == "log_fourier" else None,
        )
        if config.init == "xavier":
            self.apply(_xavier)

    def forward(
        self,
        x: Float[Tensor, "b c_in h w"],
        t: Shaped[Tensor, "b"],
        label: Int[Tensor, "b"] | None = None,
        *,
        emb: Float[Tensor, "b e"] | None = None,
        augment: Float[Tensor, "b a"] | None = None,
    ) -> Float[Tensor, "b c_out h w"]:
        """The network's output for noisy images `x` at timesteps `t` (0 … T - 1, whole or fractional).

        `label` counts from 0; without it the null label is used. `emb` is added to the embedding after the time MLP
        (`config.emb_channels` wide); `augment` describes how each image was augmented (`config.augment_channels`
        numbers). With learned variance the second half of the channels interpolates the variance.

        Raises ValueError for a size that the levels cannot halve, and for a label where there are no classes or a
        missing one where there is no null label.
        """
        if any(side == 0 or side % self.stride for side in x.shape[2:]):
            raise ValueError(self.config.size_error(*x.shape[2:]))
        e = self.embedding(t, label, emb, augment)
        skips = self.encode(x, e)
        x = self.middle(skips[-1], e)
        for block in self.decoder:
            x = block(torch.cat([x, skips.pop()], dim=1), e)
        return self.head(x, t[:, None].to(x.dtype))

    def encode(self, x: Float[Tensor, "b c_in h w"], e: Float[Tensor, "b e"]) -> list[Tensor]:
        """The outputs of the encoder's entries, each of which the decoder takes back once."""
        outputs, image = [], x
        for i, block in enumerate(self.encoder):
            x = block(x, e)
            if str(i) in self.input_skips:
                x = image = self.input_skips[str(i)](x, image)
            outputs.append(x)
        return outputs

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | Path) -> "UNet":
        """The network of a model folder of ours, or of diffusers (a `UNet2DModel` or a pipeline around one), or of such
        a repository on the Hugging Face hub; on the CPU and in eval mode.

        Raises ValueError if there is none, if its config cannot be expressed, or if the weights do not fit.
        """
        folder = local_folder(folder_or_hub_id)
        if (place := _diffusers_folder(folder)) is None:
            return super().from_pretrained(folder)
        config, path = cls.read_config(folder), place / "diffusion_pytorch_model.safetensors"
        net = build_on_meta(cls, config, place / "config.json")
        _check_weights(path)
        theirs = read_weights(path)
        try:
            net.import_weights(theirs, "diffusers")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return net.eval()

    @classmethod
    def read_config(cls, folder: Path) -> UNetConfig:
        """The config of a folder that `from_pretrained` opens, without its weights. Raises ValueError as that does."""
        if (place := _diffusers_folder(folder)) is None:
            return super().read_config(folder)
        arguments = read_json(place / "config.json")
        if (name := arguments["_class_name"]) != "UNet2DModel":
            raise ValueError(f"{place / 'config.json'} describes a {name}; only UNet2DModel can be read")
        try:
            return config_from(arguments)
        except ValueError as error:
            raise ValueError(f"{place / 'config.json'}: {error}") from None

    def import_weights(self, state_dict: Mapping[str, Tensor] | str | Path, layout: str) -> None:
        """Take the weights of a state dict, or of a safetensors file of one, in another library's layout.

        Layouts: `diffusers`; `adm` (improved-diffusion, and guided-diffusion but for its 64x64 model);
        `adm-new-order` (that one); `edm`. Raises ValueError for an unknown layout, for names of another layout (the
        likely one is named), where that library's network cannot express this one, with the difference if names or
        shapes do not fit, and for a pickle.
        """
        ours = import_weights(self.config, state_dict, self.state_dict(), layout)
        self.load_state_dict(ours, assign=self.embedding.linear1.weight.is_meta)

    def export_weights(self, layout: str) -> dict[str, Tensor]:
        """The weights as a state dict in another library's layout: the exact inverse of `import_weights`.

        Raises ValueError for an unknown layout, and, with the reason, where that library's network cannot express this
        one.
        """
        return export_weights(self.config, self.state_dict(), layout)

    @property
    def _norm(self) -> partial[NormAct]:
        config = self.config
        return partial(NormAct, groups=config.groups, group_channels=config.group_channels, eps=config.eps)

    def _residual(
        self, c_in: int, c_out: int, resample: type[nn.Module] | None = None, project: bool = False
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
        level, c = self.config.levels[block.level], block.c_out
        if block.resample is None:
            nodes = self._block_nodes(block, level)
        elif block.resample.startswith("conv"):
            nodes = {"down": StridedConv(c, c, padding="end" if block.resample == "conv_same" else "both")}
        else:
            down, project = FIRDown if block.resample == "block_fir" else AveragePool, block.resample != "block"
            nodes = {"down": self._residual(c, c, down, project)}
        return level_chain(level, nodes)

    def _decoder_chain(self, block: Block) -> Chain:
        level, c = self.config.levels[block.level], block.c_out
        nodes = self._block_nodes(block, level)
        if block.resample is None:
            return level_chain(level, nodes)
        if block.resample.startswith("conv"):
            nodes["up"] = NearestConv(c, c)
        else:
            up, project = FIRUp if block.resample == "block_fir" else Nearest, block.resample != "block"
            nodes["up"] = self._residual(c, c, up, project)
        return level_chain(level, nodes)

    def _block_nodes(self, block: Block, level: Level) -> dict[str, nn.Module | None]:
        return {
            "res": self._residual(block.c_in, block.c_out),
            "attn": self._attention(level) if block.attention else None,
        }

    def _input_skips(self) -> dict[str, nn.Module]:
        width, skips = self.config.in_channels, dict[str, nn.Module]()
        for i, block in enumerate(encoder_blocks(self.config), start=1):
            if block.resample is not None:
                skips[str(i)] = InputSkip(FIRDownConv(width, block.c_out), self._merge())
                width = block.c_out
        return skips


class InputSkip(nn.Module):
    """The image, or what became of it at the level above, halved and convolved and added to the encoder's output."""

    def __init__(self, branch: nn.Module, merge: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.merge = merge

    def forward(self, x: Float[Tensor, "b c h w"], image: Float[Tensor, "b c2 h2 w2"]) -> Float[Tensor, "b c h w"]:
        return self.merge(x, self.branch(image))


def _diffusers_folder(folder: Path) -> Path | None:
    """Where, in a model or pipeline folder of diffusers, the files of the network are; None if it is another's."""
    for place in (folder, folder / "unet"):
        if (place / "config.json").is_file() and "_class_name" in read_json(place / "config.json"):
            return place
    return None


def _check_weights(path: Path) -> None:
    """Raises ValueError, with the way out, if diffusers saved its weights in a form that is not read here."""
    if path.is_file():
        return
    whole = "save it with diffusers: UNet2DModel.from_pretrained(FOLDER).save_pretrained(OTHER_FOLDER"
    if path.with_name(f"{path.name}.index.json").is_file():
        raise ValueError(f"{path.parent} holds its weights in several files; {whole}, max_shard_size='100GB')")
    if (variants := sorted(path.parent.glob(f"{path.stem}.*.safetensors"))) or path.with_suffix(".bin").is_file():
        found = f"only {variants[0].name}" if variants else f"only {path.stem}.bin, a pickle, which could run code"
        raise ValueError(f"{path.parent} holds {found}; {whole})")
    raise ValueError(f"no {path.name} in {path.parent}; if there is only a .bin (a pickle, not opened here), {whole})")


def level_chain(level: Level, nodes: Mapping[str, Any]) -> Chain:
    """The nodes as a chain, in the form that the level asks for."""
    return (Recomputed if level.recompute else Chain)(**nodes)


def _xavier(module: nn.Module) -> None:
    """Variance 2 / (fan in + fan out), uniform, as in the original DDPM; layers that start at zero keep their zeros."""
    if isinstance(module, (nn.Conv2d, nn.Linear)) and not isinstance(module, ZeroConv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

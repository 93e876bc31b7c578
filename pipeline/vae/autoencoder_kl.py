"""The autoencoder of the latent-diffusion family (Rombach et al. 2022), in all its variants.

Modules are named as in diffusers' AutoencoderKL, so that weights go both ways; the default (factor
8, 4 latent channels) has 83,653,863 parameters in 248 tensors. Inputs and outputs are in [-1, 1].
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pipeline.config import ModelConfig
from pipeline.errors import ModelError
from pipeline.vae.networks import Network, NetworkShape

EPSILON = 1e-6
"""Of the norms: diffusers' own, without which its weights would give other numbers."""
ACTIVATIONS = {"silu": nn.SiLU, "mish": nn.Mish, "gelu": nn.GELU, "relu": nn.ReLU}
MID = "mid"
WIDTHS = {
    4: (1, 2, 4),
    8: (1, 2, 4, 4),
    16: (1, 1, 2, 2, 4),
    32: (1, 1, 2, 2, 4, 4),
}
"""Channels of each level in units of the first's, by pixels per latent (the published models')."""
LATENT_CHANNELS = {4: 3, 8: 4, 16: 16, 32: 64}
"""Z of the published models, by pixels per latent."""


@dataclass(frozen=True)
class KlBlocks:
    """What the network is made of: each level has its width, and halves the image but the last.

    `attention`: `mid`, and `downN` or `upN` for the blocks N of encoder and decoder, from 0.
    """

    widths: tuple[int, ...] = (128, 256, 512, 512)
    latent_channels: int = 4
    layers: int = 2
    groups: int = 32
    activation: Literal["silu", "mish", "gelu", "relu"] = "silu"
    attention: tuple[str, ...] = (MID,)
    quant_conv: bool = True
    post_quant_conv: bool = True

    @property
    def factor(self) -> int:
        """Pixels per latent in each direction."""
        return 1 << (len(self.widths) - 1)

    def norm(self, channels: int) -> nn.GroupNorm:
        """Each norm of the network."""
        return nn.GroupNorm(self.groups, channels, eps=EPSILON)


def blocks_of(model: ModelConfig) -> KlBlocks:
    """The blocks that a config asks for."""
    factor, width = model.factor or 8, model.width or 128
    widths = model.widths or tuple(width * times for times in WIDTHS[factor])
    latent_channels = model.latent_channels or LATENT_CHANNELS.get(2 ** (len(widths) - 1), 4)
    convs = model.quant_convs or "both"
    return KlBlocks(
        widths=widths,
        latent_channels=latent_channels,
        layers=model.layers or 2,
        groups=model.groups or 32,
        activation=model.activation or "silu",
        attention=(MID,) if model.attention is None else model.attention,
        quant_conv=convs in ("both", "quant"),
        post_quant_conv=convs in ("both", "post_quant"),
    )


class ResnetBlock(nn.Module):
    """Two norm-activation-convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, blocks: KlBlocks) -> None:
        super().__init__()
        self.norm1 = blocks.norm(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = blocks.norm(after)
        self.nonlinearity = ACTIVATIONS[blocks.activation]()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(before, after, 1) if before != after else None

    def forward(self, features: Tensor) -> Tensor:
        """[B, before, H, W] to [B, after, H, W]."""
        inner = self.conv1(self.nonlinearity(self.norm1(features)))
        inner = self.conv2(self.nonlinearity(self.norm2(inner)))
        shortcut = features if self.conv_shortcut is None else self.conv_shortcut(features)
        return shortcut + inner  # type: ignore[no-any-return]


class Attention(nn.Module):
    """One head over all positions of the grid."""

    def __init__(self, channels: int, blocks: KlBlocks) -> None:
        super().__init__()
        self.group_norm = blocks.norm(channels)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        tokens = self.group_norm(features).flatten(2).mT
        query, key, value = (
            project(tokens).unsqueeze(1) for project in (self.to_q, self.to_k, self.to_v)
        )
        mixed = F.scaled_dot_product_attention(query, key, value).squeeze(1)
        out: Tensor = self.to_out[0](mixed)
        return features + out.mT.reshape(features.shape)


class MidBlock(nn.Module):
    """Resnet, attention if any, resnet at the smallest grid."""

    def __init__(self, channels: int, blocks: KlBlocks) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, blocks) for _ in range(2)])
        some = [Attention(channels, blocks)] if MID in blocks.attention else []
        self.attentions = nn.ModuleList(some)

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        features = self.resnets[0](features)
        for attention in self.attentions:
            features = attention(features)
        return self.resnets[1](features)  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Halves the grid; pads right and below only, as the published weights expect."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, H/2, W/2]."""
        return self.conv(F.pad(features, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Doubles the grid: nearest, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, 2H, 2W]."""
        return self.conv(F.interpolate(features, scale_factor=2.0))  # type: ignore[no-any-return]


class Level(nn.Module):
    """Resnets at one size, each followed by attention where the level has it."""

    def __init__(self, before: int, after: int, count: int, place: str, blocks: KlBlocks) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [ResnetBlock(before if i == 0 else after, after, blocks) for i in range(count)]
        )
        # A name only where there is something: the weights' names are diffusers'.
        if place in blocks.attention:
            self.attentions = nn.ModuleList([Attention(after, blocks) for _ in range(count)])

    def at_one_size(self, features: Tensor) -> Tensor:
        """[B, before, H, W] to [B, after, H, W]."""
        attentions = getattr(self, "attentions", None)
        for number, resnet in enumerate(self.resnets):
            features = resnet(features)
            if attentions is not None:
                features = attentions[number](features)
        return features


class DownBlock(Level):
    """A level of the encoder, then a halving but for the last."""

    def __init__(self, number: int, before: int, blocks: KlBlocks) -> None:
        after = blocks.widths[number]
        super().__init__(before, after, blocks.layers, f"down{number}", blocks)
        halves = number < len(blocks.widths) - 1
        self.downsamplers = nn.ModuleList([Downsample(after)]) if halves else None

    def forward(self, features: Tensor) -> Tensor:
        """To the next level's size."""
        features = self.at_one_size(features)
        return features if self.downsamplers is None else self.downsamplers[0](features)


class UpBlock(Level):
    """A level of the decoder, the smallest first, then a doubling but for the last."""

    def __init__(self, number: int, before: int, blocks: KlBlocks) -> None:
        after = blocks.widths[::-1][number]
        super().__init__(before, after, blocks.layers + 1, f"up{number}", blocks)
        doubles = number < len(blocks.widths) - 1
        self.upsamplers = nn.ModuleList([Upsample(after)]) if doubles else None

    def forward(self, features: Tensor) -> Tensor:
        """To the next level's size."""
        features = self.at_one_size(features)
        return features if self.upsamplers is None else self.upsamplers[0](features)


class Encoder(nn.Module):
    """Images to 2Z channels of moments, before the 1x1 `quant_conv`."""

    def __init__(self, channels: int, blocks: KlBlocks) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        widths = blocks.widths
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            [DownBlock(i, widths[max(0, i - 1)], blocks) for i in range(len(widths))]
        )
        self.mid_block = MidBlock(widths[-1], blocks)
        self.conv_norm_out = blocks.norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * blocks.latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] to [B, 2Z, H/f, W/f]."""
        features = self.conv_in(images)
        for block in (*self.down_blocks, self.mid_block):
            features = _run(block, features, recompute=self.gradient_checkpointing)
        return self.conv_out(F.silu(self.conv_norm_out(features)))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Latents, after the 1x1 `post_quant_conv`, to the likelihood's parameters."""

    def __init__(self, num_parameters: int, blocks: KlBlocks) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        widths = blocks.widths[::-1]
        self.conv_in = nn.Conv2d(blocks.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], blocks)
        self.up_blocks = nn.ModuleList(
            [UpBlock(i, widths[max(0, i - 1)], blocks) for i in range(len(widths))]
        )
        self.conv_norm_out = blocks.norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], num_parameters, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """[B, Z, h, w] to [B, num_parameters, f h, f w]."""
        features = self.conv_in(latents)
        for block in (self.mid_block, *self.up_blocks):
            features = _run(block, features, recompute=self.gradient_checkpointing)
        return self.conv_out(F.silu(self.conv_norm_out(features)))  # type: ignore[no-any-return]


class AutoencoderKL(Network):
    """Encoder and decoder; with `gradient_checkpointing` each block is computed again backwards."""

    def __init__(
        self,
        shape: NetworkShape,
        blocks: KlBlocks | None = None,
        *,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        blocks = blocks or KlBlocks()
        _check(shape, blocks)
        grid, depth = shape.image_size // blocks.factor, blocks.latent_channels
        self.blocks = blocks
        self.latent_shape = (depth, grid, grid)
        self.encoder = Encoder(shape.channels, blocks)
        self.decoder = Decoder(shape.num_parameters, blocks)
        self.quant_conv = nn.Conv2d(2 * depth, 2 * depth, 1) if blocks.quant_conv else None
        self.post_quant_conv = nn.Conv2d(depth, depth, 1) if blocks.post_quant_conv else None
        self.encoder.gradient_checkpointing = gradient_checkpointing
        self.decoder.gradient_checkpointing = gradient_checkpointing

    def encode(self, images: Tensor) -> Tensor:
        """Moments [B, 2Z, h, w]; any multiple of the factor will do as the images' size."""
        moments: Tensor = self.encoder(images)
        return moments if self.quant_conv is None else self.quant_conv(moments)

    def decode(self, latents: Tensor) -> Tensor:
        """Parameters [B, num_parameters, f h, f w]."""
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)  # type: ignore[no-any-return]

    @torch.no_grad()
    def start_at(self, parameters: Tensor) -> None:
        """A bias for each channel: the mean over its pixels."""
        assert self.decoder.conv_out.bias is not None
        self.decoder.conv_out.bias.copy_(parameters.mean((1, 2)))


def _check(shape: NetworkShape, blocks: KlBlocks) -> None:
    if shape.image_size % blocks.factor or any(w % blocks.groups for w in blocks.widths):
        size = max(1, shape.image_size // blocks.factor) * blocks.factor
        width = max(1, blocks.widths[0] // blocks.groups) * blocks.groups
        raise ModelError(
            f"autoencoder_kl: image_size {shape.image_size} must be a multiple of factor "
            f"{blocks.factor}, and each of the widths {blocks.widths} of {blocks.groups}, the "
            f"groups of its norms. Give `--image-size {size} --model.width {width}`."
        )
    places = {MID, *(f"{side}{n}" for side in ("down", "up") for n in range(len(blocks.widths)))}
    if unknown := sorted(set(blocks.attention) - places):
        raise ModelError(
            f"autoencoder_kl: attention {', '.join(unknown)}: a network of {len(blocks.widths)} "
            f"levels has {', '.join(sorted(places))}: give some, as `--model.attention mid`."
        )


def _run(block: nn.Module, features: Tensor, *, recompute: bool) -> Tensor:
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, features, use_reentrant=False)  # type: ignore[no-any-return]
    return block(features)  # type: ignore[no-any-return]

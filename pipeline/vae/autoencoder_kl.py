"""The autoencoder of the latent-diffusion family (Rombach et al. 2022): 4 to 32 pixels a latent.

Modules are named as in diffusers' AutoencoderKL, so that weights go both ways; the default (factor
8, 4 latent channels) has 83,653,863 parameters in 248 tensors. Inputs and outputs are in [-1, 1].
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pipeline.errors import ModelError
from pipeline.vae.networks import Network, NetworkShape

# The published models': their weights fit no other.
GROUPS = 32
EPSILON = 1e-6
RESNETS_PER_BLOCK = 2
WIDTHS = {
    4: (1, 2, 4),
    8: (1, 2, 4, 4),
    16: (1, 1, 2, 2, 4),
    32: (1, 1, 2, 2, 4, 4),
}
"""Channels of each level in units of the first's, by pixels per latent (the published models')."""
LATENT_CHANNELS = {4: 3, 8: 4, 16: 16, 32: 64}
"""Z of the published models, by pixels per latent."""


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=EPSILON)


class ResnetBlock(nn.Module):
    """Two norm-SiLU-convolutions beside a shortcut."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1 = _norm(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = _norm(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(before, after, 1) if before != after else None

    def forward(self, features: Tensor) -> Tensor:
        """[B, before, H, W] to [B, after, H, W]."""
        inner = self.conv1(F.silu(self.norm1(features)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        shortcut = features if self.conv_shortcut is None else self.conv_shortcut(features)
        return shortcut + inner  # type: ignore[no-any-return]


class Attention(nn.Module):
    """One head over all positions of the grid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.group_norm = _norm(channels)
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
    """Resnet, attention, resnet at the smallest grid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels) for _ in range(2)])
        self.attentions = nn.ModuleList([Attention(channels)])

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        features = self.attentions[0](self.resnets[0](features))
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


class DownBlock(nn.Module):
    """Resnets at one size, then a halving but for the last."""

    def __init__(self, before: int, after: int, halves: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [ResnetBlock(before if i == 0 else after, after) for i in range(RESNETS_PER_BLOCK)]
        )
        self.downsamplers = nn.ModuleList([Downsample(after)]) if halves else None

    def forward(self, features: Tensor) -> Tensor:
        """To the next level's size."""
        for resnet in self.resnets:
            features = resnet(features)
        return features if self.downsamplers is None else self.downsamplers[0](features)


class UpBlock(nn.Module):
    """Resnets at one size, then a doubling but for the last."""

    def __init__(self, before: int, after: int, doubles: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [ResnetBlock(before if i == 0 else after, after) for i in range(RESNETS_PER_BLOCK + 1)]
        )
        self.upsamplers = nn.ModuleList([Upsample(after)]) if doubles else None

    def forward(self, features: Tensor) -> Tensor:
        """To the next level's size."""
        for resnet in self.resnets:
            features = resnet(features)
        return features if self.upsamplers is None else self.upsamplers[0](features)


class Encoder(nn.Module):
    """Images to 2Z channels of moments, before the 1x1 `quant_conv`."""

    def __init__(self, channels: int, widths: tuple[int, ...], latent_channels: int) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            [
                DownBlock(widths[max(0, i - 1)], widths[i], halves=i < len(widths) - 1)
                for i in range(len(widths))
            ]
        )
        self.mid_block = MidBlock(widths[-1])
        self.conv_norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] to [B, 2Z, H/f, W/f]."""
        features = self.conv_in(images)
        for block in (*self.down_blocks, self.mid_block):
            features = _run(block, features, recompute=self.gradient_checkpointing)
        return self.conv_out(F.silu(self.conv_norm_out(features)))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Latents, after the 1x1 `post_quant_conv`, to the likelihood's parameters."""

    def __init__(self, num_parameters: int, widths: tuple[int, ...], latent_channels: int) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        widths = widths[::-1]
        self.conv_in = nn.Conv2d(latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0])
        self.up_blocks = nn.ModuleList(
            [
                UpBlock(widths[max(0, i - 1)], widths[i], doubles=i < len(widths) - 1)
                for i in range(len(widths))
            ]
        )
        self.conv_norm_out = _norm(widths[-1])
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
        *,
        factor: int = 8,
        latent_channels: int | None = None,
        width: int = 128,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if shape.image_size % factor or width % GROUPS:
            raise ModelError(
                f"autoencoder_kl: image_size {shape.image_size} must be a multiple of factor "
                f"{factor}, and width {width} of {GROUPS}, the groups of its norms. Give "
                f"`--image-size {max(1, shape.image_size // factor) * factor} --model.width "
                f"{max(1, width // GROUPS) * GROUPS}`."
            )
        latent_channels = latent_channels or LATENT_CHANNELS[factor]
        grid = shape.image_size // factor
        self.latent_shape = (latent_channels, grid, grid)
        widths = tuple(width * times for times in WIDTHS[factor])
        self.encoder = Encoder(shape.channels, widths, latent_channels)
        self.decoder = Decoder(shape.num_parameters, widths, latent_channels)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.encoder.gradient_checkpointing = gradient_checkpointing
        self.decoder.gradient_checkpointing = gradient_checkpointing

    def encode(self, images: Tensor) -> Tensor:
        """Moments [B, 2Z, h, w]; any multiple of `factor` will do as the images' size."""
        return self.quant_conv(self.encoder(images))  # type: ignore[no-any-return]

    def decode(self, latents: Tensor) -> Tensor:
        """Parameters [B, num_parameters, f h, f w]."""
        return self.decoder(self.post_quant_conv(latents))  # type: ignore[no-any-return]

    @torch.no_grad()
    def start_at(self, parameters: Tensor) -> None:
        """A bias for each channel: the mean over its pixels."""
        assert self.decoder.conv_out.bias is not None
        self.decoder.conv_out.bias.copy_(parameters.mean((1, 2)))


def _run(block: nn.Module, features: Tensor, *, recompute: bool) -> Tensor:
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, features, use_reentrant=False)  # type: ignore[no-any-return]
    return block(features)  # type: ignore[no-any-return]

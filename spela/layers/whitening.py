"""PatchWhitening: patches of images as numbers without correlation, in front of the first convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spela.layers.normalize import not_floating

__all__ = ["PatchWhitening"]

_IMAGES = 256  # at a time: bounds the temporaries


class PatchWhitening(nn.Module):
    """Each patch of `size` x `size` pixels as C size^2 numbers without correlation, of variance one.

    Neighbouring pixels are nearly equal, so a first convolution sees little but brightness. Here every number
    of a patch is what the others do not tell of it (the symmetric square root of the patches' inverse
    covariance), of training images that `fit` saw. In front of a network's first layer this goes wherever the
    network goes: into checkpoints, exported programs and predictions of raw pixels. Nothing of it is trained;
    before `fit` it only lays patches out as channels.

    Args:
        channels: C of the images.
        size: Pixels of a patch's side.
        regularization: Share of the patches' mean variance added to the variance of every direction, so
            that those with hardly any, which are noise, stay small.
        device: Of the buffers.
        dtype: Of the buffers; None: torch's default.

    Shape:
        (B, C, H, W), floating point -> (B, C size^2, H, W); patches that pass the images' lower and right
        edges repeat the last pixels.

    Raises:
        ValueError: If a size is below 1 or the regularization is not positive.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, Appendix A (ZCA); of
    patches, as a first layer: Jordan, arXiv 2404.00498, Section 3.2.

    Example:
        >>> images = torch.rand(100, 3, 8, 8)
        >>> PatchWhitening(3).fit(images)(images).shape
        torch.Size([100, 12, 8, 8])
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        channels: int,
        size: int = 2,
        regularization: float = 0.01,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels < 1 or size < 1:
            raise ValueError(f"`channels` and `size` must be at least 1, got {channels} and {size}")
        if not 0 < regularization < float("inf"):
            raise ValueError(f"`regularization` must be positive, got {regularization}")
        self.channels, self.size, self.regularization = channels, size, regularization
        numbers = channels * size**2
        patches = torch.eye(numbers, device=device, dtype=dtype)
        self.register_buffer("weight", patches.view(numbers, channels, size, size))
        self.register_buffer("bias", patches.new_zeros(numbers))

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        return len(self.bias)

    @torch.no_grad()
    def fit(self, x: Tensor) -> PatchWhitening:
        """Take the patches' mean and covariance from images.

        Args:
            x: (N, C, H, W); uint8 pixels count as 0..1, which is what the network is given (`prepare`).

        Returns:
            The module.

        Raises:
            ValueError: If the shape does not fit, the images are smaller than a patch, there is none, or all
                patches are the same.
        """
        self._check(x)
        if len(x) == 0 or min(x.shape[2:]) < self.size:
            raise ValueError(
                f"`x` must be at least one image of at least {self.size} x {self.size} pixels, got shape "
                f"{tuple(x.shape)}"
            )
        full_scale = 255.0 if x.dtype == torch.uint8 else 1.0
        # On the CPU, which has float64: the same bits whatever the device. About the first image's mean, so
        # that squares far from zero lose nothing.
        about = x[0].cpu().double().mean() / full_scale
        total = torch.zeros(self.outputs, dtype=torch.float64, device="cpu")
        squares = total.new_zeros(self.outputs, self.outputs)
        count = 0
        for part in x.split(_IMAGES):
            images = part.cpu().double() / full_scale - about
            patches = (
                nn.functional.unfold(images, self.size).transpose(1, 2).reshape(-1, self.outputs)
            )
            total += patches.sum(0)
            squares += patches.T @ patches
            count += len(patches)
        mean = total / count
        covariance = squares / count - torch.outer(mean, mean)
        if not covariance.isfinite().all():
            raise ValueError("images to whiten by must be finite, got NaN or infinity among them")
        variances, directions = torch.linalg.eigh(covariance)
        variances = variances.clamp_min(0)
        if not variances.sum() > 1e-12 * squares.diagonal().sum() / count:
            raise ValueError("all patches of these images are the same: there is nothing to whiten")
        widths = (variances + self.regularization * variances.mean()).sqrt()
        whiten = (directions / widths) @ directions.T
        self.weight.copy_(whiten.view_as(self.weight))
        self.bias.copy_(-whiten @ (mean + about))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Whiten a batch.

        Raises:
            TypeError: If x is not floating point, as pixels in uint8, which `fit` takes as 0..1.
            ValueError: If it has other axes, or another number of channels.
        """
        self._check(x)
        if not x.is_floating_point():
            raise not_floating(x)
        more = self.size - 1
        padded = nn.functional.pad(x, (0, more, 0, more), mode="replicate") if more else x
        return nn.functional.conv2d(padded, self.weight, self.bias)

    def _check(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(f"`x` must be (B, {self.channels}, H, W), got {tuple(x.shape)}")

    def extra_repr(self) -> str:
        """The sizes."""
        return f"channels={self.channels}, size={self.size}"

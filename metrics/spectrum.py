"""Radial power spectra of fields: how much of the variance waves of each length have."""

import torch
from jaxtyping import Float
from torch import Tensor


def power_spectrum(
    fields: Float[Tensor, "n c h w"], periodic: tuple[bool, bool] = (True, True)
) -> Float[Tensor, "c waves"]:
    """Variance of each channel by the wave number, the mean over the fields, in squared units of the channel.

    Wave number k is that of k cycles along the shorter side of the grid, whatever the direction of the wave; number k
    has the waves from k - 1/2 to k + 1/2. The last one, half the pixels of that side, also has all shorter waves, which
    are few and diagonal or along the longer side. The mean of a field is no wave, so the sum over all numbers is the
    mean variance of a field within itself (Parseval). `periodic` states whether height and width are closed. An axis
    that is not closed is continued by its mirror image, which is the cosine transform (Denis et al. 2002), because the
    jump between its ends would look like short waves. Computed in float64. Raises ValueError for fields that are not
    finite.
    """
    if not fields.isfinite().all():
        bad = int((~fields.isfinite()).flatten(start_dim=1).any(dim=1).sum())
        raise ValueError(f"{bad} of {len(fields)} fields have values that are not finite; leave these out")
    shorter = min(fields.shape[2:])
    x = fields.double()
    x = x - x.mean(dim=(2, 3), keepdim=True)
    for axis, is_periodic in zip((2, 3), periodic, strict=True):
        x = x if is_periodic else torch.cat([x, x.flip(axis)], dim=axis)
    power = torch.fft.fft2(x, norm="forward").abs().square().mean(dim=0)
    power[:, 0, 0] = 0
    ky, kx = (torch.fft.fftfreq(side, 1 / shorter, dtype=x.dtype, device=x.device) for side in x.shape[2:])
    return by_wave_number(power, torch.hypot(ky[:, None], kx), shorter // 2)


def by_wave_number(power: Float[Tensor, "c h w"], number: Float[Tensor, "h w"], last: int) -> Float[Tensor, "c waves"]:
    """Sums of the power of waves by their rounded number; number `last` has all larger ones, too."""
    rounded = (number + 0.5).long().clamp(max=last).flatten()
    return power.new_zeros(len(power), last + 1).index_add_(1, rounded, power.flatten(start_dim=1))


def spectrum_error(spectrum: Float[Tensor, "c waves"], reference: Float[Tensor, "c waves"]) -> Float[Tensor, "c"]:
    """Largest relative deviation of each channel from a reference, over all wave numbers at which that has power."""
    ratio = torch.where(reference > 0, spectrum / reference, 1.0)
    return (ratio - 1).abs().amax(dim=1)

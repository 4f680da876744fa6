"""A checkpoint's own picture processor, sped up by lookup tables; its pixels are the same to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

LEVELS = 256  # of a byte


class PictureProcessor:
    """Pictures as a model's input, as `processor` makes it.

    A processor resizes and crops bytes, then scales and normalises each byte separately. So it is asked once for the
    results of the 256 levels of each channel. The lookup runs on the model's device, so only bytes travel there.
    """

    def __init__(self, processor: Any) -> None:
        """`processor` is a transformers image processor of the PIL backend."""
        levels = np.arange(LEVELS, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
        as_it_is = {"do_resize": False, "do_center_crop": False, "do_pad": False}
        table = processor([levels], return_tensors="pt", **as_it_is)["pixel_values"]
        self._processor, self._table = processor, table.view(3, LEVELS)
        self._pads = getattr(processor, "pad_size", None) is not None  # with zeros, after the arithmetic

    def __call__(self, pictures: Sequence[np.ndarray], device: torch.device | str = "cpu") -> torch.Tensor:
        """Pixels [pictures, 3, height, width], float32, of pictures (uint8 [H, W, 3]) of one size after processing.

        Raises:
            ValueError: their sizes differ.
        """
        import torch

        if self._pads:
            padded: torch.Tensor = self._processor(list(pictures), return_tensors="pt")["pixel_values"]
            return padded.to(device)
        as_bytes = {"do_rescale": False, "do_normalize": False, "do_pad": False}
        made = self._processor(list(pictures), return_tensors="pt", **as_bytes)["pixel_values"].to(device)
        channels = zip(self._table.to(device), made.unbind(1), strict=True)
        looked_up = [table.index_select(0, levels.flatten().int()).view(levels.shape) for table, levels in channels]
        return torch.stack(looked_up, dim=1)

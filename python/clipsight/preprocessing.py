"""How a network wants its frames: the one description that video reading, models and exported files share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

LUMA = (0.299, 0.587, 0.114)  # of R, G and B (BT.601): what a network of one channel sees


@dataclass(frozen=True)
class Preprocessing:
    """From decoded RGB frames (uint8) to a clip `[N, 3, T, H, W]`, or the luma `[N, 1, T, H, W]`.

    Each frame is resized, centre-cropped, multiplied by `scale`, and normalised as `(x - mean) / std` per channel.

    Args:
        frames: clip length T, in sampled frames.
        stride: source frames from one sampled frame to the next.
        resize: short side in pixels, keeping the aspect ratio; or exact `(height, width)`; `None` leaves the size.
        crop: `(height, width)` of the centre crop, in pixels; the network's H and W.
        mean: per channel, in the network's channel order, after `scale`; one value where the network sees gray.
        std: likewise.
        channel_order: `"RGB"` or `"BGR"`.
        scale: factor on the 0..255 pixel values.
    """

    frames: int = 16
    stride: int = 1
    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] = (112, 112)
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    channel_order: str = "RGB"
    scale: float = 1 / 255

    def __post_init__(self) -> None:
        for name in ("resize", "crop", "mean", "std"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        if self.frames < 1 or self.stride < 1:
            raise ValueError(f"Preprocessing: frames and stride must be at least 1, got {self.frames}, {self.stride}")
        if self.channel_order not in ("RGB", "BGR"):
            raise ValueError(f"Preprocessing: channel_order must be 'RGB' or 'BGR', got {self.channel_order!r}")
        if len(self.mean) != len(self.std) or len(self.std) not in (1, 3):
            got = f"{len(self.mean)} and {len(self.std)}"
            raise ValueError(f"Preprocessing: mean and std must have 3 values each, or 1 for gray clips, got {got}")
        if any(s == 0 for s in self.std):
            raise ValueError(f"Preprocessing: std must not be zero, got {self.std}")

    @property
    def channels(self) -> int:
        """Of the clip: 1 is gray."""
        return len(self.mean)

    @property
    def size(self) -> tuple[int, int, int]:
        """Clip size `(T, H, W)`."""
        return (self.frames, *self.crop)

    def resized(self, source: tuple[int, int]) -> tuple[int, int]:
        """`(height, width)` of a source frame after the resize.

        Raises:
            ValueError: the crop is larger.
        """
        height, width = self.resize if isinstance(self.resize, tuple) else source
        if isinstance(self.resize, int):
            short = min(source)
            height, width = (self.resize * side // short for side in source)
        if height < self.crop[0] or width < self.crop[1]:
            raise ValueError(
                f"preprocessing: the crop {_size(self.crop)} must fit into the resized frame, "
                f"got {_size((height, width))} from a source of {_size(source)}"
            )
        return height, width

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> Preprocessing:
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in values.items() if k in known})


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"

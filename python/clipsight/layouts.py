"""The order of a clip's axes: `"NCTHW"` is that of this package, others are those of a network. Without torch."""

from __future__ import annotations

from collections.abc import Sequence

LAYOUTS = ("NCTHW", "NTCHW", "NTHWC")
OURS = LAYOUTS[0]
MOST_COLOURS = 4  # with more, an axis is hardly one of colours


def order(source: str, target: str) -> tuple[int, ...]:
    """For `transpose` or `permute`: from one layout to another."""
    return tuple(source.index(axis) for axis in target)


def size_of(shape: Sequence[int], layout: str) -> tuple[int, int, int]:
    """`(T, H, W)` of a clip of that shape."""
    t, h, w = (shape[layout.index(axis)] for axis in "THW")
    return t, h, w


def shape_of(batch: int | str, channels: int | str, size: Sequence[int | str], layout: str) -> tuple[int | str, ...]:
    """The shape of clips of a size `(T, H, W)`, whose lengths may be letters."""
    lengths = {"N": batch, "C": channels, **dict(zip("THW", size, strict=True))}
    return tuple(lengths[axis] for axis in layout)


def in_words(channels: int | str, size: Sequence[int | str], layout: str) -> str:
    """`"[N, 16, 3, 112, 112]"`."""
    return f"[{', '.join(map(str, shape_of('N', channels, size, layout)))}]"


def looks_like(shape: Sequence[int]) -> str | None:
    """The layout that a shape of five axes speaks for, where that is not ours: colours are few, and frames are more."""
    if shape[1] <= MOST_COLOURS:
        return None
    return next((layout for layout in LAYOUTS[1:] if shape[layout.index("C")] <= MOST_COLOURS), None)

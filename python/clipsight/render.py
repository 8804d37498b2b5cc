"""Pictures of relevance: heat tube, focus tube, motion overlay, boxes and the contact sheet.

Frames are uint8 RGB `[H, W, 3]` at source resolution; maps are float32 `[h, w]` in [0, 1] at clip resolution and are
placed by a `Geometry`. What lies outside the network's crop stays uncoloured, is dimmed and fenced off by a thin line.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .text_files import SEPARATORS, is_json, read_json, read_text, table
from .video import VideoError
from .windows import Geometry

FLOOR = 20
"""Smallest alpha (of 255) of the focus tube: the frame stays recognisable where the network does not look."""
OUTSIDE = 0.55
"""Brightness of the frame outside the crop."""
FENCE = (235, 235, 235)
BOX = (64, 255, 96)
BOX_COLUMNS = ("frame", "x", "y", "w", "h")
INK, FAINT, PAPER = "#1c1e22", "#787c84", "#ffffff"


def _jet() -> np.ndarray:
    """The jet colour map, uint8 RGB `[256, 3]`: three ramps, as in MATLAB and matplotlib."""
    x = np.linspace(0, 1, 256)
    red = np.interp(x, [0, 0.35, 0.66, 0.89, 1], [0, 0, 1, 1, 0.5])
    green = np.interp(x, [0, 0.125, 0.375, 0.64, 0.91, 1], [0, 0, 1, 1, 0, 0])
    blue = np.interp(x, [0, 0.11, 0.34, 0.65, 1], [0.5, 1, 1, 0, 0])
    return np.rint(255 * np.stack([red, green, blue], 1)).astype(np.uint8)


JET = _jet()


@dataclass
class Renderer:
    """Draws maps onto the frames of one video.

    Args:
        geometry: where the crop lies in the source frame.
        boxes: source frame -> boxes to draw, see `read_boxes`.
    """

    geometry: Geometry
    boxes: dict[int, list[Box]] = field(default_factory=dict)

    def input(self, frame: np.ndarray) -> np.ndarray:
        """The frame with its crop marked."""
        return self._fence(self._outside(frame, OUTSIDE))

    def heat(self, frame: np.ndarray, map: np.ndarray) -> np.ndarray:
        """Heat tube: the jet colours of the map, half and half with the frame (Saliency Tubes, Fig. 1)."""
        out, region = self._outside(frame, OUTSIDE), self.geometry.region
        colours = cv2.applyColorMap(self._levels(map), JET[:, None])
        cv2.addWeighted(frame[region], 0.5, colours, 0.5, 0, dst=colours)
        out[region] = colours
        return self._fence(out)

    def focus(self, frame: np.ndarray, map: np.ndarray) -> np.ndarray:
        """Focus tube `[H, W, 4]`: the untouched frame, with the map scaled per frame to an alpha of 20..255."""
        low, high = float(map.min()), float(map.max())
        scale = (255 - FLOOR) / (high - low) if high > low else 0
        alpha = np.full(frame.shape[:2], FLOOR, np.uint8)
        alpha[self.geometry.region] = self.geometry.to_region(
            cv2.convertScaleAbs(map, alpha=scale, beta=FLOOR - low * scale)
        )
        out = cv2.merge([frame, alpha])
        if not self.geometry.covers_frame:
            self._fence(out, (*FENCE, 160))
        return out

    def motion(self, frame: np.ndarray, map: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Motion overlay: what the mask selects in warm colours by its relevance, the rest in dark grey.

        `mask` `[h, w]` is in [0, 1]; between two frames or windows that disagree it is fractional.
        """
        out, region = self._outside(frame, 0.45 * OUTSIDE), self.geometry.region
        # One blur at clip resolution rounds the stairs of a yes-or-no mask; its edge stays where it was.
        selected = self.geometry.to_region(cv2.GaussianBlur(np.float32(mask), (3, 3), 0))
        colours = cv2.applyColorMap(self._levels(map), WARM[:, None])
        lit = cv2.addWeighted(frame[region], 0.5, colours, 0.6, 0)
        grey = cv2.convertScaleAbs(cv2.cvtColor(frame[region], cv2.COLOR_RGB2GRAY), alpha=0.45)
        grey = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
        out[region] = cv2.blendLinear(lit, grey, selected, 1 - selected)
        return self._fence(out)

    def draw_boxes(self, frame: np.ndarray, index: int) -> np.ndarray:
        """Draws the boxes of source frame `index` into `frame` (RGB or RGBA) and returns it."""
        for box in self.boxes.get(index, ()):
            colour = (*BOX, 255)[: frame.shape[2]]
            corner = (box.x, box.y)
            cv2.rectangle(frame, corner, (box.x + box.w - 1, box.y + box.h - 1), colour, 1)
            if box.label:
                place = (box.x, box.y - 4 if box.y > 14 else box.y + box.h + 12)
                cv2.putText(frame, box.label, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1, cv2.LINE_AA)
        return frame

    def _levels(self, map: np.ndarray) -> np.ndarray:
        return self.geometry.to_region(cv2.convertScaleAbs(map, alpha=255))

    def _outside(self, frame: np.ndarray, brightness: float) -> np.ndarray:
        if self.geometry.covers_frame:
            return frame.copy()
        out = cv2.convertScaleAbs(frame, alpha=brightness)
        out[self.geometry.region] = frame[self.geometry.region]
        return out

    def _fence(self, frame: np.ndarray, colour=FENCE) -> np.ndarray:
        if not self.geometry.covers_frame:
            rows, columns = self.geometry.region
            cv2.rectangle(frame, (columns.start, rows.start), (columns.stop - 1, rows.stop - 1), colour, 1)
        return frame


def _warm() -> np.ndarray:
    """Dark red over orange to light yellow, uint8 RGB `[256, 3]`."""
    x = np.linspace(0, 1, 256)
    stops = [0, 0.4, 0.75, 1]
    channels = [150, 255, 255, 255], [20, 90, 190, 250], [30, 20, 40, 190]
    return np.rint(np.stack([np.interp(x, stops, c) for c in channels], 1)).astype(np.uint8)


WARM = _warm()


@dataclass(frozen=True)
class Box:
    """A rectangle in source pixels."""

    x: int
    y: int
    w: int
    h: int
    label: str = ""


def read_boxes(path: str | os.PathLike) -> dict[int, list[Box]]:
    """Reads boxes from JSON (a list of objects) or a table with a header line: frame, x, y, w, h and perhaps label.

    The columns stand in any order, with commas, semicolons or tabs between them; a decimal comma is read where it is
    not what separates the columns. Pixels are rounded. For encodings see `clipsight.text_files.read_text`.

    Raises:
        VideoError: missing file, or a row without these numbers.
    """
    try:
        text = read_text(path, "boxes")
        rows = read_json(text, f"boxes: {path}") if is_json(path, text) else _box_table(path, text)
    except ValueError as error:
        raise VideoError(str(error)) from error
    boxes: dict[int, list[Box]] = {}
    if not isinstance(rows, list):
        raise VideoError(f"boxes: {path} must hold a list of objects, got {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        try:
            frame, x, y, w, h = (_pixels(row[key]) for key in BOX_COLUMNS)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise VideoError(
                f"boxes: row {number} of {path} must have the numbers frame, x, y, w, h, got {row}"
            ) from error
        if w <= 0 or h <= 0:
            raise VideoError(f"boxes: row {number} of {path} must have a positive w and h, got {w:g}, {h:g}")
        if frame < 0 or not frame.is_integer():
            raise VideoError(f"boxes: row {number} of {path} must have a frame number from 0 on, got {frame:g}")
        label = row.get("label")
        box = Box(round(x), round(y), max(round(w), 1), max(round(h), 1), "" if label is None else str(label).strip())
        boxes.setdefault(int(frame), []).append(box)
    return boxes


def _box_table(path: str | os.PathLike, text: str) -> list[dict[str, str]]:
    for separator in SEPARATORS:
        header, *rows = table(text, separator) or [[]]
        columns = [cell.strip().lower() for cell in header]
        if all(columns.count(name) == 1 for name in BOX_COLUMNS):
            break
    else:
        raise ValueError(
            f"boxes: {path} must begin with a header line that has frame, x, y, w and h once each, got {text[:60]!r}"
        )
    for number, row in enumerate(rows, 1):
        if any(cell.strip() for cell in row[len(columns) :]):
            raise ValueError(f"boxes: row {number} of {path} must have {len(columns)} cells like the header, got {row}")
    if separator != ",":
        rows = [[re.sub(r"^(\s*-?\d+),(\d+\s*)$", r"\1.\2", cell) for cell in row] for row in rows]
    return [dict(zip(columns, row, strict=False)) for row in rows]


def _pixels(value) -> float:
    number = float(value)
    if not abs(number) < 2**30 or isinstance(value, bool):  # NaN, too, and what OpenCV cannot draw
        raise ValueError(f"must be a finite number, got {value}")
    return number


def evenly_spaced(count: int, columns: int) -> list[int]:
    """Up to `columns` frame indices spread over `count` frames, each in the middle of its share."""
    columns = min(columns, count)
    return [(2 * i + 1) * count // (2 * columns) for i in range(columns)]


def contact_sheet(
    rows: dict[str, list[np.ndarray]],
    frames: list[int],
    times: list[float],
    title: str,
    subtitle: str = "",
    cell_width: int = 224,
    pixel_aspect: float = 1.0,
) -> np.ndarray:
    """One picture, uint8 `[H, W, 3]`: a row per kind of map, a column per frame.

    Args:
        rows: row name, of one line or more -> its pictures, RGB or RGBA `[h, w, 3 or 4]`, one per entry of `frames`.
        frames: source frame numbers of the columns.
        times: when each of them is shown, in seconds, for the captions.
        title: large line on top, for example the class and its probability.
        subtitle: small line under it.
        cell_width: width of one picture in pixels.
        pixel_aspect: width / height of a source pixel; cells are drawn with square ones.
    """
    first = next(iter(rows.values()))[0]
    cell = (cell_width, max(round(cell_width * first.shape[0] / (first.shape[1] * pixel_aspect)), 1))
    gap, margin, header, captions = 6, 18, 64 if subtitle else 44, 22
    large, normal, small = (ImageFont.load_default(size) for size in (22, 15, 13))
    pen = ImageDraw.Draw(Image.new("L", (1, 1)))
    label_width = max(74, *(math.ceil(pen.multiline_textbbox((0, 0), name, normal)[2]) + 14 for name in rows))
    width = 2 * margin + label_width + len(frames) * (cell[0] + gap) - gap
    height = 2 * margin + header + captions + len(rows) * (cell[1] + gap) - gap
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin - 4), title, INK, large)
    draw.text((margin, margin + 28), subtitle, FAINT, small)
    top = margin + header
    for column, (frame, time) in enumerate(zip(frames, times, strict=True)):
        x = margin + label_width + column * (cell[0] + gap) + cell[0] // 2
        draw.text((x, top + captions - 5), f"frame {frame} · {float(time):.2f} s", FAINT, small, anchor="ms")
    for row, (name, pictures) in enumerate(rows.items()):
        y = top + captions + row * (cell[1] + gap)
        draw.text((margin, y + cell[1] // 2), name, INK, normal, anchor="lm")
        for column, picture in enumerate(pictures):
            image = Image.fromarray(picture)
            if image.mode == "RGBA":
                image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
            x = margin + label_width + column * (cell[0] + gap)
            sheet.paste(image.resize(cell, Image.Resampling.LANCZOS), (x, y))
    return np.asarray(sheet)

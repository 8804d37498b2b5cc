"""Optical flow: what moves in the video itself, the ground truth of motion precision."""

from __future__ import annotations

import numpy as np

_SMALLEST = 16  # OpenCV's DIS reads beyond lower frames
_FARNEBACK = {"pyr_scale": 0.5, "levels": 3, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.2, "flags": 0}


def optical_flow(frames: np.ndarray, method: str = "dis") -> np.ndarray:
    """Dense optical flow between each frame and the next, in pixels per frame; the last frame repeats the one before.

    Args:
        frames: uint8 `[..., T, H, W, 3]`, RGB, T at least 2, H and W at least 16.
        method: `"dis"`, dense inverse search (Kroeger et al., 2016; OpenCV's medium preset), or `"farneback"`
            (Farnebäck, 2003; windows of 15 pixels on three levels).

    Returns:
        float32 `[..., T, H, W, 2]`: (dx, dy), where what lies at (x, y) in a frame lies in the next one; positive to
        the right and down.

    Raises:
        ValueError: a single frame has no motion; another shape; an unknown method.
        TypeError: frames are not uint8.
        ImportError: OpenCV is missing (the extra `video`).
    """
    if method not in ("dis", "farneback"):
        raise ValueError(f"optical_flow: method must be 'dis' or 'farneback', got {method!r}")
    frames = np.asarray(frames)
    shape = list(frames.shape)
    if frames.ndim < 4 or shape[-1] != 3 or min(shape[-3:-1]) < _SMALLEST or not shape[-4]:
        rule = f"[..., T, H, W, 3], H and W at least {_SMALLEST}"
        raise ValueError(f"optical_flow: frames must be {rule}, got {shape}")
    if shape[-4] == 1:
        raise ValueError(f"optical_flow: frames must be two or more, as motion needs a next frame, got {shape}")
    if frames.dtype != np.uint8:
        raise TypeError(f"optical_flow: frames must be uint8, got {frames.dtype}")
    try:
        import cv2
    except ImportError as error:  # pragma: no cover - depends on what is installed
        raise ImportError(
            f"optical_flow needs the extra 'video' ({error}); install it with: pip install 'clipsight[video]'"
        ) from error

    if method == "dis":
        between = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc
    else:
        between = lambda first, second, flow: cv2.calcOpticalFlowFarneback(first, second, flow, **_FARNEBACK)  # noqa: E731
    flow = np.empty((*frames.shape[:-1], 2), np.float32)
    for clip in np.ndindex(frames.shape[:-4]):
        before = None
        for t, frame in enumerate(frames[clip]):
            grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
            if t:
                flow[clip][t - 1] = between(before, grey, None)
            before = grey
        flow[clip][-1] = flow[clip][-2]
    return flow


def moving(flow: np.ndarray, threshold: float | str = 0.5) -> np.ndarray:
    """Which pixels move: where the length of the flow exceeds a threshold.

    Args:
        flow: `[..., T, H, W, 2]` in pixels per frame, finite.
        threshold: in pixels per frame (Hiley et al., 2020, take any positive flow, which estimated flow has
            everywhere); or `"frame_std"`: the standard deviation of the length over the pixels of the same frame.

    Returns:
        bool `[..., T, H, W]`; a frame without any flow has no moving pixel.

    Raises:
        ValueError: a shape or threshold that does not fit, or a value that is NaN or infinite.
    """
    flow = np.asarray(flow)
    if flow.ndim < 4 or flow.shape[-1] != 2 or 0 in flow.shape[-4:]:
        raise ValueError(f"moving: flow must be [..., T, H, W, 2], each at least 1, got {list(flow.shape)}")
    if threshold != "frame_std" and (isinstance(threshold, str) or not 0 <= threshold < np.inf):
        raise ValueError(f"moving: threshold must be 'frame_std' or a number, at least 0, got {threshold!r}")
    length = np.hypot(flow[..., 0], flow[..., 1])
    if not np.isfinite(length).all():
        raise ValueError("moving: flow must be finite, got NaN or infinity")
    if threshold == "frame_std":
        # About the frame's first length the spread of a uniform flow is exactly 0: all of it moves, or nothing.
        threshold = (length - length[..., :1, :1]).std((-2, -1), dtype=np.float64, keepdims=True)
    return length > threshold

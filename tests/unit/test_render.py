"""Colouring against plain NumPy and matplotlib; what must not change, does not."""

import json

import numpy as np
import pytest

pytest.importorskip("av")
cv2 = pytest.importorskip("cv2")
from clipsight.preprocessing import Preprocessing  # noqa: E402
from clipsight.render import FENCE, JET, Box, Renderer, contact_sheet, evenly_spaced, read_boxes  # noqa: E402
from clipsight.video import VideoError  # noqa: E402
from clipsight.windows import Geometry  # noqa: E402

SOURCE = (97, 131)
WHOLE = Geometry.of(Preprocessing(resize=SOURCE, crop=SOURCE), SOURCE)
PART = Geometry.of(Preprocessing(resize=64, crop=(56, 60)), SOURCE)


@pytest.fixture
def frame():
    return np.random.default_rng(0).integers(0, 256, (*SOURCE, 3), dtype=np.uint8)


def smooth(size, seed=1):
    noise = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    map = cv2.GaussianBlur(noise, (0, 0), 6)
    return (map - map.min()) / (map.max() - map.min())


def inside(geometry):
    mask = np.zeros(geometry.source, bool)
    mask[geometry.region] = True
    return mask


def fence(geometry):
    """The line one pixel wide along the inner edge of the region."""
    rows, columns = geometry.region
    line = inside(geometry)
    line[rows.start + 1 : rows.stop - 1, columns.start + 1 : columns.stop - 1] = False
    return line


def test_jet_is_matplotlibs():
    colormaps = pytest.importorskip("matplotlib").colormaps
    assert np.abs(JET - 255 * colormaps["jet"](np.arange(256))[:, :3]).max() <= 0.5 + 1e-9
    assert np.abs(JET - 255 * colormaps["turbo"](np.arange(256))[:, :3]).max() > 50


def test_heat_is_half_frame_half_jet(frame):
    colormaps = pytest.importorskip("matplotlib").colormaps
    map = smooth(SOURCE)
    plain = 0.5 * frame + 0.5 * 255 * colormaps["jet"](np.rint(255 * map).astype(int))[..., :3]
    heat = Renderer(WHOLE).heat(frame, map)
    assert heat.shape == frame.shape
    assert heat.dtype == np.uint8
    assert np.abs(heat - plain).max() <= 1.25, "rounding of the colour table and of the half"
    assert np.abs(Renderer(WHOLE).heat(frame, 1 - map) - plain).max() > 50


def test_outside_the_crop_is_dimmed_uncoloured_and_fenced(frame):
    renderer, outside = Renderer(PART), ~inside(PART)
    map = smooth(PART.crop)
    heat, focus = renderer.heat(frame, map), renderer.focus(frame, map)
    assert np.abs(heat[outside] - 0.55 * frame[outside]).max() <= 0.51
    assert (heat[fence(PART)] == FENCE).all()
    assert (focus[outside] == np.dstack([frame, np.full(SOURCE, 20)])[outside]).all()
    motion = renderer.motion(frame, map, np.ones_like(map))
    assert motion[outside].max() < 80
    marked = renderer.input(frame)
    interior = inside(PART) & ~fence(PART)
    assert (marked[interior] == frame[interior]).all()
    assert (Renderer(WHOLE).input(frame) == frame).all(), "no fence where the network saw everything"


def test_heat_colours_the_place_of_the_relevance():
    """A hot spot at a known source pixel is the reddest place of the picture."""
    map = np.zeros(PART.crop, np.float32)
    y, x = 30, 41
    map[y - 2 : y + 3, x - 2 : x + 3] = 1
    grey = np.full((*SOURCE, 3), 128, np.uint8)
    heat = Renderer(PART).heat(grey, cv2.GaussianBlur(map, (0, 0), 2)).astype(int)
    warmth = np.where(inside(PART) & ~fence(PART), heat[..., 0] - heat[..., 2], -255)
    scale = [s / r for s, r in zip(SOURCE, PART.resized, strict=True)]
    top, left = PART.offset
    expected = ((y + top + 0.5) * scale[0] - 0.5, (x + left + 0.5) * scale[1] - 0.5)
    found = np.argwhere(warmth == warmth.max()).mean(0)
    assert np.abs(found - expected).max() <= 1.5


def test_focus_leaves_the_frame_and_spans_20_to_255_in_every_frame(frame):
    for scale in (1.0, 0.2):  # the alpha is scaled per frame, whatever the video's range
        focus = Renderer(WHOLE).focus(frame, scale * smooth(SOURCE))
        assert (focus[..., :3] == frame).all()
        assert (focus[..., 3].min(), focus[..., 3].max()) == (20, 255)
        assert np.abs(focus[..., 3] - (20 + 235 * smooth(SOURCE))).max() <= 1
    assert (Renderer(WHOLE).focus(frame, np.full(SOURCE, 0.7, np.float32))[..., 3] == 20).all(), "nothing stands out"


def test_motion_lights_only_what_the_mask_selects(frame):
    mask = np.zeros(SOURCE, np.float32)
    mask[20:50, 30:80] = 1
    motion = Renderer(WHOLE).motion(frame, np.ones(SOURCE, np.float32), mask).astype(int)
    chosen = cv2.erode(mask, np.ones((3, 3))) > 0  # the edge is softened by one pixel
    assert (motion[chosen][:, 0] >= 150).all(), "warm"
    rest = motion[cv2.dilate(mask, np.ones((3, 3))) == 0]
    assert (rest == rest[:, :1]).all(), "grey"
    assert rest.max() <= 0.45 * 255 + 1, "and dark"


def test_rendering_does_not_change_its_inputs(frame):
    before, map = frame.copy(), smooth(PART.crop)
    renderer, map_before = Renderer(PART), map.copy()
    for picture in (renderer.input(frame), renderer.heat(frame, map), renderer.motion(frame, map, map)):
        renderer.draw_boxes(picture, 0)
    renderer.focus(frame, map)
    assert (frame == before).all()
    assert (map == map_before).all()


def test_boxes_are_drawn_on_their_frame_only(frame):
    renderer = Renderer(WHOLE, {3: [Box(10, 20, 30, 15, "ball")]})
    assert (renderer.draw_boxes(frame.copy(), 2) == frame).all()
    drawn = renderer.draw_boxes(frame.copy(), 3)
    changed = np.argwhere((drawn != frame).any(-1))
    outline = {(20, 10), (20, 39), (34, 10), (34, 39)}  # corners: x 10..39, y 20..34
    assert outline <= {tuple(p) for p in changed.tolist()}
    assert (drawn[22:33, 12:37] == frame[22:33, 12:37]).all(), "the inside stays"


def test_boxes_file(tmp_path):
    rows = [
        {"frame": 2, "x": 1, "y": 2, "w": 3, "h": 4, "label": "ball"},
        {"frame": 2, "x": 5.4, "y": 6, "w": 7, "h": 8},
    ]
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "b.csv").write_text("frame,x,y,w,h,label\n2,1,2,3,4,ball\n2,5.4,6,7,8,\n")
    expected = {2: [Box(1, 2, 3, 4, "ball"), Box(5, 6, 7, 8)]}
    assert read_boxes(tmp_path / "b.json") == read_boxes(tmp_path / "b.csv") == expected
    for name, text, message in (
        ("no.csv", None, "cannot be read"),
        ("bad.json", "{", "cannot be read"),
        ("object.json", "{}", "must hold a list of objects, got dict"),
        ("short.csv", "frame,x,y\n1,2,3\n", "header line that has frame, x, y, w and h"),
        ("shorter.csv", "frame,x,y,w,h\n1,2,3\n", "row 1 .* must have the numbers frame, x, y, w, h"),
        ("short.json", '[{"frame": 1, "x": 2}]', "row 1 .* must have the numbers frame, x, y, w, h"),
        ("word.csv", "frame,x,y,w,h\n1,2,3,4,5\n1,2,3,wide,5\n", "row 2 "),
        ("flat.csv", "frame,x,y,w,h\n1,2,3,0,5\n", "positive w and h, got 0, 5"),
        ("turned.csv", "frame,x,y,w,h\n1,2,3,4,5\n1,2,3,-4,5\n", "row 2 .* positive w and h, got -4, 5"),
        ("nan.csv", "frame,x,y,w,h\n1,nan,3,4,5\n", "row 1 "),
        ("inf.csv", "frame,x,y,w,h\n1,2,3,inf,5\n", "row 1 "),
        ("far.csv", "frame,x,y,w,h\n1,2,3,4,5e18\n", "row 1 "),
        ("nan.json", '[{"frame": 1, "x": NaN, "y": 3, "w": 4, "h": 5}]', "row 1 "),
        ("before.csv", "frame,x,y,w,h\n-1,2,3,4,5\n", "a frame number from 0 on, got -1"),
        ("between.csv", "frame,x,y,w,h\n1.5,2,3,4,5\n", "a frame number from 0 on, got 1.5"),
        ("no header.csv", "1,2,3,4,5\n", "begin with a header line that has frame, x, y, w and h"),
        ("corners.csv", "frame,x1,y1,x2,y2\n1,2,3,4,5\n", "begin with a header line"),
        ("twice.csv", "frame,x,x,y,w,h\n1,2,3,4,5,6\n", "header line that has .* once each"),
        ("decimal commas.csv", "frame,x,y,w,h\n1,2,5,3,4,5\n", "row 1 .* 5 cells like the header"),
        ("empty.csv", "", "header line"),
        ("code page.csv", "frame,x,y,w,h,label\n1,2,3,4,5,caf\u00e9\n".encode("cp1252"), "UTF-8, .* in line 2"),
        ("deep.json", "[" * 200_000, "cannot be read"),
    ):
        if text is not None:
            (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(VideoError, match=message):
            read_boxes(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_boxes_of_spreadsheets(encoding, tmp_path):
    expected = {2: [Box(1, 2, 3, 4, "caf\u00e9")], 0: [Box(-5, 6, 7, 1)]}
    for text in (
        "frame,x,y,w,h,label\n2,1,2,3,4,caf\u00e9\n0,-5.2,6,7,0.4,\n",
        "sep=;\r\nFrame; X;Y;W;H;Label\r\n2;1,0;2;3;4;caf\u00e9\r\n;;;;;\r\n0;-5,2;6;7;0,4\r\n\r\n",
        'h\tlabel\tw\ty\tx\tframe\r4\t"caf\u00e9"\t3\t2\t1\t2.0\r0,4\t\t7\t6\t-5,2\t0\r',
    ):
        (tmp_path / "b.csv").write_bytes(text.encode(encoding))
        assert read_boxes(tmp_path / "b.csv") == expected


def test_evenly_spaced():
    assert evenly_spaced(280, 6) == [23, 70, 116, 163, 210, 256]
    assert evenly_spaced(3, 6) == [0, 1, 2]
    assert evenly_spaced(1, 6) == [0]
    for count in range(1, 50):
        frames = evenly_spaced(count, 6)
        assert len(set(frames)) == min(count, 6)
        assert 0 <= frames[0] <= frames[-1] < count


def test_contact_sheet_shows_every_picture():
    colours = np.random.default_rng(3).integers(60, 256, (2, 3, 3))
    rows = {
        name: [np.full((20, 30, 3), colours[r, c], np.uint8) for c in range(3)]
        for r, name in enumerate(["input", "heat"])
    }
    rows["focus"] = [np.dstack([p, np.full((20, 30), 51, np.uint8)]) for p in rows["input"]]  # alpha 0.2 over black
    sheet = contact_sheet(rows, [0, 5, 9], [0, 0.2, 0.36], "archery   93.1 %", "clip.mp4", cell_width=90)
    found = {tuple(c) for c in sheet.reshape(-1, 3).tolist()}
    assert {tuple(c) for c in colours.reshape(-1, 3).tolist()} <= found
    for c in colours[0]:
        assert any(np.abs(np.array(f) - 0.2 * c).max() <= 1 for f in found)
    narrow = contact_sheet(rows, [0, 5, 9], [0, 0.2, 0.36], "archery", cell_width=90, pixel_aspect=2.0)
    assert narrow.shape[0] < sheet.shape[0], "wide pixels make flat pictures"
    without = contact_sheet(rows, [0, 5, 9], [0, 0.2, 0.36], "", cell_width=90)
    assert (without[:40] != sheet[:40, : without.shape[1]]).any(), "the title is drawn"

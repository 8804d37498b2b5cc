"""The dependency graph and the pictures of a pyramid, against one that was worked out by hand."""

import csv
import io
import json
import sys
import xml.etree.ElementTree as ElementTree
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("networkx")
pytest.importorskip("matplotlib.font_manager")  # which starts a process where it has not seen the fonts yet
pytest.importorskip("av")
import networkx

from clipsight import render
from clipsight.preprocessing import Preprocessing
from clipsight.pyramid import Layer, Pyramid, Source, Step, graph, pictures
from clipsight.video import VideoReader, VideoWriter
from clipsight.windows import Geometry

# stem -> conv1 -> conv2 (two groups) -> + stem -> beside side(stem) -> fc
STEM = (Source("stem", 0, 4),)
LAYERS = {
    "fc": Layer("fc", 1, 3, 6, 1, (2, 3, 3), (Source("conv2", 0, 4), *STEM, Source("side", 4, 6)), ((0, 4), (4, 6))),
    "conv2": Layer("conv2", 2, 4, 4, 2, (2, 3, 3), (Source("conv1", 0, 4),)),
    "side": Layer("side", 2, 2, 4, 1, (2, 3, 3), STEM),
    "conv1": Layer("conv1", 3, 4, 4, 1, (2, 3, 3), STEM),
    "stem": Layer("stem", 4, 4, 3, 1, (4, 6, 6)),
}
# Kernel -> channels that it takes, among all that the layer reads; and the multiplicity of each channel.
TAKES = {
    "fc": ({1: [1, 3, 5]}, [0, 1, 0, 1, 0, 1]),
    "conv2": ({1: [0], 3: [2, 3]}, [1, 0, 1, 1]),
    "side": ({1: [2, 3]}, [1, 3, 1, 3]),
    "conv1": ({0: [1], 2: [0, 1], 3: [3]}, [1, 3, 1, 3]),
    "stem": ({0: [2], 1: [0, 2], 2: [1], 3: [0]}, [2, 1, 2]),
}
EDGES = {
    ("fc/1", "conv2/1"),
    ("fc/1", "conv2/3"),
    ("fc/1", "stem/1"),
    ("fc/1", "stem/3"),
    ("fc/1", "side/1"),
    ("conv2/1", "conv1/0"),
    ("conv2/3", "conv1/2"),
    ("conv2/3", "conv1/3"),
    ("side/1", "stem/2"),
    ("side/1", "stem/3"),
    ("conv1/0", "stem/1"),
    ("conv1/2", "stem/0"),
    ("conv1/2", "stem/1"),
    ("conv1/3", "stem/3"),
    ("stem/0", "clip/2"),
    ("stem/1", "clip/0"),
    ("stem/1", "clip/2"),
    ("stem/2", "clip/1"),
    ("stem/3", "clip/0"),
}


def by_hand(depth=4, label="put, down", volumes=None):
    steps = []
    for name, layer in LAYERS.items():
        if layer.depth > depth:
            continue
        takes, multiplicity = TAKES[name]
        edges = np.zeros((layer.kernels, layer.channels // layer.groups), bool)
        for kernel, channels in takes.items():
            edges[kernel, np.array(channels) - layer.reads(kernel).start] = True
        multiplicity = np.array(multiplicity, np.int64)
        steps.append(Step(layer, multiplicity > 0, multiplicity, edges, (volumes or {}).get(name)))
    return Pyramid(1, label, tuple(steps))


def randomly(seed, layers=5, channels=60, takes=4):
    """A chain of layers in which every selected kernel takes a few channels at random."""
    rng, selected, steps = np.random.default_rng(seed), [0], []
    for depth in range(1, layers + 1):
        layer = Layer(
            f"conv{depth}", depth, channels, channels, 1, (2, 3, 3), (Source(f"conv{depth + 1}", 0, channels),)
        )
        edges = np.zeros((channels, channels), bool)
        for kernel in selected:
            edges[kernel, rng.choice(channels, takes, replace=False)] = True
        selected = np.flatnonzero(edges.any(0))
        steps.append(Step(layer, edges.any(0), edges.sum(0), edges))
    return Pyramid(0, "random", tuple(steps))


# ---- The graph ------------------------------------------------------------------------------------------------------


def test_edges_by_hand():
    """Residual sums lead to both parts, concatenations are shifted, groups offset, the first layer reads the clip."""
    assert set(graph.to_networkx(by_hand()).edges) == EDGES


def test_edges_end_at_the_depth():
    """Where one part of a sum is stepped through, it alone is followed; where none is, the first part is a leaf."""
    cut = graph.to_networkx(by_hand(depth=3))
    assert set(cut.edges) == {
        (a, b) for a, b in EDGES if not a.startswith("stem") and not (a == "fc/1" and b.startswith("stem"))
    }
    assert {name for name, stepped in cut.nodes(data="stepped") if not stepped} == {f"stem/{i}" for i in range(4)}
    top = graph.to_networkx(by_hand(depth=1))
    assert set(top.edges) == {("fc/1", "conv2/1"), ("fc/1", "conv2/3"), ("fc/1", "side/1")}


def test_attributes_of_the_nodes():
    whole = graph.to_networkx(by_hand())
    assert whole.graph == {"class_index": 1, "label": "put, down"}
    expected = {"layer": "conv1", "index": 2, "depth": 3, "connections": 2, "pointed_at": 1, "stepped": True}
    assert whole.nodes["conv1/2"] == expected
    expected = {"layer": "clip", "index": 0, "depth": 5, "connections": 0, "pointed_at": 2, "stepped": False}
    assert whole.nodes["clip/0"] == expected
    # A leaf lies below the deepest that reads it: stem/3 below conv1 (depth 3), not side (depth 2), which has stem/2.
    cut = graph.to_networkx(by_hand(depth=3))
    assert (cut.nodes["stem/3"]["depth"], cut.nodes["stem/2"]["depth"]) == (4, 3)


@pytest.mark.parametrize("seed", range(3))
def test_kernels_are_pointed_at_as_often_as_their_channels(seed):
    pyramid = randomly(seed)
    whole = graph.to_networkx(pyramid)
    for step in pyramid:
        below = f"conv{step.layer.depth + 1}"
        assert {int(i): int(n) for i, n in enumerate(step.multiplicity) if n} == {
            node["index"]: node["pointed_at"] for _, node in whole.nodes(data=True) if node["layer"] == below
        }
    assert whole.number_of_edges() == sum(int(step.edges.sum()) for step in pyramid)


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_graphml_is_read_back_by_networkx(depth):
    whole = graph.to_networkx(by_hand(depth))
    read = networkx.parse_graphml(graph.to_graphml(by_hand(depth)))
    assert isinstance(read, networkx.DiGraph)
    assert dict(read.nodes(data=True)) == dict(whole.nodes(data=True))
    assert set(read.edges) == set(whole.edges)
    assert read.graph["label"] == "put, down"


def test_labels_are_no_markup(tmp_path):
    """Nor mathematics, nor what XML forbids; and they are the same text in every file."""
    label = "$x_{ <cat> & \x1b[31m\x00 \ud800 $"
    shown = r"$x_{ <cat> & \x1b[31m\x00 \ud800 $"
    read = networkx.parse_graphml(graph.to_graphml(by_hand(label=label)))
    assert read.graph["label"] == shown
    assert graph.compare_csv([by_hand(label=label)]).splitlines()[0] == f"depth,layer,channel,{shown}"
    pictures.write_graph(tmp_path / "graph.svg", by_hand(label=label), subtitle=label)
    drawn = [element.text for element in ElementTree.parse(tmp_path / "graph.svg").iter() if element.text]
    assert drawn.count(shown) == 2


def test_json_there_and_back():
    pyramid = by_hand()
    values = json.loads(json.dumps(graph.to_dict(pyramid, clip={"frames": [3, 18]})))
    assert (values["class"], values["clip"]) == ({"index": 1, "label": "put, down"}, {"frames": [3, 18]})
    ids = [kernel["id"] for kernel in values["kernels"]]
    assert {(ids[a], ids[b]) for a, b in values["edges"]} == EDGES
    conv2 = next(kernel for kernel in values["kernels"] if kernel["id"] == "conv2/3")
    assert (conv2["connections"], conv2["channels"], conv2["pointed_at"]) == (2, [2, 3], 1)
    again = graph.from_dict(values)
    assert (again.class_index, again.label) == (1, "put, down")
    for ours, theirs in zip(again, pyramid, strict=True):
        assert ours.layer == theirs.layer
        for part in ("mask", "multiplicity", "edges"):
            mine, own = getattr(ours, part), getattr(theirs, part)
            assert mine.dtype == own.dtype
            assert np.array_equal(mine, own)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v: v.update(format=2), "its format must be at most 1, got 2"),
        (lambda v: v.pop("layers"), "KeyError('layers')"),
        (lambda v: v["kernels"][0].update(channels=[99]), "IndexError"),
        (lambda v: v["layers"][0].update(colour="red"), "TypeError"),
    ],
)
def test_another_json_is_refused_in_one_line(change, message):
    values = graph.to_dict(by_hand())
    change(values)
    with pytest.raises(
        ValueError, match=r"^pyramid: the graph must be what `clipsight pyramid` writes as JSON, got "
    ) as caught:
        graph.from_dict(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tables():
    table = graph.to_csv(by_hand(depth=2)).splitlines()
    assert table == ["depth,layer,index,connections", "1,fc,1,3", "2,conv2,1,1", "2,conv2,3,2", "2,side,1,2"]
    other = by_hand(depth=2, label="insert")
    other["fc"].mask[:] = [True, False, False, True, False, False]
    other["fc"].multiplicity[:] = [2, 0, 0, 1, 0, 0]
    rows = list(csv.reader(io.StringIO(graph.compare_csv([by_hand(depth=2), other]))))
    assert rows[0] == ["depth", "layer", "channel", "put, down", "insert"]
    expected = ["0 0 2", "1 1 0", "3 1 1", "5 1 0"]
    assert rows[1:5] == [["1", "fc", *line.split()] for line in expected]
    assert {row[1] for row in rows[5:]} == {"conv2", "side"}


@pytest.mark.parametrize("name", ["networkx", "matplotlib"])
def test_without_the_extra_the_error_says_what_to_install(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)

    def writing(pyramid):
        pictures.write_graph(tmp_path / "graph.svg", pyramid)

    with pytest.raises(ImportError, match=rf"pyramid: {name} is needed .*pip install 'clipsight\[pyramid\]'"):
        (graph.to_networkx if name == "networkx" else writing)(by_hand())
    assert list(tmp_path.iterdir()) == []


# ---- The pictures ---------------------------------------------------------------------------------------------------


def volumes(seed=0, count=1):
    """Smooth, so that H.264 keeps them; far from 0..1, so that the scaling shows."""
    rng, axes = np.random.default_rng(seed), np.meshgrid(*(np.linspace(0, 1, n) for n in (4, 20, 24)), indexing="ij")
    waves = [np.sin(sum(rng.uniform(2, 5) * axis for axis in axes) + rng.uniform(0, 6)) for _ in range(count)]
    return np.float32(5 + 3 * np.stack(waves))


@pytest.fixture
def shot():
    """Seven source frames of 40x56 at stride 2, of which a network of 4x20x24 saw the middle."""
    ramp = np.linspace(60, 190, 40 * 56).reshape(40, 56, 1)
    frames = [np.uint8(np.broadcast_to(ramp, (40, 56, 3)) + 5 * i) for i in range(7)]
    geometry = Geometry.of(Preprocessing(resize=20, crop=(20, 24)), (40, 56))
    spans = [(Fraction(i, 12), Fraction(i + 1, 12)) for i in range(30, 37)]
    return pictures.Shot(frames, spans, 30, 2, Fraction(12), Fraction(1), geometry)


def expected_overlays(shot, volume):
    """Scaled over the clip, half-way maps at the frames in between, the last one held."""
    scaled = (volume - volume.min()) / (volume.max() - volume.min())
    for index, frame in enumerate(shot.frames):
        a, b = scaled[index // 2], scaled[min(index // 2 + 1, 3)]
        yield render.Renderer(shot.geometry).heat(frame, a if index % 2 == 0 else (a + b) / 2)


def test_tubes_are_the_overlays_at_the_rate_of_the_source(shot, tmp_path, monkeypatch):
    """What is handed to the encoder: x264 itself does not give the same bits every time."""
    written, write = {}, VideoWriter.write

    def keep(writer, picture, span):
        written.setdefault(writer.path, []).append(picture.astype(int))
        assert span == (Fraction(len(written[writer.path]) - 1, 12), Fraction(len(written[writer.path]), 12))
        write(writer, picture, span)

    monkeypatch.setattr(VideoWriter, "write", keep)
    shown = volumes(count=2)
    step = Step(LAYERS["fc"], *(np.ones(1),) * 3, shown)
    paths = pictures.write_tubes(tmp_path, step, ["fc kernel 1", "fc/2"], shot, "-cat")
    assert [path.name for path in paths] == ["tube-fc_kernel_1-cat.mp4", "tube-fc_2-cat.mp4"]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}
    expected = [np.stack([*expected_overlays(shot, volume)]).astype(int) for volume in shown]
    for path, own, other in zip(paths, expected, expected[::-1], strict=True):
        reader, frames = VideoReader(path), np.stack(written[path])
        assert (reader.size, reader.fps, len(list(reader))) == ((40, 56), 12, 7)
        assert np.abs(frames - own).mean() < 0.5, "rounding"
        assert np.abs(frames - other).mean() > 20, "negative control: the other volume"
        assert np.abs(np.stack([*reader]).astype(int) - own).mean() < 15, "the loss of the codec"


def test_the_sheet_has_the_layers_from_top_to_bottom_and_the_clip_below(shot, tmp_path, monkeypatch):
    seen, draw = {}, render.contact_sheet

    def look(rows, frames, times, title, subtitle, *more):
        seen.update(rows=rows, frames=frames, times=times, title=title, subtitle=subtitle)
        return draw(rows, frames, times, title, subtitle, *more)

    monkeypatch.setattr(render, "contact_sheet", look)
    shown = {"fc": volumes(1), "conv1": volumes(2, 2)}
    pyramid = by_hand(depth=3, volumes=shown)
    names = [["fc"], [], [], ["block.conv1 channel 1", "block.conv1 channel 2"]]
    pictures.write_sheet(tmp_path / "p.png", pyramid, names, shot, "put   93.1 %", "clip.mp4", columns=3)
    lines = [name.split("\n") for name in seen["rows"]]
    assert lines == [["fc"], ["block.", "conv1", "channel 1"], ["block.", "conv1", "channel 2"], ["clip"]]
    assert (seen["frames"], seen["title"]) == ([31, 33, 35], "put   93.1 %")
    assert seen["times"] == [Fraction(31, 12), Fraction(33, 12), Fraction(35, 12)]
    for row, volume in zip(seen["rows"].values(), (shown["fc"][0], *shown["conv1"]), strict=False):
        wanted = list(expected_overlays(shot, volume))
        for picture, index in zip(row, (1, 3, 5), strict=True):
            assert np.abs(picture.astype(int) - wanted[index]).max() <= 1
    assert (seen["rows"]["clip"][0] == render.Renderer(shot.geometry).input(shot.frames[1])).all()
    assert render.Image.open(tmp_path / "p.png").size[0] > 3 * 224


def texts(svg):
    return [element.text for element in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_graph_as_a_picture(tmp_path):
    pictures.write_graph(tmp_path / "graph.svg", by_hand(), "clip.mp4")
    found = texts(tmp_path / "graph.svg")
    assert {*LAYERS, "clip", "put, down", "clip.mp4", "depth 2 · 2 of 4 kernels", "3 channels of the video"} <= set(
        found
    )
    whole = graph.to_networkx(by_hand())
    indices = sorted(str(index) for _, index in whole.nodes(data="index"))
    assert sorted(text for text in found if text.isdigit()) == indices
    assert "left out" not in " ".join(found), "all of it is drawn"
    curves = (tmp_path / "graph.svg").read_text().count(" C ") + (tmp_path / "graph.svg").read_text().count("\nC ")
    assert curves >= len(EDGES)
    first = (tmp_path / "graph.svg").read_bytes()
    pictures.write_graph(tmp_path / "graph.svg", by_hand(), "clip.mp4")
    assert (tmp_path / "graph.svg").read_bytes() == first, "the same pyramid gives the same bytes"


def test_a_large_graph_says_what_it_leaves_out(tmp_path):
    pyramid = randomly(5)
    whole = graph.to_networkx(pyramid)
    pictures.write_graph(tmp_path / "graph.svg", pyramid, limit=10)
    found = texts(tmp_path / "graph.svg")
    assert sum(text.isdigit() for text in found) == 1 + 4 + 4 * 10
    (limits,) = (text for text in found if "left out" in text)
    assert (
        f"at most 10 kernels, those that the most kernels above point at ({len(whole) - 45} of {len(whole)}" in limits
    )
    assert f"of {whole.number_of_edges():,} connections" in limits
    nodes, edges = graph.build(pyramid)
    rows, totals = pictures._graph_rows(nodes, edges, 10)
    assert sum(totals.values()) == len(whole)
    shown = {graph.node_name(nodes[i]) for row in rows.values() for i in row}
    hanging = [name for name in shown if whole.nodes[name]["depth"] > 1 and not shown & set(whole.predecessors(name))]
    assert hanging == [], "every kernel hangs on another that is drawn"
    drawn = sum(a in shown and b in shown for a, b in whole.edges)
    assert f"and {drawn:,} of" in limits


def test_what_is_written_leaves_the_graph_as_it_was(tmp_path):
    pyramid = randomly(5)
    graph.to_dict(pyramid)
    graph.to_networkx(pyramid).nodes["conv1/0"]["mark"] = 1
    nodes, edges = graph.build(pyramid)
    assert pyramid.graph[0] == nodes
    assert np.array_equal(pyramid.graph[1], edges)


def test_a_failing_picture_leaves_nothing(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def fail(self, path, **options):
        path.write_text("half")
        raise MemoryError

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(MemoryError):
        pictures.write_graph(tmp_path / "graph.svg", by_hand())
    assert list(tmp_path.iterdir()) == []

"""The HTML page of a pyramid: what is embedded, and in a real browser, what is shown after every click."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch

import clipsight
import pyramid_networks

pytest.importorskip("av")
cv2 = pytest.importorskip("cv2")
from PIL import Image  # noqa: E402

from browser import headless  # noqa: E402, F401 - the fixture `browser`
from clipsight.pyramid import Layer, Pyramid, Source, Step  # noqa: E402
from clipsight.pyramid.page import page_data, write_page  # noqa: E402
from clipsight.render import JET  # noqa: E402
from clipsight.synthetic import moving_shapes  # noqa: E402

T, SIZE = 16, 112
LABELS = ('put <b>"x"</b> & co', "insert</script><script>window.broken=1</script>@data@")
# left, right (side by side) -> conv1 -> conv2 in two groups -> + the shortcut around both -> fc
LAYERS = (
    Layer("fc", 1, 5, 12, 1, (4, 7, 7), (Source("conv2", 0, 12), Source("left", 0, 8), Source("right", 8, 12))),
    Layer("conv2", 2, 12, 12, 2, (8, 14, 14), (Source("conv1", 0, 12),)),
    Layer("conv1", 3, 12, 12, 1, (8, 14, 14), (Source("left", 0, 8), Source("right", 8, 12)), ((0, 8), (8, 12))),
    Layer("left", 4, 8, 3, 1, (16, 28, 28)),
    Layer("right", 4, 4, 3, 1, (16, 28, 28)),
)


def fake_pyramid(class_index, label, seed=0):
    """Random edges of the network above, with the multiplicities that follow from them."""
    rng = np.random.default_rng([seed, class_index])

    def edges(layer, selected):
        rows = rng.random((layer.kernels, layer.channels // layer.groups)) < 0.4
        rows[:, 0] |= ~rows.any(1)
        return rows & np.asarray(selected)[:, None]

    def counts(layer, rows):
        return sum(np.bincount(np.flatnonzero(rows[k]) + layer.reads(k).start, minlength=layer.channels)
                   for k in range(layer.kernels))  # fmt: skip

    fc, conv2, conv1, left, right = LAYERS
    rows = {"fc": edges(fc, np.arange(5) == class_index)}
    total = {"fc": counts(fc, rows["fc"])}
    rows["conv2"] = edges(conv2, total["fc"] > 0)
    total["conv2"] = counts(conv2, rows["conv2"])
    rows["conv1"] = edges(conv1, total["conv2"] > 0)
    total["conv1"] = counts(conv1, rows["conv1"]) + total["fc"]  # the sum hands its own on to the shortcut
    rows["left"], rows["right"] = edges(left, total["conv1"][:8] > 0), edges(right, total["conv1"][8:] > 0)
    total["left"] = total["right"] = counts(left, rows["left"]) + counts(right, rows["right"])
    steps = []
    for layer in LAYERS:
        volume = cv2.GaussianBlur(rng.normal(size=(SIZE, SIZE, T)).astype(np.float32), (0, 0), 12).transpose(2, 0, 1)
        volume = (volume - volume.min()) / (volume.max() - volume.min())
        steps.append(Step(layer, total[layer.name] > 0, total[layer.name], rows[layer.name], volume[None]))
    return Pyramid(class_index, label, tuple(steps))


@pytest.fixture(scope="module")
def pyramids():
    return [fake_pyramid(1, LABELS[0]), fake_pyramid(3, LABELS[1])]


@pytest.fixture(scope="module")
def activations():
    rng = np.random.default_rng(1)
    return {s.name: rng.normal(size=(s.channels, *s.grid)).astype(np.float32) for s in LAYERS}


@pytest.fixture(scope="module")
def frames():
    return moving_shapes(1, seed=3, frames=T, size=SIZE).frames[0]


@pytest.fixture(scope="module")
def page(pyramids, activations, frames, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "pyramid.html"
    write_page(path, pyramids, frames, activations, title='A <clip> & "more" @data@', fps=8)
    return path


def decode(grid):
    """[V, t, h, w] of what `page_data` gives for a volume or the maps of a layer, in float64."""
    levels = np.frombuffer(base64.b64decode(grid["data"]), np.uint8).reshape(-1, *grid["shape"])
    low, high = (np.reshape(grid[key], (-1, 1, 1, 1)) for key in ("low", "high"))
    return low + levels / 255.0 * (high - low)


def data_of(path):
    (text,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.DOTALL
    )
    return json.loads(text)


# ---- without a browser ----------------------------------------------------------------------------------------------
def test_arrays_come_back(page, activations, frames, pyramids):
    data = data_of(page)
    for layer in LAYERS:
        maps = data["maps"][layer.name]
        true = activations[layer.name][maps["channels"]]
        reach = np.ptp(true, axis=(1, 2, 3)).reshape(-1, 1, 1, 1) / 255
        assert (np.abs(decode(maps) - true) <= 0.501 * reach).all()
        assert (np.abs(decode(maps) - true[::-1]) > reach).any() or len(true) == 1
    assert len(data["frames"]) == T
    for text, frame in zip(data["frames"], frames, strict=True):
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
        assert picture.shape == frame.shape
        assert np.abs(picture.astype(float) - frame).mean() < 6
    for pyramid, kept in zip(pyramids, data["classes"], strict=True):
        assert (kept["label"], kept["index"]) == (pyramid.label, pyramid.class_index)
        for step, each in zip(pyramid, kept["steps"], strict=True):
            assert each["selected"] == step.mask.sum() == len(each["channels"])
            assert each["edges"] == step.edges.sum()
            assert each["multiplicity"] == step.multiplicity[each["channels"]].tolist()
            assert each["multiplicity"] == sorted(each["multiplicity"], reverse=True)
            links = {int(k): v for k, v in each["links"].items()}
            assert links == {k: [len(c), c.tolist()] for k in step.kernels for c in [step.connections(k)]}


def test_volumes_are_smaller_and_corners_stay_corners(pyramids, frames):
    """Against the same hat-shaped windows, one cell at a time; and a plane has no detail to lose."""
    volume = pyramids[0]["conv1"].volumes[0].astype(np.float64)
    kept = decode(page_data(pyramids, frames)["classes"][0]["steps"][2]["volume"])[0]
    assert kept.shape == (T, SIZE // 4, SIZE // 4)
    reach, step = np.ptp(kept), (SIZE - 1) / (SIZE // 4 - 1)
    for f, y, x in [(0, 0, 0), (5, 13, 4), (9, 27, 27), (15, 0, 27), (3, 20, 11)]:
        hats = [np.maximum(0, 1 - np.abs(np.arange(SIZE) - c * step) / step) for c in (y, x)]
        window = np.outer(*hats)
        assert abs(kept[f, y, x] - (volume[f] * window).sum() / window.sum()) <= 0.501 / 255 * reach
    assert np.abs(kept - volume[:, ::4, ::4]).max() < 0.1
    assert np.abs(kept[::-1] - volume[:, ::4, ::4]).max() > 0.3, "negative control: time reversed"


def test_a_limit_keeps_walks_alive(pyramids, frames, activations):
    """Kernels on the page take turns, one channel each; the counts stay those of all channels."""
    data = page_data(pyramids, frames, activations, limit=2)
    for pyramid, kept in zip(pyramids, data["classes"], strict=True):
        kernels = {"fc": {pyramid.class_index}}
        for step, each in zip(pyramid, kept["steps"], strict=True):
            name, many = step.layer.name, step.multiplicity.tolist()
            rows = [sorted(step.connections(k).tolist(), key=lambda j: (-many[j], j)) for k in kernels.get(name, ())]
            turns = {j: min((row.index(j) for row in rows if j in row), default=99) for j in np.flatnonzero(step.mask)}
            best = sorted(turns, key=lambda j: (turns[j], -many[j], j))[:2]
            assert each["channels"] == sorted(best, key=lambda j: (-many[j], j))
            assert each["selected"] == step.mask.sum()
            assert each["links"] == {
                k: (len(row), sorted(set(row) & set(best)))
                for k, row in zip(kernels.get(name, ()), rows, strict=True)
                if row
            }
            for source in step.layer.sources:
                inside = {int(j) - source.start + source.first for j in best if source.start <= j < source.stop}
                kernels[source.layer] = kernels.get(source.layer, set()) | inside
    assert all(len(maps["channels"]) <= 4 for maps in data["maps"].values())


def test_one_small_file_without_addresses(page, pyramids, frames, activations, tmp_path):
    text = page.read_text("utf-8")
    assert not re.search(r"https?:|//cdn|@import|url\(", text)
    for value in re.findall(r'(?:src|href)="?([^" ]*)', text.split('id="data"')[0]):
        assert value.startswith("data:")
    assert sorted(p.name for p in page.parent.iterdir()) == ["pyramid.html"]

    wide = [np.repeat(np.repeat(frame, 6, 0), 6, 1) for frame in frames]
    step = pyramids[0]["conv1"]
    for name, channels in (("a", 2048), ("b", 2048), ("c", 512)):
        activations = activations | {name: np.random.default_rng(0).normal(size=(channels, 8, 7, 7))}
    top = []
    for depth, (name, channels) in enumerate((("a", 2048), ("b", 2048), ("c", 512)), 1):
        layer, every = Layer(name, depth, 8, channels, 1, (8, 7, 7)), np.ones((8, channels), bool)
        top.append(Step(layer, every[0], np.full(channels, 8), every, step.volumes))
    path = tmp_path / "three.html"
    write_page(path, [Pyramid(0, "x", tuple(top))], np.stack(wide), {k: activations[k] for k in "abc"})
    assert path.stat().st_size < 3_000_000
    first = Image.open(io.BytesIO(base64.b64decode(data_of(path)["frames"][0])))
    assert first.size == (256, 256)


def test_text_is_escaped(page):
    text = page.read_text("utf-8")
    assert "<title>A &lt;clip&gt; &amp; &quot;more&quot; @data@</title>" in text
    assert text.count("</script>") == 2
    assert [each["label"] for each in data_of(page)["classes"]] == list(LABELS)


@pytest.mark.parametrize("change, message", [
    ({"pyramids": []}, "at least one, got 0"),
    ({"pyramids": [fake_pyramid(1, "a"), Pyramid(1, "b", fake_pyramid(1, "b").steps[:2])]}, "of the same layers"),
    ({"frames": np.zeros((2, 8, 8, 3), np.float32)}, r"uint8 \[T, H, W, 3\], got float32 \[2, 8, 8, 3\]"),
    ({"fps": 0}, "fps and limit must be positive, got 0, 64"),
    ({"limit": 0}, "fps and limit must be positive, got 8.0, 0"),
    ({"activations": {"conv9": np.zeros((1, 1, 1, 1))}}, r"activations\['conv9'\] must be a layer of"),
    ({"activations": {"conv1": np.zeros((3, 1, 1, 1))}}, r"must be \[12, t, h, w\], got \[3, 1, 1, 1\]"),
    ({"activations": {"conv1": np.full((12, 1, 1, 1), np.nan)}}, "finite, got others in conv1"),
])  # fmt: skip
def test_errors(tmp_path, pyramids, frames, change, message):
    options = {"pyramids": pyramids, "frames": frames} | change
    with pytest.raises(ValueError, match=message):
        write_page(tmp_path / "page.html", **options)
    assert not list(tmp_path.iterdir())


def test_several_volumes_of_a_layer_are_an_error(tmp_path, frames):
    (first, *others) = fake_pyramid(1, "a").steps
    first = Step(first.layer, first.mask, first.multiplicity, first.edges, np.zeros((2, T, 8, 8), np.float32))
    with pytest.raises(ValueError, match=r"one per layer, \[1, T, H, W\].* got \[2, 16, 8, 8\] of fc"):
        write_page(tmp_path / "page.html", [Pyramid(1, "a", (first, *others))], frames)


# ---- in a browser ---------------------------------------------------------------------------------------------------
def state(browser):
    return {key: browser(f"return document.body.dataset.{key}") for key in ("class", "layer", "channel", "frame")}


def pixels(browser, canvas):
    url = browser("return document.querySelector(arguments[0]).toDataURL('image/png')", canvas)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")).astype(np.float64)


def chips(browser, part):
    """{(layer, channel)} of the buttons in one part of the page."""
    script = f"return [...document.querySelectorAll('#{part} button')].map(b => [b.dataset.layer, b.dataset.channel])"
    return {(int(layer), int(channel)) for layer, channel in browser(script)}


def expected_parents(pyramid, layer, channel):
    """Walks the network of LAYERS by hand: kernels that point at a channel, as the channels that they become."""
    name = LAYERS[layer].name
    up = {"fc": None, "conv2": 0, "conv1": 1}  # a kernel of these becomes the channel of the same index of this layer
    offset = {"left": 0, "right": 8}
    pointing = [(name, k) for k in pyramid[name].kernels if channel in pyramid[name].connections(k)]
    if name in offset:  # both read the clip
        other = {"left": "right", "right": "left"}[name]
        pointing += [(other, k) for k in pyramid[other].kernels if channel in pyramid[other].connections(k)]
    result = set()
    for reader, kernel in pointing:
        if reader in offset:
            result.add((2, kernel + offset[reader]))
        elif up[reader] is not None:
            result.add((up[reader], kernel))
    return result


def expected_children(pyramid, layer, channel):
    below = {"fc": ["conv2"], "conv2": ["conv1"], "conv1": [], "left": [], "right": []}[LAYERS[layer].name]
    kernels = [(name, channel) for name in below]
    if LAYERS[layer].name in ("fc", "conv1"):
        kernels.append(("left", channel) if channel < 8 else ("right", channel - 8))
    names = [each.name for each in LAYERS]
    return {(names.index(name), int(j)) for name, k in kernels for j in pyramid[name].connections(k)}


def test_clicks_walk_the_graph(browser, page, pyramids):
    browser.open(page)
    best = data_of(page)["classes"][0]["steps"][0]["channels"][0]
    assert state(browser) == {"class": "0", "layer": "0", "channel": str(best), "frame": "0"}
    first = pixels(browser, "#tube")

    browser.click(".row[data-layer='2'] b")
    step = pyramids[0]["conv1"]
    assert state(browser)["layer"] == "2"
    assert browser.find("#layer-name").text == "conv1"
    assert f"{step.mask.sum()} of 12" in browser.find("#layer-facts").text
    assert chips(browser, "channels") == {(2, j) for j in np.flatnonzero(step.mask)}
    assert np.abs(pixels(browser, "#tube") - first).mean() > 3

    shown = browser.find("#channel-name").text, pixels(browser, "#map")
    last = data_of(page)["classes"][0]["steps"][2]["channels"][-1]
    browser.click(f"#channels [data-channel='{last}']")
    assert browser.find("#channel-name").text == f"Channel {last} of what conv1 reads" != shown[0]
    assert np.abs(pixels(browser, "#map") - shown[1]).mean() > 3
    assert browser("return document.querySelectorAll('#channels [aria-pressed=true]').length") == 1

    seen = set()
    for part in ("children", "parents", "parents", "parents", "children", "children"):  # down, and up to the top
        layer, channel = (int(state(browser)[key]) for key in ("layer", "channel"))
        assert chips(browser, "children") == expected_children(pyramids[0], layer, channel)
        parents = expected_parents(pyramids[0], layer, channel)
        if LAYERS[layer].name == "conv1" and pyramids[0]["fc"].mask[channel]:  # handed on by the sum
            assert "class" in browser.find("#parents").text
        assert chips(browser, "parents") == parents
        seen.add(layer)
        if chips(browser, part):
            title = browser.find(f"#{part} button").get_attribute("title")
            browser.click(f"#{part} button")
            assert browser.find("#channel-name").text.split()[1] in title
    assert {0, 1, 2} < seen
    assert browser.console() == []
    assert browser.requests() == [page.resolve().as_uri()]


def test_the_page_may_not_reach_a_network(browser, page):
    """And what would tell of an attempt does: it is blocked by the page's own policy."""
    browser.open(page)
    assert browser.console() == []
    browser.driver.execute_async_script(
        "const done = arguments[0], image = new Image(); image.onerror = () => done(); image.src = 'http://127.0.0.1:9/x.png'"
    )
    assert "Content Security Policy" in browser.console()[0]


def test_every_channel_has_its_parents_and_children(browser, page, pyramids):
    browser.open(page)
    for kind, pyramid in enumerate(pyramids):
        for layer, step in enumerate(pyramid):
            for channel in np.flatnonzero(step.mask):
                browser(
                    "pick({class: arguments[0], layer: arguments[1], channel: arguments[2]})", kind, layer, int(channel)
                )
                assert chips(browser, "parents") == expected_parents(pyramid, layer, channel)
                assert chips(browser, "children") == expected_children(pyramid, layer, channel)


def test_overlay_is_half_frame_half_jet_of_the_grid(browser, page, activations, pyramids):
    """At the corners of the canvas stand the corner cells of the first and the last time step, unmixed."""
    browser.open(page)
    browser.click(".row[data-layer='1'] b")
    data = data_of(page)
    channel = int(state(browser)["channel"])
    values = activations["conv2"][channel].astype(np.float64)
    levels = np.rint(255 * (values - values.min()) / np.ptp(values)).astype(int)
    for frame, time in ((0, 0), (T - 1, -1)):
        browser("pick({frame: arguments[0], opacity: 0})", frame)
        plain = pixels(browser, "#map")
        true = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["frames"][frame]))).resize((320, 320)))
        assert np.abs(plain - true).mean() < 4
        browser("pick({opacity: 0.5})")
        drawn = pixels(browser, "#map")
        for y in (0, -1):
            for x in (0, -1):
                expected = 0.5 * plain[y, x] + 0.5 * JET[levels[time, y, x]]
                assert np.abs(drawn[y, x] - expected).max() <= 3
        volume = decode(data["classes"][0]["steps"][1]["volume"])[0]
        corner = JET[round(255 * (volume[time, -1, -1] - volume.min()) / np.ptp(volume))]
        assert np.abs(pixels(browser, "#tube")[-1, -1] - (0.5 * plain[-1, -1] + 0.5 * corner)).max() <= 3


def test_classes_keyboard_and_playing(browser, page, pyramids):
    browser.open(page)
    assert [b.text for b in browser.driver.find_elements("css selector", "#classes button")] == list(LABELS)
    assert browser.find("h1").text == 'A <clip> & "more" @data@'
    assert not browser("return window.broken")
    for kind, (own, other) in enumerate((pyramids, pyramids[::-1])):
        browser.click(f"#classes [data-class='{kind}']")
        for layer in range(len(LAYERS)):
            browser.click(f".row[data-layer='{layer}'] b")
            shared = own.steps[layer].mask & other.steps[layer].mask
            marked = browser("return [...document.querySelectorAll('#channels .shared')].map(b => +b.dataset.channel)")
            alone = browser("return [...document.querySelectorAll('#channels .own')].map(b => +b.dataset.channel)")
            assert sorted(marked) == np.flatnonzero(shared).tolist()
            assert sorted(alone) == np.flatnonzero(own.steps[layer].mask & ~shared).tolist()

    first = pixels(browser, "#tube")
    browser.press("\ue014")  # arrow right
    assert state(browser)["frame"] == "1"
    assert np.abs(pixels(browser, "#tube") - first).mean() > 0.5
    browser.press("\ue012")  # arrow left, twice: around to the last frame
    browser.press("\ue012")
    assert state(browser)["frame"] == str(T - 1)
    assert f"frame {T} of {T}" in browser.find("#time").text
    browser.press(" ")
    assert browser("return document.body.dataset.playing") == "true"
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser.driver, 20).until(lambda _: state(browser)["frame"] not in (str(T - 1), "0"))
    browser.click("#play")
    assert browser("return document.body.dataset.playing") == "false"
    browser("const s = document.querySelector('#frame'); s.value = 7; s.dispatchEvent(new Event('input'))")
    assert state(browser)["frame"] == "7"
    assert browser.console() == []


def test_screenshots_in_light_and_dark(browser, page):
    means = []
    for dark in (False, True):
        browser.dark(dark)
        browser.open(page)
        picture = np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("RGB"))
        assert picture.std() > 20, "blank"
        assert len(np.unique(picture[::8, ::8].reshape(-1, 3), axis=0)) > 500, "no pictures on it"
        means.append(picture.mean())
    browser.dark(False)
    assert means[0] > means[1] + 60
    assert browser.console() == []


def test_without_volumes_activations_or_a_second_class(browser, pyramids, frames, tmp_path):
    """A fully connected layer has no extent; a page with nothing to draw over the clip still works."""
    steps = tuple(Step(s.layer, s.mask, s.multiplicity, s.edges) for s in pyramids[0])
    path = tmp_path / "bare.html"
    write_page(path, [Pyramid(1, "put", steps)], frames, limit=3)
    browser.open(path)
    browser.click(".row[data-layer='1']")
    assert "no tube" in browser.find(".row[data-layer='1']").text
    assert f"3 of {steps[1].mask.sum()} selected channels" in browser.find("#channels-title").text
    assert browser("return document.querySelectorAll('.chip canvas, .chip.shared, .chip.own').length") == 0
    browser.click("#channels button:last-child")
    assert "holds no activations" in browser.find("#channel-note").text
    assert pixels(browser, "#map").std() > 5
    assert browser.console() == []


@pytest.mark.parametrize("name", ["Projection", "MultiFiber", "Branches", "Nested", "Dense", "FullyConnected"])
def test_parents_account_for_the_multiplicity(browser, frames, tmp_path, name):
    """With sums and concatenations: what the page finds through the layers' sources is what the head counted."""
    clip = torch.randn(1, 3, 8, 12, 12, generator=torch.Generator().manual_seed(1))
    network = pyramid_networks.build(name)
    explained = clipsight.explain(network, clipsight.FeaturePyramid(theta=0.4, depth="all"), clip)
    with torch.inference_mode():
        outputs = dict(zip(explained.output_names, (o.numpy() for o in explained(clip)), strict=True))
    layers = explained.describe()["methods"][0]["layers"]
    pyramid = Pyramid.from_outputs(layers, outputs, int(outputs["logits"].argmax()))
    path = tmp_path / "page.html"
    write_page(path, [pyramid], frames[:8, ::2, ::2])
    browser.open(path)
    totals = browser(
        "return steps().map((step, layer) => step.channels.map(channel => {"
        "  const groups = parentsOf(layer, channel);"
        "  return [channel, groups.reduce((n, g) => n + g.total, 0), groups.reduce((n, g) => n + g.kernels.length, 0)];"
        "}))"
    )
    for step, rows in zip(pyramid, totals, strict=True):
        assert sorted(row[0] for row in rows) == np.flatnonzero(step.mask).tolist()
        for channel, total, kernels in rows:
            assert total == kernels == step.multiplicity[channel], (step.layer.name, channel)
    assert browser.console() == []

"""Videos and folders as cameras, downloads and editors leave them; the right answer is what FFmpeg's player shows."""

import io
import os
import struct
from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av")
cv2 = pytest.importorskip("cv2")
from av.stream import Disposition  # noqa: E402
from PIL import Image  # noqa: E402

from clipsight.video import VideoError, VideoReader, VideoWriter  # noqa: E402

SIZE = (48, 64)


def picture(index, size=SIZE):
    """Without any symmetry, with noise, so that each frame takes some bytes."""
    y, x = np.mgrid[: size[0], : size[1]]
    frame = np.stack([x * 230 // size[1], y * 230 // size[0], np.full_like(x, 40)], -1)
    left = 2 + 2 * index % (size[1] - 16)
    frame[6:18, left : left + 12] = (220, 220, 0)
    return np.uint8(frame + np.random.default_rng(index).integers(0, 12, frame.shape))


def encode(
    target, count=40, codec="libx264", pix="yuv420p", stamps=None, streams=None, sound=0, format=None, **options
):
    """Written with PyAV alone; `stamps` in 1/25 s, `streams` of (codec, pix, size, count, disposition), sound in s."""
    with av.open(str(target) if isinstance(target, os.PathLike) else target, "w", format, options) as container:
        streams = [
            (container.add_stream(name, rate=25), *rest) for name, *rest in streams or [(codec, pix, SIZE, count, None)]
        ]
        for stream, pixel_format, size, _, disposition in streams:
            stream.height, stream.width, stream.pix_fmt = *size, pixel_format
            stream.codec_context.time_base = stream.time_base = Fraction(1, 25)
            stream.codec_context.gop_size = 10
            if disposition is not None:
                stream.disposition = disposition
        voice = container.add_stream("aac", rate=48000) if sound else None
        for stream, _, size, count, _ in streams:
            for index in range(count):
                frame = av.VideoFrame.from_ndarray(picture(index, size), format="rgb24")
                frame.pts, frame.time_base = stamps[index] if stamps else index, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        if sound:
            for index in range(int(48000 * sound / 1024)):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                silence.sample_rate, silence.pts, silence.time_base = 48000, 1024 * index, Fraction(1, 48000)
                container.mux(voice.encode(silence))
            container.mux(voice.encode(None))
    return target


class Pipe(io.RawIOBase):
    """Cannot seek, so that what is written never learns its own length, as with a live recording."""

    def __init__(self):
        self.data = bytearray()

    def writable(self):
        return True

    def seekable(self):
        return False

    def write(self, data):
        self.data += bytes(data)
        return len(data)


def cut(path, at):
    data = path.read_bytes()
    path.write_bytes(data[: at if isinstance(at, int) else int(len(data) * at)])
    return path


def damage(path, share, width=300):
    data = bytearray(path.read_bytes())
    start = int(len(data) * share)
    data[start : start + width] = bytes(byte ^ 0x5A for byte in data[start : start + width])
    path.write_bytes(data)
    return path


def count(path, partial=False):
    return sum(1 for _ in VideoReader(path, partial=partial))


def refused(path):
    """How many frames could be decoded, by the message and with `partial`."""
    with pytest.raises(
        VideoError, match=r"cut off or damaged: \d+ frames could be decoded \(.+\); .* --partial"
    ) as caught:
        count(path)
    reader = VideoReader(path, partial=True)
    whole = len(list(reader))
    assert reader.cut_off
    assert f"damaged: {whole} frames" in str(caught.value)
    return whole


# ---- What is cut off, and what only looks like it -------------------------------------------------------------------

CONTAINERS = {
    "a.mkv": {},
    "sound.mkv": {"sound": 3},
    "a.webm": {"codec": "libvpx"},
    "front.mp4": {"movflags": "faststart"},
    "fragments.mp4": {"movflags": "frag_keyframe+empty_moov"},
    "a.avi": {"codec": "mpeg4"},
    "mjpeg.avi": {"codec": "mjpeg", "pix": "yuvj420p"},
    "a.gif": {"codec": "gif", "pix": "rgb8"},
    "a.mjpeg": {"codec": "mjpeg", "pix": "yuvj420p", "format": "mjpeg"},
    "a.flv": {"codec": "flv"},
    "a.wmv": {"codec": "wmv2"},
    "a.apng": {"codec": "apng", "pix": "rgb24"},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_half_a_file_is_refused_and_the_whole_one_is_not(tmp_path, name):
    path = encode(tmp_path / name, **CONTAINERS[name])
    assert count(path) == 40
    assert 4 < refused(cut(path, 0.75)) < 39


@pytest.mark.parametrize("format, codec", [("matroska", "libx264"), ("webm", "libvpx")])
def test_live_recording_that_breaks_off(tmp_path, format, codec):
    """Its header promises nothing; the last block is not all there."""
    encode(pipe := Pipe(), codec=codec, format=format)
    path = tmp_path / f"a.{format}"
    path.write_bytes(pipe.data)
    assert count(path) == 40
    assert refused(cut(path, 0.6)) < 39


@pytest.mark.parametrize("name, what", [("a.avi", r"0 frames"), ("a.mkv", "0 frames"), ("a.mov", "index .*missing")])
def test_cut_off_before_the_first_frame(tmp_path, name, what):
    with pytest.raises(VideoError, match=f"is cut off.*{what}"):
        VideoReader(cut(encode(tmp_path / name, codec="mpeg4"), 100))


@pytest.mark.parametrize("suffix", ["ts", "mkv", "mp4"])
@pytest.mark.parametrize("first, shift, frames", [(0, 0, 40), (15, 0, 20), (0, 13, 27)])
def test_recording_that_was_trimmed_without_encoding(tmp_path, suffix, first, shift, frames):
    """It starts between two key frames; or an MP4 hides the frames before its time 0."""
    source = encode(tmp_path / "whole.mp4")
    with av.open(str(source)) as whole, av.open(str(tmp_path / f"a.{suffix}"), "w") as container:
        stream = container.add_stream_from_template(whole.streams.video[0])
        earlier = int(Fraction(shift, 25) / whole.streams.video[0].time_base)
        for index, packet in enumerate(whole.demux(video=0)):
            if packet.size and index >= first:
                packet.pts, packet.dts = packet.pts - earlier, packet.dts - earlier
                packet.stream = stream
                container.mux(packet)
    read = count(tmp_path / f"a.{suffix}")
    assert read == (frames if suffix == "mp4" or not shift else 40)


@pytest.mark.parametrize("name, bytes_", [("a.mkv", 8), ("a.avi", 8), ("late.mp4", 0), ("fragments.mp4", 8)])
def test_a_lost_index_or_tail_is_no_lost_frame(tmp_path, name, bytes_):
    path = encode(tmp_path / name, **CONTAINERS.get(name, {}))
    if bytes_:
        cut(path, -bytes_)
    else:
        path.write_bytes(path.read_bytes() + b"left by the downloader")
    assert count(path) == 40


def test_gif_with_something_behind_its_end(tmp_path):
    path = encode(tmp_path / "a.gif", **CONTAINERS["a.gif"])
    path.write_bytes(path.read_bytes() + b"left by the downloader" * 9)
    assert count(path) == 40


def test_sound_that_is_cut_off_is_no_lost_frame(tmp_path):
    path = encode(tmp_path / "a.mp4", sound=4, movflags="faststart")
    data = path.read_bytes()
    with av.open(str(path)) as container:
        end = max(entry.pos + entry.size for entry in container.streams.video[0].index_entries)
    assert end < len(data), "the sound is longer"
    path.write_bytes(data[:end])
    assert count(path) == 40


@pytest.mark.parametrize("name, codec, pix, whole", [
    ("a.avi", "mjpeg", "yuvj420p", 38), ("a.mov", "png", "rgb24", 38), ("a.mp4", "libx264", "yuv420p", 30),
])  # fmt: skip
def test_damage_in_the_middle_costs_only_what_it_hits(tmp_path, name, codec, pix, whole):
    path = damage(encode(tmp_path / name, codec=codec, pix=pix), 0.5)
    assert whole <= refused(path) <= 40
    reader = VideoReader(path, partial=True)
    last = [reader.span[0] for _ in reader][-1]
    assert last == Fraction(39, 25) or name == "a.avi", "the frames behind it keep their time, where the file has times"


def test_blocks_of_matroska_that_the_demuxer_skips(tmp_path):
    """It goes on at the next cluster without a word."""
    path = encode(tmp_path / "a.mkv", 100, cluster_time_limit="500")
    data = bytearray(path.read_bytes())
    first = data.index(b"\x1f\x43\xb6\x75", len(data) // 3)
    data[first : first + 4] = bytes(4)
    path.write_bytes(data)
    assert 40 < refused(path) < 100


def test_single_picture_is_a_video_of_one_frame(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "a%03d.jpg", quality=95)
    (frame,) = VideoReader(tmp_path / "a%03d.jpg")
    assert np.abs(frame.astype(int) - picture(0)).mean() < 8
    with pytest.raises(VideoError, match=r"no frame of .* can be decoded .*truncated"):
        VideoReader(cut(tmp_path / "a%03d.jpg", 0.5))


# ---- When a frame is shown ------------------------------------------------------------------------------------------

PHONE = [*range(25), *range(25, 175, 10)]  # 1 s at 25/s, then 2.5/s


def decoded_times(path):
    with av.open(str(path)) as container:
        return [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]


@pytest.mark.parametrize("name, codec, pix", [
    ("a.mp4", "libx264", "yuv420p"), ("a.mkv", "libx264", "yuv420p"), ("a.gif", "gif", "rgb8"),
    ("a.avi", "mpeg4", "yuv420p"), ("a.ts", "libx264", "yuv420p"),
])  # fmt: skip
def test_variable_rate_is_kept(tmp_path, name, codec, pix):
    """An AVI fills the gaps with empty packets; a transport stream starts at 1.4 s."""
    path = encode(tmp_path / name, len(PHONE), codec, pix, stamps=PHONE)
    reader = VideoReader(path)
    with VideoWriter(tmp_path / "out.mp4", reader.fps) as film, VideoWriter(tmp_path / "out.gif", reader.fps) as gif:
        for frame in reader:
            film.write(frame, reader.span)
            gif.write(frame, reader.span)
    wanted = np.array(PHONE) / 25
    for written, bound in (("out.mp4", 0.011), ("out.gif", 0.016)):
        times = decoded_times(tmp_path / written)
        assert len(times) == len(PHONE)
        assert np.abs(times - wanted).max() < bound, "a GIF counts hundredths"
    assert reader.span[1] >= wanted[-1] + 1 / 25


def test_constant_rate_is_exact(tmp_path):
    """Though Matroska rounds to milliseconds."""
    path = encode(tmp_path / "a.mkv", codec="libx264", streams=[("libx264", "yuv420p", SIZE, 40, None)])
    for rate in (None, 12.5):
        reader = VideoReader(path, fps=rate)
        spans = [reader.span for _ in reader]
        assert spans == [(i / reader.fps, (i + 1) / reader.fps) for i in range(40)]
        assert reader.fps == (rate or 25)


@pytest.mark.parametrize("later", [0, 25000])
def test_transport_streams_in_a_row(tmp_path, later):
    """Each has its own clock: the second may start again, or hours later."""
    first = encode(tmp_path / "a.ts", 20)
    second = encode(tmp_path / "b.ts", 20, stamps=range(later, later + 20))
    first.write_bytes(first.read_bytes() + second.read_bytes())
    reader = VideoReader(first)
    assert [reader.span[0] for _ in reader] == [Fraction(index, 25) for index in range(40)]


def test_picture_that_starts_after_the_sound(tmp_path):
    path = encode(tmp_path / "a.mp4", 10, stamps=range(20, 30), sound=1)
    reader = VideoReader(path)
    assert float(next(reader.span for _ in reader)[0]) == pytest.approx(0.8, abs=0.03)


# ---- Which stream, which way up -------------------------------------------------------------------------------------

FILM = ("libx264", "yuv420p", SIZE, 40, Disposition(0))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("flags", [Disposition.attached_pic, Disposition.default, Disposition(0)])
def test_cover_is_not_the_film(tmp_path, suffix, flags):
    cover = ("mjpeg", "yuvj420p", (96, 128), 1, flags)
    path = encode(tmp_path / f"a.{suffix}", streams=[cover, FILM])
    reader = VideoReader(path)
    assert (reader.size, len(list(reader))) == (SIZE, 40)


def test_cover_alone_is_no_video(tmp_path):
    cover = ("mjpeg", "yuvj420p", SIZE, 1, Disposition.attached_pic)
    with pytest.raises(VideoError, match="has no video stream"):
        VideoReader(encode(tmp_path / "a.mp4", streams=[cover], sound=1))


def test_of_several_cameras_the_default_one(tmp_path):
    other = ("libx264", "yuv420p", (96, 128), 40, Disposition(0))
    for first, second in ((other, FILM), (FILM, other)):
        path = encode(tmp_path / "a.mkv", streams=[first, (*second[:4], Disposition.default)])
        assert VideoReader(path).size == second[2]


def with_matrix(path, a, b, c, d):
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_turned_and_mirrored_cameras(tmp_path, turns, mirrored):
    """Pixel (x, y) is shown at (a x + c y, b x + d y): where numpy takes it, too."""
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 25, Fraction(4, 3)) as writer:
        writer.write(picture(0))
    plain = next(iter(VideoReader(path)))
    right, down = np.array([1, 0]), np.array([0, 1])  # where x and y point, as (x, y)
    if mirrored:
        right = -right
    for _ in range(turns):
        right, down = (np.array([-v[1], v[0]]) for v in (right, down))  # a quarter clockwise
    with_matrix(path, *right.tolist(), *down.tolist())
    reader = VideoReader(path)
    expected = np.rot90(plain[:, ::-1] if mirrored else plain, -turns)
    assert reader.size == expected.shape[:2]
    assert (next(iter(reader)) == expected).all()
    assert reader.pixel_aspect == (Fraction(3, 4) if turns % 2 else Fraction(4, 3))


@pytest.mark.parametrize("orientation, turns", [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_motion_jpeg_turned_by_its_exif_data(tmp_path, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    with (tmp_path / "a.mjpeg").open("wb") as file:
        for index in range(3):
            Image.fromarray(picture(index)).save(file, "JPEG", exif=exif, quality=98)
    frames = np.stack(list(VideoReader(tmp_path / "a.mjpeg"))).astype(int)
    assert np.abs(frames - np.stack([np.rot90(picture(index), turns) for index in range(3)])).mean() < 6


# ---- Colors ---------------------------------------------------------------------------------------------------------

RED = (208, 48, 16)
WEIGHTS = {"bt709": (1, 0.2126, 0.0722), "bt601": (6, 0.299, 0.114), "bt2020": (9, 0.2627, 0.0593)}


def to_yuv(rgb, matrix, full, bits):
    """By the definition in ITU-T H.273."""
    _, kr, kb = WEIGHTS[matrix]
    r, g, b = (value / 255 for value in rgb)
    y = kr * r + (1 - kr - kb) * g + kb * b
    u, v = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    one = 1 << (bits - 8)
    if full:
        top = (1 << bits) - 1
        return [round(top * y), *(round(top * c + 128 * one) for c in (u, v))]
    return [round(one * (16 + 219 * y)), *(round(one * (128 + 224 * c)) for c in (u, v))]


def encode_color(path, matrix, tag, full=False, bits=8, size=SIZE, transfer=1):
    pixel_format, kind = ("yuv444p10le", np.uint16) if bits == 10 else ("yuv444p", np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, pixel_format
        frame = av.VideoFrame(size[1], size[0], pixel_format)
        for plane, value in zip(frame.planes, to_yuv(RED, matrix, full, bits), strict=True):
            plane.update(np.full(plane.buffer_size // kind().itemsize, value, kind).tobytes())
        for owner in (stream.codec_context, frame):
            owner.colorspace, owner.color_range = tag, 2 if full else 1
            owner.color_trc, owner.color_primaries = transfer, 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", WEIGHTS)
def test_named_matrix_and_range(tmp_path, matrix, full, bits):
    path = encode_color(tmp_path / "a.mkv", matrix, WEIGHTS[matrix][0], full, bits)
    assert np.abs(next(iter(VideoReader(path)))[20, 20].astype(int) - RED).max() <= 2


@pytest.mark.parametrize(
    "matrix, size", [("bt601", (576, 720)), ("bt709", (720, 960)), ("bt709", (536, 1280)), ("bt601", (480, 854))]
)
def test_unnamed_matrix_goes_by_the_size(tmp_path, matrix, size):
    path = encode_color(tmp_path / "a.mkv", matrix, 2, size=size)
    assert np.abs(next(iter(VideoReader(path)))[20, 20].astype(int) - RED).max() <= 2


@pytest.mark.parametrize("transfer, name", [(16, "PQ"), (18, "HLG")])
def test_high_dynamic_range_is_refused_with_the_way_out(tmp_path, transfer, name):
    path = encode_color(tmp_path / "a.mkv", "bt2020", 9, bits=10, transfer=transfer)
    with pytest.raises(VideoError, match=rf"standard dynamic range, got {name}; convert it with: ffmpeg .*tonemap"):
        VideoReader(path)


@pytest.mark.parametrize("size", [SIZE, (720, 1280)])
def test_written_colors_are_those_that_the_file_names(tmp_path, size):
    with VideoWriter(tmp_path / "a.mp4", 25) as writer:
        writer.write(np.full((*size, 3), RED, np.uint8))
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
        named = container.streams.video[0].codec_context
        assert (named.colorspace, named.color_range, named.color_primaries, named.color_trc) == (1, 1, 1, 1)
    pixels = size[0] * size[1]
    stored = [np.median(plane) for plane in np.split(frame.to_ndarray().ravel(), [pixels, pixels * 5 // 4])]
    assert np.abs(np.array(stored) - to_yuv(RED, "bt709", False, 8)).max() <= 1


# ---- Names and folders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "12:30.mp4", "-clip.mp4", "http:a.mp4", "concat:a|b.mp4", "file:a.mp4", "my clip (1).mp4", "a%03d.mp4", "名.mp4",
    b"bad\xff\xfe.mp4",
])  # fmt: skip
def test_names_are_taken_literally(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(name)
    with VideoWriter(name, 25) as writer:
        writer.write(picture(0))
    assert os.listdir() == [name]
    assert count(name) == 1


def test_title_in_another_encoding(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "coffee"
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"coffee", "caf\xe9 1".encode("latin-1")))
    assert count(path) == 1


def test_folder_as_systems_and_editors_leave_it(tmp_path):
    for index, name in enumerate(["Frame_1.PNG", "frame_2.png", "frame_10.png", "frame_11.Png"]):
        Image.fromarray(np.full((*SIZE, 3), 10 * index, np.uint8)).save(tmp_path / name)
    for name in (
        ".DS_Store",
        "._frame_1.png",
        ".hidden.jpg",
        "Thumbs.db",
        "desktop.ini",
        "frame_1.xml",
        "frame_2.png~",
    ):
        (tmp_path / name).write_bytes(b"no picture")
    (tmp_path / "frame_3.png").mkdir()
    assert [int(frame[0, 0, 0]) for frame in VideoReader(tmp_path)] == [0, 10, 20, 30]


def test_written_folder_that_was_looked_at_is_written_again(tmp_path):
    for count_ in (3, 2):
        with VideoWriter(tmp_path / "out", 25) as writer:
            for index in range(count_):
                writer.write(picture(index))
        assert count(tmp_path / "out") == count_
        for name in (".DS_Store", "._000000.png", "Thumbs.db"):
            (tmp_path / "out" / name).write_bytes(b"no picture")


def test_pictures_of_every_depth_upright_over_black(tmp_path):
    plain = picture(0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    clear = np.dstack([plain, np.full(SIZE, 255, np.uint8)])
    clear[:10, :, 3] = 0
    ramp = np.uint16(np.linspace(0, 65535, SIZE[0] * SIZE[1])).reshape(SIZE)
    palette = Image.fromarray(plain).quantize(64)
    Image.fromarray(np.rot90(plain)).save(tmp_path / "1.png", exif=exif)
    Image.fromarray(clear).save(tmp_path / "2.png")
    Image.fromarray(ramp).save(tmp_path / "3.png")
    palette.save(tmp_path / "4.png")
    cv2.imwrite(str(tmp_path / "5.png"), plain[..., ::-1].astype(np.uint16) * 257)
    Image.fromarray(np.rot90(plain)).save(tmp_path / "6.jpg", exif=exif, quality=98)
    turned, over, gray, indexed, deep, jpeg = VideoReader(tmp_path)
    assert (turned == plain).all()
    assert (over == plain * (clear[..., 3:] > 0)).all()
    assert (gray == (ramp // 256)[..., None]).all()
    assert (indexed == np.asarray(palette.convert("RGB"))).all()
    assert (deep == plain).all()
    assert np.abs(jpeg.astype(int) - plain).mean() < 6


def test_half_written_picture_in_a_folder(tmp_path):
    for index in range(4):
        Image.fromarray(picture(index)).save(tmp_path / f"{index}.jpg", quality=95)
    cut(tmp_path / "3.jpg", 0.5)
    assert refused(tmp_path) == 3
    cut(tmp_path / "1.jpg", 0.5)
    reader = VideoReader(tmp_path, partial=True)
    assert [float(reader.span[0]) for _ in reader] == [0, 0.08]


def test_ticks_as_coarse_as_the_frames_keep_their_times(tmp_path):
    """The average rate of a variable one is no grid for them."""
    ticks = [0, 2, 3, 8, 10, 12, 14, 17, 19, 22, 24, 27, 29]
    with av.open(tmp_path / "v.mp4", "w", options={"video_track_timescale": "25"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        for tick in ticks:
            frame = av.VideoFrame.from_ndarray(np.full((72, 96, 3), tick * 8, np.uint8), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    reader = VideoReader(tmp_path / "v.mp4")
    assert [reader.span[0] for _ in reader] == [Fraction(tick, 25) for tick in ticks]


def test_pictures_with_odd_names_links_and_data(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for name in ("shot.png", "shot.png2.png"):
        Image.new("RGB", (8, 8), "red").save(folder / name)
    assert len(list(VideoReader(folder))) == 2
    (folder / "gone.png").symlink_to(tmp_path / "nothing.png")
    with pytest.raises(VideoError, match=r"gone\.png is not a readable picture"):
        VideoReader(folder)
    exif = b"Exif\0\0" + bytes(20)
    Image.new("RGB", (8, 4), "red").save(tmp_path / "broken.jpg", exif=exif)
    assert VideoReader(tmp_path / "broken.jpg").size == (4, 8)
    two = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    two[0].save(tmp_path / "moving.gif", save_all=True, append_images=two[1:], duration=100)
    (tmp_path / "moving.gif").rename(tmp_path / "moving.png")
    assert len(list(VideoReader(tmp_path / "moving.png"))) == 2
    two[0].save(tmp_path / "slow.gif", save_all=True, append_images=two[1:], duration=300_000)
    reader = VideoReader(tmp_path / "slow.gif")
    assert [float(reader.span[0]) for _ in reader] == [0, 300]

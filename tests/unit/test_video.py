"""Reading and writing video: what comes back is what went in, and what cannot be read says why."""

import struct
import wave
from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av")
cv2 = pytest.importorskip("cv2")
from clipsight.video import VideoError, VideoReader, VideoWriter, over_black, whole_file, write_picture  # noqa: E402


def moving_square(count=12, height=48, width=64):
    """Smooth background with a bright square that moves right: frame number and orientation can be read off."""
    y, x = np.mgrid[:height, :width]
    frames = []
    for i in range(count):
        frame = np.stack([80 + x, 60 + y, 90 + (x + y) // 2], -1).clip(0, 255).astype(np.uint8)
        left = 2 * i % (width - 12)
        frame[8:20, left : left + 12] = (230, 220, 40)
        frames.append(frame)
    return frames


def write(path, frames, fps=25, **options):
    with VideoWriter(path, fps, **options) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def write_avi(path, frames):
    """Written by PyAV alone, so that the reader is not only tested against our own writer."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.bit_rate = 4_000_000
        stream.height, stream.width = frames[0].shape[:2]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def cut(path, share):
    data = path.read_bytes()
    short = path.with_name("cut" + path.suffix)
    short.write_bytes(data[: int(len(data) * share)])
    return short


def mean_difference(a, b):
    return np.abs(np.int16(a) - np.int16(b)).mean()


@pytest.mark.parametrize("suffix, bound", [(".mp4", 4), (".gif", 8), ("", 0)])
def test_what_is_written_comes_back(tmp_path, suffix, bound):
    frames = moving_square()
    reader = VideoReader(write(tmp_path / f"clip{suffix}", frames))
    assert (reader.size, reader.fps, reader.frame_count) == ((48, 64), 25, 12)
    back = list(reader)
    assert reader.decoded == len(back) == 12
    assert all(f.dtype == np.uint8 and f.shape == (48, 64, 3) for f in back)
    for frame, other in zip(frames, back, strict=True):
        assert mean_difference(frame, other) <= bound
    assert mean_difference(frames[0], back[6]) > bound, "the bound must tell one frame from another"
    assert [f.tolist() for f in reader] == [f.tolist() for f in back], "a second iteration starts at the front"


def test_avi_by_another_writer(tmp_path):
    frames = moving_square()
    reader = VideoReader(write_avi(tmp_path / "clip.avi", frames))
    back = list(reader)
    assert len(back) == 12
    assert reader.fps == 10
    assert mean_difference(frames[7], back[7]) < 4


@pytest.mark.parametrize("fps", [28, Fraction(30000, 1001), 60])
def test_gif_keeps_the_average_rate(tmp_path, fps):
    reader = VideoReader(write(tmp_path / "clip.gif", moving_square(60), fps))
    shown = len(list(reader))
    assert shown == (30 if fps == 60 else 60), "faster than 50/s is thinned"
    assert shown / float(reader.fps) == pytest.approx(60 / float(fps), abs=0.02)


def test_mp4_keeps_rate_and_pixel_aspect(tmp_path):
    path = write(tmp_path / "clip.mp4", moving_square(), Fraction(30000, 1001), pixel_aspect=Fraction(64, 51))
    reader = VideoReader(path)
    assert reader.fps == Fraction(30000, 1001)
    assert reader.pixel_aspect == Fraction(64, 51)


def test_odd_size_is_padded_by_one_replicated_line(tmp_path):
    frames = [f[:47, :63] for f in moving_square()]
    with VideoWriter(tmp_path / "odd.mp4", 25) as writer:
        for frame in frames:
            writer.write(frame)
    assert writer.padded
    back = list(VideoReader(tmp_path / "odd.mp4"))[3]
    assert back.shape == (48, 64, 3)
    assert mean_difference(back[:47, :63], frames[3]) < 4
    assert mean_difference(back[47, :63], frames[3][46]) < 6
    assert not write_is_padded(tmp_path, moving_square())
    assert VideoReader(write(tmp_path / "odd.gif", frames)).size == (47, 63), "GIF takes odd sizes"


def write_is_padded(tmp_path, frames):
    with VideoWriter(tmp_path / "even.mp4", 25) as writer:
        writer.write(frames[0])
    return writer.padded


def test_phone_rotation_is_applied(tmp_path):
    path = write(tmp_path / "clip.mp4", moving_square())
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    data[matrix : matrix + 36] = struct.pack(
        ">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30
    )  # show it 90 degrees clockwise
    path.write_bytes(data)
    reader = VideoReader(path)
    assert reader.size == (64, 48)
    assert mean_difference(next(iter(reader)), np.rot90(moving_square()[0], -1)) < 4


def test_folder_in_natural_order_with_its_own_rate(tmp_path):
    frames = moving_square(11)
    for i, frame in enumerate(frames):
        write_picture(tmp_path / f"frame{i}.png", frame)  # frame10 comes after frame9, not after frame1
    (tmp_path / "notes.txt").write_text("not a picture")
    reader = VideoReader(tmp_path, fps=12.5)
    assert (reader.fps, reader.frame_count, VideoReader(tmp_path).fps) == (12.5, 11, 25)
    assert all(np.array_equal(a, b) for a, b in zip(reader, frames, strict=True))


def test_reading_is_a_stream(tmp_path):
    frames = iter(VideoReader(write(tmp_path / "clip.mp4", moving_square(40))))
    next(frames)
    frames.close()  # the file is closed with it; nothing was collected


@pytest.mark.parametrize("name", ["clip.avi", "clip.gif", "clip.mp4"])
def test_cut_off_file_says_how_much_is_whole(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 60, (48, 64, 3), dtype=np.uint8)
    frames = [frame // 2 + np.roll(noise, i * i, 1) for i, frame in enumerate(moving_square(40))]  # bytes in each frame
    short = cut((write_avi if name.endswith("avi") else write)(tmp_path / name, frames), 0.6)
    with pytest.raises(VideoError, match=r"cut off or damaged: (\d+) frames could be decoded") as caught:
        list(VideoReader(short))
    whole = int(str(caught.value).split(": ")[2].split()[0])
    assert 0 < whole < 40
    reader = VideoReader(short, partial=True)
    assert len(list(reader)) == whole
    assert reader.cut_off
    full = VideoReader(tmp_path / name)
    assert len(list(full)) == 40
    assert not full.cut_off


def test_mp4_whose_index_at_the_end_is_missing(tmp_path):
    path = tmp_path / "late.mp4"
    with av.open(str(path), "w") as container:  # no faststart
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for frame in moving_square():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match=r"cut off: its index \(moov\)"):
        VideoReader(cut(path, 0.8))


def test_reading_errors(tmp_path):
    with pytest.raises(VideoError, match=r"no\.mp4 does not exist"):
        VideoReader(tmp_path / "no.mp4")
    for content in (b"", b"this is not a video at all" * 20):
        (tmp_path / "fake.mp4").write_bytes(content)
        with pytest.raises(VideoError, match="is not a video"):
            VideoReader(tmp_path / "fake.mp4")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    with pytest.raises(VideoError, match="has no video stream"):
        VideoReader(tmp_path / "sound.wav")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="must hold PNG or JPEG pictures, got none"):
        VideoReader(tmp_path / "empty")
    (tmp_path / "empty" / "a.png").write_bytes(b"nothing")
    with pytest.raises(VideoError, match=r"a\.png is not a readable picture"):
        VideoReader(tmp_path / "empty")
    with pytest.raises(VideoError, match="fps must be positive, got 0"):
        VideoReader(tmp_path / "fake.mp4", fps=0)


def test_frames_of_differing_sizes(tmp_path):
    write_picture(tmp_path / "1.png", np.zeros((20, 30, 3), np.uint8))
    write_picture(tmp_path / "2.png", np.zeros((20, 32, 3), np.uint8))
    with pytest.raises(VideoError, match=r"one size, 30x20 like the first, got 32x20 in 2\.png"):
        list(VideoReader(tmp_path))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip"])
def test_output_appears_whole_or_not_at_all(tmp_path, name):
    frames = moving_square()

    def fail_halfway():
        with VideoWriter(tmp_path / name, 25) as writer:
            writer.write(frames[0])
            assert not (tmp_path / name).exists(), "nothing shows before the end"
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail_halfway()
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / name, frames)
    before = list(VideoReader(tmp_path / name))
    with pytest.raises(VideoError, match="shape of the first"):
        write(tmp_path / name, [frames[0], frames[1][:20]])
    assert [p.name for p in tmp_path.iterdir()] == [name], "the file of the earlier run stays, no temporary one does"
    assert len(list(VideoReader(tmp_path / name))) == len(before)
    write(tmp_path / name, frames[:5])
    assert len(list(VideoReader(tmp_path / name))) == 5


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip"])
def test_no_frame_is_an_error(tmp_path, name):
    with pytest.raises(VideoError, match="no frame was written"):
        write(tmp_path / name, [])
    assert list(tmp_path.iterdir()) == []


def test_writing_errors(tmp_path):
    with pytest.raises(VideoError, match=r"must end in \.mp4 or \.gif"):
        VideoWriter(tmp_path / "clip.mov", 25)
    with pytest.raises(VideoError, match="fps must be positive"):
        VideoWriter(tmp_path / "clip.mp4", 0)
    for bad in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(VideoError, match=r"must be uint8 \[H, W, 3 or 4\]"):
            write(tmp_path / "clip.mp4", [bad])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(VideoError, match=r"got thesis\.txt in it"):
        write(tmp_path / "mine", moving_square())
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_whole_file_replaces_only_at_the_end(tmp_path):
    path = tmp_path / "deep" / "result.json"
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    with pytest.raises(ZeroDivisionError), whole_file(path) as temporary:
        temporary.write_text(str(1 / 0))
    assert path.read_text() == "new"
    assert len(list(path.parent.iterdir())) == 1


def test_alpha_is_kept_in_png_and_laid_over_black_elsewhere(tmp_path):
    frame = np.full((16, 16, 4), 200, np.uint8)
    frame[..., 3] = np.arange(16, dtype=np.uint8) * 17
    expected = np.rint(200.0 * frame[..., 3:] / 255 * np.ones(3))
    assert np.abs(over_black(frame) - expected).max() <= 1
    write(tmp_path / "clip", [frame])
    stored = cv2.imread(str(tmp_path / "clip" / "000000.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(stored, frame)
    write(tmp_path / "clip.gif", [frame])
    assert mean_difference(next(iter(VideoReader(tmp_path / "clip.gif"))), expected) < 3


def test_real_clips(clips):
    expected = {
        "arm_wrestling.mp4": (280, (256, 340), 28),
        "test.mp4": (300, (256, 340), 30),
        "test.avi": (164, (240, 320), 25),
        "cricket_rgb.gif": (79, (224, 224), 25),
    }
    for name, (count, size, fps) in expected.items():
        reader = VideoReader(clips / name)
        assert (reader.frame_count, reader.size, reader.fps) == (count, size, fps)
        assert sum(1 for _ in reader) == count

"""Videos decoded by PyAV, which brings its own FFmpeg: the frames that were asked for, as a player shows them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
from transformers.utils import is_av_available

try:  # of all imports of a model's code the Hub lets only guarded ones be missing
    import av
except ImportError:
    av = None

SLACK = 2  # frames by which a header or a mean frame rate may overstate a video's length
BACK = (0, 1, 4, 16)  # seconds before the wanted frame to seek to, one after the other, until it is not passed over
MAX_PIXELS = 10**9  # of the frames decoded from one video: 3 GB
PROGRAM_STREAM = "mpeg"  # most time stamps of these (.mpg, .vob) FFmpeg makes up, and others behind a seek


class UntrustedTimesError(Exception):
    """Time stamps behind a seek that do not grow."""


@dataclass
class VideoFacts:
    """What a video is.

    Attributes:
        total: frames; 0 where the file does not say.
        rate: frames a second.
        height, width: of a frame with square pixels, not turned.
        damaged: packets that could not be decoded; the frame before stands for what they held.
    """

    total: int
    rate: Fraction | None
    height: int
    width: int
    damaged: int = 0


def require_av() -> None:
    """Raise a `ModuleNotFoundError` that says what to install where PyAV is missing."""
    if not is_av_available():
        raise ModuleNotFoundError(
            "videos are decoded by PyAV, which is not installed: run `pip install av` or `pip install bridle-hf[av]`.",
            name="av",
        )


def read_video(
    file: BinaryIO,
    choose: Callable[[VideoFacts], np.ndarray] | None = None,
    fit: Callable[[int, int], tuple[int, int]] | None = None,
) -> tuple[np.ndarray, VideoFacts]:
    """Decode a video or some of its frames.

    Frame k is what a player shows k / rate seconds after the first, whether it is decoded alone or among all, turned,
    mirrored and stretched as the file says. What is transparent lies on white.

    Args:
        file: of the video, open for reading and seeking.
        choose: facts of the video -> numbers of the wanted frames, in any order; of a video that turns out shorter than
            its header says it is called again. Decoding starts at the key frame before the first of them and ends at
            the last; a file is not read as a whole. `None` is all.
        fit: (height, width) of a frame -> those that it is resized to while decoding; `None` keeps them.

    Returns:
        uint8 (frames, 3, H, W) and the facts.

    Raises:
        ValueError: no video in the file, no frame in it, more of it damaged than not, more than `MAX_PIXELS`, frames of
            several sizes, or a wanted frame that lies behind its end.
        av.FFmpegError: the file cannot be read.
        ImportError: PyAV is not installed.
    """
    require_av()
    with Recording(file, fit) as video:
        if not video.facts.total or not video.facts.rate:
            video.measure()
        if choose is None:
            frames, video.facts.total = video.decode(None)
            return frames, video.checked_facts()
        for _ in range(2):  # with the length that the header says, then with the one that was found
            wanted = np.asarray(choose(video.facts))
            frames, end = video.decode(wanted)
            if end is None or wanted.max() < end + SLACK:
                return frames, video.checked_facts()
            video.facts.total = end
        raise ValueError(f"ends before frame {wanted.max() + 1}")


class Recording:
    """A video file that is open for decoding; a context manager."""

    def __init__(self, file: BinaryIO, fit: Callable | None = None):
        self.file, self.fit, self.container = file, fit, None
        self.whole = 0  # frames decoded from where reading began

    def __enter__(self):
        self.open()
        stream = self.stream
        self.rate = stream.average_rate or stream.guessed_rate or None
        self.start = stream.start_time or 0
        # Without time stamps, or with those of B-frames in AVI, which are in another order, frames can only be counted.
        kind, bidirectional = self.container.format.name, stream.codec_context.has_b_frames
        self.in_order = stream.start_time is None or kind == PROGRAM_STREAM or (kind == "avi" and bidirectional)
        self.can_seek = not self.in_order
        self.aspect = stream.sample_aspect_ratio or 1
        width = max(1, round(stream.width * self.aspect))
        self.facts = VideoFacts(self.header_total(), self.rate, stream.height, width)
        return self

    def __exit__(self, *error):
        self.container.close()

    def open(self) -> None:
        """Open the file at its beginning, once more if it was open."""
        if self.container is not None:
            self.container.close()
        self.file.seek(0)
        self.container = av.open(self.file)
        self.stream, self.used = film_of(self.container), False

    def header_total(self) -> int:
        """Number of frames that the header says, or that its duration comes to."""
        stream, container = self.stream, self.container
        if container.format.name == PROGRAM_STREAM:
            return 0
        said = [stream.frames] if stream.frames else []
        if stream.duration:
            said.append(round(stream.duration * stream.time_base * (self.rate or 0)))
        elif container.duration and not said:  # from the recording's zero on, which may lie long before the first frame
            seconds = container.duration / av.time_base - float(self.start * stream.time_base)
            said.append(round(seconds * (self.rate or 0)))
        return max(0, min(said, default=0))

    def checked_facts(self) -> VideoFacts:
        """The facts; a `ValueError` if most of the packets from the key frame to the last wanted frame are damaged."""
        damaged, whole = self.facts.damaged, self.whole
        if damaged > whole:
            raise ValueError(f"{damaged} of {damaged + whole} packets are damaged where it was read")
        return self.facts

    def measure(self) -> None:
        """Count the frames of a file that does not say how many it has: its packets are read and not decoded."""
        times = [packet.pts for packet in self.container.demux(self.stream) if packet.size]
        known = [time for time in times if time is not None]
        seconds = (max(known) - min(known)) * self.stream.time_base if known else 0
        if not self.rate:
            self.rate = Fraction(len(known) - 1) / seconds if seconds else Fraction(1)
        self.facts.rate = self.rate
        self.facts.total = len(times) if self.in_order or not seconds else round(seconds * self.rate) + 1
        self.open()

    def numbered(self, first: int) -> Iterator[tuple[int, Any]]:
        """Yield (number, frame) from a key frame before number `first` on, or from the first frame of the file.

        A key frame with number `first` is not enough: if several frames have this number, the first of them counts.
        """
        if self.can_seek and first > 0:
            for back in BACK:
                target = (first - Fraction(3, 4)) / self.rate - back
                if target <= 0:
                    break
                try:
                    self.container.seek(self.start + int(target / self.stream.time_base), stream=self.stream)
                except av.FFmpegError:  # the container cannot seek
                    break
                frames = self.decoded(sought=True)
                number, frame = next(((n, f) for n, f in frames if f.key_frame and f.pts is not None), (first, None))
                if number < first:
                    yield number, frame
                    yield from frames
                    return
        if self.used:
            self.open()
        yield from self.decoded()

    def decoded(self, sought: bool = False) -> Iterator[tuple[int, Any]]:
        """Number and frame, from where the container stands; packets that cannot be decoded are counted.

        Raises:
            UntrustedTimesError: time stamps behind a seek (`sought`) do not grow.
        """
        number, time, origin, self.used = -1, None, self.start, True
        self.facts.damaged = self.whole = 0
        for packet in self.container.demux(self.stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                self.facts.damaged += 1
                continue
            self.whole += len(frames)
            for frame in frames:
                if self.in_order or frame.pts is None:
                    number += 1
                    yield number, frame
                    continue
                if time is not None and frame.pts <= time:
                    if frame.is_corrupt:  # damage delayed it in the decoder; later frames came first
                        continue
                    if sought:
                        raise UntrustedTimesError
                    origin = frame.pts - round((number + 1) / self.rate / self.stream.time_base)  # joined recordings
                number, time = round((frame.pts - origin) * self.stream.time_base * self.rate), frame.pts
                yield number, frame

    def decode(self, wanted: np.ndarray | None) -> tuple[np.ndarray, int | None]:
        """The wanted frames, and number of the frames that there are, None where the end was not seen.

        In place of frames behind the end there is the last one.
        """
        if wanted is None:
            return self.collect(None)
        wanted, places = np.unique(wanted, return_inverse=True)
        try:
            frames, end = self.collect(wanted)
        except UntrustedTimesError:
            self.can_seek = False
            frames, end = self.collect(wanted)
        return frames[places], end

    def collect(self, wanted: np.ndarray | None) -> tuple[np.ndarray, int | None]:
        """As `decode`, for ascending numbers."""
        found = Collected(self.facts.total if wanted is None else len(wanted))
        shown, number, end = None, 0, None
        for number, frame in self.numbered(0 if wanted is None else int(wanted[0])):
            picture = Picture(self, frame)
            while (due := _due(wanted, found.count)) is not None and due <= number:
                # until this frame came the one before was shown; at the very beginning there was none
                found.add((picture if due == number or shown is None else shown).pixels())
            shown = picture
            if wanted is not None and found.count == len(wanted):
                break
        else:
            end = number + 1
            while shown is not None and wanted is not None and found.count < len(wanted):
                found.add(shown.pixels())
        if found.array is None:
            raise ValueError("no frame of it can be decoded")
        return found.array[: found.count], end


def _due(wanted: np.ndarray | None, count: int) -> int | None:
    """The number of the next frame to keep when `count` are kept; None when there is no other."""
    if wanted is None:
        return count
    return int(wanted[count]) if count < len(wanted) else None


class Picture:
    """A frame that is turned into an array at most once."""

    def __init__(self, video: Recording, frame):
        self.video, self.frame, self.array = video, frame, None

    def pixels(self) -> np.ndarray:
        """uint8 (3, H, W), turned and mirrored, with square pixels, resized and on white."""
        if self.array is None:
            self.array, self.frame = shown_pixels(self.frame, self.video.aspect, self.video.fit), None
        return self.array


def shown_pixels(frame, aspect: Fraction | int = 1, fit: Callable | None = None) -> np.ndarray:
    """A frame of PyAV as it is shown: uint8 (3, H, W)."""
    turns = round(frame.rotation / 90) % 4  # counterclockwise
    size = frame.height, max(1, round(frame.width * aspect))
    if fit is not None:
        size = fit(*size) if turns % 2 == 0 else fit(*size[::-1])[::-1]
    resized = {}
    if size != (frame.height, frame.width):
        resized = {"height": size[0], "width": size[1], "interpolation": "BICUBIC"}
    clear = any(component.is_alpha for component in frame.format.components) or frame.format.has_palette
    pixels = frame.to_ndarray(format="rgba" if clear else "rgb24", **resized)
    if is_mirrored(frame):
        pixels = pixels[::-1]  # then turned: where the left and right are exchanged, by half a turn
    return on_white(np.rot90(pixels, turns).transpose(2, 0, 1))


def is_mirrored(frame) -> bool:
    """Whether the display matrix of a frame, [[a, b], [c, d]], mirrors: its rotation is then told by (a, b) alone."""
    for found in frame.side_data:
        if found.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(bytes(found), np.int32, count=5).astype(np.int64)
            return bool(a * d < b * c)
    return False


def on_white(pixels: np.ndarray) -> np.ndarray:
    """uint8 (..., 3, H, W) as it is, or (..., 4, H, W) with the opacity last -> uint8 (..., 3, H, W)."""
    colours, opacity = pixels[..., :3, :, :], pixels[..., 3:, :, :]
    if (opacity == 255).all():
        return colours
    lack = (255 - colours).astype(np.uint16) * opacity  # of white, times 255
    return 255 - ((lack + 127) // 255).astype(np.uint8)


class Collected:
    """Frames in one array, which is there before the first, so that memory holds each about once.

    Attributes:
        array: uint8 (room, 3, H, W), of which the first `count` are filled.
    """

    def __init__(self, expected: int):
        self.expected, self.count, self.array = expected, 0, None

    def add(self, pixels: np.ndarray) -> None:
        _, height, width = pixels.shape
        if (self.count + 1) * height * width > MAX_PIXELS:
            raise ValueError(
                f"more than {MAX_PIXELS // 10**6} million pixels were to be decoded at once, at {width} x {height} a "
                "frame; decode clips and not the whole (data.cache=false, data.in_memory=false)"
            )
        if self.array is None:
            room = min(self.expected + SLACK, MAX_PIXELS // (height * width))
            self.array = np.empty((room, 3, height, width), np.uint8)
        if pixels.shape != self.array.shape[1:]:
            raise ValueError(f"has frames of several sizes, {self.array.shape[2:]} and {(height, width)}")
        if self.count == len(self.array):  # the header says less than there are
            self.array = np.concatenate([self.array, np.empty_like(self.array)])
        self.array[self.count] = pixels
        self.count += 1


def film_of(container):
    """The video stream to decode: no cover picture.

    Raises:
        ValueError: there is none.
    """
    streams = container.streams.video
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        raise ValueError(f"holds no video, only {' and '.join(kinds) or 'nothing'}")
    cover = av.stream.Disposition.attached_pic
    films = [stream for stream in streams if stream.frames != 1 and not stream.disposition & cover] or streams
    best = container.streams.best("video")
    return best if best in films else films[0]


__all__ = ["VideoFacts", "read_video", "require_av"]

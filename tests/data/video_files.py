"""Writers of video files of every kind, whose frames tell their own number by their brightness."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

MILLISECOND = Fraction(1, 1000)
MATRIX = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)  # of an mp4's track header: as it is
RATE = 25


class Pipe:
    """What can only be written to, in order, as browsers and streams do it."""

    def __init__(self, file):
        self.file = file

    def write(self, data):
        return self.file.write(data)


def write_video(
    path: Path,
    codec: str = "libx264",
    frames: int | np.ndarray = 60,
    gop: int = 12,
    times: list[int] | None = None,
    pixel_format: str = "yuv420p",
    aspect: Fraction | None = None,
    options: dict | None = None,
    mux: dict | None = None,
    pipe: str | None = None,
    b_frames: int | None = None,
) -> str:
    """Write a video and return its path.

    Args:
        frames: uint8 (frames, H, W, 3), or a number of grey ones from black to white.
        gop: frames from one key frame to the next.
        times: of the frames, in milliseconds; by default 25 a second.
        aspect: of a pixel, width to height.
        options, mux: of the codec, of the container.
        pipe: format of a container that is written to what cannot seek.
    """
    if isinstance(frames, int):
        levels = np.linspace(0, 255, frames).round().astype(np.uint8)
        frames = np.broadcast_to(levels[:, None, None, None], (frames, 48, 64, 3)).copy()
    file = open(path, "wb") if pipe else None
    target = {"file": Pipe(file), "format": pipe} if pipe else {"file": str(path)}
    with av.open(**target, mode="w", options=mux or {}) as container:
        stream = container.add_stream(codec, rate=RATE, options={"x265-params": "log-level=none"} | (options or {}))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixel_format
        context = stream.codec_context
        context.gop_size = gop
        if b_frames is not None:
            context.max_b_frames = b_frames
        if aspect:
            context.sample_aspect_ratio = aspect
        if times:
            context.time_base = MILLISECOND
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24" if pixels.shape[-1] == 3 else "rgba")
            if times:
                frame.pts, frame.time_base = times[number], MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if file:
        file.close()
    return str(path)


def turn(path: str, matrix: tuple[int, int, int, int]) -> str:
    """Write another matrix, (a, b, c, d) of ones and zeros, into the track header of an mp4, as phones do."""
    content = bytearray(Path(path).read_bytes())
    place = content.find(MATRIX, content.find(b"tkhd"))
    a, b, c, d = (65536 * number for number in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    Path(path).write_bytes(content)
    return path


def brightness(frames: np.ndarray) -> np.ndarray:
    """uint8 (frames, ...) -> the mean of each."""
    return frames.reshape(len(frames), -1).mean(axis=1)

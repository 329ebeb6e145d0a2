"""Videos of moving digits as real mp4 files; the class is the motion and cannot be told from one frame.

Ten motions of the handwritten digits that scikit-learn brings along. The canvas has no edges (what leaves it comes in
at the other side), the first place and the first angle are uniform, and all motions keep them so: every single frame of
every class is drawn from the same distribution, whichever digit it shows.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..video_decoding_bridle import require_av
from .digits import BRIGHTNESS, digit_images, paint, place_digit
from .folder import FOLDS, write_set

SIZE = 32  # pixels, both sides
FRAMES, RATE = 24, 12  # a second holds RATE frames
SCALE = (18.0, 22.0)  # pixels that the 8 of a digit become
SPEED = (1.0, 2.0)  # pixels a frame
SPIN = (8.0, 20.0)  # degrees a frame
RADIUS = (4.0, 7.0)  # pixels, of circles and swings
TURN = (14.0, 26.0)  # degrees a frame, along circles and swings

Rng = np.random.Generator
Course = tuple[np.ndarray, np.ndarray, np.ndarray]  # row, column and angle in degrees, (FRAMES,) each or 0


def _straight(down: int, along: int) -> Callable[[Rng, np.ndarray], Course]:
    def course(rng: Rng, time: np.ndarray) -> Course:
        way = rng.uniform(*SPEED) * time
        return down * way, along * way, 0 * time

    return course


def _spin(direction: int) -> Callable[[Rng, np.ndarray], Course]:
    return lambda rng, time: (0 * time, 0 * time, direction * rng.uniform(*SPIN) * time)


def _turns(rng: Rng, time: np.ndarray) -> tuple[float, np.ndarray]:
    """A radius, and the phase at each moment."""
    return rng.uniform(*RADIUS), np.deg2rad(rng.uniform(*TURN) * time + rng.uniform(0, 360))


def _circle(direction: int) -> Callable[[Rng, np.ndarray], Course]:
    def course(rng: Rng, time: np.ndarray) -> Course:
        radius, phase = _turns(rng, time)
        return direction * radius * np.sin(phase), radius * np.cos(phase), 0 * time

    return course


def _swing(down: int, along: int) -> Callable[[Rng, np.ndarray], Course]:
    def course(rng: Rng, time: np.ndarray) -> Course:
        radius, phase = _turns(rng, time)
        return down * radius * np.sin(phase), along * radius * np.sin(phase), 0 * time

    return course


MOTIONS: dict[str, Callable[[Rng, np.ndarray], Course]] = {
    "circle clockwise": _circle(1),
    "circle counterclockwise": _circle(-1),
    "move down": _straight(1, 0),
    "move left": _straight(0, -1),
    "move right": _straight(0, 1),
    "move up": _straight(-1, 0),
    "spin clockwise": _spin(-1),
    "spin counterclockwise": _spin(1),
    "swing sideways": _swing(0, 1),
    "swing up and down": _swing(1, 0),
}


def draw_video(motion: str, rng: Rng) -> np.ndarray:
    """A video of a random digit in a motion of `MOTIONS`: uint8 (FRAMES, SIZE, SIZE, 3)."""
    digit = rng.choice(digit_images()[0])
    (row, column), angle = rng.uniform(0, SIZE, size=2), rng.uniform(0, 360)
    rows, columns, angles = MOTIONS[motion](rng, np.arange(FRAMES))
    scale, level = rng.uniform(*SCALE), rng.uniform(*BRIGHTNESS)
    frames = []
    for down, along, turn in zip(rows, columns, angles, strict=True):
        ink = place_digit(digit, SIZE, (row + down, column + along), scale, angle + turn)
        frames.append(paint(level * ink))
    return np.stack(frames)


def write_video(path: str | os.PathLike, frames: np.ndarray, rate: int, codec: str = "libx264") -> None:
    """Encode frames uint8 (T, H, W, 3), H and W even, with PyAV; the path's ending names the container."""
    require_av()
    import av

    with av.open(str(path), "w") as container:
        # A fixed quantiser: rate control looks ahead in threads of its own and gives other bytes every time.
        stream = container.add_stream(codec, rate=rate, options={"qp": "20"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def write_motion_set(folder: str | os.PathLike, seed: int = 0, videos_per_class: int = 100) -> Path:
    """Write the videos as a video dataset folder, or leave the folder alone where that set is already there.

    `folder/train` holds mp4 files (H.264, 32 x 32, 24 frames, 2 s) and `metadata.jsonl` with the columns `label`
    (integer), `label_name` and `fold` (1 to 5, each with the same number of videos of every class, give or take one).
    The same seed gives the same files.

    Args:
        folder: new folder, or one that this function wrote; a set of another seed or size is replaced.
        seed: of everything random.
        videos_per_class: videos of each of the ten motions.

    Raises:
        FileExistsError: where `folder` holds anything else.
    """
    receipt = {"set": "moving digits", "seed": seed, "videos_per_class": videos_per_class}
    return write_set(folder, receipt, partial(_write_videos, seed=seed, videos_per_class=videos_per_class))


def _write_videos(folder: Path, seed: int, videos_per_class: int) -> Iterator[dict]:
    names = list(MOTIONS)
    order = np.random.default_rng(seed).permutation(len(names) * videos_per_class)
    for number, place in enumerate(tqdm(order, desc="drawing", unit=" videos")):
        take, label = divmod(int(place), len(names))
        name = f"{number:05d}.mp4"
        write_video(folder / name, draw_video(names[label], np.random.default_rng([seed, label, take])), RATE)
        yield {"file_name": name, "label": label, "label_name": names[label], "fold": take % FOLDS + 1}

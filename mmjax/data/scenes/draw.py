"""Scenes as pictures, at any resolution."""

import io

import numpy as np
import PIL.Image

from mmjax.data.scenes.scene import BACKGROUNDS, COLOURS, Scene

OVERSAMPLE = 4  # points a pixel in each direction, whose mean is its coverage


def inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points are inside a shape that fills [-1, 1] x [-1, 1]; v points up."""
    r = np.hypot(u, v)
    if shape == "circle":
        return r <= 1
    if shape == "square":
        return np.maximum(abs(u), abs(v)) <= 0.95
    if shape == "triangle":
        return (v >= -0.9) & (abs(u) <= (1.0 - v) / 1.9)
    if shape == "star":
        return _star(u, v)
    if shape == "cross":
        return ((abs(u) <= 0.34) & (abs(v) <= 1)) | ((abs(v) <= 0.34) & (abs(u) <= 1))
    if shape == "ring":
        return (r <= 1) & (r >= 0.55)
    if shape == "heart":
        x, y = 1.15 * u, 1.18 * v + 0.12
        return (x**2 + y**2 - 1) ** 3 - x**2 * y**3 <= 0
    if shape == "diamond":
        return abs(u) / 0.8 + abs(v) <= 1
    raise ValueError(f"no shape {shape!r}")


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five points, one up: by the angle from the nearest point, the edge is a straight line."""
    v = v + 0.08
    turn = np.pi / 5
    angle = abs((np.arctan2(u, v) + turn) % (2 * turn) - turn)
    inner = 0.42
    x, y = np.hypot(u, v) * np.cos(angle), np.hypot(u, v) * np.sin(angle)
    # The line from the point (1.08, 0) to the notch at angle pi / 5 and radius `inner`.
    notch = (inner * np.cos(turn), inner * np.sin(turn))
    return (x - 1.08) * notch[1] <= y * (notch[0] - 1.08)


def cover(shape: str, x: float, y: float, radius: float, side: int) -> np.ndarray:
    """How much of each pixel a shape covers, [side, side] f32; all lengths in pixels."""
    out = np.zeros((side, side), np.float32)
    columns, rows = (
        slice(max(int(np.floor(c - radius)), 0), min(int(np.ceil(c + radius)), side))
        for c in (x, y)
    )
    k = OVERSAMPLE
    u, v = (
        (s.start + (np.arange((s.stop - s.start) * k) + 0.5) / k - c) / radius
        for s, c in ((columns, x), (rows, y))
    )
    fine = inside(shape, *np.broadcast_arrays(u[None], -v[:, None]))
    out[rows, columns] = fine.reshape(len(v) // k, k, len(u) // k, k).mean((1, 3))
    return out


def picture(scene: Scene, size: int) -> np.ndarray:
    """[size, size, 3] uint8."""
    top, bottom = (np.array(c, np.float32) for c in BACKGROUNDS[scene.background])
    down = ((np.arange(size, dtype=np.float32) + 0.5) / size)[:, None, None]
    pixels = np.broadcast_to(top + (bottom - top) * down, (size, size, 3))
    for thing in scene.things:
        x, y, radius = (size * value for value in (thing.x, thing.y, thing.radius))
        share = cover(thing.shape, x, y, radius, size)[..., None]
        pixels = pixels + share * (np.array(COLOURS[thing.colour], np.float32) - pixels)
    return np.round(pixels).astype(np.uint8)


def png(scene: Scene, size: int) -> bytes:
    """The picture as PNG."""
    out = io.BytesIO()
    PIL.Image.fromarray(picture(scene, size)).save(out, "PNG")
    return out.getvalue()

"""Figures of images side by side, each with a caption."""

from collections.abc import Sequence
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxopt_course.looks import OKABE_ITO
from jaxopt_course.plots.style import _axes, _pattern

GAP, WORDS = 0.12, 0.3  # space beside an image and for its caption, in widths of an image


def image_grid(
    rows: Sequence[np.ndarray],
    captions: Sequence[Sequence[str]] = (),
    *,
    names: Sequence[str],
    top: float,
    title: str,
    marked: Sequence[Sequence[bool]] = (),
    columns: Sequence[str] = (),
) -> Figure:
    """Plot rows of images with a caption under each image and a dashed frame around marked images.

    Args:
      rows: arrays of images, `[n, H, W]` drawn in grey or `[n, H, W, 3]` in colour; zero is black. The rows may have
        different lengths.
      captions: a text for each image; no captions by default.
      names: a text for each row, to its left.
      top: the value that is white, or full colour; 255 for most images.
      title: what is shown, and on which data.
      marked: for each image, whether to frame it; no frames by default.
      columns: a text for each column, above it.

    Returns:
      A figure.

    Example:
      >>> images = np.array([np.eye(4), 1 - np.eye(4)])
      >>> axes = image_grid([images], [["cat", "dog"]], names=["test"], top=1.0, title="Images").axes[0]
      >>> len(axes.images), [text.get_text() for text in axes.texts]
      (2, ['cat', 'dog'])
    """
    width = max((len(images) for images in rows), default=0)
    wide, high = 1 + GAP, 1 + GAP + WORDS * bool(captions)
    size = (1.6 + 0.9 * wide * width, 0.8 + 0.85 * high * len(rows))
    figure, axes = _axes("\n".join(fill(line, int(10 * size[0])) for line in title.split("\n")), "", "", size)
    for i, images in enumerate(rows):
        for j, image in enumerate(np.asarray(images, float)):
            left, upper = j * wide, i * high
            extent = (left, left + 1, upper + 1, upper)
            axes.imshow(np.clip(image / top, 0, 1), cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest")
            frame = bool(marked) and marked[i][j]
            if frame:
                axes.add_patch(
                    Rectangle((left, upper), 1, 1, fill=False, ec=OKABE_ITO[1], lw=3, ls=_pattern(4), clip_on=False)
                )
            color, weight = (OKABE_ITO[1], "bold") if frame else ("0.2", "normal")
            place, caption = (left + 0.5, upper + 1.06), captions[i][j] if captions else ""
            axes.text(*place, caption, ha="center", va="top", size=8, color=color, weight=weight)
    axes.set_xlim(-GAP, max(width, 1) * wide)
    axes.set_ylim(max(len(rows), 1) * high, -GAP)
    axes.set_yticks([i * high + 0.5 for i in range(len(rows))], list(names))
    axes.set_xticks([j * wide + 0.5 for j in range(len(columns))], list(columns))
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    return figure

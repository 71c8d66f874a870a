"""Images as they are: rows of them, each row with its name."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from jaxopt_course.plots.figures import _axes


def image_rows(rows: Mapping[str, np.ndarray], *, title: str) -> Figure:
    """Rows of images side by side, pixel for pixel.

    Args:
      rows: name -> `[K, H, W]` or `[K, H, W, 3]`, of one shape but for K; black is 0, white the greatest value of all.
      title: what is shown, and of which data.

    Returns:
      A figure.
    """
    height, width, *channels = next(iter(rows.values())).shape[1:]
    columns = max(len(images) for images in rows.values())
    largest = max(float(images.max(initial=0)) for images in rows.values())
    mosaic = np.ones((len(rows), columns, height + 1, width + 1, *channels))  # a gap below and right of each
    for row, images in zip(mosaic, rows.values(), strict=True):
        row[: len(images), :height, :width] = images / (largest if largest > 0 else 1)
    pixels = mosaic.swapaxes(1, 2).reshape(len(rows) * (height + 1), columns * (width + 1), *channels)
    figure, axes = _axes(title, "", "", size=(1.8 + 0.45 * columns, 0.7 + 0.45 * len(rows) * height / width))
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks(np.arange(len(rows)) * (height + 1) + (height - 1) / 2, list(rows))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure

"""Exact k-nearest-neighbour search in tiles, used by `nearest_neighbor`.

Columns are queries, rows are points. A tile of keys `[rows, columns]` sorts the points in the order of their distances.
Its k smallest keys are merged with the k smallest so far (of equal keys, the one with the lowest index), and the next
tile follows. Keys of uint8 pixels are integers without rounding. Keys of floating-point images are lower bounds on the
distance, including rounding: the distances of candidates are computed in float64 in the order of their bounds, until
the next bound exceeds the k-th distance found. If the bounds of all kept candidates stay below that distance, the
distances of all points are computed.

All functions here are traced with x64 on, whatever the setting of the caller.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxopt_course.annotations import Array, Bool, Float, Int, Shaped
from jaxopt_course.dtypes import at_least_32_bits, widest

GREY = 128  # subtracted from pixels, which gives integers from -128 to 127
PRODUCT_FEATURES = 1024  # features in one product: float32 adds integers exactly up to 1024 * 128**2 = 2**24
MAX_PRODUCTS = 32  # for more features than PRODUCT_FEATURES * MAX_PRODUCTS, each product has more features
EXACT_FEATURES = PRODUCT_FEATURES * MAX_PRODUCTS  # most features for which squared distances of pixels fit int32
BLOCK = 16  # rows of a tile that are first compared by their smallest key
STRIP = 512  # columns of a tile of L1 distances
STEP = 32  # features added to such a tile at a time: both fit the first-level cache, and 32 * 255 fits uint16
MAX_SELECTED = 128  # up to this k the smallest keys are selected one by one, above it by a sort
LAST = np.int32(2**31 - 1)
LARGE = 1e150  # values up to this size have squared distances within float64

Found = tuple[Array, Array]  # keys and indices, [k, columns]


@partial(jax.jit, static_argnames="chunk_size")
def prepare(images: Shaped[Array, "N D"], *, chunk_size: int) -> tuple[Float[Array, " D"], Shaped[Array, " N"]]:
    """Return a centre, which is subtracted from all points, and the norms of the centred points.

    The centre is NaN if a point is not usable. A norm is the contribution of a point b to its L2 key: `|b|^2` for
    integers, else `|b|^2 / 2` minus the slack.
    """
    total, num_features = images.shape
    rows = _even(total, chunk_size)
    firsts = jnp.minimum(_indices(-(-total // rows)) * rows, total - rows)
    dtype = at_least_32_bits(images.dtype) if images.dtype != jnp.uint8 else jnp.dtype(jnp.float32)

    def add(sums: Array, first: Array) -> tuple[Array, None]:
        tile = lax.dynamic_slice_in_dim(images, first, rows)
        usable = jnp.all(is_usable(tile))
        return sums + jnp.where(usable, jnp.sum(tile, axis=0, dtype=jnp.float64), jnp.nan), None

    if images.dtype == jnp.uint8:
        centre = jnp.full(num_features, GREY, dtype)
    else:  # near the mean: any point is valid
        sums, _ = lax.scan(add, jnp.zeros(num_features, jnp.float64), firsts)
        centre = (sums / (len(firsts) * rows)).astype(dtype)

    def norm(tile: Array) -> Array:
        if _is_whole(images, "l2"):
            return _square_norms(_pieces(tile, centre))
        relative = tile.astype(jnp.float64) - centre[None].astype(jnp.float64)
        return ((0.5 - _slack(num_features, "l2", dtype)) * jnp.sum(relative * relative, axis=1)).astype(dtype)

    def write(norms: Array, first: Array) -> tuple[Array, None]:
        new = norm(lax.dynamic_slice_in_dim(images, first, rows))
        return lax.dynamic_update_slice_in_dim(norms, new, first, 0), None

    whole = jnp.zeros(total, jnp.int32 if _is_whole(images, "l2") else dtype)
    return centre, lax.scan(write, whole, firsts)[0]


def is_usable(images: Shaped[Array, "N D"]) -> Bool[Array, " N"]:
    """Whether all values of a row and their squares are finite."""
    if images.dtype == jnp.uint8:
        return jnp.ones(len(images), bool)
    return jnp.all(jnp.abs(images) < LARGE if images.dtype == jnp.float64 else jnp.isfinite(images), axis=1)


@partial(jax.jit, static_argnames=("k", "metric", "chunk_size"))
def search(
    images: Shaped[Array, "N D"],
    centre: Float[Array, " D"],
    norms: Shaped[Array, " N"],
    queries: Shaped[Array, "B D"],
    *,
    k: int,
    metric: str,
    chunk_size: int,
) -> tuple[Int[Array, "B k"], Float[Array, "B k"]]:
    """Return indices and distances, nearest first; -1 and NaN if the query or the points are not usable."""
    total = len(queries)
    columns = _even(total, min(chunk_size, STRIP) if metric == "l1" else chunk_size)
    rows = _even(len(images), chunk_size)
    nearest = _nearest_whole if _is_whole(images, metric) else _nearest_floating
    pixels = images.dtype == jnp.uint8
    dtype = widest(jnp.float32, *(() if pixels else (images.dtype, queries.dtype)))

    def tile(found: Found, i: Array) -> tuple[Found, None]:
        first = jnp.minimum(i * columns, total - columns)
        part = lax.dynamic_slice_in_dim(queries, first, columns)
        distances, indices = nearest(images, centre, norms, part, k, metric, rows)
        distances = distances.astype(jnp.float64)
        distances = jnp.sqrt(distances) if metric == "l2" else distances
        usable = (is_usable(part) & jnp.all(jnp.isfinite(centre)))[None]
        new = jnp.where(usable, distances, jnp.nan).astype(dtype), jnp.where(usable, indices, np.int32(-1))
        distances, indices = (
            lax.dynamic_update_slice_in_dim(a, b.T, first, 0) for a, b in zip(found, new, strict=True)
        )
        return (distances, indices), None

    start = jnp.zeros((total, k), dtype), jnp.zeros((total, k), jnp.int32)
    (distances, indices), _ = lax.scan(tile, start, _indices(-(-total // columns)))
    return indices, distances


def _nearest_whole(images: Array, centre: Array, norms: Array, queries: Array, k: int, metric: str, rows: int) -> Found:
    if metric == "l1":
        return _smallest_of_all(images, rows, len(queries), k, partial(_absolute, queries.T), jnp.int32)
    mine = _pieces(queries, centre)

    def keys(points: Array, first: Array) -> Array:
        products = [_product(a, b).astype(jnp.int32) for a, b in zip(_pieces(points, centre), mine, strict=True)]
        return lax.dynamic_slice_in_dim(norms, first, rows)[:, None] - 2 * reduce(jnp.add, products)

    keys_, indices = _smallest_of_all(images, rows, len(queries), k, keys, jnp.int32)
    return keys_ + _square_norms(mine)[None], indices


def _nearest_floating(
    images: Array, centre: Array, norms: Array, queries: Array, k: int, metric: str, rows: int
) -> Found:
    num_points, num_features = images.shape
    tiny = 4 * num_features * float(jnp.finfo(centre.dtype).tiny)  # bound on the loss by underflow
    kept = min(num_points, 2 * k + 8)
    relative = queries.astype(jnp.float64) - centre[None].astype(jnp.float64)
    if metric == "l1":
        dtype = widest(centre.dtype, at_least_32_bits(queries.dtype))
        base, scale = jnp.zeros(len(queries)), 1 - _slack(num_features, metric, dtype)
        across = queries.astype(dtype).T
    else:
        dtype, scale = centre.dtype, 2.0
        base = (1 - _slack(num_features, metric, dtype)) * jnp.sum(relative * relative, axis=1)
        mine = _split(relative.astype(dtype))

    def keys(points: Array, first: Array) -> Array:
        if metric == "l1":
            values = _absolute(across, points)
        else:
            products = [_product(a, b) for a, b in zip(_pieces(points, centre), mine, strict=True)]
            values = lax.dynamic_slice_in_dim(norms, first, rows)[:, None] - reduce(jnp.add, products)
        return jnp.where(jnp.isfinite(values), values, -jnp.inf)  # after an overflow there is no bound

    bounds, candidates = _smallest_of_all(images, rows, len(queries), kept, keys, dtype)
    bounds = scale * bounds.astype(jnp.float64) + (base - 2 * tiny)[None]
    usable = is_usable(queries) & jnp.all(jnp.isfinite(centre))

    def is_undecided(state: tuple[Array, Array, Array]) -> Array:
        taken, distances, _ = state
        within = bounds[jnp.minimum(taken, kept - 1)] <= distances[-1]
        return (taken < kept) & jnp.any(within & usable)

    def take(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        taken, distances, indices = state
        index = candidates[taken]
        distance = _measure(images[index], queries, metric)
        return taken + 1, *_merge((distances, indices), (distance[None], index[None]), k)

    start = jnp.int32(0), *_empty(k, len(queries), jnp.float64)
    _, distances, indices = lax.while_loop(is_undecided, take, start)
    decided = ~usable if kept < num_points else jnp.ones(len(queries), bool)
    decided |= bounds[-1] > distances[-1]

    def measure_all(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        decided, distances, indices = state
        column = lax.argmin(decided.astype(jnp.int32), 0, jnp.int32)
        query = lax.dynamic_slice_in_dim(queries, column, 1)
        d, i = _smallest_of_all(
            images, rows, 1, k, lambda points, _: _measure(points, query, metric)[:, None], jnp.float64
        )
        return decided.at[column].set(True), distances.at[:, column].set(d[:, 0]), indices.at[:, column].set(i[:, 0])

    _, distances, indices = lax.while_loop(lambda state: ~jnp.all(state[0]), measure_all, (decided, distances, indices))
    return distances, indices


def _smallest_of_all(
    images: Array, rows: int, columns: int, k: int, keys_of: Callable[[Array, Array], Array], dtype: Any
) -> Found:
    """Return the k smallest keys of each column over all tiles; `keys_of(points[rows, D], first)` returns a tile."""
    total = len(images)

    def tile(found: Found, i: Array) -> tuple[Found, None]:
        first = jnp.minimum(i * rows, total - rows)
        keys = keys_of(lax.dynamic_slice_in_dim(images, first, rows), first)
        is_new = first + _indices(rows) >= i * rows  # the last tile overlaps the one before
        near, places = _smallest_of_tile(jnp.where(is_new[:, None], keys, _top(dtype)), k)
        return _merge(found, (near, places + first), k), None

    return lax.scan(tile, _empty(k, columns, dtype), _indices(-(-total // rows)))[0]


def _smallest_of_tile(keys: Array, k: int) -> Found:
    """Return the k smallest keys of each column and their rows.

    They are in the k blocks whose smallest keys are smallest.
    """
    rows, columns = keys.shape
    if rows < 4 * k * BLOCK:
        return _smallest(keys, lax.broadcasted_iota(jnp.int32, keys.shape, 0), k)
    keys = jnp.pad(keys, ((0, -rows % BLOCK), (0, 0)), constant_values=_top(keys.dtype))
    blocks = keys.reshape(-1, BLOCK, columns)
    minima = reduce(jnp.minimum, [blocks[:, i] for i in range(BLOCK)])
    _, best = _smallest(minima, lax.broadcasted_iota(jnp.int32, minima.shape, 0), k)
    places = best[:, None] * BLOCK + _indices(BLOCK)[None, :, None]
    places = places.reshape(k * BLOCK, columns)
    return _smallest(jnp.take_along_axis(keys, places, axis=0), places, k)


def _smallest(keys: Array, indices: Array, k: int) -> Found:
    """Return the k smallest keys of each column in order; of equal keys, those with the lowest index."""
    if k > MAX_SELECTED:
        keys, indices = lax.sort((keys, indices), dimension=0, num_keys=2)
        return keys[:k], indices[:k]

    def take(keys: Array, _: None) -> tuple[Array, Found]:
        least = jnp.min(keys, axis=0)
        index = jnp.min(jnp.where(keys == least[None], indices, LAST), axis=0)
        taken = (keys == least[None]) & (indices == index[None])
        return jnp.where(taken, _top(keys.dtype), keys), (least, index)

    return lax.scan(take, keys, length=k)[1]


def _merge(some: Found, others: Found, k: int) -> Found:
    keys, indices = (jnp.concatenate(pair) for pair in zip(some, others, strict=True))
    return _smallest(keys, indices, k)


def _empty(k: int, columns: int, dtype: Any) -> Found:
    return jnp.full((k, columns), _top(dtype)), jnp.full((k, columns), LAST)


def _indices(count: int) -> Array:
    return jnp.arange(count, dtype=jnp.int32)  # the default here is int64, which a caller without x64 cannot index with


def _top(dtype: Any) -> Any:
    """Return a value above every key."""
    return np.array(np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).max, dtype)


def _split(values: Array) -> list[Array]:
    width = _width(values.shape[1])
    return [values[:, first : first + width] for first in range(0, values.shape[1], width)]


def _width(num_features: int) -> int:
    return max(PRODUCT_FEATURES, -(-num_features // MAX_PRODUCTS))


def _pieces(images: Array, centre: Array) -> list[Array]:
    """Return the points minus the centre, split into pieces of at most `_width` features."""
    return [a.astype(centre.dtype) - c for a, c in zip(_split(images), _split(centre[None]), strict=True)]


def _square_norms(pieces: list[Array]) -> Array:
    """Return squared norms as integers."""
    return reduce(jnp.add, [jnp.sum(piece * piece, axis=1).astype(jnp.int32) for piece in pieces])


def _product(points: Array, queries: Array) -> Array:
    contracted = (((1,), (1,)), ((), ()))
    return lax.dot_general(points, queries, contracted, precision=lax.Precision.HIGHEST)


def _absolute(queries: Array, points: Array, _: Any = None) -> Array:
    """Return sums of absolute differences, `[rows, columns]`, of queries `[D, columns]` and points `[rows, D]`."""
    num_features, columns = queries.shape
    whole = queries.dtype == jnp.uint8
    points = points.astype(queries.dtype)

    def add(queries: Array, points: Array, sums: Array) -> Array:
        terms = [_difference(points[:, i, None], queries[None, i]) for i in range(len(queries))]
        return sums + reduce(jnp.add, terms).astype(sums.dtype)

    def step(sums: Array, first: Array) -> tuple[Array, None]:
        some = lax.dynamic_slice_in_dim(queries, first, STEP)
        return add(some, lax.dynamic_slice_in_dim(points, first, STEP, axis=1), sums), None

    steps, rest = divmod(num_features, STEP)
    sums = jnp.zeros((len(points), columns), jnp.int32 if whole else queries.dtype)
    sums, _ = lax.scan(step, sums, _indices(steps) * STEP) if steps else (sums, None)
    return add(queries[-rest:], points[:, -rest:], sums) if rest else sums


def _difference(a: Array, b: Array) -> Array:
    a, b = jnp.broadcast_arrays(a, b)
    return (jnp.maximum(a, b) - jnp.minimum(a, b)).astype(jnp.uint16) if a.dtype == jnp.uint8 else jnp.abs(a - b)


def _measure(points: Array, queries: Array, metric: str) -> Array:
    """Return the distance (for L2, squared) of each point to its query, or to the only one, directly in float64."""
    difference = points.astype(jnp.float64) - jnp.broadcast_to(queries, points.shape).astype(jnp.float64)
    return jnp.sum(jnp.abs(difference) if metric == "l1" else difference * difference, axis=1)


def _is_whole(images: Array, metric: str) -> bool:
    return images.dtype == jnp.uint8 and (metric == "l1" or images.shape[1] <= EXACT_FEATURES)


def _slack(num_features: int, metric: str, dtype: Any) -> float:
    r"""Return twice a bound on the relative error of a key.

    The error of a sum of n products is at most $\gamma_n = n u / (1 - n u)$ times the sum of their absolute values, in
    any order and with or without fused multiply-add (Higham 2002, "Accuracy and Stability of Numerical Algorithms", eq.
    3.4). For L2 the sums are |a| |b| <= (|a|^2 + |b|^2) / 2 and |b|^2 / 2.
    """
    longest = _width(num_features) if metric == "l2" else STEP
    terms = longest + -(-num_features // longest)
    if jnp.finfo(dtype).bits == 64:
        terms += num_features  # the distances compared with the keys have the same rounding
    return 1.02 * (terms + 16) * float(jnp.finfo(dtype).eps)


def _even(total: int, chunk_size: int) -> int:
    """Return the number of rows of tiles of about equal length, in whole blocks if possible."""
    rows = -(-total // -(-total // chunk_size))
    rounded = rows + -rows % BLOCK
    return rounded if rounded <= min(total, chunk_size) else rows

"""Ray tracing one ray and one number at a time, the yardstick of the vectorised tracer."""

import itertools

import numpy as np


def siddon_row(origin, direction, grid):
    """Chord lengths of one line in every pixel of a grid, [*grid.shape], by sorted crossings."""
    n_axes = grid.ndim
    origin, direction = np.asarray(origin, float), np.asarray(direction, float)
    crossings = []
    for axis in range(n_axes):
        if direction[axis] != 0:
            n_planes = tuple(reversed(grid.shape))[axis] + 1
            planes = grid.lower[axis] + grid.pixel_size * np.arange(n_planes)
            crossings.extend((planes - origin[axis]) / direction[axis])
    row = np.zeros(grid.shape)
    ordered = sorted(crossings)
    for enter, leave in itertools.pairwise(ordered):
        middle = origin + (enter + leave) / 2 * direction
        index = []
        for axis in range(n_axes):
            position = (middle[axis] - grid.lower[axis]) / grid.pixel_size
            size = tuple(reversed(grid.shape))[axis]
            if axis == 1:
                position = size - position
            index.append(int(np.floor(position)))
        index = tuple(reversed(index))
        if all(0 <= i < n for i, n in zip(index, grid.shape, strict=True)):
            row[index] += (leave - enter) * np.linalg.norm(direction)
    return row


def joseph_row(origin, direction, grid):
    """Interpolation weights of one line, [*grid.shape]: linear across its fastest axis."""
    n_axes = grid.ndim
    origin, direction = np.asarray(origin, float), np.asarray(direction, float)
    sizes = tuple(reversed(grid.shape))
    row = np.zeros(grid.shape)
    fastest = int(np.argmax(np.abs(direction[:n_axes])))
    step = grid.pixel_size * np.linalg.norm(direction) / abs(direction[fastest])
    others = [axis for axis in range(n_axes) if axis != fastest]
    for layer in range(sizes[fastest]):
        centre = grid.lower[fastest] + (layer + 0.5) * grid.pixel_size
        point = origin + (centre - origin[fastest]) / direction[fastest] * direction
        positions = {a: (point[a] - grid.lower[a]) / grid.pixel_size - 0.5 for a in others}
        for corner in itertools.product((0, 1), repeat=len(others)):
            weight, index = step, {fastest: layer}
            for axis, upper in zip(others, corner, strict=True):
                below = int(np.floor(positions[axis]))
                share = positions[axis] - below
                weight *= share if upper else 1 - share
                index[axis] = below + upper
            if all(0 <= index[axis] < sizes[axis] for axis in range(n_axes)):
                index[1] = sizes[1] - 1 - index[1]
                row[tuple(index[axis] for axis in reversed(range(n_axes)))] += weight
    return row


ROWS = {"siddon": siddon_row, "joseph": joseph_row}


def scalar_matrix(rays, grid, projector):
    """The system matrix of rays [... 3] on a grid, dense, [n_rays n_pixels]."""
    origins, directions = rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3)
    pairs = zip(origins, directions, strict=True)
    return np.stack([ROWS[projector](o, d, grid).ravel() for o, d in pairs])


def scalar_slice_matrix(geometry, grid, projector):
    """The matrix of a cone slice: the image replicated along z, traced in 3-D and summed."""
    from dipct.measurement.grid import Grid

    low, high = geometry.stack_bounds
    n_slices = round((high - low) / grid.pixel_size)
    stack = Grid((n_slices, *grid.shape), grid.pixel_size, (*grid.center, (low + high) / 2))
    dense = scalar_matrix(geometry.rays(), stack, projector)
    return dense.reshape(len(dense), n_slices, -1).sum(1)

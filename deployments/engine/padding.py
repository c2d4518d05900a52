"""Pads calls to a few batch sizes, so that shapes repeat and a row's bits do not depend on how many run beside it."""


def powers_of_two(limit: int) -> tuple[int, ...]:
    """Returns 1, 2, 4, ... up to `limit`, which is always the last."""
    sizes = [1]
    while sizes[-1] < limit:
        sizes.append(min(sizes[-1] * 2, limit))
    return tuple(sizes)


def even_numbers(limit: int) -> tuple[int, ...]:
    """Returns 2, 4, 6, ... up to `limit`, which is always the last."""
    return (*range(2, limit, 2), limit)


def padded_size(rows: int, sizes: tuple[int, ...]) -> int:
    """Returns the smallest of the ascending `sizes` that holds `rows`.

    Fixed sizes bound the number of shapes that kernels are chosen and graphs captured for; at one size a row's
    result does not depend on its neighbours.
    """
    return next(size for size in sizes if size >= rows)

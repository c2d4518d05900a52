"""Reads options that several benchmarks have in common."""

import argparse
from collections.abc import Callable, Collection


def names_of(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Returns a type for `argparse`: some of the `known` names, with commas between them."""

    def read(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        return names

    return read

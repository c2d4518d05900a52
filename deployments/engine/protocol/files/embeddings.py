"""Learnt embeddings (textual inversions, Gal et al. 2022) as requests use them, and where prompts name them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EmbeddingFile:
    """A file of the registry under its `name`; in prompts, `token` stands for its vectors.

    `path` is that of a safetensors file. `digest` is the SHA-256 of its bytes in hexadecimal: a file that changes
    becomes another embedding. It has `vectors` vectors of `width` numbers each; one for models with two text
    encoders has as many for the second, of `second_width`.
    """

    name: str
    token: str
    path: str
    digest: str
    vectors: int
    width: int
    second_width: int | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of its vectors, for each text encoder that it is for."""
        return (self.width,) if self.second_width is None else (self.width, self.second_width)

    @property
    def identity(self) -> tuple[str, str]:
        """What decides an image: which token stands for which vectors, whatever their name and place."""
        return self.token.casefold(), self.digest


class EmbeddingTokens:
    """Finds the tokens of `files` in texts: in any case, and never as a part of a longer word."""

    def __init__(self, files: Iterable[EmbeddingFile]) -> None:
        self._files: Mapping[str, EmbeddingFile] = {file.token.casefold(): file for file in files}
        # The longest first: `cat-2` is another token than `cat`.
        longest = sorted(self._files, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(_pattern_of, longest)) or r"(?!)", re.IGNORECASE)

    def split(self, text: str) -> Iterator[str | EmbeddingFile]:
        """Yields the pieces of `text` in order, with embeddings in the places of their tokens."""
        begin = 0
        for match in self._pattern.finditer(text):
            if match.start() > begin:
                yield text[begin : match.start()]
            yield self._files[match[0].casefold()]
            begin = match.end()
        if begin < len(text):
            yield text[begin:]

    def find_in(self, texts: Iterable[str]) -> tuple[EmbeddingFile, ...]:
        """Returns the embeddings that `texts` name, each once, by their tokens."""
        found = {piece for text in texts for piece in self.split(text) if isinstance(piece, EmbeddingFile)}
        return tuple(sorted(found, key=lambda file: file.identity))


def _pattern_of(token: str) -> str:
    before = r"(?<![\w-])" if re.match(r"\w", token) else ""
    after = r"(?![\w-])" if re.search(r"\w\Z", token) else ""
    return f"{before}{re.escape(token)}{after}"

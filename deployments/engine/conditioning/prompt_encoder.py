"""Encodes prompts for the UNet: CLIP hidden states, for prompts of any length up to a stated limit."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor

from deployments.engine.conditioning.learnt_vectors import LearntVectors
from deployments.engine.conditioning.prompt_syntax import parse_weighted
from deployments.engine.conditioning.text_network import EncodedText, TextNetwork
from deployments.engine.conditioning.tokens import TextTokenizer
from deployments.engine.lora.rows.factors import stack_updates
from deployments.engine.lora.rows.layers import apply_factors, layers_of
from deployments.engine.lora.rows.lora_set import LoraSet
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.files.embeddings import EmbeddingFile, EmbeddingTokens
from deployments.engine.protocol.report import TokenCount


@dataclass(frozen=True)
class CacheStats:
    """Statistics of an encoder's cache: `hits` and `misses` count calls, `entries` prompts."""

    hits: int
    misses: int
    entries: int


@dataclass
class _Chunk:
    """Up to 75 token ids of the prompt's own, with a weight each; `learnt` are embeddings by where they begin."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    learnt: dict[int, EmbeddingFile] = field(default_factory=dict)


class PromptEncoder:
    """Encodes prompts with one model's CLIP text encoder, or its two, and caches the latest ones.

    A prompt is cut into chunks of 75 tokens, and wherever it says BREAK; each is wrapped in the start and end tokens,
    padded to 77 and encoded alone, so that a prompt's embedding never depends on what else is encoded. The number of
    chunks is rounded up to a power of two with empty ones: then any two lengths divide each other, and prompts of
    different lengths share a UNet call through `repeat_to`. If the tokenizer's `model_max_length` is less than 77,
    chunks are shorter accordingly.

    Two text encoders read the same chunks, and their states stand side by side. The pooled embedding, for which one
    text has one place, is that of the first chunk, as in the web UI.

    The vectors of a learnt embedding stand where its token does, and never in two chunks, as in the web UI.

    An unweighted prompt of one chunk gives bit for bit what diffusers' `encode_prompt` gives. Used from one thread,
    except `count`.
    """

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        device: torch.device,
        dtype: torch.dtype,
        max_chunks: int = 4,
        cache_size: int = 256,
        *,
        second: tuple[Any, Any] | None = None,
        has_zeros_for_nothing: bool = False,
    ) -> None:
        """`tokenizer` and `text_encoder` are transformers' CLIP classes; `max_chunks` is a power of two.

        `second` are another tokenizer, of the same words, and another text encoder, with a projection.
        `has_zeros_for_nothing` says that no negative prompt means zeros to the model.
        """
        if max_chunks < 1 or max_chunks & (max_chunks - 1):
            raise ValueError(f"max_chunks must be a power of two, got {max_chunks}")
        self._tokenizer = tokenizer
        self._tokenize = TextTokenizer(tokenizer)
        pairs = [(tokenizer, text_encoder), *([] if second is None else [second])]
        self._networks = [TextNetwork(*pair, device, dtype, is_alone=second is None) for pair in pairs]
        self._has_zeros_for_nothing = has_zeros_for_nothing
        self._learnt = LearntVectors(self.text_encoders, device)
        # A tokenizer may be configured shorter than the text encoder: diffusers pads to its length.
        self._chunk_tokens = min(network.positions for network in self._networks) - 2
        self._max_chunks = max_chunks
        self._cache: LRUCache[tuple[Any, ...], EncodedText] = LRUCache(cache_size)
        self._hits = self._misses = 0

    @property
    def text_encoders(self) -> list[Any]:
        """The networks, which other models may share."""
        return [network.network for network in self._networks]

    @property
    def max_tokens(self) -> int:
        """The tokens of the longest prompt's embedding."""
        return int(self._max_chunks * (self._chunk_tokens + 2))

    @property
    def cache_stats(self) -> CacheStats:
        """The cache's counts since this encoder was made."""
        return CacheStats(self._hits, self._misses, len(self._cache))

    def encode(
        self,
        prompt: str,
        clip_skip: int = 0,
        field: str = "prompt",
        loras: LoraSet | None = None,
        embeddings: Iterable[EmbeddingFile] = (),
    ) -> EncodedText:
        """Returns the embedding [77 * chunks, dim] of `prompt`, chunks being 1, 2, 4, ... up to `max_chunks`, as the
        text encoders make it that `loras` have changed. Do not modify it.

        `clip_skip` counts the last layers left out, as in diffusers: 0 is the last hidden state. `field` is the
        parameter that errors name. `embeddings` are those whose tokens stand for vectors; those of `loras` go before
        them. Raises InvalidParameter for a prompt beyond the limit (nothing is ever cut off), for a weight out of
        range, for a `clip_skip` that leaves no layer and for an embedding of another width, and ModelLoadError for one
        that cannot be read.
        """
        bundled: Mapping[EmbeddingFile, Tensor] = {} if loras is None else loras.embeddings
        tokens = EmbeddingTokens([*embeddings, *bundled])
        named = tuple(file.identity for file in tokens.find_in([prompt]))
        key = prompt, clip_skip, () if loras is None else loras.text_key, named
        cached = self._cache.get(key)
        if cached is not None:
            self._hits += 1
            return cached
        self._misses += 1
        self._check_clip_skip(clip_skip)
        chunks = self._chunks(prompt, field, tokens)
        with self._changed_by(loras):
            found = self._cache[key] = self._encode(chunks, clip_skip, bundled)
        return found

    @cached_property
    def nothing(self) -> EncodedText | None:
        """What no negative prompt is to a model that has zeros for it; None for others, which encode the empty text."""
        if not self._has_zeros_for_nothing:
            return None
        empty = self.encode("")
        return EncodedText(
            torch.zeros_like(empty.states), None if empty.pooled is None else torch.zeros_like(empty.pooled)
        )

    def count(self, prompt: str, field: str = "prompt", embeddings: Iterable[EmbeddingFile] = ()) -> TokenCount:
        """Counts the tokens of `prompt`, also of one that is too long. May be called from any thread.

        Raises InvalidParameter for a weight out of range, and for an embedding of another width.
        """
        chunks = self._cut(prompt, field, EmbeddingTokens(embeddings))
        tokens = sum(len(chunk.ids) for chunk in chunks)
        return TokenCount(tokens, len(chunks), self._chunk_tokens, self._max_chunks)

    def _check_clip_skip(self, clip_skip: int) -> None:
        most = min(network.most_skipped for network in self._networks)
        if not 0 <= clip_skip <= most:
            layers = min(int(network.network.config.num_hidden_layers) for network in self._networks)
            rule = f"must be between 0 and {most} for this model, whose text encoder has {layers} layers"
            raise InvalidParameter("clip_skip", rule)

    def _chunks(self, prompt: str, field: str, learnt: EmbeddingTokens) -> list[_Chunk]:
        chunks = self._cut(prompt, field, learnt)
        self._check_length(chunks, field)
        padded = 1 << (len(chunks) - 1).bit_length()
        return chunks + [_Chunk()] * (padded - len(chunks))

    def _cut(self, prompt: str, field: str, learnt: EmbeddingTokens) -> list[_Chunk]:
        chunks = [_Chunk()]
        for fragment in parse_weighted(prompt, field):
            if fragment.new_chunk:
                chunks.append(_Chunk())
            for piece in learnt.split(fragment.text):
                if isinstance(piece, EmbeddingFile):
                    self._add_learnt(chunks, piece, fragment.weight, field)
                else:
                    self._add_words(chunks, piece, fragment.weight)
        if len(chunks) > 1 and not chunks[-1].ids:
            chunks.pop()  # a BREAK at the very end
        return chunks

    def _add_words(self, chunks: list[_Chunk], text: str, weight: float) -> None:
        for token in self._tokenize(text):
            if len(chunks[-1].ids) == self._chunk_tokens:
                chunks.append(_Chunk())
            chunks[-1].ids.append(token)
            chunks[-1].weights.append(weight)

    def _add_learnt(self, chunks: list[_Chunk], file: EmbeddingFile, weight: float, field: str) -> None:
        self._learnt.check_widths(file, field)
        if file.vectors > self._chunk_tokens:
            rule = f"has {file.vectors} vectors, and a chunk of this model's prompts has {self._chunk_tokens} places"
            raise InvalidParameter(field, f"names the embedding {file.name!r}, which {rule}")
        if len(chunks[-1].ids) + file.vectors > self._chunk_tokens:
            chunks.append(_Chunk())
        chunks[-1].learnt[len(chunks[-1].ids)] = file
        # What is looked up for their places is replaced. Not the end token's id, nor a higher one: by that a text
        # encoder finds where the text ends, and its pooled embedding.
        chunks[-1].ids.extend([self._tokenizer.bos_token_id] * file.vectors)
        chunks[-1].weights.extend([weight] * file.vectors)

    def _check_length(self, chunks: list[_Chunk], field: str) -> None:
        if len(chunks) <= self._max_chunks:
            return
        tokens = sum(len(chunk.ids) for chunk in chunks)
        raise InvalidParameter(
            field,
            f"is too long: it has {tokens} tokens, in {len(chunks)} chunks; the limit is "
            f"{self._max_chunks * self._chunk_tokens} tokens, in {self._max_chunks} chunks of {self._chunk_tokens}",
        )

    @contextmanager
    def _changed_by(self, loras: LoraSet | None) -> Iterator[None]:
        """Has the text encoders answer as `loras` change them."""
        changes = [] if loras is None else [loras.text, loras.second_text]
        with ExitStack() as contexts:
            for network, updates in zip(self.text_encoders, changes, strict=False):
                if updates:
                    contexts.enter_context(apply_factors(network, stack_updates([updates], layers_of(network))))
            yield

    @torch.no_grad()
    def _encode(self, chunks: list[_Chunk], clip_skip: int, bundled: Mapping[EmbeddingFile, Tensor]) -> EncodedText:
        encoded = [self._encode_chunk(chunk, clip_skip, bundled) for chunk in chunks]
        return EncodedText(torch.cat([each.states for each in encoded]), encoded[0].pooled)

    def _encode_chunk(self, chunk: _Chunk, clip_skip: int, bundled: Mapping[EmbeddingFile, Tensor]) -> EncodedText:
        vectors: dict[int, tuple[Tensor, ...]] = {}
        for begin, file in chunk.learnt.items():
            of_encoders = (bundled[file],) if file in bundled else self._learnt.of(file)
            vectors |= enumerate(zip(*of_encoders, strict=True), start=1 + begin)
        wrapped = [self._tokenizer.bos_token_id, *chunk.ids, self._tokenizer.eos_token_id]
        with self._learnt.put_in(vectors):
            read = [network.read(wrapped, clip_skip) for network in self._networks]
        return EncodedText(torch.cat([self._weigh(each.states, chunk) for each in read], dim=-1), read[-1].pooled)

    def _weigh(self, states: Tensor, chunk: _Chunk) -> Tensor:
        if all(weight == 1.0 for weight in chunk.weights):
            return states
        weights = states.new_ones(self._chunk_tokens + 2, 1, dtype=torch.float32)
        weights[1 : 1 + len(chunk.weights), 0] = torch.tensor(chunk.weights)
        return emphasise(states, weights)


def repeat_to(embedding: Tensor, tokens: int) -> Tensor:
    """Repeats `embedding` [n, dim] to [tokens, dim]; the UNet's output stays the same, up to rounding.

    Softmax attention over a set of keys that is there m times gives each copy 1/m of the weight, and the m copies of
    a value sum to the value itself: exactly attention over the set once. So no mask is needed where prompts of
    different lengths meet in one call. (Padding with zeros or with an empty prompt would take weight away.)

    Raises ValueError if `tokens` is not a multiple of n.
    """
    copies, rest = divmod(tokens, embedding.shape[0])
    if rest or not copies:
        raise ValueError(f"cannot repeat {embedding.shape[0]} tokens to {tokens}")
    return embedding if copies == 1 else embedding.repeat(copies, 1)


def emphasise(hidden: Tensor, weights: Tensor) -> Tensor:
    """Multiplies `hidden` [n, dim] by `weights` [n, 1], then scales it back to its mean from before, as the web UI
    does.

    If the mean is next to nothing (under 1 % of the RMS, as in an encoder whose final layer norm has no bias), or
    the weights have moved it beyond a factor of 10, a quotient of means is noise; then the mean is not restored, which
    is the web UI's own "no norm" mode.
    """
    before = hidden.float()
    after = before * weights
    scale = before.mean() / after.mean()
    meaningful = (before.mean().abs() > 0.01 * before.square().mean().sqrt()) & (scale > 0.1) & (scale < 10.0)
    return (after * torch.where(meaningful, scale, 1.0)).to(hidden.dtype)

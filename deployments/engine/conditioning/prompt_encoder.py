"""Encodes prompts for the UNet: CLIP hidden states, for prompts of any length up to a stated limit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor, nn

from deployments.engine.conditioning.learnt_vectors import LearntVectors
from deployments.engine.conditioning.prompt_syntax import parse_weighted
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
    """Encodes prompts with one model's CLIP text encoder, and caches the latest ones.

    A prompt is cut into chunks of 75 tokens, and wherever it says BREAK; each is wrapped in the start and end tokens,
    padded to 77 and encoded alone, so that a prompt's embedding never depends on what else is encoded. The number of
    chunks is rounded up to a power of two with empty ones: then any two lengths divide each other, and prompts of
    different lengths share a UNet call through `repeat_to`. If the tokenizer's `model_max_length` is less than 77,
    chunks are shorter accordingly.

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
    ) -> None:
        """`tokenizer` and `text_encoder` are transformers' CLIP classes; `max_chunks` is a power of two."""
        if max_chunks < 1 or max_chunks & (max_chunks - 1):
            raise ValueError(f"max_chunks must be a power of two, got {max_chunks}")
        self._tokenizer = tokenizer
        self._tokenize = TextTokenizer(tokenizer)
        self._text_encoder = text_encoder
        self._final_layer_norm = _find_final_layer_norm(text_encoder)
        self._learnt = LearntVectors(text_encoder, device)
        self._device = device
        self._dtype = dtype
        # A tokenizer may be configured shorter than the text encoder: diffusers pads to its length.
        self._chunk_tokens = min(tokenizer.model_max_length, int(text_encoder.config.max_position_embeddings)) - 2
        self._max_chunks = max_chunks
        self._cache: LRUCache[tuple[Any, ...], Tensor] = LRUCache(cache_size)
        self._hits = self._misses = 0

    @property
    def text_encoder(self) -> Any:
        """The network, which other models may share."""
        return self._text_encoder

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
    ) -> Tensor:
        """Returns the embedding [77 * chunks, dim] of `prompt`, chunks being 1, 2, 4, ... up to `max_chunks`, as the
        text encoder makes it that `loras` have changed. Do not modify it.

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
        if loras is None or not loras.text:
            embedding = self._encode(chunks, clip_skip, bundled)
        else:
            factors = stack_updates([loras.text], layers_of(self._text_encoder))
            with apply_factors(self._text_encoder, factors):
                embedding = self._encode(chunks, clip_skip, bundled)
        self._cache[key] = embedding
        return embedding

    def count(self, prompt: str, field: str = "prompt", embeddings: Iterable[EmbeddingFile] = ()) -> TokenCount:
        """Counts the tokens of `prompt`, also of one that is too long. May be called from any thread.

        Raises InvalidParameter for a weight out of range, and for an embedding of another width.
        """
        chunks = self._cut(prompt, field, EmbeddingTokens(embeddings))
        tokens = sum(len(chunk.ids) for chunk in chunks)
        return TokenCount(tokens, len(chunks), self._chunk_tokens, self._max_chunks)

    def _check_clip_skip(self, clip_skip: int) -> None:
        layers = int(self._text_encoder.config.num_hidden_layers)
        if not 0 <= clip_skip < layers:
            rule = f"must be between 0 and {layers - 1} for this model, whose text encoder has {layers} layers"
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
        self._learnt.check_width(file, field)
        if file.vectors > self._chunk_tokens:
            rule = f"has {file.vectors} vectors, and a chunk of this model's prompts has {self._chunk_tokens} places"
            raise InvalidParameter(field, f"names the embedding {file.name!r}, which {rule}")
        if len(chunks[-1].ids) + file.vectors > self._chunk_tokens:
            chunks.append(_Chunk())
        chunks[-1].learnt[len(chunks[-1].ids)] = file
        # Their places hold any token's id: what is looked up for it is replaced.
        chunks[-1].ids.extend([self._tokenizer.pad_token_id] * file.vectors)
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

    @torch.no_grad()
    def _encode(self, chunks: list[_Chunk], clip_skip: int, bundled: Mapping[EmbeddingFile, Tensor]) -> Tensor:
        return torch.cat([self._encode_chunk(chunk, clip_skip, bundled) for chunk in chunks])

    def _encode_chunk(self, chunk: _Chunk, clip_skip: int, bundled: Mapping[EmbeddingFile, Tensor]) -> Tensor:
        vectors = {
            1 + begin + i: vector
            for begin, file in chunk.learnt.items()
            for i, vector in enumerate(bundled[file] if file in bundled else self._learnt.of(file))
        }
        with self._learnt.put_in(vectors):
            hidden = self._hidden_states(chunk.ids, clip_skip)
        if all(weight == 1.0 for weight in chunk.weights):
            return hidden
        weights = hidden.new_ones(self._chunk_tokens + 2, 1, dtype=torch.float32)
        weights[1 : 1 + len(chunk.weights), 0] = torch.tensor(chunk.weights)
        return emphasise(hidden, weights)

    def _hidden_states(self, ids: list[int], clip_skip: int) -> Tensor:
        tokenizer, padding = self._tokenizer, self._chunk_tokens - len(ids)
        wrapped = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * padding]
        # A few text encoders say in their config that padding is masked; diffusers obeys it, and so must this.
        mask = None
        if self._text_encoder.config.to_dict().get("use_attention_mask"):
            mask = self._batch_of_one([1] * (len(ids) + 2) + [0] * padding)
        # Named, because a config may ask for tuples.
        output = self._text_encoder(
            self._batch_of_one(wrapped), attention_mask=mask, output_hidden_states=clip_skip > 0, return_dict=True
        )
        hidden = output.last_hidden_state
        if clip_skip:
            hidden = self._final_layer_norm(output.hidden_states[-(clip_skip + 1)])
        embedding: Tensor = hidden[0].to(device=self._device, dtype=self._dtype)
        return embedding

    def _batch_of_one(self, values: list[int]) -> Tensor:
        return torch.tensor([values], device=self._device)


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


def _find_final_layer_norm(text_encoder: nn.Module) -> nn.Module:
    # By name, because transformers moved it: once under `text_model`, now an attribute of the encoder itself.
    modules: dict[str, nn.Module] = dict(text_encoder.named_modules())
    return next(module for name, module in modules.items() if name.endswith("final_layer_norm"))

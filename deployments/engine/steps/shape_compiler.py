"""Has networks compiled for the shapes of calls to come, beside the calls that run."""

import logging
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Final

import torch
from cachetools import LRUCache

from deployments.engine.conditioning.controlnet import Control, ControlNet
from deployments.engine.device.errors import raise_if_sticky
from deployments.engine.ip_adapter.reference import EXACT_TOKENS, padded_tokens
from deployments.engine.lora.rows.changes import Changes, changes_of, join_changes
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.padding import padded_size
from deployments.engine.protocol.files.loras import LoraUse
from deployments.engine.protocol.request import Request
from deployments.engine.scheduling.bounded_measurements import MAX_ENTRIES
from deployments.engine.steps.request_state import RequestState

log = logging.getLogger(__name__)

Kind = tuple[Callable[..., None], *tuple[str | int, ...]]
"""A kind of network call: the method of `LoadedModel` that compiles for it, and what it is told beside the shape."""

PLAIN: Final[Kind] = (LoadedModel.compile_unet, "none")
WITH_MAPS: Final[Kind] = (LoadedModel.compile_unet, "whole")
WITH_AVERAGES: Final[Kind] = (LoadedModel.compile_unet, "averages")
UNET: Final = (PLAIN, WITH_MAPS, WITH_AVERAGES)
SHALLOW: Final[Kind] = (LoadedModel.compile_shallow_unet,)

Calls = Mapping[Kind, Collection[int]]
"""The kinds of calls that requests make, and for how many rows."""

NO_HINT: Final = torch.empty(0)


@dataclass(slots=True)
class _Seen:
    """What has been asked for at one size of pictures: every kind of call may come with every length of prompts.

    `begun` are the calls that are compiled, or will be: their kinds, rows and lengths.
    """

    kinds: dict[Kind, None] = field(default_factory=dict)
    tokens: dict[int, None] = field(default_factory=dict)
    begun: set[tuple[Kind, int, int]] = field(default_factory=set)


class ShapeCompiler:
    """Compiles networks for a size of pictures when it is first asked for, where calls would do so themselves.

    That takes half a second for each of the `sizes` of calls, and the engine's thread would do it in the middle of
    everybody's steps. It is done for the UNet, whole and without its deep blocks, with and without ControlNets, LoRAs
    and references, for ControlNets, and for the decoder. For calls of shapes that nobody foresaw, each kind is also
    compiled for all shapes, when it is first asked for.
    """

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self._sizes = sizes
        self._seen: weakref.WeakKeyDictionary[LoadedModel, LRUCache[tuple[int, int, bool], _Seen]] = (
            weakref.WeakKeyDictionary()
        )
        self._changes: weakref.WeakKeyDictionary[LoadedModel, LRUCache[tuple[LoraUse, ...], Changes]] = (
            weakref.WeakKeyDictionary()
        )
        self._for_all: weakref.WeakKeyDictionary[LoadedModel, set[Kind]] = weakref.WeakKeyDictionary()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="compile-shapes")

    def compile_for(
        self, request_state: RequestState, model: LoadedModel, beside: Sequence[Request], most_rows: int
    ) -> None:
        """Compiles what the request's first step needs, and begins to compile what later ones may need.

        `beside` are the requests that it will share calls with, of at most so many rows.
        """
        if not model.compiles_shapes:
            return
        request = request_state.request
        is_exact = request.params.exact
        sizes = self._sizes[-1:] if is_exact else self._sizes
        height, width = (side // model.factor for side in (request.bucket.height, request.bucket.width))
        prompts = (request_state.prompt, request_state.negative)
        tokens = max(len(prompt) for prompt in prompts if prompt is not None)
        tokens = model.prompt_encoder.max_tokens if is_exact else tokens
        alone = _calls_of(request, model)
        # Rows with LoRAs and those without share no calls.
        others = [other for other in beside if bool(other.loras) == bool(request.loras)]
        together = _calls_together([alone, *(_calls_of(other, model) for other in others)])
        changes = self._changes_of_calls(request_state, model, others)
        own = _reference_lengths(request_state)
        # Rows with references and those without do.
        longest = max(own[-1], *(0 if is_exact else _reference_tokens(other, model) for other in others), 0)
        for (kind, numbers), each in product(together.items(), changes):
            for size in {padded_size(min(number, most_rows), sizes) for number in numbers}:
                for length in dict.fromkeys((*own[:-1], longest)):
                    _compile(_changed(kind, each, length), size, height, width, tokens, model)
        seen = self._seen.setdefault(model, LRUCache(MAX_ENTRIES)).setdefault((height, width, is_exact), _Seen())
        if not seen.kinds:
            self._begin(model, partial(LoadedModel.compile_decoder, height=height, width=width))
        all_kinds = product(changes, (*own, longest), alone)
        kinds = dict.fromkeys(_changed(kind, each, length) for each, length, kind in all_kinds)
        seen.kinds.update(kinds)
        seen.tokens[tokens] = None
        fullest = max(padded_size(min(number, most_rows), sizes) for numbers in together.values() for number in numbers)
        for kind, rows, length in product(seen.kinds, sizes, seen.tokens):
            # Most requests are plain ones. The others' calls become no fuller before more of them are prepared.
            if (kind == PLAIN or rows <= fullest) and (kind, rows, length) not in seen.begun:
                seen.begun.add((kind, rows, length))
                self._begin(model, partial(_compile, kind, rows, height, width, length))
        for_all = self._for_all.setdefault(model, set())
        for kind in [kind for kind in kinds if kind not in for_all]:
            for_all.add(kind)
            self._begin(model, partial(_compile, kind, 1, height, width, tokens, for_all=True))

    def _changes_of_calls(
        self, request_state: RequestState, model: LoadedModel, sharing: Sequence[Request]
    ) -> Collection[Changes]:
        """Returns what LoRAs may change in the calls of a request: its own, alone and beside those of `sharing`.

        Of these the ones that are known count: the others come here themselves before they run, and find this one.
        """
        loras = request_state.loras
        own: Changes = "none" if loras is None else changes_of(loras.unet)
        known = self._changes.setdefault(model, LRUCache(MAX_ENTRIES))
        known[request_state.request.loras] = own
        found: dict[Changes, None] = {own: None}
        for other in sharing:
            if (theirs := known.get(other.loras)) is not None:
                found |= dict.fromkeys([join_changes(each, theirs) for each in found])
        return found

    def close(self) -> None:
        """Ends the thread, and drops what still waits."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _begin(self, model: LoadedModel, compile_shape: Callable[[LoadedModel], object]) -> None:
        # A model that leaves memory must not be kept there by what was still to be compiled for it.
        self._threads.submit(_try, weakref.ref(model), compile_shape)


def _calls_of(request: Request, model: LoadedModel) -> Calls:
    """Returns the calls that a request's evaluations make if all its images run together, and nothing else does."""
    params, steps = request.params, request.evaluations
    guided = request.guided_evaluations(steps)
    controls = [
        Control(model.controlnets[asked.type], NO_HINT, asked.scale, asked.start, asked.end, params.guess_mode)
        for asked in params.controls
    ]
    calls: defaultdict[Kind, set[int]] = defaultdict(set)
    for step in range(steps):
        halves = (True, False) if step in guided else (True,)
        rows = params.num_images * len(halves)
        if not request.is_whole(step, guided):
            calls[SHALLOW].add(rows)
            continue
        users = Counter(control.net for half in halves for control in controls if control.is_active(step, steps, half))
        calls[_unet_kind(users)].add(rows)
        for net, number in users.items():
            calls[LoadedModel.compile_controlnet, net.name].add(params.num_images * number)
    return calls


def _changed(kind: Kind, changes: Changes, references: int) -> Kind:
    """Returns a kind of call as it is where LoRAs change the UNet, and with references of so many tokens."""
    if kind[0] is LoadedModel.compile_controlnet or (changes == "none" and not references):
        return kind
    return (*kind, changes, references) if references else (*kind, changes)


def _reference_lengths(request_state: RequestState) -> tuple[int, ...]:
    """Returns the lengths of references in calls of a request's rows alone, ascending; 0 for calls without any."""
    reference = request_state.reference
    if reference is None:
        return (0,)
    if request_state.request.params.exact:
        return (EXACT_TOKENS,)
    return (reference.tokens,) if (reference.start, reference.end) == (0.0, 1.0) else (0, reference.tokens)


def _reference_tokens(request: Request, model: LoadedModel) -> int:
    """Returns the length of a request's references in calls; 0 if it has none, or its IP-Adapter is not there yet."""
    asked = request.params.reference
    if asked is None:
        return 0
    tokens = model.ip_adapters.tokens_of(model.ip_adapters.resolve(asked)) * len(request.inputs.references)
    return padded_tokens(tokens) if tokens else 0


def _unet_kind(active: Collection[ControlNet]) -> Kind:
    if not active:
        return PLAIN
    return WITH_AVERAGES if all(net.is_prompted_only for net in active) else WITH_MAPS


def _calls_together(crowd: Sequence[Calls]) -> Calls:
    """Returns the fullest calls of requests that run together, from those of each; of one alone, all.

    What a ControlNet adds to the UNet's maps is an input of the whole call.
    """
    if len(crowd) == 1:
        return crowd[0]
    rows: Counter[Kind] = Counter()
    for calls in crowd:
        rows.update({kind: max(each) for kind, each in calls.items()})
    whole = sum(max((max(calls[kind]) for kind in UNET if kind in calls), default=0) for calls in crowd)
    rows.update({kind: whole - rows[kind] for kind in UNET if kind in rows})
    if not all(PLAIN in calls for calls in crowd):
        del rows[PLAIN]
    return {kind: {number} for kind, number in rows.items()}


def _compile(
    kind: Kind, rows: int, height: int, width: int, tokens: int, model: LoadedModel, *, for_all: bool = False
) -> None:
    method, *more = kind
    method(model, rows, height, width, tokens, *more, for_all=for_all)


def _try(reference: weakref.ref[LoadedModel], compile_shape: Callable[[LoadedModel], object]) -> None:
    """Compiles a shape; if it fails, the call that needs it will say so."""
    model = reference()
    try:
        if model is not None:
            compile_shape(model)
    except Exception as error:
        raise_if_sticky(error)
        log.exception("a network could not be compiled beforehand")

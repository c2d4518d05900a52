"""A step of rows in slots is the plain step of the same rows, to the bit, and costs the host nothing."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.checkpoints import SD15
from deployments.engine.conditioning.cross_attention import CrossAttentionCache, EncodedPrompt, context_width
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.sampler_names import SAMPLERS
from deployments.engine.row import Row
from deployments.engine.steps.arena import MAX_EVALUATIONS, Arena
from deployments.engine.steps.call import CallPlanner
from deployments.engine.steps.denoise import denoise_step
from deployments.engine.steps.prepare import begin_row, prepare, with_model_facts
from deployments.engine.steps.request_state import EncodedInputs, RequestState
from tests.deployments.engine.harness import request_for
from tests.deployments.engine.steps.reference_step import step_rows
from tests.deployments.engine.test_kinds import KINDS, NINE

SIZES: Final = (1, 2, 4, 8, 16, 32)
STEPS: Final = 8


class Twins:
    """The same row twice: one in an arena, one that the plain step advances."""

    def __init__(self, model: LoadedModel, request: Request) -> None:
        state = prepare(with_model_facts(request, model), model, 0.0)
        self.ours, self.theirs = (begin_row(state, 0, model) for _ in range(2))

    @property
    def are_equal(self) -> bool:
        slot = self.ours.slot
        ours = self.ours.state if slot is None else slot.arena.states[slot.index]
        return torch.equal(ours, self.theirs.state) and self.ours.step == self.theirs.step


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots that no row has are full of NaN."""
    make, remove = Arena.__init__, Arena.remove

    def make_poisoned(arena: Arena, *arguments: Any) -> None:
        make(arena, *arguments)
        fill(arena, slice(None))

    def remove_and_poison(arena: Arena, row: Row) -> None:
        assert row.slot is not None
        index = row.slot.index
        remove(arena, row)
        fill(arena, index)

    def fill(arena: Arena, index: Any) -> None:
        with torch.inference_mode():
            for tensor in arena.tensors:
                tensor[index] = torch.nan if tensor.is_floating_point() else MAX_EVALUATIONS - 1

    monkeypatch.setattr(Arena, "__init__", make_poisoned)
    monkeypatch.setattr(Arena, "remove", remove_and_poison)


def requests_of(model: LoadedModel) -> list[Request]:
    """A request for every sampler, of every kind in turn."""
    kinds: list[tuple[Any, dict[str, Any]]] = [KINDS[kind] for kind in (NINE if model.inpaints_only else KINDS)]
    if not model.inpaints_only:
        texts: list[dict[str, Any]] = [
            {"guidance_scale": 1.0},
            {"guidance_scale": 4.0},
            {"guidance_interval": [0.2, 0.7]},
            {"prompt": "word " * 90},
        ]
        kinds += [(KINDS["controlnet"][0].__class__(), text) for text in texts]
    samplers = [name for name in SAMPLERS if model.samplers.of(pipeline_of(model)).refusal(name) is None]
    out = []
    for i, sampler in enumerate(samplers):
        inputs, asked = kinds[i % len(kinds)]
        out.append(request_for(model, f"{i}", inputs, sampler=sampler, num_inference_steps=STEPS, seed=i, **asked))
    return out


def pipeline_of(model: LoadedModel) -> Any:
    inputs, asked = KINDS["inpaint"]
    return request_for(model, "any", inputs, **asked).pipeline


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("nine_channels", [False, True])
def test_rows_that_join_leave_and_pause_have_the_bits_of_the_plain_step(
    nine_channels: bool, tiny_controlled: LoadedModel, tiny_model_9: LoadedModel
) -> None:
    model = tiny_model_9 if nine_channels else tiny_controlled
    rng = random.Random(0)
    waiting = [Twins(model, request) for request in requests_of(model)]
    arena = Arena(model, waiting[0].ours.request.bucket, 16)
    planner, running = CallPlanner(arena, SIZES), list[Twins]()
    calls = finished = 0
    while waiting or running:
        while waiting and len(running) < 12 and rng.random() < 0.8:
            running.append(waiting.pop(rng.randrange(len(waiting))))
            arena.add(running[-1].ours)
        # Some rows of a bucket may wait for a call, as after a call that was too much for the memory.
        rng.shuffle(running)
        stepped = running[: rng.choice((len(running), max(1, len(running) // 2)))]
        if not stepped:
            continue
        ours, theirs = [twins.ours for twins in stepped], [twins.theirs for twins in stepped]
        denoise_step(model, arena, planner.plan(model, ours), ours)
        step_rows(model, theirs, SIZES)
        calls += 1
        assert all(twins.are_equal for twins in running)
        for twins in list(running):
            is_paused = not twins.ours.is_done and rng.random() < 0.05
            if twins.ours.is_done or is_paused:
                running.remove(twins)
                twins.ours.leave_slot()
                assert twins.are_equal
                finished += twins.ours.is_done
            if is_paused:
                waiting.append(twins)
    assert finished == len(requests_of(model))
    assert calls > 2 * STEPS
    assert arena.is_empty


def test_a_schedule_too_long_for_an_arena_is_refused(tiny_model: LoadedModel) -> None:
    (twins,) = [Twins(tiny_model, request_for(tiny_model, "x", num_inference_steps=4))]
    arena = Arena(tiny_model, twins.ours.request.bucket, 1)
    row = twins.ours
    row.schedule = replace(row.schedule, timesteps=torch.zeros(MAX_EVALUATIONS + 1))
    with pytest.raises(ValueError, match=f"may have {MAX_EVALUATIONS} evaluations"):
        arena.add(row)
    assert arena.is_empty


class Operations(TorchDispatchMode):
    """Counts what runs outside of a network, views left out, and what crosses between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: Counter[str] = Counter()
        self.crossings = 0
        self.inside = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        self.crossings += len({leaf.device.type for leaf in leaves}) > 1
        # What is drawn on the host costs the device nothing.
        if not self.inside and not func.is_view and any(leaf.device.type == "meta" for leaf in leaves):
            self.outside[func.__name__] += 1
        return out


@pytest.fixture(scope="module")
def full_size(tiny_model: LoadedModel) -> LoadedModel:
    """SD1.5's UNet in half precision, on a device that computes nothing but shapes."""
    device = torch.device("meta")
    with device:
        unet = UNet2DConditionModel(**SD15.unet).half().eval()
    return replace(tiny_model, unet=unet, attention_cache=CrossAttentionCache(unet), device=device, dtype=torch.float16)


def count_operations(model: LoadedModel, samplers: Sequence[str], chunks: Sequence[int], padded: int) -> Operations:
    asked = zip(samplers, chunks, strict=True)
    rows = [begin_meta_row(model, sampler, 77 * n, seed) for seed, (sampler, n) in enumerate(asked)]
    arena = Arena(model, rows[0].request.bucket, padded)
    for row in rows:
        arena.add(row)
    call = CallPlanner(arena, (padded,)).plan(model, rows)
    operations = Operations()
    handles = [
        model.unet.register_forward_pre_hook(lambda *_: setattr(operations, "inside", True)),
        model.unet.register_forward_hook(lambda *_: setattr(operations, "inside", False)),
    ]
    with operations:
        denoise_step(model, arena, call, rows)
    for handle in handles:
        handle.remove()
    return operations


def begin_meta_row(model: LoadedModel, sampler: str, tokens: int, seed: int) -> Row:
    request = request_for(model, f"{seed}", sampler=sampler, width=512, height=512, seed=seed)
    schedule = model.samplers.of(request.pipeline).schedule(sampler, 8)

    def prompt() -> EncodedPrompt:
        widths = 768, context_width(model.unet)
        return EncodedPrompt(*(torch.empty((tokens, width), device="meta", dtype=model.dtype) for width in widths))

    state = RequestState(request, schedule, prompt(), prompt(), EncodedInputs(), arrived=0.0, begun=0.0)
    return begin_row(state, 0, model)


def test_a_deterministic_step_copies_nothing_between_host_and_device_and_one_that_draws_copies_once(
    full_size: LoadedModel,
) -> None:
    silent = count_operations(full_size, ["dpmpp_2m"] * 8, [1] * 8, 16)
    drawing = count_operations(full_size, ["euler_a", *["dpmpp_2m"] * 7], [1] * 8, 16)
    assert (silent.crossings, drawing.crossings) == (0, 1)


def test_the_operations_outside_the_networks_are_few_whatever_the_rows_and_prompts(full_size: LoadedModel) -> None:
    one = count_operations(full_size, ["ddim"], [1], 2)
    many = count_operations(full_size, ["ddim", "dpmpp_2m", "unipc", "pndm", "lms", "heun"], [1, 2, 4, 1, 1, 4], 16)
    assert one.outside == many.outside
    assert one.outside.total() <= 45

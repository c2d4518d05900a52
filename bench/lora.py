"""Measures what LoRAs cost in a UNet call of Stable Diffusion 1.5's true size, with random weights, on a CPU.

One call of sixteen rows without LoRAs, one in which every row has a LoRA of its own, the same through peft's mixed
batch (`adapter_names`), and sixteen calls of one row each, as a server makes them that changes LoRAs between requests.
All four answers must agree. Then what a LoRA adds that is not in memory yet: reading its file, fitting and stacking it.
Prints a card and a line per case; the last line is one JSON document.

    python -m bench.lora
    python -m bench.lora --side 32 --rows 4 --layers all
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.card import card, print_card, silence_libraries
from bench.checkpoints import SD15
from bench.engine.adapters import TARGETS, choose_layers, random_adapter
from deployments.engine.lora.adapter import Adapter
from deployments.engine.lora.low_rank import LowRank
from deployments.engine.lora.reader import read_adapter
from deployments.engine.lora.rows.factors import Factors, stack_updates
from deployments.engine.lora.rows.layers import apply_factors, layers_of
from deployments.engine.lora.rows.lora_set import AdaptedBase, LoraSet, fit_adapter
from deployments.engine.protocol.files.loras import LoraFile, LoraUse

FORECAST: Final = {
    "grouped": "93 % of the rows per second of the plain call: 2.8 % more operations at rank 32, and the additions",
    "peft": "75 %: sixteen small products and copies in each of 192 layers instead of two large products",
    "one at a time": "60 %: a call of one row uses the cores worse than one of sixteen",
    "cold": "under 200 ms: 26 MB are read, checked and converted to fp32",
}

TEXT: Final = 77


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--side", type=int, default=16, help="of the latents; 64 is the native size")
    parser.add_argument("--layers", choices=tuple(TARGETS), default="usual")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    silence_libraries()
    facts = card(torch.device("cpu"))
    print_card(facts)
    with torch.inference_mode():
        results = _measure(options)
    print(json.dumps({"bench": "lora", **vars(options), "forecast": FORECAST, "results": results} | facts))
    return 0


def _measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    unet = _random_unet()
    layers = layers_of(unet)
    base = AdaptedBase(layers, {}, frozenset(), torch.device("cpu"), torch.float32)
    chosen = choose_layers(layers, options.layers)
    adapters = [random_adapter(f"lora{i}", chosen, options.rank, i) for i in range(options.rows)]
    sets = [_fit(adapter, base) for adapter in adapters]
    sample = torch.randn(options.rows, 4, options.side, options.side)
    time_steps = torch.linspace(1, 999, options.rows)
    context = torch.randn(options.rows, TEXT, SD15.unet["cross_attention_dim"])

    def call(rows: slice = slice(None), factors: Mapping[str, Factors] | None = None) -> Tensor:
        with nullcontext() if factors is None else apply_factors(unet, factors):
            answer: Tensor = unet(sample[rows], time_steps[rows], context[rows], return_dict=False)[0]
            return answer

    def call_singly() -> Tensor:
        return torch.cat([call(slice(i, i + 1), each) for i, each in enumerate(alone)])

    results: dict[str, dict[str, Any]] = {}
    plain = _time(results, "plain", call, options)
    begun = time.perf_counter()
    stacked = stack_updates([each.unet for each in sets], layers)
    stack_ms = round(1000 * (time.perf_counter() - begun), 1)
    changed = _time(results, "grouped", partial(call, factors=stacked), options)
    results["grouped"] |= {"stack_ms": stack_ms, "differs_from_plain": _distance(changed, plain)}
    alone = [stack_updates([each.unet], layers) for each in sets]
    singly = _time(results, "one at a time", call_singly, options)
    results["one at a time"]["error"] = _distance(singly, changed)
    results["cold"] = _measure_cold(adapters[0], base, list(chosen))
    with _peft_rows(unet, adapters, list(chosen), options.rank):
        mixed = _time(results, "peft", call, options)
        results["peft"]["error"] = _distance(mixed, changed)
    return results


def _time(
    results: dict[str, dict[str, Any]], name: str, call: Callable[[], Tensor], options: argparse.Namespace
) -> Tensor:
    """Calls once to warm up, and then `repeats` times; writes the median down, and returns the answer."""
    answer, seconds = call(), []
    for _ in range(options.repeats):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    took = median(seconds)
    share = results["plain"]["seconds"] / took if results else 1.0
    results[name] = {"seconds": round(took, 3), "rows_per_s": round(options.rows / took, 3), "share": round(share, 3)}
    print(f"{name:14} {took:8.2f} s, {options.rows / took:.2f} rows/s, {share:.0%} of the plain call", flush=True)
    return answer


def _measure_cold(adapter: Adapter, base: AdaptedBase, paths: Sequence[str]) -> dict[str, Any]:
    """Reads the adapter from a file in half precision, as they are published, and fits it; the file is in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cold.safetensors"
        state = {}
        for name, (down, up) in _pairs(adapter).items():
            state[f"lora_unet_{name}.lora_down.weight"] = down.half()
            state[f"lora_unet_{name}.lora_up.weight"] = up.half().reshape(*up.shape, *[1] * (down.ndim - 2))
            state[f"lora_unet_{name}.alpha"] = torch.tensor(float(len(down)))
        save_file(state, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        file = LoraFile("cold", str(path), digest=digest)
        times = []
        for _ in range(3):
            begun = time.perf_counter()
            fitted = fit_adapter(read_adapter(file, path), LoraUse(file, 0.8), base)
            times.append(time.perf_counter() - begun)
    assert set(fitted.unet) == set(paths)
    read_ms, megabytes = round(1000 * median(times), 1), round(fitted.bytes / 1e6, 1)
    print(f"{'cold':14} {read_ms:8.0f} ms for {megabytes:.0f} MB", flush=True)
    return {"read_ms": read_ms, "megabytes": megabytes}


@contextmanager
def _peft_rows(unet: nn.Module, adapters: Sequence[Adapter], paths: Sequence[str], rank: int) -> Iterator[None]:
    """Injects the adapters into `unet` for good; calls inside the context give each row its own."""
    for adapter in adapters:
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(paths), init_lora_weights=False)
        inject_adapter_in_model(config, unet, adapter.name)
    names = [adapter.name for adapter in adapters]
    pairs = {adapter.name: _pairs(adapter) for adapter in adapters}
    hooks = []
    for path, module in unet.named_modules():
        if isinstance(module, LoraLayer):
            for name in names:
                down, up = pairs[name][path.replace(".", "_")]
                module.lora_A[name].weight.copy_(down)
                module.lora_B[name].weight.copy_(up.reshape(module.lora_B[name].weight.shape))
            module.set_adapter(names)
            hooks.append(module.register_forward_pre_hook(partial(_name_rows, names), with_kwargs=True))
    yield
    for hook in hooks:
        hook.remove()


def _name_rows(names: list[str], _module: nn.Module, inputs: Any, named: dict[str, Any]) -> Any:
    return inputs, named | {"adapter_names": names}


def _random_unet() -> UNet2DConditionModel:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15.unet)
    unet = unet.to_empty(device="cpu").eval().requires_grad_(False)
    for name, weight in unet.named_parameters():
        # A norm's weights are 1; others keep what they are given at its scale.
        fan = weight[0].numel() if weight.ndim > 1 else 1
        weight.zero_() if name.endswith("bias") else weight.fill_(1) if weight.ndim == 1 else weight.normal_(
            0, fan**-0.5
        )
    return unet


def _pairs(adapter: Adapter) -> dict[str, tuple[Tensor, Tensor]]:
    changes = adapter.layers["unet"].items()
    return {name: (change.down, change.up) for name, change in changes if isinstance(change, LowRank)}


def _fit(adapter: Adapter, base: AdaptedBase) -> LoraSet:
    return fit_adapter(adapter, LoraUse(LoraFile(adapter.name, ""), 1.0), base)


def _distance(one: Tensor, other: Tensor) -> float:
    return float(f"{float((one - other).abs().max() / other.abs().max()):.1e}")


if __name__ == "__main__":
    raise SystemExit(main())

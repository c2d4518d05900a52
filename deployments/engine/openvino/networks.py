"""Diffusers' and transformers' networks as the engine calls them, run through OpenVINO."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn

from deployments.engine.conditioning.controlnet import AddedMaps
from deployments.engine.conditioning.cross_attention import AttentionContext, context_width
from deployments.engine.conditioning.deep_cache import DeepCache, can_split
from deployments.engine.lora.rows.changes import Changes
from deployments.engine.openvino.compiler import Compiler
from deployments.engine.openvino.conversion import Input
from deployments.engine.openvino.converted_network import Origin
from deployments.engine.openvino.network import ChangeableNetwork, OpenVinoNetwork
from deployments.engine.openvino.program import Shape
from deployments.engine.openvino.referring_model import attention_layers
from deployments.engine.openvino.row_inputs import RowInputs

# Any side that is no multiple of a power of two: then a UNet's trace takes the sizes of its maps from its input, as
# such sizes need it, and does not double them.
_SIDES = (17, 19)
_IMAGE_AXES = (0, 2, 3)
_ANY = (0, 1, 2, 3)


class OpenVinoUNet(ChangeableNetwork):
    """A UNet whose prompts are an input already (`CrossAttentionCache`)."""

    def __init__(self, compiler: Compiler, origin: Origin, unet: Any) -> None:
        super().__init__(compiler, origin, unet)
        config = unet.config
        self.row_inputs = RowInputs(unet)
        self._maps = _count_maps(config)
        inputs = [
            Input("sample", torch.zeros(2, config.in_channels, *_SIDES), _IMAGE_AXES),
            Input("timestep", torch.zeros(2)),
            Input("keys", torch.zeros(2, 4, context_width(unet)), (0, 1)),
        ]
        inputs += self.row_inputs.inputs
        inputs += [Input(f"residual_{i}", torch.zeros(1, 1, 1, 1), _ANY) for i in range(self._maps)]
        self._split = DeepCache(unet) if can_split(unet) else None
        # What a shallow call runs is little, and its conversion needs the weights when it comes.
        kept = [module for name, module in unet.named_modules() if name.endswith(".projection")]
        kept += [] if self._split is None else self._split.modules
        attention = attention_layers(unet, self.changeable)
        self._run = self.add_part("UNet", self._call, inputs, _leaves_but(unet, kept), self.changeable, attention)
        self.deep_cache = None if self._split is None else OpenVinoDeepCache(self, unet, inputs)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | AttentionContext,
        timestep_cond: Tensor | None = None,
        down_block_additional_residuals: Sequence[Tensor] = (),
        mid_block_additional_residual: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor, ...]:
        """Returns the answer [B, C, h, w], in a tuple. `encoder_hidden_states` are keys [B, tokens, width], with or
        without references.

        Of a UNet that can be split, the answer of its deep blocks is the tuple's second entry.
        """
        more: dict[str, Any] = {} if timestep_cond is None else {"timestep_cond": timestep_cond}
        more |= {} if added_cond_kwargs is None else {"added_cond_kwargs": added_cond_kwargs}
        residuals: Sequence[Tensor | None] = [None] * self._maps
        if mid_block_additional_residual is not None:
            residuals = (*down_block_additional_residuals, mid_block_additional_residual)
        by_row = self.row_inputs.gather(sample, more)
        keys, *references = _parts_of(encoder_hidden_states)
        return self._run(sample, timestep, keys, *by_row, *residuals, *references, factors=self.factors)

    def compile_for(
        self,
        rows: int,
        height: int,
        width: int,
        tokens: int,
        added: AddedMaps = "none",
        changes: Changes = "none",
        references: int = 0,
        *,
        for_all: bool = False,
    ) -> None:
        """Compiles the UNet for calls of latents [rows, C, height, width], with what ControlNets add to its maps, what
        LoRAs change, and references of so many tokens; with `for_all`, for any rows, sizes and prompts.
        """
        maps: list[Shape | None] = [None] * self._maps
        if added != "none":
            sides = _map_shapes(self.config, height, width)
            maps = [(rows, channels, *((1, 1) if added == "averages" else side)) for channels, *side in sides]
        shapes = [*self.input_shapes(rows, height, width, tokens), *maps, *self.reference_shapes(rows, references)]
        self._run.compile_for(*shapes, changes=changes, for_all=for_all)

    def input_shapes(self, rows: int, height: int, width: int, tokens: int) -> list[Shape]:
        """Returns the shapes of a call's inputs, but for what ControlNets add."""
        keys = (rows, tokens, context_width(self.network))
        return [(rows, self.config.in_channels, height, width), (rows,), keys, *self.row_inputs.shapes(rows)]

    def reference_shapes(self, rows: int, tokens: int) -> list[Shape]:
        """Returns the shapes of what references add to a call's inputs: nothing for no tokens."""
        return [(rows, tokens, context_width(self.network)), (rows, tokens)] if tokens else []

    def _call(self, sample: Tensor, timestep: Tensor, keys: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        ends = len(self.row_inputs), len(self.row_inputs) + self._maps
        by_row, residuals, references = more[: ends[0]], more[ends[0] : ends[1]], more[ends[1] :]
        extra, context = self.row_inputs.arguments(by_row), _context_of(keys, references)
        if residuals[-1] is not None:
            extra["down_block_additional_residuals"] = residuals[:-1]
            extra["mid_block_additional_residual"] = residuals[-1]
        if self._split is not None:
            return self._split.run_whole(sample, timestep, context, extra)
        answer: tuple[Tensor] = self.network(
            sample, timestep, encoder_hidden_states=context, **extra, return_dict=False
        )
        return answer


class OpenVinoDeepCache(DeepCache):
    """The two ways to call an `OpenVinoUNet`."""

    def __init__(self, unet: OpenVinoUNet, network: Any, inputs: Sequence[Input]) -> None:
        """`network` is the torch UNet in `unet`, and `inputs` are its first ones and those of maps."""
        super().__init__(network)
        self._whole = unet
        first = [each for each in inputs if not each.name.startswith("residual")]
        deep = Input("deep", torch.zeros(2, self.channels, *_SIDES), _IMAGE_AXES)
        shallow = {module for each in self.modules for module in each.modules()}
        layers = {path: layer for path, layer in unet.changeable.items() if layer in shallow}
        name, attention = "UNet without its deep blocks", attention_layers(network, layers)
        self._shallow = unet.add_part(name, self._call_shallow, [deep, *first], (), layers, attention)

    def run_whole(
        self, sample: Tensor, time: Tensor, keys: Tensor | AttentionContext, more: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        answer, deep = self._whole(sample, time, keys, **more)
        return answer, deep

    def run_shallow(
        self, sample: Tensor, time: Tensor, keys: Tensor | AttentionContext, deep: Tensor, more: Mapping[str, Any]
    ) -> Tensor:
        by_row, (prompts, *references) = self._whole.row_inputs.gather(sample, more), _parts_of(keys)
        (answer,) = self._shallow(deep, sample, time, prompts, *by_row, *references, factors=self._whole.factors)
        return answer

    def compile_for(
        self,
        rows: int,
        height: int,
        width: int,
        tokens: int,
        changes: Changes = "none",
        references: int = 0,
        *,
        for_all: bool = False,
    ) -> None:
        """Compiles shallow calls of latents [rows, C, height, width], with `for_all` of any, with what LoRAs change and
        references of so many tokens.
        """
        shapes = self._whole.input_shapes(rows, height, width, tokens) + self._whole.reference_shapes(rows, references)
        latents = (rows, self.channels, height, width)
        self._shallow.compile_for(latents, *shapes, changes=changes, for_all=for_all)

    def _call_shallow(
        self, deep: Tensor, sample: Tensor, time: Tensor, keys: Tensor, *more: Tensor
    ) -> tuple[Tensor, ...]:
        by_row, references = more[: len(self._whole.row_inputs)], more[len(self._whole.row_inputs) :]
        named = self._whole.row_inputs.arguments(by_row)
        return (super().run_shallow(sample, time, _context_of(keys, references), deep, named),)


class OpenVinoControlNet(OpenVinoNetwork):
    """A ControlNet without its hint encoder."""

    def __init__(self, compiler: Compiler, origin: Origin, network: Any) -> None:
        super().__init__(compiler, origin, network)
        config = network.config
        inputs = [
            Input("sample", torch.zeros(2, config.in_channels, *_SIDES), _IMAGE_AXES),
            Input("timestep", torch.zeros(2)),
            Input("context", torch.zeros(2, 4, context_width(network)), (0, 1)),
            Input("hint", torch.zeros(2, config.block_out_channels[0], *_SIDES), _IMAGE_AXES),
        ]
        self._row_inputs = RowInputs(network)
        inputs += self._row_inputs.inputs
        self._run = self.add_part("ControlNet", self._call, inputs, [network])

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        return_dict: bool = False,
    ) -> tuple[list[Tensor], Tensor]:
        """Returns what it adds to the UNet's maps: those on the way down, and the middle one."""
        more = self._row_inputs.gather(sample, {"added_cond_kwargs": added_cond_kwargs})
        *down, middle = self._run(sample, timestep, encoder_hidden_states, controlnet_cond, *more)
        return down, middle

    def compile_for(self, rows: int, height: int, width: int, tokens: int, *, for_all: bool = False) -> None:
        """Compiles the ControlNet for calls of latents [rows, C, height, width], with `for_all` of any."""
        config = self.config
        sample, hint = (
            (rows, channels, height, width) for channels in (config.in_channels, config.block_out_channels[0])
        )
        context = (rows, tokens, context_width(self.network))
        more = self._row_inputs.shapes(rows)
        self._run.compile_for(sample, (rows,), context, hint, *more, for_all=for_all)

    def _call(
        self, sample: Tensor, timestep: Tensor, context: Tensor, hint: Tensor, *more: Tensor
    ) -> tuple[Tensor, ...]:
        named = self._row_inputs.arguments(more)
        down, middle = self.network(sample, timestep, context, hint, **named, return_dict=False)
        return (*down, middle)


class OpenVinoHintEmbedder(OpenVinoNetwork):
    """The hint encoder of a ControlNet."""

    def __init__(self, compiler: Compiler, origin: Origin, embedder: Any) -> None:
        super().__init__(compiler, origin, embedder)
        channels = embedder.conv_in.in_channels
        inputs = [Input("hint", torch.zeros(1, channels, 64, 64), _IMAGE_AXES)]
        self._run = self.add_part("hint encoder", lambda hint: (embedder(hint),), inputs, [embedder])

    def forward(self, hint: Tensor) -> Tensor:
        """Embeds hints [B, 3, H, W] as [B, C, h, w]."""
        (embedded,) = self._run(hint)
        return embedded


class OpenVinoVae(OpenVinoNetwork):
    """A VAE."""

    def __init__(self, compiler: Compiler, origin: Origin, vae: Any) -> None:
        super().__init__(compiler, origin, vae)
        config = vae.config
        latents = Input("latents", torch.zeros(1, config.latent_channels, 8, 8), _IMAGE_AXES)
        pixels = Input("pixels", torch.zeros(1, config.in_channels, 64, 64), _IMAGE_AXES)
        self._decode = self.add_part(
            "decoder",
            lambda latents: vae.decode(latents, return_dict=False),
            [latents],
            _present(vae.decoder, vae.post_quant_conv),
        )
        self._encode = self.add_part(
            "encoder",
            lambda pixels: (vae.encode(pixels, return_dict=False)[0].parameters,),
            [pixels],
            _present(vae.encoder, vae.quant_conv),
        )

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Returns pixels [B, 3, H, W], in a tuple."""
        (pixels,) = self._decode(latents)
        return (pixels,)

    def compile_for(self, height: int, width: int) -> None:
        """Compiles the decoder for one of latents [C, height, width]."""
        self._decode.compile_for((1, self.config.latent_channels, height, width))

    def encode(self, pixels: Tensor) -> AutoencoderKLOutput:
        """Returns the distribution of latents of `pixels` [B, 3, H, W]."""
        (parameters,) = self._encode(pixels)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(parameters))


def _parts_of(context: Tensor | AttentionContext) -> tuple[Tensor, ...]:
    """Returns the prompts' keys, and what references add to a call's inputs, if there are any."""
    return tuple(context) if isinstance(context, AttentionContext) else (context,)


def _context_of(keys: Tensor, references: Sequence[Tensor]) -> Tensor | AttentionContext:
    return AttentionContext(keys, *references) if references else keys


def _count_maps(config: Any) -> int:
    """Returns the number of maps that a ControlNet adds to: of each layer and each halving on the way down, of the
    first convolution, and of the middle.
    """
    return sum(_layers_of_blocks(config)) + (len(config.down_block_types) - 1) + 2


def _map_shapes(config: Any, height: int, width: int) -> Iterator[tuple[int, int, int]]:
    """Yields the channels and sides of those maps, of latents [height, width]; the middle one last."""
    channels, halvings = config.block_out_channels, len(config.block_out_channels) - 1
    yield channels[0], height, width
    for block, layers in enumerate(_layers_of_blocks(config)):
        yield from [(channels[block], height, width)] * layers
        if block < halvings:
            height, width = (height + 1) // 2, (width + 1) // 2
            yield channels[block], height, width
    yield channels[-1], height, width


def _layers_of_blocks(config: Any) -> list[int]:
    layers = config.layers_per_block
    return [layers] * len(config.down_block_types) if isinstance(layers, int) else list(layers)


def _leaves_but(network: nn.Module, kept: Iterable[nn.Module]) -> list[nn.Module]:
    """Returns the modules that hold the weights of `network`, without those that are, or are in, one of `kept`."""
    inside = {module for each in kept for module in each.modules()}
    return [module for module in network.modules() if module not in inside and not list(module.children())]


def _present(*modules: nn.Module | None) -> list[nn.Module]:
    return [module for module in modules if module is not None]

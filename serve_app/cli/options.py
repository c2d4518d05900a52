"""The options that the commands share, in one table, and the decorator that adds them to a command.

Typer reads options from a command's signature. `with_shared_options` writes that signature, in the order of `--help`:
the command's own required arguments, `PROMPT`, `OUTPUT`, its own options, `CONNECTION`, `PARAMETERS`, `REFERENCE`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.engine.protocol.inputs import Uploads
from serve_app.cli.completion import complete_adapter, complete_model, complete_sampler, complete_style
from serve_app.client.messages import API_KEY_VARIABLE, DEFAULT_URL

Url = Annotated[str, typer.Option(help="The server to ask.", envvar="DARKROOM_URL")]
Priority = Annotated[
    str | None, typer.Option(help="low, normal or high.", autocompletion=lambda: ["low", "normal", "high"])
]

_Output = Annotated[Path, typer.Option("--output", "-o", help="The file; .png, .webp or .jpg says the format.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON; whatever else there is goes to standard error.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        help="For servers that ask for one. Others here can see a command line: better set it.", envvar=API_KEY_VARIABLE
    ),
]
_Local = Annotated[bool, typer.Option("--local", help="Make it in this process, with no server.")]
_Config = Annotated[str | None, typer.Option(help="The configuration whose models --local uses: demo if not given.")]
_Seed = Annotated[int | None, typer.Option(help="Drawn if not given; the answer tells it.")]
_Side = Annotated[int | None, typer.Option(help="Pixels; what suits the model and the picture if not given.")]
_Guidance = Annotated[float | None, typer.Option(help="How closely to follow the prompt.")]
_Style = Annotated[str | None, typer.Option(help="A preset's name, or free text.", autocompletion=complete_style)]
_Loras = Annotated[list[str] | None, typer.Option("--lora", help="NAME, or NAME:SCALE; may be there several times.")]
_References = Annotated[
    list[Path] | None, typer.Option(help="A picture to take after, for models with an IP-Adapter; up to four times.")
]
_Adapter = Annotated[
    str | None, typer.Option(help="The IP-Adapter, where the model has several.", autocompletion=complete_adapter)
]
_Images = Annotated[int | None, typer.Option(help="Image i uses seed + i and is saved as NAME-i.")]


def _option(name: str, annotation: Any, default: Any = None) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


PROMPT = _option("prompt", str, Parameter.empty)
OUTPUT = _option("output", _Output, Parameter.empty)

CONNECTION = (
    _option("url", Url, DEFAULT_URL),
    _option("api_key", ApiKey),
    _option("local", _Local, False),
    _option("config", _Config),
    _option("json", AsJson, False),
)

PARAMETERS = (
    _option("steps", Annotated[int | None, typer.Option()]),
    _option("seed", _Seed),
    _option("width", _Side),
    _option("height", _Side),
    _option("negative_prompt", Annotated[str | None, typer.Option()]),
    _option("guidance", _Guidance),
    _option("sampler", Annotated[str | None, typer.Option(autocompletion=complete_sampler)]),
    _option("style", _Style),
    _option("num_images", _Images),
    _option("loras", _Loras),
    _option("model", Annotated[str | None, typer.Option(autocompletion=complete_model)]),
    _option("priority", Priority),
)
"""The request's parameters. None leaves a parameter to the server."""

REFERENCE = (
    _option("reference", _References),
    _option("reference_scale", Annotated[float | None, typer.Option(help="How strongly it does, 0 to 2.")]),
    _option("reference_start", Annotated[float | None, typer.Option(help="From which share of the steps on.")]),
    _option("reference_end", Annotated[float | None, typer.Option(help="To which share of the steps.")]),
    _option("reference_adapter", _Adapter),
)
"""The pictures that the result takes after, and how."""

FIELDS: Mapping[str, str] = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "style": "style_preset",
    "model": "model_name",
    "feather": "mask_feather",
    "invert_mask": "mask_inverted",
    "fill": "mask_fill",
    "crop": "padding_mask_crop",
    "image": "init_image",
    "type": "controlnet_type",
    "reference": "reference_images",
}
"""The HTTP API's fields for which the command line has a shorter word."""

_OPTIONS = {field: option for option, field in FIELDS.items()}


@dataclass(frozen=True, slots=True)
class OwnInputs:
    """The part of a request that only one command has: `uploads`, and `parameters` by their option's name."""

    uploads: Uploads | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


ReadInputs = Callable[[], OwnInputs]
"""Reads a command's own inputs. Raises InvalidParameter."""


def option_of(field: str) -> str:
    """The command line's word for a field of the HTTP API, or for one inside it, of which --lora has several."""
    if field.startswith("loras"):
        return "lora"
    if field.startswith("reference."):
        return field.replace(".", "_")
    return _OPTIONS.get(field, field)


def parameters_of(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The request's fields that `shared` and `own` options set, by the names that the HTTP API has for them."""
    options = {option.name: shared[option.name] for option in (PROMPT, *PARAMETERS)} | dict(own)
    given = {FIELDS.get(name, name): value for name, value in options.items() if value is not None}
    reference = {each.name.removeprefix("reference_"): shared[each.name] for each in REFERENCE[1:]}
    reference = {name: value for name, value in reference.items() if value is not None}
    given |= {"reference": reference} if reference else {}
    return given | ({"loras": [_read_lora(text) for text in given["loras"]]} if "loras" in given else {})


def _read_lora(text: str) -> dict[str, Any]:
    """Reads NAME:SCALE; a scale that is no number is left for the field's own rule to refuse."""
    name, _, scale = text.partition(":")
    try:
        return {"name": name, "scale": float(scale)} if scale else {"name": name}
    except ValueError:
        return {"name": name, "scale": scale}


def with_shared_options(
    run: Callable[[ReadInputs, Mapping[str, Any]], None],
) -> Callable[[Callable[..., OwnInputs]], Callable[..., None]]:
    """Decorates a function that reads a command's own inputs: adds the shared options, and calls `run` with both."""

    def decorate(read_inputs: Callable[..., OwnInputs]) -> Callable[..., None]:
        own = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in signature(read_inputs).parameters.values()]
        required = [each for each in own if each.default is Parameter.empty]
        optional = [each for each in own if each.default is not Parameter.empty]

        @wraps(read_inputs)
        def command(**options: Any) -> None:
            inputs = {each.name: options.pop(each.name) for each in own}
            run(lambda: read_inputs(**inputs), options)

        parameters = [*required, PROMPT, OUTPUT, *optional, *CONNECTION, *PARAMETERS, *REFERENCE]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate

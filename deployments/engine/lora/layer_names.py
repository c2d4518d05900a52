"""The names that LoRA files give to the layers of a network."""

from collections.abc import Iterable


def flat_names(network: str, paths: Iterable[str]) -> dict[str, str]:
    """Returns the layers' paths by their names with underscores for dots.

    Text encoders' layers are found with and without `text_model_` in front, as transformers has changed it.
    """
    names = {path.replace(".", "_"): path for path in paths}
    if network.startswith("text_encoder"):
        bare = {name.removeprefix("text_model_"): path for name, path in names.items()}
        names |= bare | {f"text_model_{name}": path for name, path in bare.items()}
    return names

"""The names under which OpenAI's clients ask for models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from deployments.engine.protocol.spec import ModelSpec
from serve_app.api.dependencies import ServiceDep
from serve_app.generation.prepare import default_model


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The served models, and the `retired` names of OpenAI's that mean the default one."""

    served: Sequence[ModelSpec]
    retired: Sequence[str]

    @property
    def default(self) -> ModelSpec:
        """The model that generates where none is named."""
        return default_model(self.served)

    def find(self, name: str | None) -> ModelSpec | None:
        """Returns the model that serves `name`; None if there is none of that name."""
        served = self.resolve(name)
        return self.default if served is None else next((spec for spec in self.served if spec.has_name(served)), None)

    def resolve(self, name: str | None) -> str | None:
        """Returns `name`, or None, which is the default model, for a retired name that no served model has."""
        if name is None or any(spec.has_name(name) for spec in self.served):
            return name
        return None if name in self.retired else name


def model_names_of(request: Request, service: ServiceDep) -> ModelNames:
    """The names that this application knows."""
    return ModelNames(service.models, request.app.state.retired_models)


ModelNamesDep = Annotated[ModelNames, Depends(model_names_of)]

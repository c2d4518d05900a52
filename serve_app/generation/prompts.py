"""What a server makes of the prompts that it is given: templates and styles, what is refused, and learnt embeddings."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from deployments.embeddings import NO_EMBEDDINGS, EmbeddingRegistry
from deployments.engine.protocol.params import GenerationParams
from serve_app.generation.blocklist import NOTHING_BLOCKED, Blocklist
from serve_app.generation.styles import add_style
from serve_app.generation.templates import TEMPLATES, PromptTemplate, apply_template


@dataclass(frozen=True, slots=True)
class PromptRules:
    """The `templates` and `embeddings` that prompts may name, and the `blocklist` of what they may not have."""

    templates: Mapping[str, PromptTemplate] = field(default_factory=lambda: TEMPLATES)
    blocklist: Blocklist = NOTHING_BLOCKED
    embeddings: EmbeddingRegistry = NO_EMBEDDINGS

    def write(self, asked: GenerationParams) -> GenerationParams:
        """Returns `asked` with its template and style applied, as the model will see it.

        Raises InvalidParameter for a template that cannot be filled, and BlockedPrompt.
        """
        filled = apply_template(asked, self.templates)
        styled = filled.model_copy(update={"prompt": add_style(filled.prompt, asked.style_preset)})
        self.blocklist.check(asked, styled)
        return styled

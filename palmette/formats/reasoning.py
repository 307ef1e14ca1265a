"""How the model families mark their reasoning. Data only; names are those of SGLang's `separate_reasoning`."""

from __future__ import annotations

from dataclasses import dataclass

from palmette.errors import InvalidOption


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """`begin`, the reasoning, `end`, `after`, the answer; all template text."""

    begin: str
    end: str
    starts_inside: bool = False  # the chat template already wrote `begin` at the end of the prompt
    after: str = "\n\n"  # what the model writes between `end` and an answer

    def is_open(self, prompt: str) -> bool:
        """Whether a rendered prompt ends inside the reasoning, whatever the family usually does."""
        return prompt.rstrip().endswith(self.begin.rstrip())


REASONING_FORMATS = {
    "deepseek-r1": ReasoningFormat("<think>", "</think>", starts_inside=True),
    "deepseek-v3": ReasoningFormat("<think>", "</think>"),
    "glm45": ReasoningFormat("<think>", "</think>"),
    "gpt-oss": ReasoningFormat("<|channel|>analysis<|message|>", "<|end|><|start|>assistant", after=""),
    "kimi": ReasoningFormat("◁think▷", "◁/think▷"),
    "magistral": ReasoningFormat("[THINK]", "[/THINK]", after=""),
    "qwen3": ReasoningFormat("<think>", "</think>"),
    "qwen3-thinking": ReasoningFormat("<think>", "</think>", starts_inside=True),
}


def reasoning_format(model_type: str) -> ReasoningFormat:
    """Raises InvalidOption for a family without a known format."""
    found = REASONING_FORMATS.get(model_type.lower())
    if found is None:
        raise InvalidOption("model_type", model_type, f"one of {', '.join(sorted(REASONING_FORMATS))}")
    return found

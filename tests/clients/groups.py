"""Which clients are tried, and which of them share an environment: their pins conflict, so one would not do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = HERE / "scripts"
REQUIREMENTS = HERE / "requirements"
DOCS = HERE.parent.parent / "docs" / "clients"


@dataclass(frozen=True, slots=True)
class Group:
    """One environment. Its packages are requirements/NAME.txt and, without what they depend on, NAME.no-deps.txt."""

    name: str

    @property
    def requirements(self) -> Path:
        return REQUIREMENTS / f"{self.name}.txt"

    @property
    def no_deps(self) -> Path:
        return REQUIREMENTS / f"{self.name}.no-deps.txt"


@dataclass(frozen=True, slots=True)
class Client:
    """One client: its script, its environment, and what the server is started with beside the model."""

    name: str
    group: Group
    script: str
    server: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return SCRIPTS / self.script

    @property
    def page(self) -> Path:
        return DOCS / f"{self.name}.md"


OPENAI = Group("openai")
GATEWAY = Group("gateway")
LM_EVAL = Group("lm_eval")
SGLANG = Group("sglang")

CLIENTS = (
    Client("openai", OPENAI, "openai_client.py"),
    Client("langchain", OPENAI, "langchain_client.py"),
    Client("pydantic-ai", OPENAI, "pydantic_ai_client.py"),
    Client("openai-agents", OPENAI, "openai_agents_client.py"),
    Client("instructor", GATEWAY, "instructor_client.py"),
    Client("dspy", GATEWAY, "dspy_client.py"),
    Client("litellm", GATEWAY, "litellm_client.py"),
    Client("llama-index", GATEWAY, "llama_index_client.py"),
    Client("sglang", SGLANG, "sglang_client.py"),
    Client("lm-eval", LM_EVAL, "lm_eval_client.py", ("--dtype", "float32")),  # as exact as what it is compared with
)

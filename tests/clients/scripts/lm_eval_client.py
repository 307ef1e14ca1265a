"""lm-eval: one log-likelihood task by `local-completions` against the server, and by its own transformers backend.

Both have the same weights: the embedded model's file, read by transformers and written once as a directory of
float32 safetensors. The server must compute in float32 too. What is compared is every choice's log-likelihood.
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,misc"

from __future__ import annotations

import copy
import os
from functools import cache
from pathlib import Path
from typing import Any

from checking import Suite, say, server

CACHE = Path(os.environ["PALMETTE_CLIENTS_CACHE"]).resolve()
os.environ["HF_HOME"] = str(CACHE / "hf")  # read when the libraries below are imported
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["OPENAI_API_KEY"] = server.sent_key

import torch  # noqa: E402
from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.models.openai_completions import LocalCompletionsAPI  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

TASK = Path(__file__).resolve().parent.parent / "lm_eval_task"
TOLERANCE = 0.005  # nats, of one choice's log-likelihood; both compute in float32
suite = Suite("lm_eval", "transformers", "torch")


def weights() -> Path:
    """The embedded model as a directory that transformers loads; made once."""
    directory = CACHE / "smollm2-float32"
    if not (directory / "done").exists():
        file = Path(os.environ["PALMETTE_GGUF"])
        say("reading", file.name, "into", directory.name)
        options: Any = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        read = AutoModelForCausalLM.from_pretrained(**options, dtype=torch.float32)
        config = copy.deepcopy(read.config)
        if hasattr(config, "quantization_config"):  # it says "gguf", and such a model would not be written
            del config.quantization_config
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(read.state_dict())
        plain.save_pretrained(directory)
        AutoTokenizer.from_pretrained(**options).save_pretrained(directory)
        (directory / "done").touch()
    return directory


def evaluate(model: str, arguments: dict[str, Any], *, batch_size: int = 1) -> Any:
    os.chdir(TASK)  # the task names its data relative to it
    return simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=["palmette_facts"],
        task_manager=TaskManager(include_path=str(TASK), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
        batch_size=batch_size,
    )


def over_http(*, batch_size: int = 1, **options: Any) -> Any:
    return evaluate(
        "local-completions",
        {
            "model": server.model,
            "base_url": f"{server.v1}/completions",
            "tokenizer": str(weights()),
            "tokenizer_backend": "huggingface",
            "max_retries": 1,
            **options,
        },
        batch_size=batch_size,
    )


@cache
def by_transformers() -> Any:
    return evaluate("hf", {"pretrained": str(weights()), "dtype": "float32", "device": "cpu"}, batch_size=4)


def loglikelihoods(results: Any) -> list[tuple[float, bool]]:
    """Of every choice of every question, in the task's order: log-likelihood, and whether it is what greedy writes."""
    samples = sorted(results["samples"]["palmette_facts"], key=lambda sample: sample["doc_id"])
    found = [(float(ll), str(greedy) == "True") for sample in samples for ll, greedy in sample["filtered_resps"]]
    assert len(found) == 80, len(found)
    return found


def compare(results: Any) -> str:
    expected = by_transformers()
    ours, theirs = loglikelihoods(results), loglikelihoods(expected)
    worst = max(abs(a - b) for (a, _), (b, _) in zip(ours, theirs, strict=True))
    metrics = results["results"]["palmette_facts"]
    assert worst <= TOLERANCE, f"a log-likelihood differs by {worst:.4f}; {metrics}"
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    ours, theirs = results["results"]["palmette_facts"], expected["results"]["palmette_facts"]
    for metric in ("acc,none", "acc_norm,none"):
        assert ours[metric] == theirs[metric], metric
    return f"accuracy {ours['acc,none']:.2f}, normalized {ours['acc_norm,none']:.2f}; worst difference {worst:.5f}"


@suite.check
def the_tokenizers_agree() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(str(weights()))
    for line in (TASK / "palmette_facts.jsonl").read_text().splitlines():
        assert tokenizer(line, add_special_tokens=False).input_ids == server.tokens(line)


@suite.check
def token_id_prompts_score_as_transformers_does() -> str:
    return compare(over_http())


@suite.check
def batches_and_parallel_requests_score_the_same() -> str:
    return compare(over_http(batch_size=8, num_concurrent=4))


@suite.check
def text_prompts_score_the_same() -> str:
    return compare(over_http(tokenized_requests=False, batch_size=4))


@suite.check
def a_tokenizer_at_the_server_will_do() -> str:
    """`tokenizer_backend=auto` asks the server for /tokenizer_info and tokenizes there where that is answered."""
    from lm_eval.utils import check_remote_tokenizer_support

    url = f"{server.v1}/completions"
    if not check_remote_tokenizer_support(url, auth_token=server.sent_key):
        return "not tried: the server has no /tokenizer_info"
    return compare(over_http(tokenizer_backend="auto", tokenizer=None, auth_token=server.sent_key, batch_size=8))


@suite.check
def generation_until_a_stop() -> str:
    from lm_eval.api.instance import Instance

    client: Any = LocalCompletionsAPI(
        model=server.model, base_url=f"{server.v1}/completions", tokenizer=str(weights()), max_retries=1,
        tokenizer_backend="huggingface",
    )  # fmt: skip
    options = {"until": ["\n"], "max_gen_toks": 12, "temperature": 0}
    prompts = ["Question: What is frozen water called?\nAnswer:", "One, two, three,"]
    requests = [Instance("generate_until", {}, (prompt, dict(options)), i) for i, prompt in enumerate(prompts)]
    texts = client.generate_until(requests)
    assert len(texts) == 2
    assert all(isinstance(t, str) and "\n" not in t for t in texts)
    return repr(texts)


suite.main()

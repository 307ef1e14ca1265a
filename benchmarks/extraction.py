"""Constrained decoding end to end: `python -m benchmarks.extraction [--rounds N] [--peer-python PATH]`.

Sixteen records of a name, age and city schema and sixteen characters under the SGLang paper's regex, greedy, on the
embedded model. Each system runs in a process of its own, one after the other, round by round; a system that is not
installed (in the interpreter of --peer-python) is left out with a line. Seconds are of decoding alone: models are
loaded, one record is made to warm up, and constraints are compiled in the time that is measured.

    palmette            all sixteen at once, as a program's map would
    ... one at a time   the same, one after the other
    ... without jumps   forced tokens decoded one by one
    ... unconstrained   no constraint, as many output tokens as the constrained run had, all at once
    llama.cpp           llama-cpp-python, its own grammars (JSON schema), the same Q4_1 file, one after the other
    guidance            on transformers in fp32, with llguidance's own forced tokens, one after the other
    outlines            on transformers in fp32, all sixteen as one batch
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.fsm_constraints import CHARACTER

RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"type": "string", "maxLength": 24},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
NAMES: tuple[str, ...] = (
    "Ada",
    "Ben",
    "Clara",
    "David",
    "Elena",
    "Farid",
    "Greta",
    "Hugo",
    "Ines",
    "Jonas",
    "Karin",
    "Leo",
    "Mina",
)
NAMES = (*NAMES, "Noor", "Otto", "Pia")
CITIES = ("Lisbon", "Oslo", "Quito", "Hanoi")
RECORDS = [
    f"{name} turned {20 + 3 * i} this spring and still lives in {CITIES[i % 4]}.\nThe same as JSON: "
    for i, name in enumerate(NAMES)
]
CHARACTERS = [f"{name} is a character in a story about a school of magic. {name} in JSON:\n" for name in NAMES]
WORKLOADS = {"records": (RECORDS, 96), "characters": (CHARACTERS, 400)}
OURS = ("palmette", "palmette, one at a time", "palmette, without jumps", "palmette, unconstrained")
PEERS = ("llama.cpp", "guidance", "outlines")


@dataclass
class Outcome:
    """One system on one workload."""

    seconds: float
    forward_passes: int  # calls of the model, prompts included
    output_tokens: int
    valid: int  # texts that satisfy the constraint


# -- ours --------------------------------------------------------------------------------------------------------------


def palmette(system: str, workload: str, counts: Sequence[int]) -> tuple[Outcome, list[int]]:
    """`counts`: output tokens of each prompt, for the unconstrained run. Returns those of this run."""
    from palmette.interpreter.backends.local import runtime_config
    from palmette.runtime.engine import build_engine
    from palmette.runtime.models.load import load_model
    from palmette.specs import JsonSchema, Regex
    from palmette.types import GenerateRequest, SamplingParams, TokenEvent

    prompts, limit = WORKLOADS[workload]
    options: dict[str, Any] = {"jump_forward": system != "palmette, without jumps"}
    if system == "palmette, one at a time":
        options["max_running"] = 1
    loaded = load_model("smollm2", dtype="auto", cpu_kernels="auto")
    core = build_engine(loaded, runtime_config("smollm2", options))
    spec = None
    if system != "palmette, unconstrained":
        spec = JsonSchema.of(RECORD) if workload == "records" else Regex(CHARACTER)

    def run(which: Sequence[int], name: str, constraint: Any) -> tuple[list[str], list[int]]:
        texts, tokens = [""] * len(which), [0] * len(which)
        for place, i in enumerate(which):
            params = SamplingParams(max_new_tokens=limit, temperature=0)
            if constraint is None:
                params = SamplingParams(max_new_tokens=counts[i], temperature=0, ignore_eos=True)
            ids = tuple(loaded.tokenizer.encode(prompts[i]))
            core.add(GenerateRequest(f"{name}{place}", ids, params, constraint=constraint), time.monotonic())
        while core.has_work:
            for event in core.step(time.monotonic()):
                assert isinstance(event, TokenEvent)
                place = int(event.request_id.removeprefix(name))
                texts[place] += event.text
                if event.finish is not None:
                    tokens[place] = event.finish.usage.completion_tokens
        return texts, tokens

    run([0], "warm", None if spec is None else JsonSchema.of({"type": "boolean"}))
    core.flush_cache()
    before = core.stats().steps
    start = time.perf_counter()
    texts, tokens = run(range(len(prompts)), "r", spec)
    seconds = time.perf_counter() - start
    valid = sum(is_valid(workload, text) for text in texts)
    return Outcome(seconds, core.stats().steps - before, sum(tokens), valid), tokens


# -- peers -------------------------------------------------------------------------------------------------------------


def llama_cpp(workload: str) -> Outcome:
    """llama-cpp-python on the file itself. It has no regex; characters are left out."""
    from palmette.runtime.models.load import find_model

    library: Any = importlib.import_module("llama_cpp")
    if workload != "records":
        raise LookupError("its grammars are no regular expressions")
    path, _ = find_model("smollm2")
    prompts, limit = WORKLOADS[workload]
    model = library.Llama(str(path), n_ctx=1024, n_threads=os.cpu_count(), verbose=False, logits_all=False)
    grammar = library.LlamaGrammar.from_json_schema(json.dumps(RECORD), verbose=False)
    passes = _counted(model, "eval")
    model.create_completion(prompts[0], max_tokens=1, temperature=0)
    passes.clear()
    start = time.perf_counter()
    replies = [model.create_completion(p, max_tokens=limit, temperature=0, grammar=grammar) for p in prompts]
    seconds = time.perf_counter() - start
    texts = [reply["choices"][0]["text"] for reply in replies]
    tokens = sum(reply["usage"]["completion_tokens"] for reply in replies)
    return Outcome(seconds, len(passes), tokens, sum(is_valid(workload, t) for t in texts))


def guidance(workload: str) -> Outcome:
    """guidance on transformers."""
    library: Any = importlib.import_module("guidance")
    gen, json_of = library.gen, library.json
    model, tokenizer = _transformers()
    prompts, limit = WORKLOADS[workload]
    passes = _counted(model, "forward")
    lm = library.models.Transformers(model, tokenizer, echo=False)

    def one(prompt: str, count: int | None = None) -> str:
        if count is not None:
            return str((lm + prompt + gen("x", max_tokens=count, temperature=0.0))["x"])
        if workload == "records":
            return str((lm + prompt + json_of("x", schema=RECORD, max_tokens=limit, temperature=0.0))["x"])
        return str((lm + prompt + gen("x", regex=CHARACTER, max_tokens=limit, temperature=0.0))["x"])

    one(prompts[0], 1)
    passes.clear()
    start = time.perf_counter()
    texts = [one(prompt) for prompt in prompts]
    seconds = time.perf_counter() - start
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    return Outcome(seconds, len(passes), tokens, sum(is_valid(workload, t) for t in texts))


def outlines(workload: str) -> Outcome:
    """outlines on transformers, all prompts in one batch."""
    library: Any = importlib.import_module("outlines")
    model, tokenizer = _transformers()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    prompts, limit = WORKLOADS[workload]
    passes = _counted(model, "forward")
    wrapped = library.from_transformers(model, tokenizer)
    wrapped.batch(prompts[:2], max_new_tokens=1)
    passes.clear()
    start = time.perf_counter()
    records = workload == "records"
    generator = library.Generator(
        wrapped, library.types.JsonSchema(RECORD) if records else library.types.Regex(CHARACTER)
    )
    texts = generator.batch(prompts, max_new_tokens=limit, do_sample=False)
    seconds = time.perf_counter() - start
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    return Outcome(seconds, len(passes), tokens, sum(is_valid(workload, t) for t in texts))


def _transformers() -> tuple[Any, Any]:
    import torch
    import transformers

    from palmette.runtime.models.load import find_model

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    path, _ = find_model("smollm2")
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def _counted(model: Any, method: str) -> list[int]:
    """One entry for each call of the model from now on."""
    calls: list[int] = []
    original: Callable[..., Any] = getattr(model, method)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    setattr(model, method, counted)
    return calls


# -- the comparison ----------------------------------------------------------------------------------------------------


def is_valid(workload: str, text: str) -> bool:
    import re

    import jsonschema

    if workload == "characters":
        return re.fullmatch(CHARACTER, text) is not None
    try:
        jsonschema.validate(json.loads(text), RECORD)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def one(system: str, workload: str, counts: Sequence[int]) -> dict[str, Any]:
    """One run, in this process."""
    if system in OURS:
        outcome, tokens = palmette(system, workload, counts)
        return {**asdict(outcome), "tokens": tokens}
    run = {"llama.cpp": llama_cpp, "guidance": guidance, "outlines": outlines}[system]
    return asdict(run(workload))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has the peers installed")
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)  # system, workload, counts as JSON
    args = parser.parse_args()
    if args.run:
        print(json.dumps(one(args.run[0], args.run[1], json.loads(args.run[2]))))
        return
    figures: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for workload in WORKLOADS:
        counts: list[int] = []
        runs: dict[str, list[dict[str, Any]]] = {}
        skipped: set[str] = set()
        for _ in range(args.rounds):
            for system in (*OURS, *PEERS):
                if system in skipped:
                    continue
                found, why = _in_process(system, workload, counts, args.peer_python)
                if found is None:
                    print(f"{workload}: {system} is left out: {why}", flush=True)
                    skipped.add(system)
                    continue
                if system == "palmette":
                    counts = found["tokens"]
                runs.setdefault(system, []).append(found)
        figures[workload] = runs
        _table(workload, runs)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


def _in_process(system: str, workload: str, counts: Sequence[int], peer: str) -> tuple[dict[str, Any] | None, str]:
    python = sys.executable if system in OURS else peer
    command = [python, "-m", "benchmarks.extraction", "--run", system, workload, json.dumps(list(counts))]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["no word"])[-1]
    return json.loads(done.stdout.strip().splitlines()[-1]), ""


def _table(workload: str, runs: dict[str, list[dict[str, Any]]]) -> None:
    def median(system: str, key: str) -> float:
        return float(statistics.median(run[key] for run in runs[system]))

    base = median("palmette", "seconds")
    print(f"\n{workload}: sixteen texts, median of {len(runs['palmette'])}")
    print(f"{'system':<26}{'seconds':>9}{'x ours':>8}{'passes':>8}{'tokens':>8}{'valid':>7}   spread")
    for system, found in runs.items():
        seconds = [run["seconds"] for run in found]
        print(
            f"{system:<26}{median(system, 'seconds'):>9.2f}{median(system, 'seconds') / base:>8.2f}"
            f"{median(system, 'forward_passes'):>8.0f}{median(system, 'output_tokens'):>8.0f}"
            f"{median(system, 'valid'):>7.0f}   {min(seconds):.2f}-{max(seconds):.2f}"
        )


if __name__ == "__main__":
    main()

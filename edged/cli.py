"""The `edged` command: parses words, calls one room, prints. Each room is imported when its command runs."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edged import __version__
from edged.core.errors import BadValue, ConfigError, EdgedError, ModelError
from edged.core.settings import Settings, build, show
from edged.wire import config_file
from edged.words import Parser, WrongUsage, reason

DONE, FAILED, USAGE = 0, 1, 2


def parser() -> argparse.ArgumentParser:
    """All words that `edged` knows."""
    top = Parser(prog="edged", description="A small language model on a board, answering over MQTT.")
    top.add_argument("--version", action="version", version=f"edged {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="the daemon")
    run.set_defaults(run=_run)

    check = commands.add_parser("check", help="validate the config and print the effective one")
    check.add_argument("--json", action="store_true", help="print one JSON document")
    check.set_defaults(run=_check)

    generate = commands.add_parser("generate", help="answer one prompt without a broker")
    generate.add_argument("model", metavar="MODEL", help="anything that model.source takes")
    generate.add_argument("text", metavar="TEXT", help="the prompt; - reads it from standard input")
    generate.add_argument("--max-tokens", type=int, default=256, metavar="N")
    generate.add_argument("--temperature", type=float, default=0.7, metavar="T")
    generate.add_argument("--seed", type=int, metavar="N")
    generate.add_argument("--backend", choices=("auto", "native", "torch"), default="auto")
    generate.add_argument("--raw", action="store_true", help="apply no chat template")
    generate.add_argument("--json", action="store_true", help="print one JSON document")
    generate.set_defaults(run=_generate)

    model = commands.add_parser("model", help="the models on this device")
    verbs = model.add_subparsers(dest="verb", required=True, metavar="VERB")
    pull = verbs.add_parser("pull", help="fetch a model, verify it and keep it")
    pull.add_argument("source", metavar="NAME|hf:…|URL|FILE")
    pull.set_defaults(run=_model_pull)
    listing = verbs.add_parser("list", help="the models that are kept, and the catalog")
    listing.set_defaults(run=_model_list)
    shown = verbs.add_parser("show", help="one model that is kept, and whether its bytes are whole")
    shown.add_argument("name", metavar="NAME|sha256:…")
    shown.set_defaults(run=_model_show)
    remove = verbs.add_parser("remove", help="delete a model that is kept")
    remove.add_argument("name", metavar="NAME|sha256:…")
    remove.set_defaults(run=_model_remove)
    measuring = _measuring(commands)
    for verb in (pull, listing, shown, remove, *measuring):
        verb.add_argument("--json", action="store_true", help="print one JSON document")

    doctor = commands.add_parser("doctor", help="what this machine can do, and what to mend")
    doctor.add_argument("--json", action="store_true", help="print one JSON document")
    doctor.set_defaults(run=_doctor)
    completion = commands.add_parser("completion", help="print a completion script for your shell")
    completion.add_argument("shell", choices=("bash", "zsh"))
    completion.set_defaults(run=_completion)
    for command in (run, check, generate, pull, listing, shown, remove, *measuring, doctor):
        command.add_argument("--config", type=Path, metavar="FILE", help=f"default: {config_file.DEFAULT_PATH}")
    return top


def _measuring(commands: Any) -> tuple[argparse.ArgumentParser, ...]:
    """The words of pack, bench and eval."""
    pack = commands.add_parser("pack", help="make a packed folder, which the native engine maps as it is")
    pack.add_argument(
        "paths", nargs="+", metavar="SOURCE DEST", help="a model and a new folder; with --shape the folder"
    )
    pack.add_argument("--bits", type=int, choices=(4, 8), help="of what is not quantized yet (a checkpoint: 4)")
    pack.add_argument("--group", type=int, choices=(32, 64, 128), help="weights that share a scale (default 32)")
    pack.add_argument(
        "--scale-only", action="store_true", help="4 bits without a minimum: 6 %% smaller and faster, less exact"
    )
    pack.add_argument(
        "--shape", metavar="NAME", help="random weights (scale only) of a known shape: qwen2.5-0.5b, smollm2-135m, …"
    )
    pack.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="with --shape: whose tokenizer.json to take")
    pack.set_defaults(run=_pack)

    bench = commands.add_parser("bench", help="how fast a model is here, also against llama.cpp")
    bench.add_argument("model", metavar="MODEL", help="anything that model.source takes")
    bench.add_argument("--threads", type=_positive, metavar="N", help="default: model.threads")
    rounds = "measurements of each case (default 5; decode gets more, spread over the run)"
    bench.add_argument("--rounds", type=_positive, default=5, metavar="N", help=rounds)
    bench.add_argument("--kernels", default="auto", metavar="NAME", help="vnni, avx2, dotprod, neon or portable")
    bench.add_argument("--plot", type=Path, metavar="FILE.svg", help="write a picture as well")
    bench.add_argument("--llama-bench", type=Path, metavar="FILE", help="this program in place of llama-cpp-python")
    bench.set_defaults(run=_bench)

    evaluate = commands.add_parser("eval", help="how well a model predicts a text, and what quantization cost")
    evaluate.add_argument("model", metavar="MODEL", help="anything that model.source takes")
    evaluate.add_argument("file", metavar="FILE", help="a UTF-8 text")
    evaluate.add_argument("--reference", metavar="MODEL", help="compare with this one, computed in float32 by torch")
    evaluate.add_argument("--backend", choices=("auto", "native", "torch"), default="auto")
    evaluate.add_argument("--window", type=_window, default=256, metavar="N", help="tokens of a window (default 256)")
    evaluate.add_argument("--windows", type=_positive, metavar="N", help="at most so many windows")
    evaluate.set_defaults(run=_eval)
    for command in (bench, evaluate):
        command.add_argument("--peer", choices=("llama.cpp",), help="measure this one in turn")
        command.add_argument("--peer-python", metavar="FILE", help="a Python that has the peer")
    return pack, bench, evaluate


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _window(text: str) -> int:
    if not 2 <= _positive(text) <= 4096:
        raise argparse.ArgumentTypeError("a window has 2 to 4096 tokens")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the command. Errors are one sentence on stderr; exit codes as the contract says."""
    arguments = argparse.Namespace(command=None)
    try:
        arguments = parser().parse_args(argv)
        return int(arguments.run(arguments))
    except EdgedError as error:
        if isinstance(error, ModelError) and getattr(arguments, "json", False):
            print(json.dumps({"error": {"code": error.code, "message": str(error)}}, ensure_ascii=False))
        return _complain(str(error), USAGE if isinstance(error, (ConfigError, BadValue, WrongUsage)) else FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted", FAILED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        if arguments.command == "run":  # in the daemon that is a defect, which the log should show whole
            raise
        return _complain(f"{arguments.command} failed ({reason(error)}); mend that, or name another place", FAILED)


def _complain(why: str, code: int) -> int:
    print(f"edged: {why}", file=sys.stderr)
    return code


def _configured(arguments: argparse.Namespace) -> tuple[dict[str, Any], Settings, str]:
    """Checked values of the owner's file and variables, the settings they make, and the device's name."""
    values = config_file.load(arguments.config, os.environ)
    settings = build(values)
    name = settings.identity.device or config_file.device_name(socket.gethostname(), config_file.machine_id())
    return values, settings, name


def _run(arguments: argparse.Namespace) -> int:
    from edged.agent.start import run

    values, settings, name = _configured(arguments)
    pull_arguments = ("--config", str(arguments.config)) if arguments.config else ()
    return run(values, settings, name, pull_arguments)


def _check(arguments: argparse.Namespace) -> int:
    _, settings, name = _configured(arguments)
    effective = show(settings)
    effective["identity"]["device"] = name
    if arguments.json:
        print(json.dumps(effective, ensure_ascii=False))
    else:
        import yaml

        print(yaml.safe_dump(effective, sort_keys=False, allow_unicode=True), end="")
    for key, path in _files_named(settings):
        if not _seen(path):
            print(f"edged: warning: {key}: {path} is not to be seen here, the daemon will need it", file=sys.stderr)
    return DONE


def _seen(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # in a folder that this user may not look into
        return False


def _files_named(settings: Settings) -> Iterator[tuple[str, str]]:
    """The keys that name a file or folder which the daemon only reads, and which."""
    for key in ("password_file", "ca", "cert", "key"):
        if (named := getattr(settings.mqtt, key)) is not None:
            yield f"mqtt.{key}", named
    if Path(settings.model.source).is_absolute():
        yield "model.source", settings.model.source


def _generate(arguments: argparse.Namespace) -> int:
    from edged.console import generate

    _, settings, _ = _configured(arguments)
    return generate(arguments, settings)


def _model_pull(arguments: argparse.Namespace) -> int:
    from edged.console import model_pull

    _, settings, _ = _configured(arguments)
    return model_pull(arguments.source, settings, arguments.json)


def _model_list(arguments: argparse.Namespace) -> int:
    from edged.console import model_list

    _, settings, _ = _configured(arguments)
    return model_list(Path(settings.state_dir) / "models", arguments.json)


def _model_show(arguments: argparse.Namespace) -> int:
    from edged.console import model_show

    _, settings, _ = _configured(arguments)
    return model_show(arguments.name, Path(settings.state_dir) / "models", arguments.json)


def _model_remove(arguments: argparse.Namespace) -> int:
    from edged.console import model_remove

    _, settings, _ = _configured(arguments)
    return model_remove(arguments.name, Path(settings.state_dir) / "models", arguments.json)


def _pack(arguments: argparse.Namespace) -> int:
    from edged.measure.commands import pack_command

    _, settings, _ = _configured(arguments)
    return pack_command(arguments, Path(settings.state_dir) / "models")


def _bench(arguments: argparse.Namespace) -> int:
    from edged.measure.commands import bench_command

    _, settings, _ = _configured(arguments)
    return bench_command(arguments, settings, Path(settings.state_dir) / "models")


def _eval(arguments: argparse.Namespace) -> int:
    from edged.measure.commands import eval_command

    _, settings, _ = _configured(arguments)
    return eval_command(arguments, settings, Path(settings.state_dir) / "models")


def _completion(arguments: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(parser(), shell=arguments.shell))
    return DONE


def _doctor(arguments: argparse.Namespace) -> int:
    from edged.console import doctor

    _, settings, name = _configured(arguments)
    return doctor(settings, name, arguments.json)


if __name__ == "__main__":
    sys.exit(main())

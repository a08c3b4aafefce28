"""The command line: ``sslfast train | eval | report | embed | preview | tokenizer | doctor``.

Nothing heavy is imported before a command runs, so that --help answers at once.
"""

import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from sslfast import __version__
from sslfast._arguments import BadArgument
from sslfast._extras import MissingExtra, require
from sslfast._printable import printable
from sslfast._renamed import OldName
from sslfast._suggest import did_you_mean
from sslfast.training.config import (
    SCHEMA_VERSION,
    ConfigError,
    TrainConfig,
    known_keys,
    read_yaml,
    user_path,
)

logger = logging.getLogger("sslfast")

TRACEBACK_VARIABLE = "SSLFAST_TRACEBACK"

Parser = Any  # jsonargparse.ArgumentParser, which is optional


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``sslfast``; None: those of this process.

    Returns:
        The exit code: 0; 1 for a failed run, 2 for a wrong command or setting, 128 + the signal's
        number for an interrupted run.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["doctor"] and len(words) == 1:  # must work where packages are missing
            return _doctor()
        parser, commands = _parsers()
        if not words:
            parser.print_help()
            return 2
        words = _normalized(words, commands)
        options = parser.parse_args(words)
        _set_up_logging()
        return _COMMANDS[options.subcommand][1](options[options.subcommand])
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0"):
            raise
        code = _exit_code(error)
        if code is None:
            raise
        print(printable(f"sslfast: {_message(error)}"), file=sys.stderr)
        return code


_WRONG_KIND = re.compile(
    r'Parser key "(?P<name>[^"]+)": .*?Expected an? '
    r"(?:<class '(?P<kind>\w+)'>|typing\.Literal\[(?P<names>.*?)\])"
    r".*(?:Got|Given) value: (?P<value>.*)"
)
_KINDS = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text"}


def _message(error: Exception) -> str:
    """What an error says, in one line; a value of the wrong kind in the words of other settings."""
    text = " ".join(str(error).split())
    found = _WRONG_KIND.fullmatch(text)
    if not found:
        return text
    wanted = f"one of {found['names']}" if found["names"] else _KINDS.get(found["kind"])
    if wanted is None:
        return text
    null = ", or null" if "NoneType" in text else ""
    return f"{found['name']} must be {wanted}{null}, got {found['value']}"


class _Printable(logging.Formatter):
    """The message, of printable characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _exit_code(error: Exception) -> int | None:
    """The code for an error whose message is for users; None for a bug, which needs a traceback."""
    from argparse import ArgumentError

    if isinstance(error, (ConfigError, ArgumentError, BadArgument)):
        return 2
    if isinstance(error, (OSError, ValueError, MissingExtra)):
        return 1
    # Only modules that are loaded can have raised: none is imported to find out.
    for module, name in _USER_ERRORS:
        known = getattr(sys.modules.get(module), name, None)
        if known is not None and isinstance(error, known):
            return 128 + error.signal if name == "TrainingStopped" else 1
    return None


_USER_ERRORS = (
    ("sslfast.training.checkpoint", "CheckpointError"),
    ("sslfast.training.monitors", "NonFiniteError"),
    ("sslfast.training.roll_call", "RankError"),
    ("sslfast.training.run_folder", "RunFolderError"),
    ("sslfast.training.signals", "TrainingStopped"),
    ("sslfast.kernels.registry", "BackendError"),
    ("torch", "OutOfMemoryError"),
)


def _set_up_logging() -> None:
    """Log to the terminal beside the progress bar, or plain lines where there is no terminal."""
    console = require("rich", extra="train", purpose="the command line").get_console()
    handler: logging.Handler = logging.StreamHandler()
    if console.is_terminal:
        handler = require("rich.logging", extra="train", purpose="the command line").RichHandler(
            show_time=False, show_level=False, show_path=False
        )
    rank = os.environ.get("RANK", "0")
    level, who = (logging.INFO, "") if rank == "0" else (logging.ERROR, f"rank {rank}: ")
    handler.setFormatter(_Printable(f"{who}%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    warnings.simplefilter("once", OldName)  # Python hides what is for programmers
    show = warnings.showwarning

    def shown(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        """An old name is a matter of the settings, not of a line of code."""
        if issubclass(category, OldName):
            logger.warning("%s", message)
        else:
            show(message, category, *where, **more)

    warnings.showwarning = shown
    # A file that cannot be decoded turns up on one rank alone, whichever it is.
    logging.getLogger("sslfast.data.steps").setLevel(logging.WARNING)


# Parsing


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    jsonargparse = require("jsonargparse", extra="train", purpose="the command line")
    parser = jsonargparse.ArgumentParser(
        prog="sslfast",
        description="Self-supervised pre-training, accelerated by its own kernels.",
        exit_on_error=False,
    )
    parser.add_argument("--version", action="version", version=f"sslfast {__version__}")
    subcommands = parser.add_subcommands(title="commands", metavar="COMMAND")
    commands = {}
    for name, (purpose, _, add_arguments) in _COMMANDS.items():
        command = jsonargparse.ArgumentParser(description=purpose, exit_on_error=False)
        add_arguments(command)
        subcommands.add_subcommand(name, command, help=purpose)
        commands[name] = command
    return parser, commands


_LENGTHS = ("--epochs", "--steps")


def _normalized(words: list[str], commands: dict[str, Parser]) -> list[str]:
    """Underscores in flags' names, values for bare switches; unknown flags and keys raise.

    Files of settings come first, so that flags win wherever they stand; one of --steps and --epochs
    takes the place of the other in a file.

    Raises:
        ConfigError: with the nearest known name.
    """
    name = next((word for word in words if not word.startswith("-")), None)
    if name is None:
        return words
    if name not in commands:
        raise ConfigError(
            f"unknown command '{name}'.{did_you_mean(name, commands)} Known: {', '.join(commands)}"
        )
    actions = commands[name]._actions
    known = [flag for action in actions for flag in action.option_strings]
    switches = {"train": ["--compile"], "eval": ["--from_scratch"]}.get(name, [])
    result: list[str] = []
    files: list[str] = []
    lengths: dict[str, str] = {}
    taken = -1  # the place of a file's path, which is with its flag already
    for position, word in enumerate(words):
        if not word.startswith("--"):
            result += [word] * (position != taken)
            continue
        flag, equals, value = word.partition("=")
        flag = flag.replace("-", "_").replace("__", "--", 1)
        top, dot, rest = flag.partition(".")
        if top not in known and top != "--version":
            wrong, _, _ = word.partition("=")
            raise ConfigError(
                f"unknown option {wrong} of 'sslfast {name}'.{did_you_mean(top, known)} "
                f"(sslfast {name} --help lists all)"
            )
        following = words[position + 1 : position + 2]
        if flag in switches and not equals and (not following or following[0].startswith("--")):
            equals, value = "=", "true"
        if top == "--config" and (value or following):
            taken = position if value else position + 1
            files.append(value or following[0])
            read_yaml(files[-1])
            continue
        result.append(top + dot + rest + equals + value)
        if top in _LENGTHS:
            lengths[top] = value if equals else "".join(following)
    first = result.index(name) + 1
    result[first:first] = [f"--config={file}" for file in files]
    if "--config" in known and len(lengths) == 1 and "null" not in lengths.values():
        result += [f"{flag}=null" for flag in _LENGTHS if flag not in lengths]
    return result


def _add_settings(parser: Parser) -> None:
    """All settings of a run as flags, and --config for a YAML file of them."""
    from argparse import SUPPRESS

    parser.add_argument("--config", action="config", help="YAML file of settings; flags win")
    parser.add_class_arguments(TrainConfig, skip={"schema_version"})
    parser.add_argument("--schema_version", type=int, default=SCHEMA_VERSION, help=SUPPRESS)


def _add_preview(parser: Parser) -> None:
    _add_settings(parser)
    parser.add_argument("--run", help="a finished run: what its method makes of its data")
    parser.add_argument("--png", default="preview.png", help="the picture to write")
    parser.add_argument("--samples", type=int, help="how many; null: 16 images, or 4 videos")


def _add_run(parser: Parser) -> None:
    parser.add_argument("--run", required=True, help="a finished run, or an encoder's file")
    parser.add_argument(
        "--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="where to compute"
    )
    parser.add_argument("--threads", type=int, help="CPU threads for loading data")


def _add_eval(parser: Parser) -> None:
    parser.add_argument(
        "protocol", type=Literal["knn", "linear", "finetune"], help="knn, linear or finetune"
    )
    _add_run(parser)
    parser.add_argument("--data", help="labelled, with train and test; null: the run's own")
    parser.add_argument("--k", type=int, help="neighbours of knn; null: 20")
    parser.add_argument("--labels_per_class", type=int, help="train labels; null: all")
    parser.add_argument("--label_fraction", type=float, help="or: a part of them all")
    parser.add_argument("--seed", type=int, default=0, help="draws the labels")
    training = parser.add_argument_group("Of finetune")
    training.add_argument("--steps", type=int, help="of the training")
    training.add_argument(
        "--epochs",
        type=int,
        help="or: passes over the labels; both null: 30, of 200 steps or more",
    )
    training.add_argument("--lr", type=float, help="the peak learning rate; null: 3e-3")
    training.add_argument("--batch_size", type=int, help="labels a step; null: 64")
    training.add_argument("--draws", type=int, default=1, help="draws of labels; their mean counts")
    training.add_argument(
        "--from_scratch", type=bool, default=False, help="the untrained encoder, too"
    )


def _add_report(parser: Parser) -> None:
    _add_run(parser)
    parser.add_argument(
        "--labels_per_class",
        type=int,
        help="labels of the linear probe; null: 100, or as many as the rarest class has",
    )
    parser.add_argument("--k", type=int, default=20, help="neighbours of the kNN")


def _add_embed(parser: Parser) -> None:
    _add_run(parser)
    parser.add_argument("--data", help="images; null: the run's own")
    parser.add_argument("--split", type=Literal["train", "test", "val"], default="train")
    parser.add_argument("--out", help="the .npz to write; null: RUN/features_SPLIT.npz")


def _add_tokenizer(parser: Parser) -> None:
    parser.add_argument("action", type=Literal["fit"], help="fit: make one from images")
    parser.add_argument("--data", required=True, help="a folder of images, or builtin:NAME")
    parser.add_argument("--out", required=True, help="the .safetensors file to write")
    parser.add_argument("--vocab_size", type=int, default=512, help="codes")
    parser.add_argument("--patch_size", type=int, help="side of a patch in pixels; null: 16")
    parser.add_argument("--image_size", type=int, help="side of the views; null: 224")
    parser.add_argument(
        "--norm_pix", type=bool, help="compare pixels without mean and contrast; null: true"
    )
    parser.add_argument("--run", help="compare features of this run's encoder, not pixels")
    parser.add_argument("--images", type=int, help="views to draw; null: as many as images")
    parser.add_argument("--recipe", default="beit", help="what the views are augmented by")
    parser.add_argument("--seed", type=int, default=0, help="draws views, patches, first codes")
    parser.add_argument(
        "--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="where to compute"
    )
    parser.add_argument("--threads", type=int, help="CPU threads for loading data")
    parser.add_argument("--png", help="draw images and what their tokens keep of them")


# Commands


def _train(options: Any) -> int:
    from sslfast.training import train

    run = train(_settings(options))
    if os.environ.get("RANK", "0") == "0":
        logger.info("next: sslfast report --run %s", shlex.quote(str(run)))
    return 0


def _settings(options: Any) -> TrainConfig:
    return TrainConfig(**{name: options[name] for name in known_keys()})


def _preview(options: Any) -> int:
    from sslfast.training.report import preview, preview_run

    png = Path(user_path(options.png))
    if options.run:
        from sslfast.training.evaluation import FinishedRun

        run = FinishedRun.open(options.run, options.device, options.threads)
        print(printable(str(preview_run(run, png, options.samples))))
        return 0
    config = _settings(options)
    config.check_values()
    if not config.data:
        raise ConfigError("'data' is missing: set --data, or --run")
    print(printable(str(preview(config, png, options.samples))))
    return 0


def _eval(options: Any) -> int:
    from sslfast.eval import FineTuning
    from sslfast.training.evaluation import FinishedRun, evaluate

    changed = {name: options[name] for name in ("steps", "epochs", "lr", "batch_size")}
    changed = {name: value for name, value in changed.items() if value is not None}
    settings = FineTuning(**changed) if changed else None
    run = FinishedRun.open(options.run, options.device, options.threads)
    found = evaluate(
        run,
        options.protocol,
        options.data,
        k=options.k,
        labels_per_class=options.labels_per_class,
        label_fraction=options.label_fraction,
        seed=options.seed,
        settings=settings,
        draws=options.draws,
        from_scratch=options.from_scratch,
    )
    rows = [[name, f"{x:.4f}" if isinstance(x, float) else str(x)] for name, x in found.items()]
    _print_table(f"{options.protocol} of {options.run}", ["", ""], rows)
    return 0


def _report(options: Any) -> int:
    from sslfast.training.evaluation import FinishedRun
    from sslfast.training.report import report

    run = FinishedRun.open(options.run, options.device, options.threads)
    found = report(run, options.labels_per_class, options.k)
    if found.scores:
        head = ["features", f"kNN (k = {found.k})"]
        head.append(f"linear probe ({found.labels_per_class} labels a class)")
        rows = [[s.features, f"{s.knn:.1%}", f"{s.linear:.1%}"] for s in found.scores]
        _print_table(f"Accuracy on the test images of {found.data}", head, rows)
    else:
        print("no accuracies: the data has no labels, or no test images")
    print(printable(f"figures and page: {run.folder.path / 'report.html'}"))
    return 0


def _embed(options: Any) -> int:
    from sslfast.training.evaluation import FinishedRun, embed

    run = FinishedRun.open(options.run, options.device, options.threads)
    print(printable(str(embed(run, options.data, options.split, options.out))))
    return 0


def _tokenizer(options: Any) -> int:
    from sslfast.training.tokenizer import TokenizerConfig, fit_tokenizer

    settings = {name: value for name, value in vars(options).items() if name != "action"}
    fit = fit_tokenizer(TokenizerConfig(**settings))
    rows = [
        ["codes in use", f"{fit.used} of {options.vocab_size}"],
        ["perplexity", f"{fit.perplexity:.0f}"],
        ["PSNR", f"{fit.psnr:.1f} dB"],
        ["patches", f"{fit.patches} of {fit.images} images"],
    ]
    _print_table(f"tokenizer {options.out}", ["", ""], rows)
    out = shlex.quote(options.out)
    print(f"next: sslfast train --method beit --method-args.tokenizer {out}")
    return 0


def _doctor(options: Any = None) -> int:
    from sslfast.training.doctor import diagnose

    print(diagnose())
    return 0


def _print_table(title: str, head: list[str], rows: list[list[str]]) -> None:
    console = require("rich", extra="train", purpose="the command line").get_console()
    plain = require("rich.markup", extra="train", purpose="the command line").escape
    table = require("rich.table", extra="train", purpose="the command line").Table(
        title=plain(printable(title)), show_header=any(head)
    )
    for position, name in enumerate(head):
        table.add_column(name, justify="right" if position else "left")
    for row in rows:
        table.add_row(*(plain(printable(cell)) for cell in row))
    console.print(table)


_COMMANDS: dict[str, tuple[str, Callable[[Any], int], Callable[[Parser], None]]] = {
    "train": ("pre-train an encoder on images without labels", _train, _add_settings),
    "eval": (
        "kNN, linear probe or fine-tuning of a run's encoder on labelled images",
        _eval,
        _add_eval,
    ),
    "report": ("table, figures and page of a run, against two baselines", _report, _add_report),
    "embed": ("features of images, as an .npz file", _embed, _add_embed),
    "preview": (
        "a picture of augmented views, or of a run's masked images",
        _preview,
        _add_preview,
    ),
    "tokenizer": ("a codebook of image patches, for beit", _tokenizer, _add_tokenizer),
    "doctor": ("what works here, what does not and why", _doctor, lambda parser: None),
}


if __name__ == "__main__":
    sys.exit(main())

"""The command line. Errors are one sentence and an exit code other than 0."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.shadowed import shadowed

if TYPE_CHECKING:  # each command imports what it needs
    from rich.console import Console
    from rich.text import Text

    from recipe.config import RunConfig

EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 is success, 1 a failure, 2 a wrong call, 130 a run that was interrupted."""
    parser = _parser()
    # argparse takes positional arguments up to the first option only; overrides and runs may also follow an option.
    arguments, rest = parser.parse_known_args(argv)
    many = next((name for name in ("overrides", "runs") if name in arguments), None)
    if rest and (many is None or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if many:
        getattr(arguments, many).extend(rest)
    # The working directory may hold the user's reward modules (ray job submit, make): put it on the path.
    try:
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        wrong = shadowed()
    except FileNotFoundError:
        wrong = "the working directory is gone; start bicot from a folder that is there"
    if wrong:
        print(f"bicot: {wrong}", file=sys.stderr)  # noqa: T201 - the command's own output
        return 1
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path may hold what no encoding has
        sys.stdout.reconfigure(errors="backslashreplace")
    from recipe.errors import ConfigError, RunError

    own_stderr = os.dup(2)  # some commands send what libraries print to a log
    try:
        command: int = _COMMANDS[arguments.command](arguments)
        return command
    except (ConfigError, RunError) as error:
        os.dup2(own_stderr, 2)
        for line in str(error).splitlines():
            print(f"bicot: {line}", file=sys.stderr)  # noqa: T201 - the command's own output
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `bicot config | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception:
        os.dup2(own_stderr, 2)  # a traceback is for the terminal
        raise
    finally:
        os.close(own_stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bicot", description="Train text-to-image models that think before they draw: BiCoT-GRPO at scale."
    )
    parser.add_argument("--version", action="version", version=f"bicot {version('bicot')}")
    commands = parser.add_subparsers(dest="command", required=True)

    def described(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=help)

    def with_config(name: str, help: str) -> argparse.ArgumentParser:
        command = described(name, help)
        command.add_argument("config", help="run config, a YAML file; `bicot config` explains its keys")
        command.add_argument("overrides", nargs="*", help="dotted overrides, e.g. learner.optimizer.lr=1e-5")
        return command

    with_config("check", "Resolve a run config, open every path, estimate memory; start nothing.")
    train = with_config("train", "Train. Interrupt with Ctrl-C; --resume goes on.")
    how = train.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on from the run folder's newest checkpoint")
    how.add_argument("--fresh", action="store_true", help="move an earlier run in that folder aside first")
    rehearse = with_config(
        "rehearse", "Run a few steps of a config here, with tiny random models for its checkpoints."
    )
    rehearse.add_argument("--folder", default="runs/rehearsal", help="where all of it goes (default: runs/rehearsal)")
    rehearse.add_argument("--rows", type=int, default=16, help="prompts, of every task type in turn (default: 16)")
    rehearse.add_argument("--layout", choices=["hf", "original"], default="hf", help="of the Janus checkpoint")
    rollout = with_config("rollout", "Draw and score groups, train nothing; say whether they are as they should be.")
    rollout.add_argument("--groups", type=int, default=4, help="prompts, of rollout.group_size pictures (default: 4)")
    rollout.add_argument("--folder", default="runs/rollout", help="where all of it goes (default: runs/rollout)")
    replay = described("replay", "Train a step of a run again, on the groups that it kept.")
    replay.add_argument("run", help="run folder; rollout.keep_groups has it keep groups")
    replay.add_argument("step", type=int, help="the step")
    replay.add_argument("overrides", nargs="*", help="learner settings, e.g. learner.micro_batch_tokens=512")
    report = described("report", "Write the HTML report of a run, or of several side by side.")
    report.add_argument("runs", nargs="+", help="run folders; those of one config that differ in seed are overlaid")
    report.add_argument("--out", help="file to write (default: report.html in the run's folder, or beside the first)")
    generate = described("generate", "Draw pictures with a run's policy or a checkpoint.")
    generate.add_argument("source", help="run folder, or run config whose policy.checkpoint is to draw")
    generate.add_argument("prompts", nargs="+", help="prompts to draw")
    generate.add_argument("--out", default="pictures", help="folder for the pictures (default: pictures)")
    generate.add_argument("--members", type=int, default=1, help="pictures of each prompt (default: 1)")
    generate.add_argument("--seed", type=int, default=0, help="seed (default: 0)")
    export = described("export", "Write a run's policy or a checkpoint in either layout.")
    export.add_argument("source", help="run folder, or folder of a Janus checkpoint")
    export.add_argument("out", help="folder to write, new or empty")
    export.add_argument(
        "--to", required=True, choices=["hf", "original"], help="layout: transformers' own, or DeepSeek's"
    )
    export.add_argument("--base", help="original checkpoint to take what only its layout holds from (--to original)")
    config = described("config", "Say what the keys of a run config mean.")
    what = config.add_mutually_exclusive_group()
    what.add_argument("key", nargs="?", help="a key or section, e.g. learner.optimizer.lr (default: all)")
    what.add_argument("--schema", action="store_true", help="print a JSON schema for editors instead")
    return parser


def _check(arguments: argparse.Namespace) -> int:
    from recipe.check import Finding, check
    from recipe.config import load_config
    from recipe.errors import NoInstruction

    logging.captureWarnings(True)
    findings = []
    try:
        config = load_config(arguments.config, arguments.overrides)
    except NoInstruction as error:  # all else can be looked at
        findings = [Finding("policy.templates.instruction", str(error), ok=False)]
        config = load_config(arguments.config, [*arguments.overrides, "policy.templates.instruction='{prompt}'"])
    findings += check(config)
    for finding in findings:
        mark = "ok   " if finding.ok else "WRONG"
        print(f"{mark}  {finding.subject}: {finding.text}")  # noqa: T201 - the command's own output
    return 0 if all(finding.ok for finding in findings) else 1


def _train(arguments: argparse.Namespace) -> int:
    from cluster.console import own_console
    from cluster.pools.ray_environment import prepare
    from recipe.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    console = own_console()
    console.print(_bold("bicot: ", arguments.config, f", {config.steps} steps into {config.folder}"), soft_wrap=True)
    prepare(config)
    _require(config, console)
    from cluster.run import train

    return train(config, console, resume=arguments.resume, fresh=arguments.fresh)


def _bold(before: str, name: str, after: str) -> Text:
    from rich.text import Text

    return Text.assemble(before, (name, "bold"), after)


def _require(config: RunConfig, console: Console) -> None:
    """Refuse a wrong run before importing the system's own modules, which takes seconds."""
    console.print("checking config, prompts, rewards and checkpoint", style="dim")
    from recipe.check import require

    require(config)


def _rehearse(arguments: argparse.Namespace) -> int:
    from cluster.console import own_console
    from cluster.pools.ray_environment import prepare
    from recipe.config import load_config
    from recipe.run_folder import RunFolder

    config = load_config(arguments.config, [*arguments.overrides, "ray.address=null"])
    console = own_console()
    after = f" with tiny random models in {arguments.folder}"
    console.print(_bold("bicot: rehearsing ", arguments.config, after), soft_wrap=True)
    RunFolder(arguments.folder).check()
    prepare(config)
    from cluster.pools.worker import log_to
    from cluster.run import train
    from recipe.rehearsal import rehearsal

    log_to(Path(arguments.folder) / "models.log")
    small = rehearsal(config, Path(arguments.folder), arguments.rows, arguments.layout)
    _require(small, console)
    return train(small, console, resume=False, fresh=True)


def _rollout(arguments: argparse.Namespace) -> int:
    from cluster.console import own_console
    from cluster.pools.ray_environment import prepare
    from recipe.config import load_config
    from recipe.errors import ConfigError
    from recipe.resources import alone

    config = load_config(arguments.config, arguments.overrides)
    if arguments.groups < 1:
        raise ConfigError(f"--groups {arguments.groups}: ask for one group at least")
    console = own_console()
    config = config.model_copy(update={"folder": arguments.folder})
    console.print(_bold(f"bicot: {arguments.groups} groups of ", arguments.config, f" into {config.folder}"))
    prepare(config)
    _require(alone(config, "semantic", "image", "rewards"), console)
    from cluster.rollout_folder import rollout_config
    from cluster.rollout_only import rollout_only

    return rollout_only(rollout_config(config, arguments.folder, arguments.groups), console)


def _replay(arguments: argparse.Namespace) -> int:
    from cluster.console import own_console
    from cluster.pools.ray_environment import prepare
    from cluster.replay import replay, replay_config

    run, console = Path(arguments.run), own_console()
    config = replay_config(run, arguments.overrides)
    prepare(config)
    return replay(config, run, arguments.step, arguments.overrides, console)


def _report(arguments: argparse.Namespace) -> int:
    from recipe.run_folder import RunFolder
    from report.page import write_comparison, write_report

    folders, out = [RunFolder(run) for run in arguments.runs], arguments.out
    path = write_comparison(folders, out and Path(out)) if out or len(folders) > 1 else write_report(folders[0])
    print(path)  # noqa: T201 - the command's own output
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    from serving.source import policy_source

    config, out = policy_source(Path(arguments.source)), Path(arguments.out)
    from cluster.console import own_console
    from cluster.pools.worker import log_to

    console = own_console()
    from recipe.errors import RunError
    from serving.draw import LOG, generate

    try:
        log_to(out / LOG)
    except OSError as error:
        raise RunError(f"--out {out}: the folder cannot be made or written: {error.strerror}") from error
    for drawn in generate(config, arguments.prompts, out, arguments.members, arguments.seed):
        console.print(f"{os.path.relpath(drawn.path)}  {drawn.cot}", soft_wrap=True)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from cluster.console import own_console
    from serving.export import export

    base = Path(arguments.base) if arguments.base else None
    written = export(Path(arguments.source), Path(arguments.out), arguments.to, base)
    console = own_console()
    text = f"{arguments.out}: {written.tensors} tensors, {written.bytes / 1e9:.2f} GB, {arguments.to} layout"
    console.print(text, soft_wrap=True)
    if written.left_out:
        hint = "; --base FOLDER takes them from an original checkpoint" if arguments.to == "original" else ""
        console.print(f"left out: {written.left_out}{hint}", soft_wrap=True)
    return 0


def _config(arguments: argparse.Namespace) -> int:
    if arguments.schema:
        from recipe.schema import recipe_schema

        print(json.dumps(recipe_schema(), indent=1, ensure_ascii=False))  # noqa: T201 - the command's own output
        return 0
    from recipe.key_docs import terminal

    print(terminal(arguments.key, shutil.get_terminal_size().columns))  # noqa: T201 - the command's own output
    return 0


_COMMANDS = {
    "check": _check, "train": _train, "rehearse": _rehearse, "rollout": _rollout, "replay": _replay,
    "generate": _generate, "report": _report, "export": _export, "config": _config,
}  # fmt: skip

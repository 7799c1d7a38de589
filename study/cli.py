"""The command line: `mariposa`, or `python -m study`.

Exit codes: 0 done; 1 the work failed; 2 bad input, said in one line; 130 interrupted, after
saving. What a command needs is imported when it runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from data.storage import InputError, Location, StorageError, reason_of

if TYPE_CHECKING:
    from analysis.leaderboard import View
    from study.config import Config

RUNS = "runs"
_NO_WAY_IN = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EIO)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    options = argparse.Namespace()
    try:
        _parser().parse_args(arguments, options)
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except InputError as error:
        line = str(error).replace("\n", "\\n")  # of a file's name
        print(f"mariposa: {line}", file=sys.stderr)
        return 2
    except StorageError as error:
        hint = getattr(options, "resume_hint", "the same command")
        print(f"mariposa: {error}, then go on with: {hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        hint = getattr(options, "resume_hint", None)
        if hint and not options.has_begun():
            hint = "the same command"
        print(f"mariposa: interrupted{f'; go on with: {hint}' if hint else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, `head` say, has seen enough
        sys.stderr.close()
        return 1 if hasattr(options, "resume_hint") else 0  # a study is not done
    except OSError as error:
        if error.errno in _NO_WAY_IN and error.filename is not None:
            expected = "one that can be read"
        elif error.errno in _NO_ROOM:
            expected = "storage that can be written"
        else:
            raise
        where = f"{error.filename}: " if error.filename else ""
        reason = reason_of(error)
        reason = reason[:1].lower() + reason[1:]
        print(f"mariposa: {where}{reason}; expected {expected}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    if not options.out:
        raise InputError("--out: found an empty name, expected a folder or a URI")
    out = Location(options.out)
    if out.is_local and "working_dir_files" in out.local.parts:
        raise InputError(
            f"--out {options.out}: lies in the copy of the working directory that Ray deletes "
            f"after the job, expected an absolute path or a URI"
        )
    return _study(options, _configuration(options), out)


def _submit(options: argparse.Namespace) -> int:
    from study.submission import SubmissionFailedError, job_of, submit

    job = job_of(
        _configuration(options),
        options.config,
        out=options.out,
        overrides=options.set,
        working_dir=options.working_dir,
        cpus=options.entrypoint_num_cpus,
    )
    try:
        return submit(job, options.address, wait=not options.no_wait)
    except SubmissionFailedError as error:
        print(f"mariposa: {error}", file=sys.stderr)
        return 1


def _configuration(options: argparse.Namespace) -> Config:
    from study.config import load_config

    changes: dict[str, object] = {}
    if options.name is not None:
        changes["name"] = options.name
    if options.data is not None:
        if not options.data:  # a shell variable that is not set is no wish for drawn butterflies
            raise InputError("--data: found an empty name, expected a folder or a URI")
        changes["data.root"] = str(Location(options.data))
    return load_config(options.config, options.set, changes)


def _resume(options: argparse.Namespace) -> int:
    from study.config import config_from
    from study.study_file import read_study

    run = _run_location(options.run)
    tree = read_study(run)["config"]
    config = config_from(tree, str(run / "study.yaml"))
    if config.name != run.name:  # the folder was renamed
        config = config_from({**tree, "name": run.name}, str(run))
    return _study(options, config, run.parent, options.restart_errored)


def _study(
    options: argparse.Namespace, config: Config, out: Location, restart_errored: bool = False
) -> int:
    from study.pipeline import StudyFailedError, run_study
    from study.submission import use_token

    if options.address:
        use_token()
    run = out / config.name
    options.resume_hint = f"mariposa resume {shlex.quote(_shown(run))}"
    if options.address:
        options.resume_hint += f" --address {shlex.quote(options.address)}"
    options.has_begun = (run / "study.yaml").is_file
    try:
        report = run_study(config, out, options.address, restart_errored)
    except StudyFailedError as error:
        print(f"mariposa: {error}", file=sys.stderr)
        print(_shown(run / "report.html"))
        return 1
    print(f"\n{(run / 'answer.txt').read_text()}")
    print(_shown(report))
    return 0


def _plan(options: argparse.Namespace) -> int:
    from study.planning import plan

    if options.source is None and (options.gpus or options.cpus):
        raise InputError("--gpus and --cpus: found no --from RUN, expected a run to forecast from")
    measured = None
    if options.source is not None:
        from study.measured import read_measured

        measured = read_measured(_run_location(options.source))
        options.config = options.config or measured.config.model_dump(mode="json")
    config = _configuration(options)
    print("\n".join(plan(config, Location(options.out))), flush=True)
    if measured is not None:
        from study.forecast import SIZES, forecast

        unit = "GPUs" if options.gpus else "CPUs"
        print("\n".join(forecast(config, measured, unit, options.gpus or options.cpus or SIZES)))
    return 0


def _leaderboard(options: argparse.Namespace) -> int:
    from analysis.leaderboard import View, render, to_csv, to_json
    from analysis.load import load

    location = _run_location(options.run)
    run = load(location)
    names = [name for name, *_ in run.cells]
    if options.cell is not None and options.cell not in names:
        raise InputError(f"--cell: found {options.cell!r}, expected one of {', '.join(names)}")
    view = View(options.cell, options.top, options.sort)
    if options.watch:
        return _watch(location, view)
    board = view.board(run.trials, run.metric)
    if options.json:
        print(to_json(board))
    elif options.csv:
        print(to_csv(board), end="")
    else:
        print(render(board, run.metric, shutil.get_terminal_size((120, 24)).columns))
    return 0


def _watch(location: Location, view: View) -> int:
    from analysis.watch import watch

    try:
        watch(location, view)
    except KeyboardInterrupt:  # how one stops looking; nothing is interrupted
        print(file=sys.stderr)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from analysis.compare import compare, render, to_csv, to_json
    from analysis.load import load

    first, second = (load(_run_location(run)) for run in (options.first, options.second))
    compared = compare(first, second, options.metric)
    if options.json:
        print(to_json(compared))
    elif options.csv:
        print(to_csv(compared), end="")
    else:
        print(render(compared))
    return 0


def _report(options: argparse.Namespace) -> int:
    from analysis.report import write_report

    print(_shown(write_report(_run_location(options.run))))
    return 0


def _serve(options: argparse.Namespace) -> int:
    from analysis.serve import PORT, serve

    os.nice(10)  # the study comes first
    serve(_run_location(options.run), PORT if options.port is None else options.port)
    return 0  # Ctrl-C is how it ends, and leaves nothing undone


def _predict(options: argparse.Namespace) -> int:
    from study.config import config_from
    from study.prediction import predict
    from study.study_file import read_study

    run = _run_location(options.run)
    config = config_from(read_study(run)["config"], str(run / "study.yaml"))
    images = [Location(image) for image in options.images]
    answers = predict(run, config.search.metric, images, options.cell)
    if options.json:
        print(json.dumps(answers, indent=1, ensure_ascii=False))
        return 0
    for answer in answers:
        print(f"{answer['file']}: {answer['species']} ({answer['probability']:.0%})")
        others = list(answer["probabilities"].items())[1:4]
        print("  then " + ", ".join(f"{name} ({chance:.0%})" for name, chance in others))
        same, sure = answer["on_test"]["same_species"], answer["on_test"]["and_as_sure"]
        print(
            f"  of {same['images']} test images it called that, {same['right']} were; "
            f"of the {sure['images']} it was about as sure of, {sure['right']}"
        )
    return 0


def _quantise(options: argparse.Namespace) -> int:
    from analysis.quantised import render
    from study.quantisation import quantise_run

    run = _run_location(options.run)
    rows = quantise_run(run, say=lambda line: print(line, file=sys.stderr, flush=True))
    print(render(rows))
    print(f"In the report after: mariposa report {options.run}")
    return 0


def _data_check(options: argparse.Namespace) -> int:
    from data.checking import check_images
    from data.folders import find_images

    folder = find_images(Location(options.folder))
    report = check_images(folder, os.cpu_count() or 1)
    print("\n".join(report.lines()))
    if report.bad:
        file, reason = report.bad[0]
        more = f" (and {len(report.bad) - 1} more)" if len(report.bad) > 1 else ""
        raise InputError(f"{folder.root / file}: {reason}{more}; expected whole images")
    return 0


def _data_demo(options: argparse.Namespace) -> int:
    from data.demo import write_demo

    count = write_demo(Path(options.folder), seed=options.seed)
    print(f"{count} images in {options.folder}")
    return 0


def _run_location(text: str) -> Location:
    """A run by its name under ``runs/``, its folder, or its URI."""
    named = Location(RUNS) / text
    if "://" not in text and "/" not in text and named.is_dir():
        return named
    return Location(text)


def _shown(location: Location) -> str:
    """The path as people would type it: relative where it is below the current folder."""
    if location.is_local and location.local.is_relative_to(Path.cwd()):
        return str(location.local.relative_to(Path.cwd()))
    return str(location)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as all else here does."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mariposa",
        description="How many labels do I need, and does pretraining on my unlabelled images help?",
    )
    parser.add_argument("--version", action="version", version=f"mariposa {version('mariposa')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="a whole study: encoders, search, evaluation, report")
    _add_configuration(run)
    run.add_argument(
        "--address", help="of a Ray cluster, HOST:PORT (default: a local Ray, or the one it is in)"
    )
    run.set_defaults(command=_run)

    resume = commands.add_parser("resume", help="go on with an interrupted study")
    resume.add_argument("run", metavar="RUN")
    resume.add_argument("--address", help="of a Ray cluster")
    resume.add_argument(
        "--restart-errored",
        action="store_true",
        help="run trials that are FAIL again, from scratch",
    )
    resume.set_defaults(command=_resume)

    submit = commands.add_parser("submit", help="`run` as a job on a Ray cluster, and its log here")
    _add_configuration(submit)
    submit.add_argument(
        "--address", metavar="URL", help="of the dashboard (default: http://127.0.0.1:8265)"
    )
    submit.add_argument(
        "--working-dir", metavar="DIR", default=".", help="what is uploaded; holds CONFIG"
    )
    submit.add_argument("--no-wait", action="store_true", help="do not follow the log")
    submit.add_argument(
        "--entrypoint-num-cpus",
        metavar="N",
        type=float,
        default=0.0,
        help="reserved for the driver, on any node (default: none, on the head)",
    )
    submit.set_defaults(command=_submit)

    plan = commands.add_parser("plan", help="what `run` would do, and how long; starts nothing")
    _add_configuration(plan)
    plan.add_argument(
        "--from",
        dest="source",
        metavar="RUN",
        help="how long it would take, by simulation over that run's epochs "
        "(and CONFIG is that run's by default)",
    )
    sizes = plan.add_mutually_exclusive_group()
    sizes.add_argument("--gpus", metavar="N[,N...]", type=_counts, help="on so many GPUs")
    sizes.add_argument(
        "--cpus", metavar="N[,N...]", type=_counts, help="on so many CPUs (default: 1,2,4,8,16)"
    )
    plan.set_defaults(command=_plan)

    board = commands.add_parser("leaderboard", help="the trials, best first")
    board.add_argument("run", metavar="RUN")
    board.add_argument("--cell", help="of that cell only, such as B1@25")
    board.add_argument("--top", type=_count, metavar="N", help="so many of them")
    board.add_argument("--sort", metavar="COLUMN", help="another order; =-COLUMN turns it round")
    form = board.add_mutually_exclusive_group()
    form.add_argument("--watch", action="store_true", help="until the study ends")
    form.add_argument("--json", action="store_true")
    form.add_argument("--csv", action="store_true")
    board.set_defaults(command=_leaderboard)

    both = commands.add_parser("compare", help="two studies, cell by cell")
    both.add_argument("first", metavar="RUN")
    both.add_argument("second", metavar="RUN")
    both.add_argument(
        "--metric", choices=["acc", "f1", "precision", "recall", "loss"], default="acc"
    )
    form = both.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--csv", action="store_true")
    both.set_defaults(command=_compare)

    report = commands.add_parser("report", help="tables, figures and report.html again")
    report.add_argument("run", metavar="RUN")
    report.set_defaults(command=_report)

    serve = commands.add_parser("serve", help="the report at http://127.0.0.1, live while it runs")
    serve.add_argument("run", metavar="RUN")
    serve.add_argument("--port", type=_port, help="default: 8642; 0: any that is free")
    serve.set_defaults(command=_serve)

    predict = commands.add_parser("predict", help="species of images by the best classifier")
    predict.add_argument("run", metavar="RUN")
    predict.add_argument("images", metavar="IMAGE", nargs="+")
    predict.add_argument("--cell", help="by the best of that cell, such as B1@25")
    predict.add_argument("--json", action="store_true")
    predict.set_defaults(command=_predict)

    quantise = commands.add_parser("quantise", help="the best classifiers in int8, compared")
    quantise.add_argument("run", metavar="RUN")
    quantise.set_defaults(command=_quantise)

    data = commands.add_parser("data", help="check an image folder, or draw one")
    kinds = data.add_subparsers(required=True, metavar="COMMAND")
    check = kinds.add_parser("check", help="every file of an image folder")
    check.add_argument("folder", metavar="DIR")
    check.set_defaults(command=_data_check)
    demo = kinds.add_parser("demo", help="write the butterflies that the project draws itself")
    demo.add_argument("folder", metavar="DIR")
    demo.add_argument("--seed", type=_seed, default=0)
    demo.set_defaults(command=_data_demo)
    return parser


def _add_configuration(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        help="a preset: quick (default), smoke, paper, full, denoising, ...; or a file",
    )
    command.add_argument("--data", metavar="DIR-OR-URI", help="images (default: drawn butterflies)")
    command.add_argument("--out", metavar="DIR-OR-URI", default=RUNS, help="default: runs/")
    command.add_argument("--name", help="of the run's folder under OUT")
    command.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="such as search.trials=4"
    )


def _counts(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_count(part.strip()) for part in text.split(",")))


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a port from 0 to 65535")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number from 0")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number from 1")
    return int(text)

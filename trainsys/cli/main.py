"""The `trainsys` command: finds the verb, imports it alone, and turns errors into one line and an exit code."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

VERBS = {
    "plan": "search the layouts of a model on a cluster: step time, memory, what bounds it",
    "train": "train a config on a local cluster; resumes by itself",
    "drill": "train under a fault schedule and prove that nothing was lost",
    "check": "hold the history of a run against the invariants",
    "simulate": "draw the timeline of one planned step",
    "profile": "measure this cluster and write it as a cluster file",
    "validate": "hold the performance model against published measurements",
    "reshard": "convert a checkpoint between layouts and frameworks",
    "bench": "run one benchmark against its peers",
}
USAGE = """usage: trainsys VERB [arguments]     (trainsys VERB --help tells more)

Train large models on clusters whose shape keeps changing.

{verbs}

Configs are YAML files; any value can be overridden on the command line as key=value:

  trainsys plan configs/run/demo.yaml --out runs/demo/plan.yaml
  trainsys train runs/demo/plan.yaml train.steps=200 run_dir=runs/first
  trainsys drill runs/demo/plan.yaml run_dir=runs/demo

Exit codes: 0 done, or stopped by a signal at a step boundary (train --json says which), 1 training could not go on or
a drill failed, 2 wrong input, 130 interrupted: a drill before its end, else before there was anything to save."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        width = max(map(len, VERBS))
        print(USAGE.format(verbs="\n".join(f"  {verb.ljust(width)}  {text}" for verb, text in VERBS.items())))
        return 0 if args else 2
    if args[0] == "--version":
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"trainsys {version('trainsys')}")
        except PackageNotFoundError:
            print("trainsys (not installed)")
        return 0
    try:
        with _sigterm_interrupts():
            return _dispatch(args[0], args[1:])
    except ValueError as error:
        return _fail(error, 2)
    except KeyboardInterrupt as interrupt:
        return _fail(f"interrupted {interrupt}", 130)
    except BrokenPipeError:  # the reader of our output has gone, as in `trainsys plan … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RuntimeError as error:
        from trainsys.elastic.phase import ElasticError

        if not isinstance(error, ElasticError):
            raise
        return _fail(error, 1)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(f"{error.filename or 'the output cannot be written'}: {error.strerror}", 1)
        if error.filename is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}", 2)
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 0


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM is Ctrl-C, until a verb knows better."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _dispatch(verb: str, args: list[str]) -> int:
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, 1)
        raise ValueError(
            f"unknown verb {verb!r}; " + (f"did you mean {close[0]}?" if close else f"use {', '.join(VERBS)}")
        )
    code: int = importlib.import_module(f"trainsys.cli.{verb}").run(args)
    return code


def _fail(error: object, code: int) -> int:
    print(f"trainsys: {' '.join(str(error).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""`jdiff VERB ...`: one verb a file, each thin. Wrong input is one line on standard error and exit status 2."""

import logging
import os
import sys

from jdiff.terminal import printable

VERBS = {
    "train": "train a recipe, or go on with its run",
    "sample": "draw images from a run, or from prompts with the weights of a folder",
    "evaluate": "held-out loss and distances to held-out images, beside those of real images",
    "data": "make shards of images, index, filter and deduplicate them",
    "lab": "errors and orders of solvers on targets with exact answers",
    "checkpoint": "list, verify and export what a run has saved",
    "replay": "make the update that a run gave up at once more",
    "plan": "whether a run fits hardware that is not there, and what it is predicted to take",
    "info": "a run's config, parameters, FLOPs, devices and checkpoints",
}
_LEAST_BYTES = 3 * 2**30
_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "can't start new thread", "bad_alloc")
"""Phrases by which libraries report a lack of memory."""


def main(arguments: list[str] | None = None) -> None:
    """The `jdiff` command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: jdiff VERB ...\n\n" + "\n".join(f"  jdiff {verb:10} {text}" for verb, text in VERBS.items()))
        print(
            "\n`jdiff VERB --help` tells the rest. --debug after any verb shows the traceback of an error, and what of"
        )
        print("other people's configs is not read.")
        sys.exit(0 if arguments else 2)
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        fail(f"there is no verb {verb!r}; there are {', '.join(VERBS)}")
    debug = "--debug" in rest
    rest = [word for word in rest if word != "--debug"]
    if not debug:
        # Libraries log what they also raise; the one line below says it.
        logging.disable(logging.ERROR)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    else:
        logging.basicConfig(format="%(message)s")  # before a library gives the root a handler of its own
        logging.getLogger("jdiff").setLevel(logging.DEBUG)
    try:
        check_limits(verb)
        run(verb, rest)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, `head` say, has seen enough; what Python still holds back must not raise again on the way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError) as error:
        if debug:
            raise
        fail(in_words(error))
    except (MemoryError, RuntimeError) as error:
        if debug or not (isinstance(error, MemoryError) or any(words in str(error) for words in _MEMORY)):
            raise
        said = (str(error).splitlines() or ["no more can be had"])[0]
        fail(f"out of memory: {said[:300]}; take a smaller batch or chunk, or raise the limit (ulimit -v)")
    except KeyboardInterrupt as stop:
        print(f"\njdiff: {stop or 'interrupted'}", file=sys.stderr)
        sys.exit(130)


def check_limits(verb: str) -> None:
    """Raises ValueError where the limit of address space is too low to load JAX, which would end the process without a
    word."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such limits
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if verb != "data" and limit != resource.RLIM_INFINITY and limit < _LEAST_BYTES:
        raise ValueError(
            f"the limit of address space (ulimit -v) is {limit / 2**30:.1f} GiB, and jdiff {verb} needs "
            f"{_LEAST_BYTES / 2**30:.0f} GiB or more"
        )


def in_words(error: Exception) -> str:
    """The message of an error, led by its file where the system names one."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def run(verb: str, rest: list[str]) -> None:
    """Imports the verb's file only now: `jdiff --help` need not load JAX."""
    from importlib import import_module

    import_module(f"jdiff.cli.{verb}").main(rest)


def fail(message: str) -> None:
    """One line, and exit status 2."""
    print("jdiff: " + printable(" ".join(message.split()), encoding=sys.stderr.encoding), file=sys.stderr)
    sys.exit(2)

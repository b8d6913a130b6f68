"""The door: `mmjax <verb> [flags]`, the same as `python -m mmjax <verb> [flags]`."""

import importlib
import itertools
import os
import re
import signal
import sys
from pathlib import Path

import mmjax

VERBS = {
    "train": "mmjax.verbs.train",
    "sample": "mmjax.verbs.sample",
    "evaluate": "mmjax.verbs.evaluate",
    "data": "mmjax.verbs.data",
    "tokenize": "mmjax.verbs.tokenize",
    "convert": "mmjax.verbs.convert",
}

# The C library's allocator gives a step's buffers back to the system after each step and then
# faults every page in again; these keep them. Read at process start, hence the relaunch.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30),
    "MALLOC_TOP_PAD_": str(2**30),
}


def relaunch_with_allocator(argv: list[str]) -> None:
    """Replaces this process by the same one under ALLOCATOR, once; other settings win."""
    if sys.platform != "linux" or any(name in os.environ for name in ALLOCATOR):
        return
    sys.stdout.flush()
    environment = {**os.environ, **ALLOCATOR}
    os.execve(sys.executable, [sys.executable, "-m", "mmjax", *argv], environment)


def usage() -> str:
    """The list of verbs, each with the first line of its module."""
    lines = ["mmjax <verb> [flags]; `mmjax <verb> --help` tells more.", ""]
    for verb in VERBS:
        # Read, not imported: a list of verbs should not take the seconds that jax takes.
        first = (Path(__file__).parent / "verbs" / f"{verb}.py").read_text().splitlines()[0]
        lines.append(f"  {verb:10s} {first.strip(chr(34))}")
    return "\n".join(lines)


def run_verb(verb: str, argv: list[str]) -> int:
    """Parses the verb's flags and runs it; whatever ends it is one line; see `failure`."""
    from absl import flags

    from mmjax import failure

    failure.watch_threads(verb)
    try:
        module = importlib.import_module(VERBS[verb])
        if {"--help", "-h", "--helpfull"} & set(argv):
            if hasattr(module, "help_of"):  # one that has several actions
                print(module.help_of(argv))
                return 0
            print((module.__doc__ or "").strip(), end="\n\n")
            known = flags.FLAGS.get_key_flags_for_module(module)
            print(known and module_flags(flags.FLAGS, module))
            return 0
        rest = parse(flags.FLAGS, verb, argv)
        code = module.main(rest) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who read stdout left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (Exception, KeyboardInterrupt) as error:
        return failure.finish(verb, error)


def module_flags(values, module) -> str:
    """The flags a verb defines, a line each, with defaults."""
    flags_of = sorted(values.get_key_flags_for_module(module), key=lambda f: f.name)
    return "\n".join(f"  --{f.name}  {f.help} (default: {f.default!r})" for f in flags_of)


def parse(values, verb: str, argv: list[str]) -> list[str]:
    """Parses flags; everything they can reject becomes a UserError of one line.

    Where a whole number is asked for, 1e3 is one too.
    """
    from mmjax import failure, locate
    from mmjax.error import UserError

    if "config" in values:
        argv = locate.in_flags(argv)
    before = {*values}
    try:
        return values([f"mmjax {verb}", *argv])[1:]
    except Exception as error:
        first: BaseException = error
        while first.__context__ is not None:  # an experiment's own words, not a trace of its file
            first = first.__context__
        if isinstance(first, UserError):
            raise first from error
        if (plain := with_whole_numbers(argv, str(error))) != argv:
            for name in {*values} - before:  # fields of the experiment, which would be there twice
                delattr(values, name)
            return parse(values, verb, plain)
        file = experiment_file(argv)
        if isinstance(first, AttributeError) and first.name == "get_config":
            raise UserError(f"experiment file {file} does not define get_config()") from error
        if file and (there := failure.in_file(error, file)):
            raise UserError(f"experiment file {there}") from error
        inner = error.args[0] if error.args else error
        if isinstance(inner, KeyError):  # its str() is a repr, with the line break spelled out
            raise UserError(f"config has no field {inner.args[0]}") from error
        said = str(error) or repr(error)
        said = re.sub(r"invalid literal for int\(\) with base 10: .*", "give a whole number", said)
        said = re.sub(r"could not convert string to float: .*", "give a number", said)
        raise UserError(said) from error


def experiment_file(argv: list[str]) -> str:
    """What --config names, without what it passes on behind a colon."""
    given = [b for a, b in itertools.pairwise(argv) if a.lstrip("-") == "config"]
    given += [a.partition("=")[2] for a in argv if a.lstrip("-").startswith("config=")]
    return given[-1].partition(":")[0] if given else ""


def with_whole_numbers(argv: list[str], complaint: str) -> list[str]:
    """Flags with the number that was complained of as 1000 where it is 1e3 or 1000.0."""
    found = re.search(r"flag --(\S+?)=(\S+): invalid literal for int", complaint)
    if not found or not re.fullmatch(r"[+-]?\d+(\.\d*)?([eE]\+?\d{1,2})?", found[2]):
        return argv
    if not (number := float(found[2])).is_integer():
        return argv
    name = rf"--?{re.escape(found[1])}"
    pairs = zip(["", *argv], argv, strict=False)
    return [
        f"--{found[1]}={number:.0f}" if re.fullmatch(f"{name}={re.escape(found[2])}", a)
        else f"{number:.0f}" if a == found[2] and re.fullmatch(name, before)
        else a
        for before, a in pairs
    ]  # fmt: skip


def main() -> None:
    """Runs `mmjax <verb>`."""
    argv = sys.argv[1:]
    if argv[:1] == ["--version"]:
        print(f"mmjax {mmjax.__version__}")
        sys.exit(0)
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(usage())
        sys.exit(0 if argv else 2)
    if argv[0] not in VERBS:
        from mmjax.error import near

        have = f"{near(argv[0], VERBS)}; have: {', '.join(VERBS)}"
        print(f"mmjax: no verb {argv[0]!r}{have}", file=sys.stderr)
        sys.exit(2)
    if argv[0] != "convert":  # which has no steps, and gives memory back
        relaunch_with_allocator(argv)
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # where a module that `config.family` names may lie
    sys.exit(run_verb(argv[0], argv[1:]))


if __name__ == "__main__":
    main()

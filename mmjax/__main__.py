"""The door: `mmjax <verb> [flags]`, the same as `python -m mmjax <verb> [flags]`."""

import importlib
import os
import sys
from pathlib import Path

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
    """Parses the verb's flags and runs it; a user's mistake is one line and exit code 2."""
    from absl import flags

    from mmjax.error import UserError

    module = importlib.import_module(VERBS[verb])
    if {"--help", "-h", "--helpfull"} & set(argv):
        print((module.__doc__ or "").strip(), end="\n\n")
        print(flags.FLAGS.get_key_flags_for_module(module) and module_flags(flags.FLAGS, module))
        return 0
    try:
        rest = parse(flags.FLAGS, verb, argv)
        return module.main(rest) or 0
    except UserError as error:
        print(f"mmjax {verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mmjax {verb}: interrupted", file=sys.stderr)
        return 130


def module_flags(values, module) -> str:
    """The flags a verb defines, a line each, with defaults."""
    flags_of = sorted(values.get_key_flags_for_module(module), key=lambda f: f.name)
    return "\n".join(f"  --{f.name}  {f.help} (default: {f.default!r})" for f in flags_of)


def parse(values, verb: str, argv: list[str]) -> list[str]:
    """Parses flags; everything they can reject becomes a UserError of one line."""
    from absl import flags

    from mmjax.error import UserError

    try:
        return values([f"mmjax {verb}", *argv])[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        first: BaseException = error
        while first.__context__ is not None:  # an experiment's own words, not a trace of its file
            first = first.__context__
        if isinstance(first, UserError):
            raise first from error
        inner = error.args[0] if error.args else error
        if isinstance(inner, KeyError):  # its str() is a repr, with the line break spelled out
            raise UserError(f"config has no field {inner.args[0]}") from error
        raise UserError(str(error) or repr(error)) from error


def main() -> None:
    """Runs `mmjax <verb>`."""
    argv = sys.argv[1:]
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(usage())
        sys.exit(0 if argv else 2)
    if argv[0] not in VERBS:
        print(f"mmjax: no verb {argv[0]!r}; have: {', '.join(VERBS)}", file=sys.stderr)
        sys.exit(2)
    if argv[0] != "convert":  # which has no steps, and gives memory back
        relaunch_with_allocator(argv)
    sys.exit(run_verb(argv[0], argv[1:]))


if __name__ == "__main__":
    main()

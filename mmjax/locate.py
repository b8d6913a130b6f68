"""Where experiments lie: found by path, or by name among those that come with mmjax."""

from pathlib import Path

from mmjax.error import UserError, near


def directory() -> Path:
    """The experiments that come with mmjax: inside the installed package, beside it in its tree."""
    package = Path(__file__).parent
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def experiment(named: str) -> str:
    """The path of an experiment file: `named` itself if it is one, else that of this name.

    What follows a colon, an argument of its `get_config`, stays.

    Raises:
        UserError: if there is neither, with the nearest name.
    """
    name, colon, argument = named.partition(":")
    if Path(name).is_file():
        return named
    known = {path.stem: path for path in directory().glob("*.py")}
    if name in known:
        return f"{known[name]}{colon}{argument}"
    hint = near(Path(name).stem, known) or f"; the names are those in {directory()}"
    raise UserError(
        f"experiment file {name} does not exist, and none of that name comes with mmjax{hint}"
    )


def in_flags(argv: list[str]) -> list[str]:
    """Flags of a command line, with `--config=NAME` and `--config NAME` as a path."""
    before = ["", *argv]
    found = []
    for last, flag in zip(before, argv, strict=False):
        name, equals, value = flag.partition("=")
        if name in ("--config", "-config") and equals:
            flag = f"{name}={experiment(value)}"
        elif last in ("--config", "-config"):
            flag = experiment(flag)
        found.append(flag)
    return found

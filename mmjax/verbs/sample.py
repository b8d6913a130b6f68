"""Draws pictures from text, writes text from pictures, or both in turn, with a trained model.

    mmjax sample --workdir=out/quickstart --prompt="a red apple" --prompt=photo.png --out=out/made
    mmjax sample --workdir=out/chameleon --prompt="a large blue ring" --pictures=2 --stream
    mmjax sample --workdir=out/small_llava --chat --prompt=scene.png --prompt="what colour is it?"

A prompt is text (a picture is drawn from it; models that draw none write on), the path of a picture
(a caption is written for it), or a JSONL file with one {"text": ...}, {"image": "path"} or
{"parts": [...]} a line, paths relative to the file. Parts are {"text": ...}, {"image": "path"}, and
one {"make": "image"} or {"make": "text"} where something is to be made: at the end, or, with models
trained on CM3's objective, anywhere. Text is text whatever it says; {"sentinel": "sep"} is what
stands between a question and its answer, {"sentinel": "eos"} what ends a text. A picture whose kind
its aspect does not tell is {"image": "path", "kind": "depth"}. With --pictures=N, what asks for no
picture, a text alone too, is answered with text and up to N pictures in any order. Prompts run in
one compiled batch.

With --chat a model that was trained on conversations is asked as it was trained: by the template of
its data, or, if it was imported, by the chat_template of its tokenizer. The --prompt values, words
and pictures, are then one question; lines of a JSONL file are questions too, or conversations
{"messages": [{"role": "user", "content": "..." or [parts]}, {"role": "assistant", ...}, ...]}.

Leaves pictures, samples.jsonl and sheet.png of all in --out.
"""

import contextlib
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from mmjax import paths
from mmjax.batch import EOS, SEP, Image, Sentinel
from mmjax.config import DataConfig
from mmjax.data.formats.picture import is_path
from mmjax.data.kinds import encoded, only_read, with_kinds
from mmjax.data.pixels import decode_all, encode
from mmjax.error import UserError, some
from mmjax.sample import chat
from mmjax.sample.request import IMAGE, TEXT, Slot, as_part, parse
from mmjax.sample_config import SOLVERS
from mmjax.sheet import Cell, sheet
from mmjax.trained import load
from mmjax.watch import Watch

WORKDIR = flags.DEFINE_string("workdir", None, "directory of a `mmjax train`")
PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "text, a picture's path, or a .jsonl file; repeat it"
)
OUT = flags.DEFINE_string("out", "out/samples", "directory to write to")
SEED = flags.DEFINE_multi_integer(
    "seed", [0], "of noise and text; one for all, or repeat it for one a prompt"
)
INTERLEAVED = flags.DEFINE_integer("pictures", 0, "most pictures in a free answer", lower_bound=0)
STOP = flags.DEFINE_integer(
    "stop", 0, "after how many pictures a free answer ends; 0: words may follow", lower_bound=0
)
CHAT = flags.DEFINE_bool(
    "chat", False, "ask as the model was trained on conversations; --prompt values are one question"
)
STREAM = flags.DEFINE_bool("stream", False, "print text while it is written")
SOLVER = flags.DEFINE_enum("solver", None, SOLVERS, "of pictures that are denoised")
KIND = flags.DEFINE_string("kind", None, "of the pictures to draw, by its name in model.kinds")
STEPS = flags.DEFINE_integer("steps", None, "of the solver", lower_bound=1)
LENGTH = flags.DEFINE_integer("text", None, "most tokens of text", lower_bound=1)
# What overrides the experiment's `sample` group, by its name in `Trained.generate`.
NUMBERS = {
    "guidance": "scale of guidance by the prompt",
    "guidance_start": "time from which pictures are guided while they are denoised, 0 is noise",
    "guidance_stop": "time until which they are, 1 is the finished picture",
    "guidance_least": "least share of its length that guidance keeps; 1 leaves it",
    "shift": "how much of the solver's steps lie near noise; 1 spaces them evenly",
    "text_guidance": "scale of guidance of text (OneFlow, dial)",
    "image_guidance": "scale of guidance by the prompt's pictures alone",
    "contrast": "alpha of contrastive decoding of image codes",
    "temperature": "of text, 0 is greedy",
    "top_p": "of text",
    "min_p": "of text",
    "repetition": "penalty of ids seen before, in text",
    "image_temperature": "of image codes",
    "image_top_p": "of image codes",
    "image_min_p": "of image codes",
    "image_repetition": "penalty of codes seen before",
}
COUNTS = {
    "top_k": "of text",
    "image_top_k": "of image codes",
    "contrast_k": "of contrast: a code is plausible beside the k-th likeliest",
}
SCALES = {
    name: flags.DEFINE_float(name, None, f"{what}; default: the experiment's", lower_bound=0.0)
    for name, what in NUMBERS.items()
} | {
    name: flags.DEFINE_integer(name, None, f"{what}; default: the experiment's", lower_bound=0)
    for name, what in COUNTS.items()
}  # fmt: skip
SAMPLES, SHEET = "samples.jsonl", "sheet.png"
WRITES = re.compile(r"\d{3,}(_\d+)?\.png|samples\.jsonl|sheet\.png")  # names in --out
MAKE = {"image": IMAGE, "text": TEXT}
NAMED = {"sep": SEP, "eos": EOS}

Prompt = list[str | Path | Image | Sentinel | Slot]


def read_prompts(given: list[str], draws: bool = True) -> list[Prompt]:
    """Flag values -> prompts as `Trained.generate` takes them.

    draws: whether a text alone asks for a picture; else for more text.

    Raises:
        UserError: for a file that is absent or a line that is none of the forms.
    """
    prompts: list[Prompt] = []
    for value in given:
        if value.endswith(".jsonl"):
            prompts += read_jsonl(paths.of(value), draws)
        elif is_path(value):
            prompts.append([paths.of(value)])
        else:
            prompts.append([value, IMAGE] if draws else [value])
        if not value.endswith(".jsonl"):
            parse(prompts[-1], f"--prompt={value}")  # complains before the model is loaded
    return prompts


def read_jsonl(path: Path, draws: bool = True) -> list[Prompt]:
    """Prompts of a JSONL file; `draws` as above."""
    prompts: list[Prompt] = []
    for where, row in rows_of(path):
        if isinstance(row, dict) and isinstance(row.get("parts"), list):
            prompts.append([one_part(part, where, path.parent) for part in row["parts"]])
        else:
            part = one_part(row, where, path.parent)
            prompts.append([part, IMAGE] if draws and isinstance(part, str) else [part])
        parse(prompts[-1], where)
    return prompts


def rows_of(path: Path) -> list[tuple[str, Any]]:
    """The rows of a JSONL file, each with its place.

    Raises:
        UserError: for a file that is absent or no JSONL, or has no rows.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"prompt file {path} does not exist") from error
    except UnicodeDecodeError as error:
        raise UserError(f"prompt file {path} is not UTF-8: {error}") from error
    except OSError as error:
        raise UserError(f"prompt file {path} cannot be read: {error.strerror}") from error
    found = []
    # Not splitlines: JSON allows further separators of lines inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append((f"{path}:{number}", json.loads(line)))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number} is not JSON: {error}") from error
    if not found:
        raise UserError(f"prompt file {path} holds no prompt")
    return found


def read_chats(given: list[str]) -> list[list[dict]]:
    """Flag values -> conversations as `Trained.chat` takes them, in messages.

    All values but files of prompts are one question, each a part of it.

    Raises:
        UserError: for a file that is absent or a line that is none of the forms.
    """
    chats: list[list[dict]] = []
    question: Prompt = []
    for value in given:
        if value.endswith(".jsonl"):
            home = paths.of(value).parent
            chats += [read_messages(row, where, home) for where, row in rows_of(paths.of(value))]
        else:
            question.append(paths.of(value) if is_path(value) else value)
    if question:
        chats.append([{"role": "user", "content": question}])
    for number, turns in enumerate(chats, start=1):
        chat.read(turns, f"conversation {number}")  # complains before the model is loaded
    return chats


def read_messages(row, where: str, home: Path) -> list[dict]:
    """A conversation, as JSON has it; what is a prompt is one question."""
    if not isinstance(row, dict) or set(row) != {"messages"}:
        parts = row["parts"] if isinstance(row, dict) and "parts" in row else [row]
        if not isinstance(parts, list):
            raise UserError(f"{where}: parts must be a list, not {json.dumps(parts)[:80]}")
        return [{"role": "user", "content": [one_part(part, where, home) for part in parts]}]
    messages = row["messages"]
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise UserError(
            f'{where}: messages must be a list of {{"role": "user", "content": text or parts}}'
        )
    found = []
    for message in messages:
        content = message.get("content")
        parts = [{"text": content}] if isinstance(content, str) else content
        if isinstance(parts, list):
            message = message | {"content": [one_part(part, where, home) for part in parts]}
        found.append(message)
    return found


def one_part(row, where: str, home: Path) -> str | Path | Image | Sentinel | Slot:
    """A part of a prompt, as JSON has it; paths are relative to `home`.

    Raises:
        UserError: if it has none of the forms, or names a kind of a picture that is not there.
    """
    if isinstance(row, dict) and set(row) == {"image", "kind"}:
        return Image(encode(paths.beside(home, str(row["image"]))), of=str(row["kind"]))
    known: dict[str, Callable] = {
        "text": str, "image": partial(paths.beside, home), "make": MAKE.get, "sentinel": NAMED.get,
    }  # fmt: skip
    if isinstance(row, dict) and len(row) == 1:
        ((name, value),) = row.items()
        found = known[name](value) if name in known and isinstance(value, str) else None
        if found is not None:
            return found
    raise UserError(
        f'{where} must be {{"text": ...}}, {{"image": "path"}} or {{"parts": [...]}} of these, '
        f'{{"make": "image"}} or {{"make": "text"}}, and {{"sentinel": "sep"}} or '
        f'{{"sentinel": "eos"}}, not {json.dumps(row)[:80]}'
    )


def main(rest: list[str]) -> int:
    """Runs the prompts."""
    if WORKDIR.value is None or not PROMPT.value or rest:
        raise UserError("give --workdir=DIR and at least one --prompt")
    free = INTERLEAVED.value > 0
    chats = read_chats(PROMPT.value) if CHAT.value else []
    # Complains before anything is loaded.
    prompts = [spoken(c) for c in chats] if CHAT.value else read_prompts(PROMPT.value, not free)
    out = paths.of(OUT.value)
    check_out(out, PROMPT.value)
    trained = load(WORKDIR.value)
    if trained.only_writes and not CHAT.value:
        prompts = read_prompts(PROMPT.value, draws=False)
    asked = [
        chat.ask(trained.run, trained.home, turns, f"conversation {number}")
        for number, turns in enumerate(chats, start=1)
    ]
    options: dict = {name: flag.value for name, flag in SCALES.items()}
    options |= {"solver": SOLVER.value, "steps": STEPS.value, "text": LENGTH.value}
    options |= {"kind": KIND.value}
    options = {name: value for name, value in options.items() if value is not None}
    stream = show if STREAM.value else None
    seed = SEED.value if len(SEED.value) > 1 else SEED.value[0]
    how = seed, INTERLEAVED.value, stream, STOP.value
    # Streamed text is progress enough.
    with contextlib.nullcontext() if stream else Watch("sample"):
        results = trained.generate(asked or prompts, *how, **options)
    try:
        write(prompts, results, trained.run.experiment.data)
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"cannot write --out={out}: {why}; name another directory") from error
    return 0


def spoken(turns: list[dict]) -> Prompt:
    """All that is said in a conversation, one part after the other."""
    return [part for turn in turns for part in turn["content"]]


def check_out(out: Path, given: list[str]) -> None:
    """Checks that --out is new, or that what would be replaced in it was left by this command.

    given: values of --prompt, whose files are never replaced.

    Raises:
        UserError: naming what is in the way.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; name a directory")
    there = (
        sorted(p.name for p in out.iterdir() if WRITES.fullmatch(p.name)) if out.exists() else []
    )
    if there and not made_here(out / SAMPLES):
        raise UserError(
            f"--out={out} has {some(there)}, which would be replaced and which this command did "
            f"not write; name another directory"
        )
    place = paths.absolute(out)
    for file in (f for f in prompt_files(given) if f.is_file()):
        if paths.absolute(file).parent == place and WRITES.fullmatch(file.name):
            raise UserError(
                f"{file}, a prompt, lies in --out={out} and would be replaced; name another "
                f"directory"
            )


def made_here(path: Path) -> bool:
    """Whether a file is a samples.jsonl that this command wrote."""
    try:
        rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    except (OSError, ValueError, RecursionError):
        return False
    return bool(rows) and all(isinstance(row, dict) and "prompt" in row for row in rows)


def prompt_files(given: list[str]) -> list[Path]:
    """The files that are read for values of --prompt, those named in JSONL files too."""
    found: list[Path] = []
    for value in given:
        if is_path(value):
            found.append(paths.of(value))
        if not value.endswith(".jsonl"):
            continue
        found.append(paths.of(value))
        for line in paths.of(value).read_text(encoding="utf-8").split("\n"):
            row = json.loads(line) if line.strip() else {}
            turns = [turn.get("content") for turn in row.get("messages", ())]
            said = [part for parts in turns if isinstance(parts, list) for part in parts]
            for part in [*row.get("parts", [row]), *said]:
                if "image" in part:
                    found.append(paths.beside(paths.of(value).parent, str(part["image"])))
    return found


def show(number: int, text: str) -> None:
    """Prints how far a prompt's answer has come."""
    print(f"{number}: {text}", file=sys.stderr)


def write(prompts: list[Prompt], results: list, c: DataConfig) -> None:
    """Writes pictures, texts and a sheet to --out."""
    out = paths.of(OUT.value)
    paths.make(out)
    rows, cells = [], []
    for number, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        given = [part for part in prompt if not isinstance(part, Slot)]
        seen = with_kinds(c, [as_part(part) for part in given])
        pictures = [only_read(part) for part in seen if isinstance(part, Image)]
        shown = decode_all([encoded(c, picture) for picture in pictures])
        made, words = [], []
        for i, part in enumerate(result if isinstance(result, list) else [result]):
            if isinstance(part, str):
                made.append({"text": part})
                words.append(part)
                continue
            name = f"{number:03d}.png" if not isinstance(result, list) else f"{number:03d}_{i}.png"
            (out / name).write_bytes(encode(part))
            made.append({"image": name})
            shown.append(part)
        asked = [f"{part.of} picture" if isinstance(part, Image) else str(part) for part in given]
        rows.append({"prompt": asked[0] if len(asked) == 1 else asked} | plain(made, result))
        texts = [part for part in given if isinstance(part, str)]
        cells.append(Cell(shown, [" ... ".join(texts), " ... ".join(words)]))
        print(f"{' + '.join(asked)} -> {told(made)}")
    (out / SAMPLES).write_bytes("".join(json.dumps(r) + "\n" for r in rows).encode())
    sheet(cells, out / SHEET, f"{len(cells)} samples")


def plain(made: list[dict], result) -> dict:
    """{"image"} or {"text"} of a single answer, {"parts"} of an interleaved one."""
    return {"parts": made} if isinstance(result, list) else made[0]


def told(made: list[dict]) -> str:
    """An answer in one line."""
    return " | ".join(str(value) for part in made for value in part.values())

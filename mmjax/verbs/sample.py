"""Draws pictures from text and writes text from pictures with a trained model.

    mmjax sample --workdir=out/quickstart --prompt="a red apple" --prompt=photo.png --out=out/made
    mmjax sample --workdir=out/quickstart --prompt=prompts.jsonl --out=out/samples

A prompt is text (a picture is drawn from it), the path of a picture (a caption is written for it),
or a JSONL file with one {"text": ...} or {"image": "path"} a line. All prompts run in one compiled
batch a kind. Leaves NNN.png and samples.jsonl in --out, and sheet.png of all.
"""

import json
from pathlib import Path

import PIL.Image
from absl import flags

from mmjax.config import DataConfig
from mmjax.data.pixels import decode_image
from mmjax.error import UserError
from mmjax.sheet import Cell, sheet
from mmjax.trained import IMAGE, load

WORKDIR = flags.DEFINE_string("workdir", None, "directory of a `mmjax train`")
PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "text, a picture's path, or a .jsonl file; repeat it"
)
OUT = flags.DEFINE_string("out", "out/samples", "directory to write to")
SEED = flags.DEFINE_integer("seed", 0, "of noise and text")
GUIDANCE = flags.DEFINE_float("guidance", None, "guidance scale; default: the experiment's")
STEPS = flags.DEFINE_integer(
    "steps", None, "solver steps; default: the experiment's", lower_bound=1
)
TEMPERATURE = flags.DEFINE_float(
    "temperature", None, "of text, 0 is greedy; default: the experiment's", lower_bound=0.0
)
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


def read_prompts(given: list[str]) -> list[dict]:
    """Flag values -> {"text": ...} or {"image": path}.

    Raises:
        UserError: for a file that is absent or a line that is neither.
    """
    prompts: list[dict] = []
    for value in given:
        if value.endswith(".jsonl"):
            prompts += read_jsonl(Path(value))
        elif value.lower().endswith(PICTURES):
            prompts.append({"image": value})
        else:
            prompts.append({"text": value})
    for p in prompts:
        if "image" in p and not Path(p["image"]).is_file():
            raise UserError(f"picture {p['image']} does not exist")
    return prompts


def read_jsonl(path: Path) -> list[dict]:
    """Prompts of a JSONL file."""
    if not path.is_file():
        raise UserError(f"prompt file {path} does not exist")
    prompts = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number} is not JSON: {error}") from error
        if not isinstance(row, dict) or len({"text", "image"} & set(row)) != 1:
            raise UserError(f'{path}:{number} must be {{"text": ...}} or {{"image": "path"}}')
        prompts.append(row)
    return prompts


def main(rest: list[str]) -> int:
    """Runs the prompts."""
    if WORKDIR.value is None or not PROMPT.value or rest:
        raise UserError("give --workdir=DIR and at least one --prompt")
    prompts = read_prompts(PROMPT.value)
    trained = load(WORKDIR.value)
    options: dict = {
        "guidance": GUIDANCE.value,
        "steps": STEPS.value,
        "temperature": TEMPERATURE.value,
    }
    options = {k: v for k, v in options.items() if v is not None}
    inputs = [[p["text"], IMAGE] if "text" in p else [Path(p["image"])] for p in prompts]
    results = trained.generate(inputs, SEED.value, **options)
    write(prompts, results, trained.run.experiment.data)
    return 0


def write(prompts: list[dict], results: list, c: DataConfig) -> None:
    """Writes pictures, captions and a sheet to --out."""
    out = Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    rows, cells = [], []
    for number, (p, result) in enumerate(zip(prompts, results, strict=True)):
        if "text" in p:
            name = f"{number:03d}.png"
            PIL.Image.fromarray(result).save(out / name)
            rows.append({"prompt": p["text"], "image": name})
            cells.append(Cell([result], [p["text"]]))
        else:
            rows.append({"prompt": p["image"], "text": result})
            given = decode_image(Path(p["image"]).read_bytes(), c.image, c.resize)
            cells.append(Cell([given], [result]))
        print(f"{rows[-1]['prompt']} -> {rows[-1].get('image', rows[-1].get('text'))}")
    (out / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    sheet(cells, out / "sheet.png", f"{len(cells)} samples")

"""Reconstruction alignment: the score before and after it, and of a model that ignores pictures.

    python experiments/evidence/alignment.py [--seeds=3] [--steps=1500]

Arms: the small Transfusion as it was trained; after 600 steps more of captioned pictures, the
control; after as many of reconstruction alignment, the picture read at low resolution (also at a
fifth of the learning rate) or through registers; and after as many in which the picture that is
read is never the one that is asked for, so that it had better be ignored. The score is taken of
likelihoods, of drawings and of hidden states; names of scores end in how the picture is read, and
only equal ones compare. Needs out/data/scenes16.
"""

import base64
import io
import json
from pathlib import Path

import figures
import numpy as np
import PIL.Image
import study
from study import Arm

from mmjax.data.pixels import decode_image
from mmjax.data.store import read
from mmjax.data.transform import RECONSTRUCT

DATA, WRONG = Path("out/data/scenes16"), Path("out/evidence/other_pictures")
DOCUMENTS = 8000
EVALS = "alignment,probe,redrawing,scenes"
START = {"all": study.BASE}
# Evaluated is the first source by name that has pictures with texts: it stays as it is.
OTHERS = {
    "data.sources.scenes.path": WRONG,
    "data.sources.scenes.template": "",
    "data.tokenizer": DATA / "tokenizer.json",
}
TEMPLATES = {"data.sources.scenes.template": "", "data.sources.captions.template": ""}
LOWRES = {"data.bottleneck": "lowres"}
ARMS = (
    study.BASE._replace(name="before"),
    Arm("more captions", "small_reca", LOWRES | TEMPLATES, START, 600, EVALS),
    Arm("aligned, low resolution", "small_reca", LOWRES, START, 600, EVALS),
    Arm("the same, slower", "small_reca", LOWRES | {"optim.peak": 1e-4}, START, 600, EVALS),
    Arm("aligned, registers", "small_reca", {}, START, 600, EVALS),
    Arm("other pictures", "small_reca", LOWRES | OTHERS, START, 600, EVALS),
)
SCORES = {
    "ras_shuf_lowres_concepts": "RAS_shuf, low resolution",
    "ras_lowres_concepts": "RAS, low resolution",
    "ras_shuf_registers_concepts": "RAS_shuf, registers",
    "ras_registers_concepts": "RAS, registers",
    "ras_shuf_drawn_pixels_lowres_concepts": "RAS_shuf of drawings, low resolution",
    "ras_drawn_pixels_lowres_concepts": "RAS of drawings, low resolution",
    "ras_shuf_drawn_pixels_registers_concepts": "RAS_shuf of drawings, registers",
    "ras_drawn_pixels_registers_concepts": "RAS of drawings, registers",
    "ras_probe_half_concepts": "RAS of a probe of half the layers",
    "ras_probe_last_concepts": "RAS of a probe of all layers",
    "ras_at_16_lowres_concepts": "own picture of 16, low resolution",
    "grounding_gap_concepts": "grounding gap, nats a caption",
}
COLUMNS = {
    "drawn_all_test": "drawings right",
    "drawn_all_compositional": "drawings of unseen pairs right",
    "written_all_test": "captions right",
}
SHRINK = 2  # as in the experiment


def other_pictures() -> None:
    """A data set of documents that show a picture at low resolution and ask for another one."""
    if WRONG.is_dir():
        return
    source = read(DATA, "train")
    rng = np.random.default_rng(0)
    lines = []
    for pair in rng.integers(0, len(source), (DOCUMENTS, 2)):
        shown, answer = (source[int(i)].images[0] for i in pair)
        blurred = PIL.Image.fromarray(decode_image(shown, 16, "pil_box", SHRINK))
        file = io.BytesIO()
        blurred.save(file, "PNG")
        parts = [
            {"image_base64": base64.b64encode(file.getvalue()).decode(), "loss": False},
            {"text": RECONSTRUCT[int(rng.integers(len(RECONSTRUCT)))], "loss": False},
            {"image_base64": base64.b64encode(answer).decode()},
        ]
        lines.append(json.dumps({"parts": parts}))
    folder = WRONG.with_name("other_pictures_source")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    words = ("data", "build", f"--src={folder}", "--format=jsonl", f"--dst={WRONG}")
    study.mmjax(folder / "log", *words)


def main() -> None:
    """Runs what is missing and writes the table and the figure."""
    given = study.arguments("alignment")
    other_pictures()
    found = study.runs(ARMS, given)
    titles = SCORES | COLUMNS
    lines = ["| | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for name, title in titles.items():
        cells = [study.either(some, name) for some in found.values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    if "more captions" in found:
        lines += ["", study.differences(titles, found, "more captions")]
    study.tell(lines, given)
    shown = {n: titles[n] for n in ("ras_shuf_lowres_concepts", *COLUMNS)}
    figures.bars(found, shown, given.out / "results.png")


if __name__ == "__main__":
    main()

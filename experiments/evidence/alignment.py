"""Reconstruction alignment: the score before and after it, and of a model that ignores pictures.

    python experiments/evidence/alignment.py [--seeds=3] [--steps=1500]

Arms: the small Transfusion as it was trained; after 600 steps more of captioned pictures, the
control; after as many of reconstruction alignment, the picture read at low resolution (also at a
fifth of the learning rate) or through registers; and after as many in which the picture that is
read is never the one that is asked for, so that it had better be ignored. The score is taken of
likelihoods, of drawings and of hidden states, and stands beside the errors it is made of; names end
in how the picture is read, and only equal ones compare. Drawings from captions are judged with
guidance and without, as its empty prompt is one that aligned models were hardly trained on. Needs
out/data/scenes16.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import figures
import numpy as np
import PIL.Image
import study
from study import Arm, Run

import mmjax
from mmjax.data.pixels import decode_image
from mmjax.data.store import read
from mmjax.data.transform import RECONSTRUCT
from mmjax.evals import heldout
from mmjax.evals.scenes import table

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
    Arm("aligned by low resolution", "small_reca", LOWRES, START, 600, EVALS),
    Arm("the same but slower", "small_reca", LOWRES | {"optim.peak": 1e-4}, START, 600, EVALS),
    Arm("aligned by registers", "small_reca", {}, START, 600, EVALS),
    Arm("other pictures", "small_reca", LOWRES | OTHERS, START, 600, EVALS),
)
WHICH = {
    "": "RAS",
    "shuf_": "RAS_shuf",
    "bare_": "RAS_bare",
    "at_16_": "its own picture of 16",
    "error_true_": "error after its own picture",
    "error_shuf_": "error after another",
    "error_prior_": "error after none",
    "error_bare_": "error after nothing",
}
OF = {
    "lowres": "low resolution",
    "registers": "registers",
    "drawn_pixels_lowres": "drawings, low resolution",
    "drawn_pixels_registers": "drawings, registers",
    "probe_half": "a probe of half the layers",
    "probe_last": "a probe of all layers",
}
COLUMNS = {
    "grounding_gap_concepts": "grounding gap, nats a caption",
    "written_all_test": "captions right",
    "drawn_all_test": "drawings right",
    "drawn_all_compositional": "drawings of unseen pairs right",
    "unguided_all_test": "drawings right, unguided",
    "unguided_all_compositional": "drawings of unseen pairs right, unguided",
}
SHOWN = (
    "ras_shuf_lowres_concepts",
    "ras_error_true_lowres_concepts",
    "ras_error_shuf_lowres_concepts",
    "written_all_test",
    "drawn_all_test",
    "unguided_all_test",
)
COUNT, SEED = 200, 0  # drawings without guidance
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


def place(one: Run) -> Path:
    """Where what is measured of a run here is kept, beside its log."""
    return one.home / f"sweep_unguided_{COUNT}.json"


def drawn(workdir: Path) -> dict[str, dict]:
    """Shares of a run's drawings without guidance that are right, as entries of a summary."""
    trained, found = mmjax.load(workdir), {}
    for split in ("test", "compositional"):
        records = heldout.draw(trained, split, COUNT, SEED)
        asked = [heldout.request(trained, r.caption) for r in records]
        hits = table(trained.draw(asked, SEED, guidance=1.0), records)["all"]
        found[f"unguided_all_{split}"] = {"value": float(np.mean(hits)), "n": len(records)}
    return found


def unguided(one: Run) -> Run:
    """A run with what `drawn` finds of it in its summary."""
    return one._replace(summary=one.summary | study.once(place(one), partial(drawn, one.workdir)))


def rows(titles: Mapping[str, str], found: Mapping[str, Sequence[Run]], base: str = "") -> str:
    """Markdown: a row an entry that any arm has; or what arms have more of it than `base`."""
    others = {name: some for name, some in found.items() if name != base}
    head = f"more than {base}" if base else ""
    lines = ["| " + " | ".join([head, *others]) + " |", "|---" * (len(others) + 1) + "|"]
    for name, title in titles.items():
        cells = [study.either(some, name) for some in others.values()]
        if base:
            cells = [study.more(some, found[base], name) for some in others.values()]
        if set(cells) != {"-"}:
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing and writes the table and the figure."""
    given = study.arguments("alignment")
    other_pictures()
    runs = study.measured(ARMS, given, place)
    found = {name: [unguided(one) for one in some] for name, some in runs.items()}
    titles = {f"ras_{w}{o}_concepts": f"{t}: {x}" for o, x in OF.items() for w, t in WHICH.items()}
    titles |= COLUMNS
    lines = [rows(titles, found)]
    for control in ("more captions", "other pictures"):
        if control in found:
            lines += ["", rows(titles, found, control)]
    study.tell(lines, given)
    figures.bars(found, {n: titles[n] for n in SHOWN}, given.out / "results.png")


if __name__ == "__main__":
    study.begin(main)

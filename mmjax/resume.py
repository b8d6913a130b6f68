"""What may differ between a checkpoint and the command that goes on from it."""

import dataclasses
import json

from mmjax import optim, values
from mmjax.config import Experiment
from mmjax.data import pipeline
from mmjax.error import UserError
from mmjax.run import Run

# Groups and fields that may differ from the checkpoint's: they do not change what is learned.
FREE = ("log_every", "save_every", "evals.", "sample.", "mesh.", "data.workers")


def check_unchanged(old: dict, new: dict, step: int, workdir: object = "WORKDIR") -> list[str]:
    """Refuses to resume a checkpoint under another experiment.

    Two fields may change: `steps` may grow, so that a finished run goes on, and `optim.peak` may be
    lowered, so that one does whose loss was no longer a number.

    Args:
        old, new: experiments as dicts. step: of the checkpoint. workdir: where it lies.

    Returns:
        The names of fields that changed what is learned from here on.

    Raises:
        UserError: listing every other field that differs.
    """
    changed = allowed(old, new)
    before = {**old, "optim": dict(old["optim"])}
    if "steps" in changed:
        before["steps"] = new["steps"]
    if "optim.peak" in changed:
        before["optim"]["peak"] = new["optim"]["peak"]
    lines = [d for d in values.difference(before, new) if not d.startswith(FREE)]
    if not lines:
        return changed
    why = ""
    if old["steps"] != before["steps"] or old["steps"] == new["steps"]:
        pass
    elif new["steps"] > old["steps"]:
        why = ", which moves the borders of data.stages"
    else:
        why = ", and a run cannot become shorter"
    way = (
        f"a run that begins as this one has --config.start=\"{{'all': '{workdir}'}}\""
        if why
        else ""
    )
    raise UserError(
        f"the experiment changed since the checkpoint of step {step}: {'; '.join(lines)}{why}; use "
        f"another --workdir, or put the old value(s) back{'; ' if way else ''}{way}"
    )


def allowed(old: dict, new: dict) -> list[str]:
    """Which of the fields that may change did, in a way they may."""
    longer = new["steps"] > old["steps"] and not new["data"].get("stages")
    lower = new["optim"]["peak"] < old["optim"]["peak"]
    return ["steps"] * longer + ["optim.peak"] * lower


def told(old: dict, e: Experiment, changed: list[str], step: int) -> str:
    """One line on what goes on otherwise from a checkpoint on."""
    was = {"steps": old["steps"], "optim.peak": old["optim"]["peak"]}
    now = {"steps": e.steps, "optim.peak": e.optim.peak}
    fields = "; ".join(f"config.{name}: {was[name]} -> {now[name]}" for name in changed)
    peak = dataclasses.replace(e.optim, peak=old["optim"]["peak"])
    rates = (
        float(optim.schedule(c, steps)(step))
        for c, steps in ((peak, old["steps"]), (e.optim, e.steps))
    )
    before, after = rates
    how = f"the {e.optim.decay} schedule of {e.steps} steps holds from step {step} on"
    return f"{fields}; {how}: learning rate {before:.3g} -> {after:.3g}"


def identity(run: Run) -> dict:
    """What a checkpoint belongs to besides its configuration: data sets, tokenizer and id space."""
    vocabulary = dataclasses.asdict(run.model.parts.vocabulary)
    known = pipeline.fingerprint(run.experiment.data, run.tokenizer)
    return json.loads(json.dumps(known | {"vocabulary": vocabulary}))


def check_same_data(old: dict, new: dict, step: int) -> None:
    """Refuses to resume on other data, or with packages that may order it otherwise.

    Of `files` see `pipeline.check_same_files`.

    Raises:
        UserError: listing everything that differs.
    """
    old, new = ({k: v for k, v in one.items() if k != "files"} for one in (old, new))
    lines = values.difference(old, new)
    if lines:
        raise UserError(
            f"the data changed since the checkpoint of step {step}: {'; '.join(lines)}; use "
            f"another --workdir, or bring the old data, tokenizer or package back"
        )

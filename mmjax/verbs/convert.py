"""Brings weights of Hugging Face's or Facebook's in, or takes a model's out to `transformers`.

    mmjax convert --src=DIR --dst=out/imported          a directory of theirs -> a workdir
    mmjax convert --src=out/imported --dst=DIR          a workdir -> a directory of theirs
    mmjax convert --src=out/imported --verify=CHECK     no conversion: compare

Which way follows from DIR/config.json. Known are CLIP, SigLIP, Llama, LLaVA, IDEFICS and
Chameleon; of the last also the release of Facebook's, whose DIR has `models` and `tokenizer`. After
a kill the same command goes on. --overwrite replaces a workdir or what this command made, and
nothing else; never what is read.

--verify runs the model on CHECK/inputs.npz (names as in `transformers`: input_ids, attention_mask,
pixel_values, image_attention_mask, labels) and prints, for every array of CHECK/outputs.npz it can
make, the largest absolute difference; above --tolerance the exit code is 1. Of the others it says
why they are not compared; without any to compare the exit code is 2. Names of outputs: loss,
logits, hidden_0 ... (or hidden_states, all layers on axis 0), last_hidden_state; of pictures
vision_hidden_0 ... (or vision_hidden_states) and image_features (or image_hidden_states); of CLIP
and SigLIP logits_per_image, logits_per_text, image_embeds, text_embeds and text_hidden_0 ...; of
Chameleon vq_indices, the pictures' codes, and logits_raw, before image ids are barred.
"""

import sys

from absl import flags

from mmjax import paths
from mmjax.error import UserError

SRC = flags.DEFINE_string("src", None, "directory of theirs, or a workdir")
DST = flags.DEFINE_string("dst", None, "where the result goes")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace what is at --dst")
VERIFY = flags.DEFINE_string("verify", None, "directory with inputs.npz and outputs.npz")
TOLERANCE = flags.DEFINE_float("tolerance", 1e-4, "largest difference that is none", lower_bound=0)


def main(rest: list[str]) -> int:
    """Converts, verifies, or both."""
    if SRC.value is None or (DST.value is None and VERIFY.value is None) or rest:
        raise UserError("give --src=DIR with --dst=DIR, --verify=DIR, or both")
    from mmjax import conversion, verification

    ours = paths.of(SRC.value)
    theirs = conversion.is_theirs(ours)
    if DST.value is not None:
        made = conversion.convert(ours, DST.value, OVERWRITE.value)
        ours = made if theirs else ours
    elif theirs:
        raise UserError(f"{ours} is a directory of theirs; give --dst too, where it is brought in")
    if VERIFY.value is None:
        return 0
    worst = verification.verify(ours, VERIFY.value)
    if worst <= TOLERANCE.value:
        return 0
    print(
        f"mmjax convert: {ours} differs from {VERIFY.value} by {worst:.3g}, above "
        f"--tolerance={TOLERANCE.value:g}",
        file=sys.stderr,
    )
    return 1

"""What happens to documents between the data set and the tokenizer."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from mmjax.batch import EOS, SEP, Document, Image, Sentinel, Text
from mmjax.config import DataConfig
from mmjax.data.record import Record
from mmjax.error import UserError

TEMPLATES = ("sep", "sep_one", "sep_draw", "vicuna", "reconstruct", "caption")
# Those whose documents are conversations, and how one is asked.
ASKED = {"sep": "sep", "sep_one": "sep", "sep_draw": "sep", "vicuna": "vicuna"}
Parts = list[Text | Image | Sentinel]

# How Vicuna, and LLaVA after it, begin a conversation.
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
DROPPED = 0.1  # share of reconstructions without a request, and of those without what to read
# Requests of reconstruction; the first is the one that evaluations make.
RECONSTRUCT = (
    "Draw this picture again.",
    "Draw the same picture once more.",
    "Show me exactly this picture.",
    "Make a copy of the picture.",
    "Please redraw what you see.",
    "Paint what was just shown.",
    "Give me the picture back.",
    "Repeat the image.",
    "Create an image like this one.",
    "Reproduce this image.",
    "Reconstruct the image from what you saw.",
    "What did it look like? Draw it.",
    "Recreate the scene above.",
    "Keep every detail and draw it again.",
    "Sketch the same scene.",
    "The same again, please.",
    "Now draw that.",
    "Render the picture you were given.",
    "Return the picture as it was.",
    "Produce an identical image.",
    "Copy the colours and shapes of this picture.",
    "From memory, draw the picture.",
    "Imagine this picture and show it.",
    "Restore the picture in full.",
    "Can you draw this for me?",
    "Generate this very image.",
    "I want to see that picture again.",
    "Depict the same things in the same places.",
    "Make it look just like the original.",
    "Draw it with nothing added and nothing left out.",
    "Mirror nothing, change nothing: draw it.",
    "Do it again.",
    "Let the picture appear once more.",
    "Rebuild the image.",
    "Turn what you understood into a picture.",
    "Put the scene back on the canvas.",
    "Show what the picture contains.",
    "Write the image out again.",
    "Another print of this, please.",
    "Duplicate the image.",
)


def to_document(c: DataConfig, template: str, record: Record, rng: np.random.Generator) -> Document:
    """Record -> document: by its source's template, or caption and picture in drawn order.

    Raises:
        UserError: if the record lacks what the template needs.
    """
    if template == "reconstruct":
        return reconstruction(record, rng, c.bottleneck, c.shrink)
    if template == "sep_one":
        record = one_question(record, rng)
    if template:
        return templated(template, record)
    return drop_caption(order(record.document, rng, c.text_first), rng, c.caption_dropout)


def templated(template: str, record: Record) -> Document:
    """A record as a template has it but for what is drawn at random.

    Raises:
        UserError: if the record lacks what the template needs.
    """
    if template in ("", "reconstruct"):
        return record.document
    if template == "caption":
        return captioning(record)
    if template == "sep_draw":
        return conversation(drawing(record), "sep")
    return conversation(record, "sep" if template == "sep_one" else template)


def reads(template: str, record: Record) -> list[bool]:
    """Of each picture of a record, whether a template makes it part of a prompt.

    Raises:
        UserError: as `templated`.
    """
    named = itertools.count()
    document = tuple(
        replace(part, data=str(next(named)).encode()) if isinstance(part, Image) else part
        for part in record.document
    )
    made = templated(template, replace(record, document=document))
    drawn = {part.data for part in made if isinstance(part, Image) and part.loss}
    return [p.data not in drawn for p in document if isinstance(p, Image)]


def order(document: Document, rng: np.random.Generator, text_first: float) -> Document:
    """Puts the text before the picture with probability `text_first`, else behind it.

    Transfusion does the first with 80 % of its pairs (section 4.1), Chameleon with half of them
    (section 2.2). Done to a run of texts beside a run of pictures. An interleaved document makes
    sense in one order only, and so does an answer behind its prompt (`loss=False`): documents with
    more runs or with a prompt stay as they are.
    """
    wanted = rng.random() < text_first
    if len(_runs(document)) != 2 or not all(part.loss for part in document):
        return document
    return tuple(sorted(document, key=lambda part: isinstance(part, Text) != wanted))


def drop_caption(document: Document, rng: np.random.Generator, probability: float) -> Document:
    """Leaves only the pictures of a captioned picture with a probability, for guidance.

    Nothing is taken from a text without pictures, from an interleaved document, or where no picture
    has a loss, for nothing would be left to learn.
    """
    dropped = rng.random() < probability
    pictures = tuple(part for part in document if isinstance(part, Image))
    captioned = len(_runs(document)) == 2 and any(picture.loss for picture in pictures)
    return pictures if dropped and captioned else document


def conversation(record: Record, template: str) -> Document:
    """A record's turns, prompts without loss and answers with it.

    The template "sep" is Chameleon's (section 3.2): `prompt SEP answer`, and SEP once more before
    another prompt. Behind an answer it has a loss, as what ends the answer; behind a prompt none.

    Turns are parts whose roles, `facts["roles"]`, agree in being "gpt" or not. Without roles,
    `facts["questions"]` are asked about the pictures, without the texts, which may hold the
    answers. Answers before the first prompt and prompts behind the last answer are left out.

    The template "vicuna" is LLaVA 1.5's: a sentence about the two, `USER: prompt ASSISTANT: answer`
    and EOS behind each answer, which has a loss as the answer does.

    Raises:
        UserError: for another template, or if the record has no prompt with an answer.
    """
    if template not in ("sep", "vicuna"):
        raise UserError(f"template {template!r} is unknown; use 'sep' or 'vicuna'")
    ends = SEP if template == "sep" else EOS
    said: Parts = []
    for prompt, answer in _pairs(record):
        before: Parts = []
        behind: Parts = [replace(SEP, loss=False)]
        if template == "vicuna":
            before = [Text("USER:" if said else f"{VICUNA} USER:", loss=False)]
            behind = [Text("ASSISTANT:", loss=False)]
        said += [ends] * bool(said)
        said += [*before, *(replace(part, loss=False) for part in prompt), *behind]
        said += [replace(part, loss=True) for part in answer]
    if not said:
        raise UserError(
            f"record {record.id} has no prompt with an answer; the template {template!r} needs "
            f"facts 'roles' or 'questions', so leave it out for this data set"
        )
    return tuple(said)


def one_question(record: Record, rng: np.random.Generator) -> Record:
    """The record with one of its `facts["questions"]`, drawn; as it is if it has none.

    For a reader that has one vector for all of a text, whatever is asked in it.
    """
    known = record.facts.get("questions", ())
    if not known:
        return record
    drawn = known[int(rng.integers(len(known)))]
    return replace(record, facts={**record.facts, "questions": [drawn]})


def drawing(record: Record) -> Record:
    """The record as a conversation: its texts ask for its pictures.

    Raises:
        UserError: if it has no picture.
    """
    pictures = _pictures(record, "sep_draw")
    texts = [part for part in record.document if isinstance(part, Text)]
    roles = ["human"] * len(texts) + ["gpt"] * len(pictures)
    return replace(record, document=(*texts, *pictures), facts={**record.facts, "roles": roles})


def reconstruction(
    record: Record, rng: np.random.Generator, bottleneck: str, shrink: int
) -> Document:
    """A picture to read, a request to draw it, and the same picture as the answer.

    Reconstruction alignment (Xie et al. 2025, arXiv 2509.07295): what a model reads of a picture
    is a denser prompt than any caption. As one codec serves both sides here, copying would do; so
    the picture that is read is shrunk ("lowres"), or followed by registers that alone see it.
    In a tenth of the documents there is no request, in a tenth no picture to read; only the answer
    has a loss. Of several pictures one is drawn.

    Raises:
        UserError: if the record has no picture.
    """
    pictures = _pictures(record, "reconstruct")
    picture = pictures[int(rng.integers(len(pictures)))]
    wordless, blind = rng.random(2) < DROPPED
    request = RECONSTRUCT[int(rng.integers(len(RECONSTRUCT)))]
    read, words = None if blind else picture, "" if wordless else request
    return asked(read, words, picture, bottleneck, shrink)


def asked(
    read: Image | None, request: str, answer: Image, bottleneck: str, shrink: int
) -> Document:
    """The document of `reconstruction`; any picture may be read, or none, and "" is no request."""
    parts: Parts = []
    if read is not None:
        parts += [replace(read, loss=False, shrink=shrink if bottleneck == "lowres" else 1)]
    parts += [Sentinel("registers", loss=False)] * (bottleneck == "registers")
    parts += [Text(request, loss=False)] * bool(request)
    return (*parts, replace(answer, loss=True))


def captioning(record: Record) -> Document:
    """A record's pictures to read, and then its texts to write.

    Raises:
        UserError: if the record has no picture or no text.
    """
    pictures = [replace(picture, loss=False) for picture in _pictures(record, "caption")]
    texts = [part for part in record.document if isinstance(part, Text)]
    if not any(text.text for text in texts):
        raise UserError(
            f"record {record.id} has no text, which the template 'caption' needs; leave it out for "
            f"this data set"
        )
    return (*pictures, *(replace(text, loss=True) for text in texts))


def _pictures(record: Record, template: str) -> list[Image]:
    found = [part for part in record.document if isinstance(part, Image)]
    if not found:
        raise UserError(
            f"record {record.id} has no picture, which the template {template!r} needs; leave it "
            f"out for this data set"
        )
    return found


def kind(document: Document) -> str:
    """What a document teaches to write, and given what.

    "text", "image", "text_to_image", "image_to_text", or "interleaved" for all that is neither.
    In a document with prompts it follows from what has a loss: any number of questions about a
    picture, answered in words, are "image_to_text". In another it follows from the order.
    """
    parts = [p for p in document if not (isinstance(p, Sentinel) and p.name == SEP.name)]
    if len(runs := _runs(parts)) < 2:
        return "image" if runs == [Image] else "text"
    read, written = ({_modality(p) for p in parts if p.loss is loss} for loss in (False, True))
    if not (read and written):
        if len(runs) > 2:
            return "interleaved"
        read, written = {runs[0]}, {runs[1]}
    if written == {Text}:
        return "image_to_text"
    return "text_to_image" if (read, written) == ({Text}, {Image}) else "interleaved"


def _runs(document: Document) -> list[type]:
    """Text or Image for each run of one modality."""
    return [modality for modality, _ in itertools.groupby(document, _modality)]


def _modality(part: Text | Image | Sentinel) -> type:
    """Text or Image; sentinels are of text."""
    return Image if isinstance(part, Image) else Text


def _pairs(record: Record) -> Iterator[tuple[Parts, Parts]]:
    """Prompts with their answers, as parts."""
    if "roles" not in record.facts:
        prompt: Parts = [part for part in record.document if isinstance(part, Image)]
        for asked in record.facts.get("questions", ()):
            if not isinstance(asked, dict) or not {"question", "answer"} <= asked.keys():
                raise UserError(
                    f"record {record.id} has a question that is not {{question, answer}}; mend its "
                    f"facts 'questions' and build the set again"
                )
            yield [*prompt, Text(str(asked["question"]))], [Text(str(asked["answer"]))]
            prompt = []
        return
    roles = record.facts["roles"]
    if len(roles) != len(record.document):
        raise UserError(
            f"record {record.id} has {len(roles)} roles for {len(record.document)} parts; give "
            f"one a part"
        )
    prompt = []
    spoken = zip(roles, record.document, strict=True)
    for answers, turn in itertools.groupby(spoken, lambda pair: pair[0] == "gpt"):
        parts = [part for _, part in turn]
        if answers and prompt:
            yield prompt, parts
        prompt = [] if answers else parts


def check(record: Record) -> None:
    """Checks the facts that templates read, so that builders refuse what would stop training.

    Raises:
        ValueError: for roles or questions of another form, or without a prompt that has an answer.
    """
    roles, questions = record.facts.get("roles"), record.facts.get("questions")
    if roles is None and not questions:
        return
    if roles is not None:
        if not (isinstance(roles, list) and all(isinstance(role, str) for role in roles)):
            raise ValueError("roles are not a list of texts")
    elif not isinstance(questions, list) or not all(
        isinstance(one, dict) and {"question", "answer"} <= one.keys() for one in questions
    ):
        raise ValueError('questions are not a list of {"question", "answer"}')
    if next(_pairs(record), None) is None:
        raise ValueError("no answer (of gpt's) behind a prompt, which conversations are trained on")

"""Writes golden ids: prompts and conversations as Hugging Face's tokenizers have them.

    python tests/convert/make_words.py

Needs transformers and jinja2, neither torch nor mmjax. Each tokenizer is given special tokens, one
of three post-processings, and each of some templates, which are written for this file.
"""

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent.parent))

from tokenizer_kinds import KINDS

HERE = Path(__file__).parent.parent / "golden" / "hf_words.json"
ADDED = ["<|im_start|>", "<|im_end|>", "[/INST]"]
AROUND = {"none": None, "begins": "<s> $A", "both": "<s> $A </s>"}
PROMPTS = [  # None is a picture
    ["a red ring"], [None, "a red ring"], [None, " a red ring"], ["a red ", None, "\nring b"],
    [None, None, "red"], ["user: ", None, "a", None, " b"], ["red  ring"], [None], ["é 🍎 b"],
]  # fmt: skip
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}"
    "{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BRACKETS = """
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] + ' ' -%}
    {%- set said = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}
    {%- set said = messages -%}
{%- endif -%}
{%- for m in said -%}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('roles must take turns') -}}
    {%- endif -%}
    {%- if m['role'] == 'user' -%}
        {{- bos_token + '[INST] ' + (first if loop.first else '') + m['content'] | trim -}}
        {{- ' [/INST]' -}}
    {%- else -%}
        {% generation %}{{- ' ' + m['content'] | trim + ' ' + eos_token -}}{% endgeneration %}
    {%- endif -%}
{%- endfor -%}
"""
PARTS = """
{%- for m in messages -%}
    {{- m['role'].upper() + ': ' -}}
    {%- for part in m['content'] if part['type'] == 'image' -%}{{- '<image>' -}}{%- endfor -%}
    {%- for part in m['content'] if part['type'] == 'text' -%}
        {{- '\\n' + part['text'] + ' ' -}}
    {%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""
TURNED = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>\n' + m['content'] + '</s>\n' "
    "}}{% else %}{{ '[INST]' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
    "{{ '[INST]\n' if add_generation_prompt }}"
)
TEMPLATES = {"chatml": CHATML, "brackets": BRACKETS, "parts": PARTS, "turned": TURNED}
SAID = [
    [("user", ["a red ring"])],
    [("user", [" b "]), ("assistant", ["a ring"]), ("user", ["red\nb"])],
    [("system", ["s"]), ("user", ["a"])],
    [("user", [None, "a red ring"])],
    [("user", ["a", None]), ("assistant", ["b"]), ("user", ["red"])],
]


def content(template: str, parts: list):
    """What a template expects: a string, or a list of parts."""
    if template != "parts":
        return "".join(parts)
    return [{"type": "image"} if p is None else {"type": "text", "text": p} for p in parts]


def made(kind, around: str) -> dict:
    """One tokenizer and its ids."""
    t = kind()
    t.add_special_tokens(["<s>", "</s>", "<image>"])
    t.add_special_tokens([AddedToken(x, special=True) for x in ADDED])
    plain = {"<|user|>": {"rstrip": True}, "[INST]": {"lstrip": True}}
    t.add_tokens([AddedToken(x, normalized=False, **how) for x, how in plain.items()])
    t.no_padding()
    t.no_truncation()
    if AROUND[around]:
        special = [(x, t.token_to_id(x)) for x in ("<s>", "</s>")]
        t.post_processor = processors.TemplateProcessing(
            single=AROUND[around], special_tokens=special
        )
    held = t.to_str()
    theirs = PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<s>", eos_token="</s>")
    prompts = [
        {"parts": p, "ids": theirs("".join("<image>" if x is None else x for x in p)).input_ids}
        for p in PROMPTS
    ]
    chats = []
    for name, source in TEMPLATES.items():
        for said in SAID:
            pictures = any(x is None for _, parts in said for x in parts)
            if (pictures and name != "parts") or (said[0][0] == "system" and name == "turned"):
                continue
            messages = [{"role": role, "content": content(name, parts)} for role, parts in said]
            how = {"chat_template": source, "add_generation_prompt": True}
            ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=False, **how)
            chats.append({"template": name, "said": said, "ids": ids})
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    return {"tokenizer": held, "config": config, "prompts": prompts, "chats": chats}


if __name__ == "__main__":
    found = {f"{k.__name__}_{a}": made(k, a) for k in KINDS for a in AROUND}
    HERE.write_text(json.dumps({"templates": TEMPLATES, "kinds": found}, ensure_ascii=False))

"""Chat templates against transformers' ``apply_chat_template``, with templates of the shapes that are on the Hub."""

from __future__ import annotations

import pytest
from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from fastserve.errors import InvalidRequest
from fastserve.text.templates import ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA2 = """{% if messages[0]['role'] == 'system' %}
    {% set loop_messages = messages[1:] %}
    {% set system_message = messages[0]['content'] %}
{% else %}
    {% set loop_messages = messages %}
    {% set system_message = false %}
{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if loop.index0 == 0 and system_message != false %}
        {% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}
    {% else %}
        {% set content = message['content'] %}
    {% endif %}
    {% if message['role'] == 'user' %}
        {{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
        {{ ' '  + content.strip() + ' ' + eos_token }}
    {% endif %}
{% endfor %}"""

LLAMA3 = """{{- bos_token }}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if tools is not none %}{{- 'TOOLS' }}{%- endif %}
{%- if documents is none %}{{- '<|no_documents|>' }}{%- endif %}
{%- for message in messages %}
    {%- set header = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' %}
    {%- set content = header + message['content'] | trim + '<|eot_id|>' %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

LOOP_CONTROLS = """{%- for message in messages -%}
    {%- if message.role == 'system' -%}{%- continue -%}{%- endif -%}
    {%- if loop.index > 3 -%}{%- break -%}{%- endif -%}
    {{ loop.index }}:{{ message.content | upper }};
{%- endfor -%}"""

TO_JSON = """{{ messages | tojson }}
{{ messages | tojson(indent=2) }}
{{ messages[0] | tojson(ensure_ascii=True) }}
{{ {'b': 1, 'a': [true, none]} | tojson(separators=(',', ':'), sort_keys=true) }}"""

NAMESPACE = """{%- set ns = namespace(users=0, last='') -%}
{%- for m in messages -%}
  {%- if m['role'] == 'user' -%}{%- set ns.users = ns.users + 1 -%}{%- endif -%}
  {%- set ns.last = m['content'].split('</think>')[-1].lstrip('\n') -%}
{%- endfor -%}
{{ ns.users }}|{{ ns.last }}|{{ messages | length }}|{{ messages[-1].role }}|
{{- (messages | selectattr('role', 'equalto', 'user') | list)[0].content }}"""

PREPENDED = """{%- set messages = [{'role': 'system', 'content': 'be kind'}] + messages -%}
{%- for message in messages %}{{ message.role }}={{ message.get('content', '') }}{{ '\n' if not loop.last }}{% endfor -%}"""

TRIMMED_BLOCKS = """    {% if true %}
  indented {{ messages[0].content }}
    {% endif %}
{# a comment #}
tail {{ eos_token }}
"""

MACRO = """{% macro turn(role, text) %}<{{ role }}>{{ text }}</{{ role }}>{% endmacro %}
{% for message in messages %}{{ turn(message.role, message.content) }}{% endfor %}
{{ '<assistant>' if add_generation_prompt else '' }}"""

TEMPLATES = {
    "chatml": CHATML,
    "llama 2": LLAMA2,
    "llama 3": LLAMA3,
    "loop controls": LOOP_CONTROLS,
    "tojson": TO_JSON,
    "namespace": NAMESPACE,
    "prepended system": PREPENDED,
    "trimmed blocks": TRIMMED_BLOCKS,
    "macro": MACRO,
}

USER = {"role": "user", "content": "Hello <b>\"you\"</b> & 'me' ünï 👩‍👧\n second line  "}
CONVERSATIONS = {
    "one turn": [USER],
    "system": [{"role": "system", "content": "  You are terse. "}, USER],
    "three turns": [USER, {"role": "assistant", "content": "<think>\nhm</think>\nHi."}, {"role": "user", "content": "{{ 7*7 }}"}],
    "empty content": [{"role": "user", "content": ""}],
    "long": [{"role": ("user", "assistant")[index % 2], "content": f"turn {index}"} for index in range(7)],
}
OUT_OF_TURN = [USER, USER]


def tokenizer():
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL)


def transformers_render(source, messages):
    return tokenizer().apply_chat_template(messages, chat_template=source, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_is_the_one_transformers_makes(name, conversation):
    messages = CONVERSATIONS[conversation]
    rendered = ChatTemplate(TEMPLATES[name], SPECIAL).render(messages)
    assert rendered == transformers_render(TEMPLATES[name], messages)
    assert rendered


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_messages_may_be_a_tuple(name):
    messages = CONVERSATIONS["three turns"]
    template = ChatTemplate(TEMPLATES[name], SPECIAL)
    assert template.render(tuple(messages)) == template.render(messages)


def test_what_the_template_of_transformers_refuses_is_refused_naming_the_messages():
    with pytest.raises(TemplateError, match=r"must alternate"):
        transformers_render(LLAMA2, OUT_OF_TURN)
    with pytest.raises(InvalidRequest, match=r"^messages: got .*must alternate") as caught:
        ChatTemplate(LLAMA2, SPECIAL).render(OUT_OF_TURN)
    assert caught.value.field == "messages"


def test_special_tokens_come_from_the_model():
    assert ChatTemplate(LLAMA3, {"bos_token": "<|begin|>"}).render([USER]).startswith("<|begin|>")

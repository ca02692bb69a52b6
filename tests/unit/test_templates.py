"""Chat templates are foreign code: what they may do, and what becomes of what they raise."""

from __future__ import annotations

from datetime import datetime

import pytest

from fastserve.errors import InvalidRequest, ManifestError
from fastserve.text.templates import ChatTemplate

MESSAGES = [{"role": "user", "content": "hi"}]


def render(source, messages=MESSAGES, **special):
    return ChatTemplate(source, special).render(messages)


def test_the_template_sees_messages_special_tokens_and_that_an_answer_is_wanted():
    source = "{{ bos_token }}{{ messages[0].role }}:{{ messages[0]['content'] }}{% if add_generation_prompt %}>{% endif %}"
    assert render(source, bos_token="<s>") == "<s>user:hi>"


def test_markup_in_a_message_is_text_and_never_escaped_or_run():
    assert render("{{ messages[0].content }}", [{"role": "user", "content": "<b>{{ 1+1 }}&"}]) == "<b>{{ 1+1 }}&"
    assert render("{{ messages[0].content | tojson }}", [{"role": "user", "content": "<é'>"}]) == '"<é\'>"'


def test_block_lines_leave_no_blank_lines():
    assert render("{% if true %}\n  {% if true %}\nx\n  {% endif %}\n{% endif %}\n") == "x\n"


def test_loops_may_be_left_early():
    body = "{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}"
    assert render(f"{{% for i in range(9) %}}{body}{{% endfor %}}") == "02"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ self._TemplateReference__context.environment.globals }}",
        "{{ (''|attr('__class__')).__name__ }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ messages[0].pop('role') }}",
    ],
)
def test_the_sandbox_refuses_to_look_inside_python_or_to_change_what_it_is_given(source):
    messages = [dict(MESSAGES[0])]
    with pytest.raises(InvalidRequest, match=r"^messages: "):
        render(source, messages)
    assert messages == MESSAGES


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('only one turn, please') }}", "only one turn, please"),
        ("{{ messages[0].content + 1 }}", "can only concatenate"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ nothing.at_all }}", "'nothing' is undefined"),
        ("{{ 1 // 0 }}", "division"),
        ("{{ '{} {}'.format('a') }}", "out of range"),
        ("{% for i in range(1000000000) %}{% endfor %}", "Range too big"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "recursion"),
        ("{{ messages | tojson(unknown=1) }}", "unexpected keyword"),
    ],
)
def test_whatever_a_template_raises_is_an_invalid_request_naming_the_messages_and_the_reason(source, reason):
    with pytest.raises(InvalidRequest, match=r"^messages: got .*what the model's chat template accepts") as caught:
        render(source)
    assert reason in str(caught.value)
    assert caught.value.field == "messages"


def test_a_template_that_failed_once_serves_the_next_request():
    template = ChatTemplate("{% if messages | length > 1 %}{{ raise_exception('no') }}{% endif %}ok", {})
    with pytest.raises(InvalidRequest):
        template.render(MESSAGES * 2)
    assert template.render(MESSAGES) == "ok"


def test_variables_set_in_one_rendering_are_gone_in_the_next():
    template = ChatTemplate("{% if seen is defined %}again{% endif %}{% set seen = true %}", {})
    assert template.render(MESSAGES) == template.render(MESSAGES) == ""


def test_a_template_may_ask_for_the_date():
    template = ChatTemplate("Today is {{ strftime_now('%d %b %Y') }}.", {}, now=lambda: datetime(2026, 3, 4))
    assert template.render([{"role": "user", "content": "?"}]) == "Today is 04 Mar 2026."


def test_generation_marks_are_ignored():
    assert ChatTemplate("a{% generation %}b{{ messages[0].content }}{% endgeneration %}c", {}).render(
        [{"role": "user", "content": "?"}]
    ) == ("ab?c")


def test_a_template_that_is_not_jinja_is_refused_with_its_line():
    with pytest.raises(ManifestError, match=r"not valid Jinja \(line 2"):
        ChatTemplate("ok\n{% if %}", {})

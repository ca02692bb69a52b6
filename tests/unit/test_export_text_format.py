"""The text format of protocol buffers is read as their own package reads it, and what is wrong is named by its line."""

from __future__ import annotations

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fastserve.export.config_pbtxt import render_config_pbtxt, render_encoder_config_pbtxt
from fastserve.export.text_format import parse_text_format

WRITTEN_BY_HAND = r"""
# A comment { with a brace
name: 'model'; backend: "fast" 'serve', max_batch_size: 8
input [ { name: "a" data_type: TYPE_FP32 dims: [ -1, 3 ] }, { name: "b\tc\x41\303\251\"\U00000061" dims: 1 dims: 2 } ]
output < name: "y" reshape { shape: [ ] } >   # < another
parameters: { key: "one" value: { string_value: "# no comment" } }
parameters { key: "two", value < string_value: "{" > }
dynamic_batching { max_queue_delay_microseconds: 100 preserve_ordering: true }
"""


@pytest.mark.parametrize(
    "text",
    [WRITTEN_BY_HAND, render_config_pbtxt(), render_config_pbtxt(dtype="int8"), render_encoder_config_pbtxt("fill-mask", 64, {})],
    ids=["by hand", "fp32", "int8", "encoder"],
)
def test_a_configuration_is_read_as_triton_reads_it(text: str) -> None:
    known = text_format.Parse(text, model_config_pb2.ModelConfig())
    ours = parse_text_format(text)
    assert (ours.texts("backend"), ours.texts("name")) == ([known.backend], [known.name] if known.name else [])
    for field in ("input", "output"):
        found = [
            (each.texts("name"), each.texts("dims"), each.texts("optional") == ["true"], bool(each.messages("reshape")))
            for each in ours.messages(field)
        ]
        tensors = getattr(known, field)
        assert found == [
            ([each.name], [*map(str, each.dims)], getattr(each, "optional", False), each.HasField("reshape")) for each in tensors
        ]
    assert len(ours.messages("dynamic_batching")) == known.HasField("dynamic_batching")
    entries = {each.texts("key")[0]: each.messages("value")[0].texts("string_value") for each in ours.messages("parameters")}
    assert entries == {key: [value.string_value] for key, value in known.parameters.items()}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a {", "line 1: got 'the end', allowed: a field's name"),
        ("a {\n b: 1\n>", "line 3: got '>', allowed: a field's name"),
        ("\na:", "line 2: got 'the end', allowed: a value"),
        ('"x": 1', "line 1: got '\"x\"', allowed: a field's name"),
        ("# one\n# two\na: [1 2]", "line 3: got '2', allowed: , or ]"),
        ('a: 1\nb: "open\nc: 2', "line 2: got '\"', allowed: a name, a value or a sign"),
        ("a: @", "line 1: got '@'"),
        ("}", "line 1: got '}', allowed: a field's name"),
        ("a {" * 200, "line 1: messages within each other more than 100 deep"),
    ],
)
def test_what_is_no_text_format_is_refused_by_its_line(text: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_text_format(text)
    assert why in str(caught.value)

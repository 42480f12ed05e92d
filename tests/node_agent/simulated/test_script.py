"""JSON that follows a schema, and tool calls as a parser would stream them."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node_agent.engines.simulated.requests import ChatBody
from node_agent.engines.simulated.script import make, scripted
from node_agent.engines.simulated.tokens import decode

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["city", "days"],
        },
    },
}


def body(**more: object) -> ChatBody:
    asked = {"messages": [{"role": "user", "content": "hi"}], **more}
    return msgspec.convert(asked, ChatBody)


@settings(deadline=None)
@given(st.integers(0, 2**60))
def test_values_keep_to_the_schema(number):
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 12, "maxLength": 14},
            "age": {"type": "integer", "minimum": 18, "maximum": 20},
            "even": {"type": "integer", "multipleOf": 2, "minimum": 1, "maximum": 9},
            "share": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 3},
            "ok": {"type": "boolean"},
            "none": {"type": "null"},
            "kind": {"enum": ["a", "b"]},
            "fixed": {"const": 7},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 4},
            "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "both": {"allOf": [{"properties": {"x": {"type": "integer"}}}, {"properties": {"y": {"type": "boolean"}}}]},
            "day": {"type": "string", "format": "date"},
            "either": {"type": ["string", "null"]},
        },
        "required": ["name", "extra"],
    }
    made = make(schema, number)
    assert {*schema["properties"], "extra"} == set(made)  # type: ignore[misc]
    assert 12 <= len(made["name"]) <= 14
    assert made["age"] in (18, 19, 20)
    assert made["even"] in (2, 4, 6, 8)
    assert 0 < made["share"] < 3
    assert isinstance(made["ok"], bool)
    assert (None, 7) == (made["none"], made["fixed"])
    assert made["kind"] in ("a", "b")
    assert 2 <= len(made["tags"]) <= 4
    assert made["maybe"] is None or isinstance(made["maybe"], int)
    assert {"x", "y"} == set(made["both"])
    assert made == make(schema, number)


@settings(deadline=None)
@given(st.integers(0, 2**60))
def test_a_recursive_schema_ends(number):
    schema = {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["value"],
            }
        },
        "$ref": "#/$defs/node",
    }
    assert isinstance(make(schema, number)["value"], int)


def test_json_mode_says_an_object():
    ids, tool = scripted(body(response_format={"type": "json_object"}), 5)
    assert isinstance(msgspec.json.decode(decode(ids)), dict)
    assert tool is None


def test_a_json_schema_is_followed():
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    ids, _ = scripted(body(response_format=form), 5)
    assert {"a"} == set(msgspec.json.decode(decode(ids)))


def test_a_free_answer_has_no_script():
    assert ([], None) == scripted(body(), 5)


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
def test_the_parser_shows_the_name_once_and_the_arguments_whole_however_the_text_is_cut(chunk):
    ids, tool = scripted(body(tools=[WEATHER]), 5)
    assert tool is not None
    text = decode(ids)
    cuts = range(0, len(text), chunk)
    seen = [tool.see(text[i : i + chunk], last=i == cuts[-1]) for i in cuts]
    assert 1 == sum(names for names, _ in seen)
    arguments = msgspec.json.decode("".join(a for _, a in seen))
    assert {"city", "days"} == set(arguments)
    assert ("weather", "tool_calls") == (tool.name, tool.finish)


def test_who_is_called_depends_on_the_choice():
    named = {"type": "function", "function": {"name": "weather"}}
    assert scripted(body(tools=[WEATHER], tool_choice="none"), 5)[1] is None
    assert scripted(body(tools=[WEATHER], tool_choice="required"), 5)[1] is not None
    by_name = scripted(body(tools=[WEATHER], tool_choice=named), 5)[1]
    assert by_name is not None
    assert "stop" == by_name.finish
    told = [{"role": "user", "content": "hi"}, {"role": "tool", "content": "sunny"}]
    assert scripted(body(tools=[WEATHER], messages=told), 5)[1] is None

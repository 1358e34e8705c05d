"""Numbers, intervals and durations as text; dotted keys; the HTML table."""

import re

import pytest

from beliefedit.formatting import (
    duration,
    flatten,
    html_table,
    interval,
    number,
    percent,
    svg_image,
)


@pytest.mark.parametrize(("arguments", "text"), [
    ((0.214,), "0.21"), ((-0.214,), "−0.21"), ((-0.001,), "0.00"), ((0.214, 3), "0.214"),
    ((0.214, 2, True), "+0.21"), ((-0.214, 2, True), "−0.21"), ((0.0, 2, True), "0.00"),
    ((-0.001, 2, True), "0.00"), ((0.001, 2, True), "0.00"), ((1234567, 0), "1,234,567"),
    ((0, 0, True), "0"), ((10, 0, True), "+10"), ((None,), "–"), ((float("nan"), 1, True), "–")])
def test_numbers(arguments, text):
    assert number(*arguments) == text


def test_intervals():
    assert interval(0.214, 0.18, 0.243) == "0.21 [0.18, 0.24]"
    assert interval(-0.214, -0.3, 0.001, 2, True) == "−0.21 [−0.30, 0.00]"
    assert interval(0.2, None, None) == "0.20"
    assert interval(None, None, None) == "–"


def test_percent():
    assert [percent(0.954), percent(0.25, 0), percent(None)] == ["95.4 %", "25 %", "–"]


@pytest.mark.parametrize(("seconds", "text"), [
    (0.4, "0 s"), (99, "99 s"), (185, "3 min 05 s"), (3599.7, "1 h 00 min"), (7800, "2 h 10 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_nested_settings_get_dotted_keys_in_order():
    nested = {"seed": 1, "edit": {"editors": {"lora": {"lr": 0.1}}, "n": None}, "empty": {}, "list": [1]}
    assert list(flatten(nested).items()) == [
        ("seed", 1), ("edit.editors.lora.lr", 0.1), ("edit.n", None), ("empty", {}), ("list", [1])]


def test_tables_join_equal_names_above_the_last_row_and_align_numbers_right():
    table = html_table([["", "a<b", "a<b"], ["x", "y", "y"]], [["<b>1</b>", "2", "3"]], "<c>")
    assert re.findall(r'colspan="(\d)"[^>]*text-align:(\w+)', table) == [
        ("1", "left"), ("2", "center"), ("1", "left"), ("1", "right"), ("1", "right")]
    assert re.findall(r"<td[^>]*text-align:(\w+)", table) == ["left", "right", "right"]
    assert "a&lt;b" in table and "&lt;c&gt;" in table and "<b>1</b>" in table
    named = html_table([["a", "b", "c"]], [["1", "text", "2"]], left=[1])
    assert re.findall(r"<td[^>]*text-align:(\w+)", named) == ["right", "left", "right"]


def test_a_picture_has_no_characters_that_xml_cannot_hold():
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="10" height="5"><text>a\x1bb\x00é😀</text></svg>'
    valid, png = svg_image(svg, 20)
    assert "<text>a\ufffdb\ufffdé😀</text>" in valid and png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20]) == 20

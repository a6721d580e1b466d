"""Every language has all texts of today's nodes, and no others."""

import json
import re

import pytest
from support.locales import LOCALES, english, flat

pytestmark = pytest.mark.unit

LANGUAGES = ("de", "es", "fr", "ja", "ko", "ru", "zh", "zh-TW")
FILES = ("nodeDefs.json", "main.json")


def texts(language: str, file: str) -> dict[str, str]:
    return flat(json.loads((LOCALES / language / file).read_text(encoding="utf-8")))


@pytest.mark.parametrize("file", FILES)
def test_english_is_what_the_nodes_say(file):
    """`make locales` after a change of them."""
    assert texts("en", file) == flat(english()[file])


def test_languages():
    assert sorted(folder.name for folder in LOCALES.iterdir()) == sorted(("en", *LANGUAGES))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_is_missing_and_nothing_is_stale(language, file):
    translated, known = texts(language, file), texts("en", file)
    assert translated.keys() == known.keys()
    assert all(text.strip() for text in translated.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_and_names_of_papers_are_kept(language):
    def numbers(text: str) -> list[str]:
        return sorted(re.findall(r"\d+\.\d+|\d{3,}", text))

    known = texts("en", "nodeDefs.json")
    for place, text in texts(language, "nodeDefs.json").items():
        assert numbers(text) == numbers(known[place]), place


@pytest.mark.parametrize("language", LANGUAGES)
def test_places_for_values_are_kept(language):
    def places(text: str) -> list[str]:
        return sorted(re.findall(r"\{\w+\}", text))

    known = texts("en", "main.json")
    for place, text in texts(language, "main.json").items():
        assert places(text) == places(known[place]), place

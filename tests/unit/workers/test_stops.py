"""Stop strings: the streamed matcher against the definition, over every way of cutting the text."""

from hypothesis import given
from hypothesis import strategies as st

from workers.chat.stops import StopMatcher

TEXTS = st.text("ab\n🦈", max_size=24)
STOPS = st.lists(st.text("ab\n🦈", max_size=4), max_size=4)


def naive(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition: the stop string complete soonest; of those that end together, the longest."""
    for end in range(len(text) + 1):
        for stop in sorted(filter(None, stops), key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


def streamed(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    out = [matcher.feed(piece) for piece in pieces]
    if matcher.matched is None:
        out.append(matcher.finish())
    assert matcher.feed("more") == "" or matcher.matched is None
    return "".join(out), matcher.matched


@given(st.lists(TEXTS, max_size=8), STOPS)
def test_it_matches_the_definition_however_the_text_is_cut(pieces: list[str], stops: list[str]) -> None:
    assert streamed(pieces, stops) == naive("".join(pieces), stops)


@given(TEXTS, STOPS)
def test_single_characters_match_too(text: str, stops: list[str]) -> None:
    assert streamed(list(text), stops) == naive(text, stops)


@given(TEXTS, STOPS)
def test_it_holds_back_only_what_could_begin_a_stop_string(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    out = matcher.feed(text)
    if matcher.matched is None:
        held = text[len(out) :]
        assert out + held == text
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)
        longer = [text[at:] for at in range(len(out))]
        assert not any(stop.startswith(suffix) for stop in stops for suffix in longer if stop)


def test_text_goes_straight_through_without_stop_strings() -> None:
    assert StopMatcher([""]).feed("abc") == "abc"

"""Bytes that are nearly right: damaged copies of right ones, and numbers at which readers stumble."""

import hypothesis.strategies as st

NUMBERS = [
    *("0", "-0", "-0.0", "1", "7.25", "-3e-3", "16777217", "9007199254740993", "18446744073709551615"),
    *("18446744073709551616", "-9223372036854775809", "3.4028235e38", "3.4028236e38", "1e39", "1e308", "1e309"),
    *("-1e400", "1E-999", "5e-324", "1.17549435e-38", "9" * 309, "9" * 5000, "0." + "0" * 400 + "1", "1" + "0" * 38),
]
"""That JSON has."""
NO_NUMBERS = ["NaN", "-Infinity", "+1", "01", "1.", ".5", "1_0", "0x10", "1e", "--1", "inf", "\u0661", '"1"', "true"]
"""That it has not, or that are none."""


@st.composite
def overwritten(draw: st.DrawFn, wholes: list[bytes], tokens: tuple[bytes, ...]) -> bytes:
    """One of these, of the same length, with a token in a place or two where a number may begin."""
    whole = draw(st.sampled_from(wholes))
    for _ in range(draw(st.integers(1, 2))):
        token = draw(st.sampled_from(tokens))
        # From the end, as that is where numbers are without gaps.
        place = len(whole) - 4 * draw(st.integers(len(token) // 4, len(whole) // 4))
        whole = whole[:place] + token + whole[place + len(token) :]
    return whole


@st.composite
def damaged(draw: st.DrawFn, wholes: st.SearchStrategy[bytes], tokens: tuple[bytes, ...] = ()) -> bytes:
    """One of these with some of its bytes changed, taken out, doubled, or replaced by one of the tokens."""
    whole = draw(wholes)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(whole)))
        end = min(len(whole), start + draw(st.integers(0, 12) | st.integers(0, 4096)))
        found = whole[start:end]
        others = [st.binary(max_size=8), st.just(b""), st.just(found * 2), st.just(bytes(one ^ 1 for one in found))]
        if tokens:
            others.append(st.sampled_from(tokens))
        whole = whole[:start] + draw(st.one_of(others)) + whole[end:]
    return whole

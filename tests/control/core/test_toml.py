import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from control.core import toml

SCALARS = st.one_of(
    st.text(max_size=8),
    st.integers(-(2**40), 2**40),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
)
NAMES = st.text(min_size=1, max_size=6)
PLAIN = st.dictionaries(NAMES, st.one_of(SCALARS, st.lists(SCALARS, max_size=3)), max_size=4)
TREES = st.dictionaries(
    NAMES,
    st.one_of(SCALARS, PLAIN, st.dictionaries(NAMES, PLAIN, max_size=2), st.lists(PLAIN, min_size=1, max_size=3)),
    max_size=4,
)


@given(TREES)
def test_what_is_written_is_read_back(tree: dict[str, Any]) -> None:
    assert tree == tomllib.loads(toml.dumps(tree))


def test_a_settings_file_reads_like_one() -> None:
    tree = {"router": {"port": 8000, "tls": {"cert": ""}, "registry": {"endpoints": ["127.0.0.1:2379"]}}}
    assert (
        '[router]\nport = 8000\n\n[router.tls]\ncert = ""\n\n[router.registry]\nendpoints = ["127.0.0.1:2379"]\n'
        == toml.dumps(tree)
    )


def test_models_are_an_array_of_tables_with_tables_inside() -> None:
    tree = {"node_agent": {"models": [{"name": "a", "env": {"X": "1"}}, {"name": "b"}]}}
    assert tree == tomllib.loads(toml.dumps(tree))

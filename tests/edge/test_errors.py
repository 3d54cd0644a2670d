import inspect

import pytest

from pplx_edge import errors
from pplx_edge.errors import EdgeError, InputError, MissingExtra, TextTooLong

TREE = [error for _, error in inspect.getmembers(errors, inspect.isclass)]


def drawn_tree() -> dict[str, str]:
    """Name to parent of every error, as the module's docstring draws them."""
    path, parents = {}, {}
    for line in (errors.__doc__ or "").splitlines():
        stripped = line.lstrip("│├└─ ")
        name = stripped.split(" ")[0]
        if name and hasattr(errors, name):
            depth = (len(line) - len(stripped)) // 4
            path[depth] = name
            parents[name] = path.get(depth - 1, "Exception")
    return parents


def test_the_drawn_tree_is_the_tree():
    assert {error.__name__: error.__bases__[0].__name__ for error in TREE} == drawn_tree()


def test_everything_is_an_edge_error():
    assert len(TREE) >= 14
    assert all(issubclass(error, EdgeError) for error in TREE)


def test_python_s_own_names_catch_them_too():
    assert issubclass(InputError, ValueError)
    assert issubclass(MissingExtra, ImportError)


def test_a_text_too_long_says_where_and_how_long():
    error = TextTooLong("text 3: 9 tokens, limit 8", index=3, n_tokens=9, limit=8)
    assert (error.index, error.n_tokens, error.limit, str(error)) == (3, 9, 8, "text 3: 9 tokens, limit 8")


def test_a_missing_extra_says_how_to_get_it():
    with pytest.raises(EdgeError, match=r"^the mlx backend needs: pip install 'pplx-edge\[mlx\]'$"):
        raise MissingExtra("the mlx backend", "mlx")

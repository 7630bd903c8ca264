"""What an editor and a type checker see: stubs for all that is public, docstrings, the marker of PEP 561."""

import ast
import inspect
import pathlib

import pytest

import pagedkv

PACKAGE = pathlib.Path(pagedkv.__file__).parent
STUB = ast.parse((PACKAGE / "_core.pyi").read_text(encoding="utf-8"))
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}
FUNCTIONS = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}
NATIVE = [name for name in pagedkv.__all__ if getattr(getattr(pagedkv, name), "__module__", "") == "pagedkv._core"]


def test_the_package_is_marked_as_typed():
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("name", NATIVE)
def test_everything_native_is_in_the_stub_with_a_docstring(name):
    value = getattr(pagedkv, name)
    assert name in CLASSES or name in FUNCTIONS
    assert inspect.getdoc(value)
    if inspect.isclass(value):
        methods = {node.name for node in CLASSES[name].body if isinstance(node, ast.FunctionDef)}
        for member, attribute in vars(value).items():
            if not member.startswith("_"):
                assert member in methods and inspect.getdoc(attribute), f"{name}.{member}"


@pytest.mark.parametrize("name, required", [
    ("KvCache", dict(num_layers=1, num_q_heads=1, num_kv_heads=1, head_dim=8, capacity_pages=1)),
    ("AttentionPlan", dict(num_q_heads=1, num_kv_heads=1, head_dim=8, qo_indptr=[0, 1], block_table=[], kv_indptr=[0, 1],
                           kv_indices=[0], kv_last_page_len=[1])),
])
def test_the_parameters_that_the_stub_names_are_those_that_are_taken(name, required):
    (init,) = [node for node in CLASSES[name].body if getattr(node, "name", "") == "__init__"]
    defaults = {argument.arg: ast.literal_eval(default)
                for argument, default in zip(init.args.kwonlyargs, init.args.kw_defaults) if default is not None}
    given = {**defaults, **required}
    if name == "AttentionPlan":
        given["block_table"] = None
    assert getattr(pagedkv, name)(**given)
    assert set(given) == {argument.arg for argument in init.args.kwonlyargs}

"""Registries: names of parts, what is made under them, and what is said where they are used wrongly."""

from __future__ import annotations

import ast
import importlib
import itertools
import re
import sys
from pathlib import Path

import pytest
import torch

import helios_fn as hf
from helios_fn import registry
from helios_fn.registry import METRICS, OPTIMIZERS, REGISTRIES, Registry, discover


def line() -> int:
    return sys._getframe(1).f_lineno


@pytest.fixture
def shapes() -> Registry:
    return Registry("shape")


class TestRegister:
    def test_a_part_is_made_under_its_own_name_or_another(self, shapes):
        """The decorator gives back what it decorates; create calls it."""

        @shapes.register
        class Square:
            def __init__(self, side: int = 1) -> None:
                self.side = side

        @shapes.register("flat")
        def rectangle(a, b):
            return a * b

        assert isinstance(Square(2), Square)
        assert shapes.create("Square", side=3).side == 3
        assert shapes.create("flat", 2, b=4) == rectangle(2, 4)
        assert shapes.names() == tuple(shapes) == ("Square", "flat")
        assert "flat" in shapes
        assert "rectangle" not in shapes
        assert len(shapes) == 2

    def test_a_name_taken_twice_names_both_places(self, shapes):
        """The first stays."""
        first = line() + 2

        @shapes.register("one")
        def one():
            return 1

        second = line() + 4
        both = rf"registered twice: at {__name__}:{first} and now at {__name__}:{second}"
        with pytest.raises(ValueError, match=both):

            @shapes.register("one")
            def other():
                return 2

        assert shapes.create("one") == 1
        shapes.register("one", replace=True)(other := lambda: 3)
        assert shapes.create("one") == other()

    def test_the_same_definition_once_more_replaces_the_first(self, shapes):
        """As by a reload, or by a script that is imported under its own name too."""
        for value in (1, 2):

            @shapes.register
            def part(value=value):
                return value

        assert shapes.create("part") == 2

    @pytest.mark.parametrize(
        ("register", "message"),
        [
            (lambda r: r.register("a b")(int), "'a b' cannot name a shape"),
            (lambda r: r.register("")(int), "'' cannot name a shape"),
            (lambda r: r.register("a")(3), "decorates a class or a function, got 3"),
            (lambda r: r.register(3), "decorates a class or a function, got 3"),
        ],
    )
    def test_what_is_no_part_is_refused(self, shapes, register, message):
        """With what it was."""
        with pytest.raises((TypeError, ValueError), match=re.escape(message)):
            register(shapes)


class TestCreate:
    def test_an_unknown_name_gets_the_closest_ones(self):
        """And all that there are."""
        with pytest.raises(ValueError, match=r"no optimizer 'AdamWW'; did you mean 'adamw' or 'adam'\?.*rmsprop, sgd"):
            registry.create_optimizer("AdamWW")

    def test_an_empty_registry_says_how_to_fill_it(self, shapes):
        """By an import, or discover."""
        with pytest.raises(ValueError, match="none is registered: import the module"):
            shapes.create("x")

    def test_wrong_arguments_get_the_signature_and_its_place(self, shapes):
        """Before anything is called."""

        @shapes.register
        def box(width: int, *, depth: int = 2):
            raise AssertionError

        where = re.escape(f"box(width: int, *, depth: int = 2), at {shapes.where('box')}")
        with pytest.raises(TypeError, match=rf"missing a required argument: 'width'\. It is {where}"):
            shapes.create("box")
        with pytest.raises(TypeError, match=rf"'dept'; did you mean 'depth'\? It is {where}"):
            shapes.create("box", 1, dept=2)

    def test_what_a_part_raises_itself_passes_unchanged(self, shapes):
        """Also a TypeError."""
        fault = TypeError("own")

        @shapes.register
        def broken():
            raise fault

        with pytest.raises(TypeError) as caught:
            shapes.create("broken")
        assert caught.value is fault

    def test_functions_that_others_call_get_their_options_bound(self):
        """Of the registries of functions; a class is called, and its instance is the function."""
        output, target = torch.eye(4), torch.tensor([0, 1, 2, 0])
        top_2 = METRICS.create("top_k", k=2)
        assert top_2.__name__ == "top_k"
        assert float(METRICS.create("accuracy")(output, target)) == 0.75
        assert float(top_2(output, target)) >= 0.75

        functions = Registry("function", binds=True)

        @functions.register
        class Plus:
            def __init__(self, n):
                self.n = n

            def __call__(self, x):
                return x + self.n

        assert functions.create("Plus", n=2)(3) == 5


class TestTheLibrarysOwn:
    @pytest.mark.parametrize(
        ("kind", "name"), [(each, name) for each in REGISTRIES for name in each], ids=lambda each: str(each)[:20]
    )
    def test_every_name_of_the_library_leads_somewhere(self, kind, name):
        """To something that can be called."""
        assert callable(kind.get(name))

    def test_every_optimiser_and_schedule_of_the_library_is_registered(self):
        """But those that are made of classes and functions, which no name can give."""
        returned = {name: getattr(value, "__annotations__", {}).get("return") for name, value in vars(hf.optim).items()}
        made = {kind: {name for name in returned if returned[name] == kind} for kind in ("Optimizer", "Transform")}
        assert made["Optimizer"] - {"from_torch", "tunable"} == set(OPTIMIZERS)
        assert made["Transform"] - {"masked"} == set(registry.GRADIENT_TRANSFORMS)
        shapes = {name for name, value in vars(hf.schedules).items() if callable(value) and name.islower()}
        assert shapes - {"from_torch"} == set(registry.SCHEDULES)

    @pytest.mark.parametrize("module", [hf.registry, hf.experiment], ids=["registry", "experiment"])
    def test_importing_them_imports_nothing_heavy(self, module):
        """TOML is imported when a file is read, and a part when it is made."""
        for path in Path(module.__file__).parent.glob("*.py"):
            for node in ast.parse(path.read_text()).body:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
                assert not {"tomllib", "tensorboard", "helios_fn"} & set(names), path.name


COUNTER = itertools.count()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a package of given modules, and gives its name."""

    def write(modules: dict[str, str]) -> str:
        name = f"found_{next(COUNTER)}"
        for path, text in {"__init__.py": "", **modules}.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        importlib.invalidate_caches()
        return name

    monkeypatch.syspath_prepend(str(tmp_path))
    return write


class TestDiscover:
    def test_all_modules_of_a_package_are_imported_but_its_programs(self, package):
        """In the order of their names, packages inside it included; __main__ is left alone."""
        name = package({"b.py": "", "a/__init__.py": "", "a/c.py": "", "__main__.py": "raise SystemExit(3)"})
        assert discover(name) == (name, f"{name}.a", f"{name}.a.c", f"{name}.b")
        assert discover(f"{name}.b") == (f"{name}.b",)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "import not_there",
                r"bad cannot be imported \(found by discover\('\w+'\)\): ModuleNotFoundError: .*bad.py:1",
            ),
            ("\n1 / 0", r"bad cannot be imported .*: ZeroDivisionError: division by zero, in .*bad.py:2"),
            ("raise SystemExit(3)", r"bad cannot be imported .*: SystemExit: 3, in .*bad.py:1"),
            ("def", r"bad cannot be imported .*: SyntaxError: .*bad.py, line 1"),
        ],
    )
    def test_a_module_that_cannot_be_imported_is_named(self, package, text, message):
        """With what it raised, and the line."""
        name = package({"bad.py": text})
        with pytest.raises(ImportError, match=message) as caught:
            discover(name)
        assert caught.value.name == f"{name}.bad"

    @pytest.mark.parametrize(
        ("name", "message"),
        [("not_there", "no package 'not_there'"), ("a b", "'a b' is not the name"), ("..x", "is not the name")],
    )
    def test_a_name_that_is_no_package_is_said_so(self, name, message):
        """Before anything is imported."""
        with pytest.raises((ImportError, ValueError), match=message):
            discover("os", name)

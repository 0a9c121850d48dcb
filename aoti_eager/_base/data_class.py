"""Data classes whose methods are not compiled at import.

``dataclasses.dataclass`` compiles six functions for each class at once, which takes half a
millisecond of an import. A script makes instances of few classes, and hardly ever compares or
prints one. Here, a class gets a compiled constructor only after its first few instances; all other
methods are shared by all classes. Type checkers see ``dataclasses`` itself; ``replace``, ``asdict``
and ``fields`` of ``dataclasses`` work on these classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
else:
    import dataclasses
    from dataclasses import MISSING, Field, FrozenInstanceError, field
    from operator import attrgetter
    from reprlib import recursive_repr

    def dataclass(*, frozen=False, slots=False, eq=True):
        """Return a decorator that makes a data class, as ``dataclasses.dataclass`` does.

        Args:
            frozen: Whether attributes of an instance cannot be set.
            slots: Must be true: an instance with a ``__dict__`` takes twice the memory.
            eq: Whether instances with the same values are equal.

        Raises:
            TypeError: The class derives from another class, or asks for a feature of
                ``dataclasses`` that no class of this package needs.
        """
        if not slots:
            raise TypeError("a data class of this package has slots")

        def decorate(cls):
            if cls.__bases__ != (object,):
                raise TypeError(f"{cls.__qualname__}: a data class derives from no other class")
            return _made(cls, frozen=frozen, eq=eq)

        return decorate

    def _made(cls, *, frozen, eq):
        annotations = cls.__annotations__
        space = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
        fields = {}
        for name, annotation in annotations.items():
            if "ClassVar" in str(annotation) or "InitVar" in str(annotation):
                raise TypeError(f"{cls.__qualname__}.{name}: it is no field")
            given = space.pop(name, MISSING)
            one = given if isinstance(given, Field) else field(default=given)
            if not one.init or one.kw_only is True:
                raise TypeError(f"{cls.__qualname__}.{name}: it must be an argument")
            fields[name] = one
        compared = [name for name, one in fields.items() if one.compare]
        hashed = [n for n, one in fields.items() if (one.compare if one.hash is None else one.hash)]
        methods = {
            "__slots__": tuple(fields),
            "__match_args__": tuple(fields),
            "__dataclass_fields__": _Known(),
            "__dataclass_params__": _Known(),
            "__init__": _first_init,
            "__repr__": _repr,
            "__getstate__": _getstate,
            "__setstate__": _setstate,
        }
        if frozen:
            methods |= {"__setattr__": _refuse_to_set, "__delattr__": _refuse_to_delete}
        if eq:
            methods |= {"__eq__": _equal(compared), "__hash__": None}
            if frozen:
                methods["__hash__"] = _hash(hashed)
        # The class's own methods win, except a ``__hash__`` that Python has set to None.
        own = {k: v for k, v in space.items() if not (k == "__hash__" and v is None)}
        made = type(cls)(cls.__name__, cls.__bases__, {**methods, **own})
        _fields[made] = fields
        return made

    # class -> its fields by name
    _fields = {}
    # class -> number of instances made. The constructor is compiled after ``_MOST`` instances; that
    # takes as long as making a few dozen instances without a compiled constructor.
    _instances = {}
    _MOST = 16

    def _made_by_us(cls):
        return next(one for one in cls.__mro__ if one in _fields)

    def _first_init(self, *args, **kwargs):
        cls = _made_by_us(type(self))
        fields = _fields[cls]
        values = dict(zip(fields, args, strict=False))
        count = _instances[cls] = _instances.get(cls, 0) + 1
        is_right = len(args) <= len(fields) and not (values.keys() & kwargs.keys())
        values |= kwargs
        if count > _MOST or not (is_right and _fill(values, fields)):
            cls.__init__ = _init(fields)
            cls.__init__(self, *args, **kwargs)  # Raises Python's own error for wrong arguments.
            return
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _fill(values, fields):
        """Fill in the defaults of missing fields; return whether every field has a value then."""
        for name, one in fields.items():
            if name not in values:
                if one.default is not MISSING:
                    values[name] = one.default
                elif one.default_factory is not MISSING:
                    values[name] = one.default_factory()
                else:
                    return False
        return len(values) == len(fields)

    def _init(fields):
        """Return a constructor: the one method that is compiled for each class."""
        globals_ = {"_set": object.__setattr__, "_missing": MISSING}
        parameters, lines = [], []
        for name, one in fields.items():
            value = name
            if one.default is not MISSING:
                globals_[f"_default_{name}"] = one.default
                parameters.append(f"{name}=_default_{name}")
            elif one.default_factory is not MISSING:
                globals_[f"_make_{name}"] = one.default_factory
                parameters.append(f"{name}=_missing")
                value = f"_make_{name}() if {name} is _missing else {name}"
            else:
                parameters.append(name)
            lines.append(f" _set(_self, {name!r}, {value})")
        text = f"def __init__(_self, {', '.join(parameters)}):\n" + ("\n".join(lines) or " pass")
        # Compiled before exec: when exec is given text while Python exits, Python forgets that
        # Ctrl-C has ended the script and returns a different exit status.
        code = compile(text, f"<{__name__}>", "exec", dont_inherit=True)
        exec(code, globals_)  # noqa: S102 - of names of fields alone
        return globals_["__init__"]

    class _Known:
        """A class attribute that ``dataclasses`` reads; made by ``dataclasses`` on demand."""

        def __set_name__(self, owner, name):
            self._name = name

        def __get__(self, instance, owner):
            owner = _made_by_us(owner)
            fields = _fields[owner]
            space = {n: f for n, f in fields.items() if f.default is not MISSING}
            space |= {n: f for n, f in fields.items() if n not in space}
            space |= {"__annotations__": owner.__annotations__, "__module__": owner.__module__}
            # Of a class without a docstring, ``dataclasses`` writes down the signature, which takes
            # as long as compiling a module.
            space["__doc__"] = owner.__qualname__
            twin = type(owner.__name__, (), space)
            twin = dataclasses.dataclass(init=False, repr=False, eq=False)(twin)
            for name in ("__dataclass_fields__", "__dataclass_params__"):
                setattr(owner, name, getattr(twin, name))
            return getattr(owner, self._name)

    def _values(names):
        """Return a function that gives a tuple of an instance's values."""
        if len(names) > 1:
            return attrgetter(*names)
        return lambda one: tuple(getattr(one, name) for name in names)

    def _equal(names):
        values = _values(names)

        def __eq__(self, other):
            if other.__class__ is not self.__class__:
                return NotImplemented
            return values(self) == values(other)

        return __eq__

    def _hash(names):
        values = _values(names)

        def __hash__(self):
            return hash(values(self))

        return __hash__

    @recursive_repr()
    def _repr(self):
        shown = (n for n, one in _fields[_made_by_us(type(self))].items() if one.repr)
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
        return f"{type(self).__qualname__}({values})"

    def _refuse_to_set(self, name, value):
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def _refuse_to_delete(self, name):
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def _getstate(self):
        return [getattr(self, name) for name in self.__slots__]

    def _setstate(self, state):
        for name, value in zip(self.__slots__, state, strict=True):
            object.__setattr__(self, name, value)

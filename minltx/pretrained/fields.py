"""Configs from files, read field by field: a complaint names the part of the file and the field."""


def whole(x):
    """Is x a whole number from 1 on, and not absurdly large?"""
    return isinstance(x, int) and not isinstance(x, bool) and 1 <= x <= 2**20


def between(x, low, high):
    """Is x a number from low to high? (NaN never is.)"""
    return isinstance(x, (int, float)) and not isinstance(x, bool) and low <= x <= high


class Fields:
    """A dictionary from a file, with checks. A field that is null counts as absent. All methods raise
    ValueError if the field is absent and has no default, or holds anything else. Raises ValueError for values
    that are not a dictionary."""

    def __init__(self, values, where):
        if not isinstance(values, dict):
            raise ValueError(f"{where} is not an object with fields")
        self.values, self.where = {k: v for k, v in values.items() if v is not None}, where
        self.nulls = values.keys() - self.values.keys()

    def get(self, name, *default):
        """The field, or the default if there is one."""
        if name not in self.values and not default:
            raise ValueError(f"{self.where} lacks the field {name!r}")
        return self.values.get(name, *default)

    def checked(self, name, right, kind, default):
        """The field, if right(value); `kind` says in words what it has to be."""
        value = self.get(name, *default)
        if value is not None and not right(value):
            raise ValueError(f"{self.where}: {name} is {value!r:.60}, not a {kind}")
        return value

    def count(self, name, *default):
        """The field as a positive whole number."""
        return self.checked(name, whole, "positive whole number", default)

    def flag(self, name, default=False):
        """The field as true or false."""
        return self.checked(name, lambda x: isinstance(x, bool), "value of true or false", (default,))

    def number(self, name, *default):
        """The field as a positive number."""
        return self.checked(name, lambda x: between(x, 1e-9, 1e9), "positive number", default)

    def listed(self, name, right, kind, default=None, length=1):
        """The field as a tuple, from a list of at least this length of which every entry is right."""
        values = self.checked(name, lambda x: isinstance(x, (list, tuple)) and all(map(right, x)),
                              f"list of {kind}", () if default is None else (default,))
        if len(values) < length:
            raise ValueError(f"{self.where}: {name} has {len(values)} entries, but {length} are needed")
        return tuple(values)

    def not_null(self, *names):
        """Fields for which null is something else than absent: minltx does not have it."""
        for name in self.nulls & set(names):
            raise ValueError(f"{self.where}: {name} is null, which minltx does not have")

    def must_be(self, **expected):
        """Each field, if present, has to hold this value, or one of a tuple: minltx does not have others."""
        for name, values in expected.items():
            values = values if isinstance(values, tuple) else (values,)
            if name in self.values and self.values[name] not in values:
                raise ValueError(f"{self.where}: {name} is {self.values[name]!r:.60}, and minltx only knows "
                                 f"{' or '.join(map(repr, values))}")

"""Flags from the fields of dataclasses, with the same names in the YAML file of --config.

    parser = OptionParser(GenerateOptions, command="generate", description=__doc__)
    (options,) = parser.read(arguments)

A value comes from the command line, or else the file, or else the field's default; bounds are the dataclass's to check.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from dual_head.console.terminal import note, shown
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.options.config_file import read_options
from dual_head.options.extensions import Extensions
from dual_head.options.help import Help, listed
from dual_head.options.texts import converter, flag_kind, truth, yaml_text

SETTINGS = ("metavar", "choices", "nargs", "const", "help")  # of fields, as argparse names them


class OptionParser(argparse.ArgumentParser):
    """A parser of the options that dataclasses declare; its messages show no secret.

    aliases: {other name of a key in the file: the options it sets}; sections: keys of the file that only group options;
    constants: {key the file may repeat: the value it must have}; listings: {heading: extensions that --help lists};
    translate: turns the values of the file into values of this command's options.
    """

    def __init__(
        self,
        *classes: type,
        command: str,
        description: str | None,
        usage: str | None = None,
        aliases: Mapping[str, Sequence[str]] | None = None,
        sections: Sequence[str] = (),
        constants: Mapping[str, str] | None = None,
        listings: Mapping[str, Extensions] | None = None,
        translate: Callable[[dict[str, Any], Path, list[str]], dict[str, Any]] = lambda values, *_: values,
        **settings: Any,
    ):
        prog = f"dual-head {command}"
        settings = {"formatter_class": Help, "allow_abbrev": False, **settings}
        super().__init__(prog=prog, description=description, **settings)
        self._negative_number_matcher = re.compile(r"-\.?\d")  # a value: -1e-3 and -1,0 too, as Python 3.14 has it
        self.classes, self.sections, self.translate = classes, sections, translate
        self._declared: dict[str, tuple[Field, Any]] = {}  # by name: the field and its type
        self.aliases, self.constants, self.listings = dict(aliases or {}), dict(constants or {}), dict(listings or {})
        for cls in classes:
            self._add(cls)
        self.usage = f"{prog} {usage or self._needed()}"
        self.add_argument("--config", metavar="FILE", help="YAML file with any of these options")
        self.add_argument(
            "--allow_code",
            action="store_true",
            help="run code that the YAML file names: a rule or reward module:function, or trust_remote_code",
        )

    def read(self, arguments: Sequence[str]) -> tuple[Any, ...]:
        """Read flags over the file of --config: one object of each class, then the values of all other flags.

        Errors: an unknown flag or key (the nearest is offered), values of other types or out of bounds.
        """
        return self.objects(self.namespace(arguments))

    def namespace(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Read flags over the file of --config, and build nothing. Errors: see `read`."""
        self.take_file(arguments)
        self._refuse_unknown(arguments)
        values = vars(self.parse_args(list(arguments)))
        return argparse.Namespace(**{name: values[name] for name in values if name not in ("config", "allow_code")})

    def objects(self, namespace: argparse.Namespace) -> tuple[Any, ...]:
        """Build one object of each class, then the values of all other flags. Errors: values out of bounds."""
        values, objects = dict(vars(namespace)), []
        for cls in self.classes:
            names = [f.name for f in fields(cls) if f.init and f.name in values]
            try:
                objects.append(cls(**{name: values.pop(name) for name in names}))
            except DualHeadError:
                raise
            except ValueError as error:  # how TrainingArguments refuses a combination of flags
                raise DualHeadError(str(error)) from error
        undeclared = {action.dest for action in self._actions} - {*self._declared, "help", "config", "allow_code"}
        return (*objects, argparse.Namespace(**values)) if undeclared else tuple(objects)

    def take_file(self, arguments: Sequence[str]) -> None:
        """Take the values of the file of --config, if it is among the arguments, as defaults.

        Errors: an unreadable file, an unknown key (the nearest is offered), an option given twice, code that is named
        without --allow_code.
        """
        before = before_parsing(arguments)
        if not before.config:
            return
        file = Path(before.config)
        values = self.translate(read_options(file, allow_code=before.allow_code), file, self.names())
        defaults: dict[str, Any] = {}
        places: dict[str, str] = {}
        for place, key, value in self._entries(values, file):
            for action in self._actions_of(key, value, file):
                if (name := action.dest) in places:
                    twice = f"as {places[name]} and as {place}"
                    raise DualHeadError(f"The config '{file}' gives '{name}' twice, {twice}. Leave one out.")
                places[name] = place
                if value is not None or self._may_be_none(name):
                    defaults[name] = self._from_file(action, value, file)
                    action.required = False
        self.set_defaults(**defaults)
        _note_aliases(file, tuple((place, name) for name, place in places.items()), tuple(self.aliases))

    def names(self) -> list[str]:
        """Name every option, as a file does."""
        flags = (flag.removeprefix("--") for flag in self._option_string_actions if "-" not in flag.lstrip("-"))
        return [*flags, *(action.dest for action in self._get_positional_actions())]

    # ---- keys of a file ------------------------------------------------------------------------------------

    def _entries(self, values: Mapping[str, Any], file: Path) -> Iterator[tuple[str, str, Any]]:
        """Every option as (where it stands, key, value), those of sections too. Errors: a section with one value."""
        for key, value in values.items():
            prefix = f"{key}." if any(flag.startswith(f"--{key}.") for flag in self._option_string_actions) else ""
            if isinstance(value, dict) and (prefix or key in self.sections):
                yield from ((f"{key}.{name}", f"{prefix}{name}", entry) for name, entry in value.items())
            elif key not in self.sections:
                yield key, key, value
            elif value is not None:
                raise DualHeadError(
                    f"'{key}' in '{file}' groups options. Write them below it, each on a line of its own and indented."
                )

    def _actions_of(self, key: str, value: Any, file: Path) -> list[argparse.Action]:
        """The arguments that a key stands for; none for a constant. Errors: an unknown key, another constant."""
        if key in self.constants:
            if value != self.constants[key]:
                raise DualHeadError(
                    f"The config '{file}' is for the {key} '{value}', and this command for '{self.constants[key]}'. "
                    f"Run '{self.prog.rsplit(' ', 1)[0]} {value}' with it."
                )
            return []
        positionals = {action.dest: action for action in self._get_positional_actions()}
        named = {flag.removeprefix("--"): action for flag, action in self._option_string_actions.items()} | positionals
        names = self.aliases.get(key, (key,))
        if key in ("help", "config") or not named.keys() >= {*names}:
            keys = [*self.names(), *self.aliases, *self.sections]
            raise DualHeadError(f"Unknown key '{key}' in '{file}'.{did_you_mean(key, keys)}")
        return [named[name] for name in names]

    def _may_be_none(self, name: str) -> bool:
        """Whether null is a value of an option; of any other it stands for the default."""
        return name not in self._declared or type(None) in get_args(self._declared[name][1])

    def _from_file(self, action: argparse.Action, value: Any, file: Path) -> Any:
        """A YAML value as its flag has it. Errors: one that the flag would refuse."""
        f, hint = self._declared.get(action.dest, (None, Any))
        if value is None or (hint is Any and action.type is yaml_text):
            return value
        if isinstance(value, list) and f is not None and f.metadata.get("commas"):
            value = ",".join(map(str, value))
        if isinstance(action, _Repeated) or action.nargs in ("+", "*"):
            return [self._of_flag(action, part, file) for part in (value if isinstance(value, list) else [value])]
        if type(value) in {get_origin(part) or part for part in get_args(hint) or (hint,)} & {list, dict}:
            return value
        return self._of_flag(action, value, file)

    def _of_flag(self, action: argparse.Action, value: Any, file: Path) -> Any:
        convert = truth if action.nargs == 0 else action.type if callable(action.type) else str
        try:
            typed = None if isinstance(value, (list, dict)) else convert(str(value))
            if typed is None or (action.choices is not None and typed not in action.choices):
                raise ValueError
        except DualHeadError:
            raise
        except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
            choices = f" It must be one of {', '.join(map(str, action.choices))}." if action.choices else ""
            raise DualHeadError(f"'{action.dest}' in '{file}' cannot be {value!r}.{choices}") from error
        return typed

    # ---- flags ---------------------------------------------------------------------------------------------

    def _add(self, cls: type) -> None:
        """Add a flag for each field, under its heading; a class's own headings stand before those of its bases."""
        declared = {f.name: f for f in fields(cls) if f.init}
        titles: dict[str, str] = {}
        for base in reversed(cls.__mro__):
            title = getattr(cls, "_argument_group_name", "")
            for name, f in vars(base).get("__dataclass_fields__", {}).items():
                if name in vars(base)["__annotations__"]:
                    titles[name] = title = f.metadata.get("heading", title)
        names = (name for base in cls.__mro__ for name in vars(base).get("__annotations__", ()))
        groups = {title: self.add_argument_group(title) for title in dict.fromkeys(map(titles.get, names)) if title}
        hints = get_type_hints(cls)
        switch = 0 if any(f.metadata.get("positional") for f in declared.values()) else "?"
        for name, f in declared.items():
            self._add_field(groups.get(titles[name], self), f, hints[name], switch)

    def _needed(self) -> str:
        """The required arguments, for the usage line."""
        words = []
        for action in self._actions:
            name = str(action.metavar or action.dest.upper())
            if not action.option_strings:
                words.append({"+": f"{name} [{name} ...]", "*": f"[{name} ...]"}.get(str(action.nargs), name))
            elif action.required:
                words.append(f"{action.option_strings[0]} {name}")
        return " ".join([*words, "[options]"])

    def _add_field(self, group: Any, f: Field, hint: Any, switch: Literal[0, "?"]) -> None:
        kind, several = flag_kind(hint)
        if kind is None:
            return  # an object: only Python can pass one
        self._declared[f.name] = f, hint
        required = f.default is MISSING and f.default_factory is MISSING
        settings = {name: f.metadata[name] for name in SETTINGS if name in f.metadata}
        settings["default"] = None if required else f.default if f.default_factory is MISSING else f.default_factory()
        if kind is bool:
            settings |= {"type": truth, "nargs": "?", "const": True} if switch else {"action": "store_true"}
        else:
            settings = {**converter(kind), **settings}
        if several and f.metadata.get("repeat"):
            settings["action"] = _Repeated
        elif several:
            settings.setdefault("nargs", "+")
        if f.metadata.get("positional"):
            group.add_argument(f.name, **({} if required else {"nargs": "?"}) | settings)
            return
        group.add_argument(
            *_spellings(f.name, *f.metadata.get("flags", ())), dest=f.name, required=required, **settings
        )
        if kind is bool and settings["default"] is True:
            negation = {"action": "store_false", "default": True, "help": settings.get("help")}
            group.add_argument(*_spellings(f"no_{f.name}"), dest=f.name, **negation)

    def _refuse_unknown(self, arguments: Sequence[str]) -> None:
        """Refuse unknown flags. Errors: the first one, with the nearest known flag."""
        for argument in arguments:
            flag = argument.split("=")[0]
            if flag.startswith("--") and flag not in self._option_string_actions:
                hint = did_you_mean(flag, self._option_string_actions) if len(flag) > 2 else ""
                raise DualHeadError(f"Unknown option '{flag}'.{hint if 'Did you mean' in hint else ' See --help.'}")

    # ---- argparse ------------------------------------------------------------------------------------------

    def format_help(self) -> str:
        """Add the listings, which other packages may extend; they are searched only now."""
        lists = (f"{title}:\n{listed(extensions.summaries())}\n" for title, extensions in self.listings.items())
        return "\n".join([super().format_help(), *lists])

    def error(self, message: str) -> NoReturn:
        """Print a complaint without its secrets, and exit with 2."""
        super().error(shown(message))

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.option_strings and arg_strings == ["--"]:  # of "--flag=--", which argparse drops
            raise argparse.ArgumentError(action, "expects a value, not --")
        return super()._get_values(action, arg_strings)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = (action.option_strings or [action.dest])[0]
            raise DualHeadError(f"{name} cannot be {value!r}.{did_you_mean(value, map(str, action.choices))}")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            if isinstance(error.__context__, DualHeadError):  # a ValueError, whose words argparse would drop
                raise error.__context__ from None
            raise


def before_parsing(arguments: Sequence[str], *names: str) -> argparse.Namespace:
    """Read --config, --allow_code and the flags of these names; ignore all other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("config", *names):
        parser.add_argument(f"--{name}", nargs="?")
    parser.add_argument("--allow_code", action="store_true")
    return parser.parse_known_args(list(arguments))[0]


class _Repeated(argparse.Action):
    """A flag of which each use adds a value; the first use replaces the default, or the file's value."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        del parser, option_string
        current = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if current is self.default else current), values])


def _spellings(*names: str) -> list[str]:
    """The flags of names; each may be written with hyphens instead of underscores."""
    return [f"--{name}" for name in names] + [f"--{name.replace('_', '-')}" for name in names if "_" in name]


@cache
def _note_aliases(file: Path, places: tuple[tuple[str, str], ...], aliases: tuple[str, ...]) -> None:
    """Tell once which keys of a file have another name here."""
    if renamed := [f"{place} is {name}" for place, name in places if place.rpartition(".")[2] in aliases]:
        note(f"in our spelling, of '{file}': {', '.join(renamed)}")

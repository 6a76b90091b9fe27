"""The command line: parses, calls the API, prints. `qcompile in.onnx -o out.onnx` is `qcompile compile ...`."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn

import click

from qcompile.config import Config, Files, build_settings, decided_by_plan, read_recipe
from qcompile.errors import InputError, QCompileError, near
from qcompile.flags import TYPE_NAMES, Flag, flag_name, flag_of
from qcompile.signals import INTERRUPTED
from qcompile.versions import version_of

WIDTH = 100
GROUPS = ("Precision", "Fusion", "Data", "Output", "Recipe", "Run")
EXAMPLES = """\
qcompile in.onnx -o out.onnx --data calib.npz --w 4 --a 4
qcompile in.onnx -o out.onnx --data photos/ --preprocess imagenet --eval val/
qcompile in.onnx --plan --w 4 --a 8 --bits 'layer1=8,8' --keep-float head
qcompile plot report.json -o figure.svg    (errors and capacities of units)
qcompile check file.onnx    (of any tool: kernels, rules that it breaks)"""
CHECKS = """\
qcompile check file.onnx
qcompile check file.onnx --target tensorrt --json
qcompile check file.onnx --against float.onnx --data calib.npz
qcompile check --explain QC101"""


# --- options: one per field of Config and Files, and those that only a command line has


class Option(click.Option):
    """An option that knows its group in the help. It has no default: what is not given is not passed on."""

    def __init__(self, names: Sequence[str], group: str, **facts: Any) -> None:
        self.group = group
        super().__init__(names, **facts)


def field_option(item: Field[Any]) -> Option:
    """Return the command-line option of one field of `Config` or `Files`."""
    known, long = flag_of(item), flag_name(item.name)
    names = [name for name in (known.short, long) if name]
    many = item.default == ()
    default = "" if item.default in (None, (), False) else f" [{item.default}]"
    text = f"{known.help}{'; repeatable' if many else ''}{default}"
    if known.kind is bool:
        return Option(names, known.group, is_flag=True, default=None, help=text)

    def convert(value: str) -> Any:
        return from_text(long, value, known)

    return Option(names, known.group, type=convert, multiple=many, default=None, metavar=known.metavar, help=text)


def from_text(name: str, value: str, known: Flag) -> Any:
    """Return `value` as a number where the field is one, unless it is a word that stands for a number."""
    if value in known.words:
        return value
    try:
        return known.kind(value)
    except ValueError:
        raise InputError(f"{name} {value!r} has the wrong type", remedy=f"give {TYPE_NAMES[known.kind]}") from None


def show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print the version and leave."""
    if value:
        click.echo(f"qcompile {version_of('qcompile')}")
        ctx.exit()


EXTRA = (
    Option(["--precision"], "Precision", metavar="WXAY", help="both, such as w4a4"),
    Option(["--config", "recipe_path"], "Recipe", metavar="FILE", help="TOML with any of these; flags override it"),
    Option(["--save-config"], "Recipe", metavar="FILE", help="write all settings as a recipe"),
    Option(["--plan", "plan_only"], "Run", is_flag=True, help="print what would be done; needs no data"),
    Option(["-v", "--verbose"], "Run", is_flag=True, help="print each pass with its time; tracebacks"),
    Option(["-q", "--quiet"], "Run", is_flag=True, help="print the verdict and warnings only"),
    Option(
        ["--version"],
        "Run",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show_version,
        help="print the version",
    ),
)
OPTIONS = [*(field_option(item) for part in (Files, Config) for item in fields(part) if item.name != "model"), *EXTRA]
HELP = {"help_option_names": ["-h", "--help"]}


# --- the commands


class Command(click.Command):
    """A command whose help shows its options in groups and ends with examples."""

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the shortest command that works."""
        formatter.write_usage("qcompile", "IN.onnx -o OUT.onnx --data FROM [OPTIONS]")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section per group."""
        options = [item for item in self.params if isinstance(item, Option)]
        for group in GROUPS:
            rows = [record for item in options if item.group == group and (record := item.get_help_record(ctx))]
            rows += [("-h, --help", "print this")] if group == "Run" else []
            with formatter.section(group):
                formatter.write_dl(rows, col_max=40)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        write_examples(formatter, EXAMPLES)


class Check(click.Command):
    """A command whose help ends with examples."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        write_examples(formatter, CHECKS)


def write_examples(formatter: click.HelpFormatter, text: str) -> None:
    """Write examples as they stand."""
    with formatter.section("Examples"):
        formatter.write("".join(f"  {line}\n" for line in text.splitlines()))


class Main(click.Group):
    """The sub-commands. What does not start with the name of one is for `compile`; every error becomes one line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `compile` in front where no sub-command is named."""
        return super().parse_args(ctx, args if args and args[0] in self.commands else ["compile", *args])

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        """Run and leave with the exit code.

        0 done, 1 the tool failed, 2 bad usage or input, 3 a warning and --strict, 130 interrupted.
        """
        arguments = list(sys.argv[1:] if args is None else args)
        sys.exit(guarded(lambda: self.run(arguments), verbose=bool({"-v", "--verbose"} & set(arguments))))

    def run(self, arguments: list[str]) -> None:
        """Parse and run; errors come out as exceptions."""
        if other := [text for text in arguments if not is_text(text)]:
            what = f"{other[0]!r} is not UTF-8 text: reports and recipes cannot name it"
            raise InputError(what, remedy="rename the file")
        with self.make_context("qcompile", list(arguments), max_content_width=WIDTH, obj=arguments) as context:
            self.invoke(context)


def is_text(argument: str) -> bool:
    """Say whether an argument can be written: Python keeps bytes that are no UTF-8 as surrogates."""
    return argument.encode(errors="ignore").decode() == argument


def guarded(action: Callable[[], None], *, verbose: bool) -> int:
    """Run `action`; return the exit code, after writing one line to stderr where it failed."""
    try:
        action()
    except click.exceptions.Exit as left:
        return left.exit_code
    except click.UsageError as error:
        return complain(usage_text(error), InputError.exit_code)
    except QCompileError as error:
        if verbose and error.exit_code == 1:
            traceback.print_exc()
        return complain(str(error), error.exit_code)
    except KeyboardInterrupt as interrupt:
        return complain(f"interrupted{interrupt}", INTERRUPTED)
    except Exception as error:
        if verbose:
            traceback.print_exc()
        hint = "" if verbose else "; run again with -v for the traceback"
        return complain(f"qcompile failed: {type(error).__name__}: {error}{hint}", 1)
    return 0


def complain(text: str, code: int) -> int:
    """Write one line to stderr; return `code`."""
    line = f"error: {' '.join(text.split())}"
    click.echo(line.encode(errors="backslashreplace").decode(), err=True)  # a name may be no text
    return code


MISSING = {  # what click says where the argument of a command is missing
    "compile": "no model given; qcompile IN.onnx -o OUT.onnx --data FROM, or qcompile --help",
    "plot": "no report given; qcompile plot REPORT.json -o FIG.svg",
    "check": "no file given; qcompile check FILE.onnx, or qcompile check --explain QC101",
}


def usage_text(error: click.UsageError) -> str:
    """Return click's error as one line that says what to do."""
    named = error.ctx.info_name or "" if error.ctx else ""
    command = named if named in main.commands else "compile"
    see = f"see qcompile {'' if command == 'compile' else f'{command} '}--help"
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        known = [name for item in error.ctx.command.params for name in item.opts if name.startswith("--")]
        close = near(error.option_name, known)
        text = f"unknown flag {error.option_name}; {f'did you mean {close!r}?' if close else see}"
    elif isinstance(error, click.MissingParameter):
        text = MISSING[command]
    else:
        text = error.format_message().rstrip(".")
        text = f"{text[:1].lower()}{text[1:]}; {see}"
    is_model = command != "compile" and Path(command).exists()
    return f"{text}; a model of the name {command} is ./{command}" if is_model else text


@click.group(cls=Main, add_help_option=False)
def main() -> None:
    """Compile a float ONNX model to a quantized one."""


@main.command("compile", cls=Command, params=OPTIONS, context_settings=HELP)
@click.argument("model", metavar="IN.onnx", required=False)
@click.pass_obj
def compile_command(
    arguments: list[str],
    /,
    recipe_path: str | None,
    save_config: str | None,
    plan_only: bool,
    verbose: bool,
    quiet: bool,
    **flags: Any,
) -> None:
    """Quantize a float ONNX model with unlabelled samples; the file it writes runs on integer kernels, and was run."""
    given = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in flags.items()
        if value not in (None, ())
    }
    stored = read_recipe(Path(recipe_path)) if recipe_path else {}
    with naming_recipe(recipe_path, stored, given):
        config, files = build_settings(stored, given)
        check_request(files, given, plan_only=plan_only)
        from qcompile import commands  # what is said above needs none of the libraries behind it

        request = commands.Request(config, files, recipe_path, save_config, plan_only)
        commands.compile_model(request, arguments, verbose=verbose, quiet=quiet)


@contextmanager
def naming_recipe(path: str | None, stored: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[None]:
    """Name the recipe and its key in an error about a value that comes from there."""
    try:
        yield
    except InputError as error:
        keys = {key.replace("_", "-"): value for key, value in stored.items() if key.replace("-", "_") not in given}
        asked = re.match(r"--([a-z-]+)|unknown recipe key '(.+)'", error.what)
        named = (asked[1] or asked[2]).replace("_", "-") if asked else ""
        named = "precision" if named in ("w", "a") and named not in keys else named
        key = next((key for key, value in keys.items() if key == named or (error.where and error.where == value)), None)
        if key is None:
            raise
        where = ", ".join(filter(None, [f"{path}: {key}", error.where]))
        raise InputError(error.what, where=where, remedy=error.remedy) from error


def check_request(files: Files, given: Mapping[str, Any], *, plan_only: bool) -> None:
    """Raise InputError where something is missing, or two things that were asked for cannot both be done."""
    if not files.model:
        raise InputError(MISSING["compile"])
    nowhere = not files.out and not plan_only
    if nowhere and not os.path.exists(files.model):  # noqa: PTH110  (Path.exists fails for names too long)
        remedy = "qcompile IN.onnx -o OUT.onnx --data FROM, or qcompile --help"
        raise InputError("there is no such model, and no such command", where=files.model, remedy=remedy)
    if nowhere:
        raise InputError("no output file", remedy="give -o OUT.onnx, or --plan to see what would be done")
    if plan_only and files.save_plan:
        raise InputError(
            "--plan decides without numbers, so there is nothing to save", remedy="leave --plan or --save-plan out"
        )
    if plan_only and files.load_plan:
        what = "--plan decides anew, so --load-plan has no effect"
        raise InputError(what, where=files.load_plan, remedy="leave --plan or --load-plan out")
    if files.load_plan and (asked := [name for name in ("precision", *decided_by_plan()) if name in given]):
        what = f"{flag_name(asked[0])} has no effect: the plan decides it"
        raise InputError(what, where=files.load_plan, remedy="leave it or --load-plan out")


@main.command("plot", context_settings=HELP)
@click.argument("report", metavar="REPORT.json")
@click.option("-o", "--out", metavar="FIG.svg", help="the figure to write: .png or .svg")
def plot_command(report: str, out: str | None) -> None:
    """Draw the errors and capacities of units that a report holds, and which units were trained together."""
    if not out:
        raise InputError("no output file", remedy="give -o FIG.svg or -o FIG.png")
    from qcompile import commands

    commands.plot_report(Path(report), Path(out))


@main.command("targets", context_settings=HELP)
@click.argument("target", metavar="[NAME or FILE.toml]", required=False)
def targets_command(target: str | None) -> None:
    """List what --target can be: what each is for, and what was proven where; of one of them all facts, as TOML."""
    from qcompile import commands

    commands.list_targets(target)


@main.command("check", cls=Check, context_settings=HELP)
@click.argument("file", metavar="FILE.onnx", required=False)
@click.option("--target", metavar="NAME", default="ort-cpu", help="ort-cpu, openvino or tensorrt [ort-cpu]")
@click.option("--against", metavar="FLOAT.onnx", help="the float model: measures agreement and speed; needs --data")
@click.option("--data", metavar="FROM", help="samples, in the forms that compiling takes")
@click.option("--preprocess", metavar="NAME", help="what happens to images, as in compiling")
@click.option("--json", "as_json", is_flag=True, help="print all that is known as JSON")
@click.option("--explain", metavar="CODE", help="print what a rule looks for, why, and how to mend it")
@click.pass_context
def check_command(ctx: click.Context, /, file: str | None, explain: str | None, as_json: bool, **flags: Any) -> None:
    """Say what is quantized in an ONNX file, whoever made it, what runs on integers, and what is wrong.

    Exit codes: 0 nothing found, 1 findings (notes do not count), 2 bad input.
    """
    if not file and not explain:
        raise InputError(MISSING["check"])
    from qcompile import commands

    if explain:
        commands.explain_rule(explain)
    elif not commands.check_file(file or "", as_json=as_json, **flags):
        ctx.exit(1)

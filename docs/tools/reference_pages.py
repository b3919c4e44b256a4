"""Reference pages, made of the code at every build: nothing here is written down twice.

reference/cli.md      commands, arguments and options, from typer
reference/http.md     routes and fields, from the OpenAPI schema; examples asked of the endpoint itself
reference/recipes.md  every key of a recipe, from the pydantic models
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from html import escape
from typing import Any

import typer
from http_examples import EXAMPLES, asked
from typer.core import TyperGroup

from prism import cli
from prism.serving.reference import kind, sections
from prism.training.recipe import Recipe

Schema = Mapping[str, Any]


# --- commands --------------------------------------------------------------------------------------------------------


def cli_page() -> str:
    """Every command with its help, its arguments and its options."""
    group = typer.main.get_command(cli.app)
    commands = [(f"prism {name}", command) for name, command in sorted(_commands(group))]
    table = "\n".join(
        f"| [`{name}`](#{_anchor(name)}) | {_cell(_first_sentence(command.help))} |" for name, command in commands
    )
    parts = [
        "# Command line",
        "`prism COMMAND --help` says the same in a terminal. `python -m prism` is `prism`, `prism-train` is"
        " `prism train`; `prism --install-completion` teaches the shell to complete commands and options. Errors are"
        " one line, `error: …`, with exit code 2.",
        f"| command | |\n|---|---|\n{table}",
    ]
    parts += [_command(name, command) for name, command in commands]
    return "\n\n".join(parts) + "\n"


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from _commands(command, f"{prefix}{name} ")
        elif not command.hidden:
            yield prefix + name, command


def _command(name: str, command: Any) -> str:
    context = typer.Context(command, info_name=name)
    records: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None:
            records[parameter.param_type_name].append(record)
    arguments = " ".join(record[0].partition(" ")[0].upper() for record in records["argument"])
    parts = [
        f"## `{name}` {{#{_anchor(name)}}}",
        inspect.cleandoc(command.help or ""),
        f"```text\n{' '.join(f'{name} [OPTIONS] {arguments}'.split())}\n```",
    ]
    for title, found in records.items():
        rows = "\n".join(f"| {_code(names)} | {_cell(said)} |" for names, said in found)
        if rows:
            parts.append(f"| {title} | |\n|---|---|\n{rows}")
    return "\n\n".join(parts)


def _first_sentence(text: str | None) -> str:
    paragraph = " ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


def _code(text: str) -> str:
    """Code in a cell of a table, where neither Markdown nor the table's own bars may be seen in it."""
    return "<code>" + re.sub(r"[*_|`~\[\]\\]", lambda found: f"&#{ord(found[0])};", escape(text)) + "</code>"


def _cell(text: str) -> str:
    """Text in a cell of a table; what stands in backticks is code."""
    parts = re.split("`(.+?)`", " ".join(text.split()))
    return "".join(_code(part) if place % 2 else escape(part, quote=False) for place, part in enumerate(parts))


# --- HTTP ------------------------------------------------------------------------------------------------------------


def http_page() -> str:
    """Examples in every dialect with the endpoint's own answers, then routes and fields."""
    openapi, answers = asked(EXAMPLES)
    parts = [
        "# HTTP",
        "The routes of `prism serve`, made of its OpenAPI schema. A running server shows the same at `/docs`, and the"
        " schema at `/openapi.json`. What dialects do differently is in"
        " [Run a server](../repository/serve/README.md#clients).",
        "What the same call does otherwise in Python: a request without documents is refused here (400), as by the"
        " servers that these clients know, and there answers an empty result; `top_n: 0` means all here (but at"
        " `/v2/rerank` and as `top_k`), as with vLLM, and is an error there. An object without `text` is read as YAML"
        " in both, as Cohere's guide has documents sent: a misspelt `text` is part of what is judged, and no error.",
        "## Examples",
        "Each request was sent to an endpoint with mini when this page was built; the answer is what came back.",
    ]
    parts += [_example(title, *answers[title]) for title in answers]
    for section in sections(openapi):
        parts.append(f'## {section.title} {{#{section.anchor}}}\n\n<div markdown="0">{section.body}</div>')
    return "\n\n".join(parts) + "\n"


def _example(title: str, request: Any, answer: str) -> str:
    body = json.dumps(request.body, ensure_ascii=False, indent=2)
    return (
        f"### {title}\n\n{request.note}\n\n"
        f"```sh\ncurl http://127.0.0.1:8000{request.path} -H 'content-type: application/json' -d '{body}'\n```\n\n"
        f"```{request.language}\n{answer}\n```"
    )


# --- recipes ---------------------------------------------------------------------------------------------------------


def recipe_page() -> str:
    """Every key, section by section, in the order of the models."""
    schema = Recipe.model_json_schema()
    models = {"Recipe": schema, **schema["$defs"]}
    parts = [
        "# Recipes",
        "One YAML file says everything about a training run; unknown keys are errors. `extends: other.yaml` takes"
        " everything from another recipe first, `--set a.b=value` changes one key. How to launch one:"
        " [Make training data and train](../repository/recipes/README.md). What a recipe needs and gave stands in its"
        " header: [mini.yaml](../../recipes/mini.yaml), [4b.yaml](../../recipes/4b.yaml).",
    ]
    for name, place in _places("Recipe", models).items():
        title = f"`{place}`" if place else "The recipe itself"
        rows = "\n".join(_key(key, field, models[name]) for key, field in models[name]["properties"].items())
        table = f"| key | value | default | |\n|---|---|---|---|\n{rows}"
        parts.append(f"## {title} {{#model-{name}}}\n\n{_cell(models[name].get('description', ''))}\n\n{table}")
    return "\n\n".join(parts) + "\n"


def _places(name: str, models: Mapping[str, Schema], place: str = "") -> dict[str, str]:
    """Each model with the key it stands under, depth first."""
    found = {name: place}
    for key, field in models[name]["properties"].items():
        for inner in re.findall(r'"#/\$defs/(\w+)"', json.dumps(field)):
            found |= _places(inner, models, f"{place}.{key}".lstrip("."))
    return found


def _key(key: str, field: Schema, model: Schema) -> str:
    default = "required" if key in model.get("required", ()) else ""
    if "default" in field and not isinstance(field["default"], dict):
        default = _code(json.dumps(field["default"])) if field["default"] is not None else ""
    return f"| `{key}` | {kind(field).replace('|', '&#124;')} | {default} | {_cell(field.get('description', ''))} |"


PAGES: Mapping[str, Callable[[], str]] = {
    "reference/cli.md": cli_page,
    "reference/http.md": http_page,
    "reference/recipes.md": recipe_page,
}
"""Where each page stands in the site, and what makes it."""

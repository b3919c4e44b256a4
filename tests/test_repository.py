"""The repository itself: layering, lazy imports, sizes, files the wheel needs, commands in the docs."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "prism").rglob("*.py"))
# DESIGN, section 2: a module imports from its own package and from lower floors only. Every name in prism/ stands here.
# Single files of one floor belong together; packages of one floor know neither each other nor those files.
FLOORS = (
    {"version", "errors", "text", "records", "types", "devices", "outputs", "parallel", "scoring", "answering"},
    {"files", "llm", "measures", "reports"},
    {
        *("retrieval", "engines"),
        *(
            "template",
            "chat_template",
            "slots",
            "checkpoint",
            "catalogue",
            "merge",
            "location",
            "export",
            "symptoms",
            "score_version",
        ),
        *("gguf_file", "gguf_writing"),
    },
    {"evidence"},
    {
        *("__init__", "reranker", "backends", "inputs", "windows", "judging", "writing", "quoting", "sourcing"),
        *("comparing", "answer_check", "result", "context", "demo", "options", "query", "preflight"),
    },
    {"data", "labeling", "training", "evaluation", "serving", "integrations", "mcp_server", "doctor"},
    {"cli"},
    {"__main__"},
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def imported(path: Path) -> set[str]:
    """Names of modules a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def unit(path: Path) -> str:
    """The package or single file below prism/ that a path belongs to."""
    return path.relative_to(ROOT / "prism").parts[0].removesuffix(".py")


def is_file(name: str) -> bool:
    return not (ROOT / "prism" / name).is_dir()


def test_every_package_has_its_floor():
    here = {unit(path) for path in MODULES}
    assert here == set(FLOOR_OF)
    assert sum(map(len, FLOORS)) == len(FLOOR_OF), "a name stands on two floors"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_floors(path):
    names = imported(path)
    assert not [n for n in names if n.split(".")[0] in {"eval", "studies", "serve", "tests", "recipes", "configs"}]
    here = unit(path)
    for other in {name.split(".")[1] for name in names if name.startswith("prism.")} - {here}:
        beside = FLOOR_OF[other] == FLOOR_OF[here] and is_file(other) and is_file(here)
        assert FLOOR_OF[other] < FLOOR_OF[here] or beside, f"{here} may not import {other}"


def test_no_two_files_import_each_other():
    """Neither directly nor around a corner: whoever reads one file need not have read the next."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES
    }
    needs = {name: {module_of(found, modules) for found in imported(path)} for name, path in modules.items()}
    needs = {name: found - {name, "prism", None} for name, found in needs.items() if name != "prism"}
    while free := {name for name, found in needs.items() if not found & needs.keys()}:
        needs = {name: found for name, found in needs.items() if name not in free}
    assert not needs, f"in a circle, or above one: {', '.join(sorted(needs))}"


def module_of(name: str, modules: Collection[str]) -> str | None:
    """`prism.types` for `prism.types.Record`; None for what is not ours."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def test_a_public_name_is_defined_once():
    homes: dict[str, set[str]] = {}
    for path in MODULES:
        if unit(path) != "cli":
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
                    homes.setdefault(node.name, set()).add(str(path.relative_to(ROOT)))
    assert {name: sorted(places) for name, places in homes.items() if len(places) > 1} == {}, "another name for one"


def test_import_prism_is_light():
    code = (
        "import sys, prism; heavy = {'torch', 'vllm', 'transformers', 'pydantic', 'fastapi'} & set(sys.modules);"
        "sys.exit(','.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_resolve():
    import prism

    assert set(prism.__all__) <= set(dir(prism))
    for name in prism.__all__:
        assert getattr(prism, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = prism.nonsense


def test_files_stay_small():
    tracked = [*MODULES, *(ROOT / "eval").rglob("*.py"), *(ROOT / "tests").glob("*.py")]
    assert {path.name: n for path in tracked if (n := length(path)) > 600} == {}
    assert {path.name: n for path in (ROOT / "eval").glob("*.py") if (n := length(path)) > 150} == {}


def length(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def commands(path: Path) -> list[str]:
    """Shell lines of a page's fenced `bash` blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_the_docs_parses(page):
    """Options exist, scripts exist, make targets exist: each command is parsed by the program it calls."""
    for line in commands(page):
        words = [word for word in shlex.split(line) if word != "|"]
        program = words[0]
        if program == "make":
            targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            assert set(words[1:]) <= set(targets), line
        elif program in {"prism", "prism-train"}:
            command = ["train"] if program == "prism-train" else words[1 : 3 if words[1] == "data" else 2]
            assert_options_exist(["-m", "prism.cli", *command], words, line)
        elif program == "python" and f'title="{words[1]}"' in page.read_text(encoding="utf-8"):
            continue  # a script of the page itself: tests/test_doc_examples.py
        elif program == "python":
            assert (ROOT / words[1]).is_file(), line
            assert_options_exist([words[1]], words, line)
        else:
            assert program in {"curl", "pip", "git", "cd", "cat", "echo", "export"}, f"who checks {line!r}?"


def assert_options_exist(command: list[str], words: list[str], line: str) -> None:
    done = subprocess.run(
        [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False, env=wide()
    )
    assert done.returncode == 0, f"{line}: {done.stderr}"
    for option in (word.partition("=")[0] for word in words if word.startswith("--")):
        assert option in done.stdout, f"{line}: no option {option}"


def wide() -> dict[str, str]:
    import os

    return {**os.environ, "COLUMNS": "200", "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "TERM": "dumb"}


def test_nothing_of_the_workplace_is_in_the_tree():
    """No machine paths in what ships."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    texts = {".py", ".md", ".yaml", ".yml", ".toml", ".json", ".txt", ""}
    pattern = re.compile(r"(?<![\w.])/(?:work|root|mnt|home/\w+)/")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in texts and path.is_file() and path.stat().st_size < 1_000_000 and path != Path(__file__):
            found = pattern.search(path.read_text(encoding="utf-8", errors="replace"))
            assert found is None, f"{name}: {found}"


def test_every_mutant_still_has_its_line():
    """eval/mutants.py takes too long for the gate; that its list fits the code does not."""
    import yaml

    for name, mutant in yaml.safe_load((ROOT / "eval" / "mutants.yaml").read_text(encoding="utf-8")).items():
        assert (ROOT / mutant["file"]).read_text(encoding="utf-8").count(mutant["old"]) == 1, name
        assert all((ROOT / "tests" / f"test_{file}.py").is_file() for file in mutant["tests"]), name


def test_results_are_slim():
    """Markdown, slim JSON and figures, under 5 MB; runs and HTML pages are made, not kept."""
    listed = subprocess.run(["git", "ls-files", "eval/results"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.splitlines()]
    assert {path.suffix for path in files} <= {".md", ".json", ".svg", ".csv"}
    assert sum(path.stat().st_size for path in files if path.is_file()) < 5_000_000


NAMED_ALIKE = {"__init__.py", "__main__.py", "context.py", "export.py", "serve.py", "write_targets.py"}
"""Names that two files bear: in `cli/`, a command's file bears the name of the file it calls."""


def test_a_file_name_is_given_once():
    homes: dict[str, list[str]] = {}
    for path in MODULES:
        homes.setdefault(path.name, []).append(unit(path))
    assert {name for name, units in homes.items() if len(units) > 1} == NAMED_ALIKE, "name the file after what is in it"
    commands = NAMED_ALIKE - {"__init__.py", "__main__.py"}
    assert {name: units for name in commands if len(units := homes[name]) > 2 or "cli" not in units} == {}

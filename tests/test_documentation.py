"""What the README and the documents say is true: their commands and snippets run."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from terminals import environment

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
NOT_RUN = re.compile(r"<!-- not run: (.+) -->\n\n?\Z")
SMALLER = [
    ('example_scan("walnut")', 'example_scan("walnut", pixels=32)'),
    ("simulate shepp-logan --geometry fan", "simulate shepp-logan --geometry fan --pixels 32"),
    ("--method tv", "--method tv --iterations 200"),
    ('example_scan("walnut", pixels=128)', 'example_scan("walnut", pixels=32)'),
    ('example_scan("walnut", pixels=64)', 'example_scan("walnut", pixels=32)'),
    ("dipct.Grid((128, 128))", "dipct.Grid((32, 32))"),
    ("simulate walnut --geometry fan --pixels 128", "simulate walnut --geometry fan --pixels 32"),
    ("--method dip", "--method dip --iterations 20"),
    ('method="dip"', 'method="dip", iterations=20'),
    (", iterations=1000", ", iterations=20"),
    ("pretrain scan.h5", "pretrain scan.h5 --steps 12 --batch 2 --validation-images 2"),
    ("--method edip", "--method edip --iterations 20"),
    ("dipct choose", "dipct choose --repeats 1 --iterations 5 --baseline-iterations 5"),
    ("--rank 50", "--rank 2"),
    ("simulate shepp-logan --pixels 28", "simulate shepp-logan --pixels 16"),
    ("classifier train", "classifier train --side 16 --number 60 --steps 30 --batch 16"),
    ("--method lso-inr", "--method lso-inr --steps 5"),
    ("--layer layer1 --method dip --iterations 20", "--layer layer1 --method dip --steps 5"),
]
"""What makes the snippets fast enough to be run every time."""
TORCH_OWN = "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
"""What torch.func.jvp raises inside torch on its first use."""


@dataclass(frozen=True)
class Snippet:
    """A block of code of a document."""

    language: str
    code: str
    line: int
    reason: str | None

    @property
    def is_run(self):
        """Whether the test runs it: Python, and shell blocks of dipct commands."""
        runs = self.language == "python" or (
            self.language == "bash" and self.code.startswith("dipct ")
        )
        return runs and self.reason is None


def snippets(path):
    text = path.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        before = text[: match.start()]
        reason = NOT_RUN.search(before)
        found.append(Snippet(match[1], match[2], before.count("\n") + 1, reason and reason[1]))
    return found


def shell_blocks(path):
    return [snippet.code for snippet in snippets(path) if snippet.language == "bash"]


def run_program(command, folder):
    finished = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=900
    )
    return finished.returncode, finished.stdout + finished.stderr


def run_shell(code, folder):
    """Run a block of commands as it stands: its exit code and what it printed."""
    prelude = f'set -euo pipefail\ndipct() {{ "{sys.executable}" -m dipct.cli "$@"; }}\n'
    return run_program(["bash", "-c", prelude + code], folder)


def commands_of(code):
    """The dipct commands of a block as the shell takes them apart."""
    prelude = 'set -euo pipefail\ndipct() { printf \'%s\\0\' "$#" "$@"; }\n'
    told = subprocess.run(["bash", "-c", prelude + code], capture_output=True, text=True)
    assert told.returncode == 0 and told.stdout.endswith("\0"), told.stdout + told.stderr
    words = told.stdout.split("\0")[:-1]
    commands = []
    while words:
        end = 1 + int(words[0])
        commands.append(words[1:end])
        del words[:end]
    return commands


def run_snippets(path, folder, changes=(), shell=run_shell):
    for snippet in snippets(path):
        if not snippet.is_run:
            continue
        code = snippet.code
        for old, new in changes:
            code = code.replace(old, new)
        if snippet.language == "python":
            command = [sys.executable, "-W", "error", "-W", TORCH_OWN, "-c", code]
            code, printed = run_program(command, folder)
        else:
            code, printed = shell(code, folder)
        assert code == 0, f"{path.relative_to(ROOT)}:{snippet.line}\n{printed}"


@pytest.fixture
def shell_within(dipct_command, monkeypatch):
    """Run a block of commands within this process: loading torch for each takes longest."""

    def run(code, folder):
        monkeypatch.chdir(folder)
        printed = ""
        for arguments in commands_of(code):
            outcome = dipct_command(*arguments)
            printed += outcome.out + outcome.err
            if outcome.code:
                return outcome.code, printed
        return 0, printed

    return run


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_snippets_run(path, tmp_path, shell_within):
    run_snippets(path, tmp_path, SMALLER, shell_within)


@pytest.mark.slow
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_snippets_run_word_for_word(path, tmp_path):
    run_snippets(path, tmp_path)


@pytest.mark.parametrize("within", [False, True])
def test_a_false_snippet_is_found(within, tmp_path, shell_within):
    document, shell = tmp_path / "false.md", shell_within if within else run_shell
    for block in ("```python\nraise SystemExit(3)\n```", "```bash\ndipct show none.h5\n```"):
        document.write_text(f"text\n\n{block}\n")
        assert len(snippets(document)) == 1 and snippets(document)[0].line == 3
        with pytest.raises((AssertionError, ValueError)):
            run_snippets(document, tmp_path, shell=shell)
        document.write_text(f"<!-- not run: it fails -->\n{block}\n")
        assert snippets(document)[0].reason == "it fails"
        run_snippets(document, tmp_path, shell=shell)


def test_commands_are_what_the_shell_makes_of_a_block():
    code = "dipct show 'a b.h5'   # a comment\ndipct compare \\\n    one.h5 two.h5\n"
    assert commands_of(code) == [["show", "a b.h5"], ["compare", "one.h5", "two.h5"]]
    for wrong in ("echo x", "dipct show x; false"):
        with pytest.raises(AssertionError):
            commands_of(wrong)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_shell_blocks_are_run_or_say_why_not(path):
    blocks = [snippet for snippet in snippets(path) if snippet.language in ("bash", "python")]
    # The README's first two commands install; `.ci/run` and a person run those.
    installing = [s for s in blocks if "pip install" in s.code]
    assert all(s.is_run or s.reason or s in installing for s in blocks)
    assert not installing or path.name == "README.md"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_within_the_project_lead_somewhere(path):
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    local = [target for target in targets if "://" not in target and "mailto:" not in target]
    missing = [target for target in local if not (path.parent / target).exists()]
    assert not missing


# The README


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_first_command_reconstructs_the_example():
    first = shell_blocks(ROOT / "README.md")[0]
    assert len(first.splitlines()) == 1
    for part in (
        "venv",
        "pip install",
        "dipct reconstruct example:walnut",
        "--method dip",
        "--out",
    ):
        assert part in first


def test_the_second_command_runs_the_tests():
    second = shell_blocks(ROOT / "README.md")[1]
    assert len(second.splitlines()) == 1
    assert "[test]" in second and second.rstrip().endswith("-m pytest")


def test_the_python_snippet_is_ten_lines_or_fewer():
    (snippet,) = [s for s in snippets(ROOT / "README.md") if s.language == "python"]
    assert len(snippet.code.splitlines()) <= 10 and "example_scan" in snippet.code


def test_ci_runs_the_second_command_word_for_word():
    script = ROOT / ".ci" / "run"
    text = script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK) and "README.md" in text and "DIPCT_DATA" in text
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    assert "pytest" not in code and "pip install" not in code
    (extraction,) = re.findall(r"^command=\$\((.*)\)$", text, re.M)
    extracted = subprocess.run(
        ["bash", "-c", extraction], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert extracted.stdout == shell_blocks(ROOT / "README.md")[1]
    assert re.search(r'^bash .*-c "\$command"$', text, re.M)

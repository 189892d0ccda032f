"""`fastrnn completion`: a real shell completes the commands with its scripts."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from fastrnn.cli import main

pytestmark = pytest.mark.any_isa
pytest.importorskip("shtab")
bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.onnx").touch()
    (tmp_path / "models").mkdir()
    return tmp_path


def script(capsys, *options):
    assert main(["completion", *options]) == 0
    return capsys.readouterr().out


def completed(text, words, folder):
    """What bash offers for the last of these words after it has read the script."""
    name = words[0]
    ask = f"""
COMP_WORDS=({" ".join(f"'{w}'" for w in words)})
COMP_CWORD={len(words) - 1}
COMP_LINE='{" ".join(words)}'
COMP_POINT=${{#COMP_LINE}}
function=$(complete -p -- {name} | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$function" {name} '{words[-1]}' '{words[-2]}'
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", f"{text}\n{ask}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return {word.strip() for word in done.stdout.split("\n") if word.strip()}


@bash
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["fastrnn", "ver"], {"verify"}),
        (["fastrnn", "verify", "--aga"], {"--against"}),
        (["fastrnn", "verify", "--against", "ke"], {"keras"}),
        (["fastrnn", "inspect", "mod"], {"model.onnx", "models"}),
        (["fastrnn", "inspect", "--gra"], {"--graph"}),
        (["fastrnn", "inspect", "--graph", "model.o"], {"model.onnx"}),
        (["fastrnn", "completion", "z"], {"zsh"}),
    ],
)
def test_bash_completes(words, offered, capsys, folder):
    assert completed(script(capsys, "bash"), words, folder) == offered


@bash
def test_bash_completes_the_other_command(capsys, folder):
    text = script(capsys, "bash", "--for", "fastrnn-convert")
    assert completed(text, ["fastrnn-convert", "--ver"], folder) >= {"--verify"}
    assert completed(text, ["fastrnn-convert", "model.o"], folder) == {"model.onnx"}


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_scripts(shell, capsys, tmp_path):
    text = script(capsys, shell)
    assert "verify" in text
    assert json.loads(script(capsys, shell, "--json"))["script"].rstrip() == text.rstrip()
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"no {shell}, so the script is not read")
    (tmp_path / "script").write_text(text)
    done = subprocess.run([found, "-n", tmp_path / "script"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_without_shtab_it_says_what_to_install(tmp_path):
    (tmp_path / "shtab.py").write_text("raise ImportError")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "fastrnn", "completion", "bash"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "completion needs the shtab package: pip install 'fastrnn[completion]'" in done.stderr

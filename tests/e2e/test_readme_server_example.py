"""The example in the README runs as it is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import fastserve
from fastserve.tools.ports import free_ports
from tests.synthetic.tiny_encoders import save_encoder

README = Path(__file__).resolve().parents[2] / "README.md"
HEADING = "## From Python: FastServeServer"
PORT = "8000"


def example():
    section = README.read_text(encoding="utf-8").split(f"\n{HEADING}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return code


def test_the_example_prints_entities_served_by_fastserve_and_by_the_users_function(tmp_path):
    save_encoder("token-classification", "bert", tmp_path / "bert-finetuned-ner")
    (free,) = free_ports("127.0.0.1", 1)
    code = example()
    assert code.count(PORT) == 2
    (tmp_path / "example.py").write_text(code.replace(PORT, str(free)))  # 8000 may be taken where the tests run
    environment = {**os.environ, "PYTHONPATH": str(Path(fastserve.__file__).parent.parent), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    *entities, answers = done.stdout.splitlines()
    assert entities and all(re.fullmatch(r"[A-Z]+ \S.* [01]\.\d+", line) for line in entities), entities
    assert answers.startswith(f"http://127.0.0.1:{free} [{{'text': 'Ada Lovelace lived in London.', 'entities': [")
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert-finetuned-ner", "example.py"]

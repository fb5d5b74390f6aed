"""The committed report: the committed logs give it again, README shows it, logs that contradict it stop the build."""

import json
import shutil
from pathlib import Path

import pytest

from analysis import report
from analysis.report import ClaimError, write_report

ROOT = Path(__file__).resolve().parents[2]
LOGS, COMMITTED = ROOT / "logs" / "reference", ROOT / "report"


@pytest.fixture
def committed_figures(tmp_path, monkeypatch):
    """The figures as committed: drawing them is what takes long."""
    (tmp_path / "out").mkdir()
    shutil.copytree(COMMITTED / "figures", tmp_path / "out" / "figures")
    monkeypatch.setattr(report, "all_figures", lambda *arguments: {})


def flat(value, path=""):
    """`{"runs/4/test_accuracy": 0.88, ...}`"""
    if not isinstance(value, dict | list):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: leaf for name, inner in items for key, leaf in flat(inner, f"{path}/{name}").items()}


def test_the_committed_logs_give_the_committed_report(committed_figures, tmp_path):
    written = flat(json.loads(json.dumps(write_report(LOGS, tmp_path / "out"))))
    committed = flat(json.loads((COMMITTED / "facts.json").read_text()))
    numbers = {key for key, value in committed.items() if isinstance(value, float)}
    assert {k: v for k, v in written.items() if k not in numbers} == {
        k: v for k, v in committed.items() if k not in numbers
    }
    for key in numbers:
        assert written[key] == pytest.approx(committed[key], rel=1e-6, abs=1e-12), key
    for name in ("table.md", "table.tex", "answer.md"):
        assert (tmp_path / "out" / name).read_text() == (COMMITTED / name).read_text(), name
    assert (tmp_path / "out" / "report.pdf").stat().st_size > 50_000


def test_readme_leads_with_the_committed_answer_and_table():
    readme = (ROOT / "README.md").read_text()
    for name in ("answer.md", "table.md"):
        assert (COMMITTED / name).read_text().strip() in readme, f"{name}: README has another text"


@pytest.mark.parametrize(("one", "other"), [("4_lstm_attention", "3_lstm_decoder"), ("8_minilm", "1_lstm")])
def test_logs_of_two_experiments_exchanged_stop_the_build(one, other, committed_figures, tmp_path):
    logs = tmp_path / "logs"
    shutil.copytree(LOGS, logs)
    for name in ("test_predictions.csv", "metrics.jsonl"):
        texts = [(logs / "imdb" / folder / name).read_text() for folder in (other, one)]
        for folder, text in zip((one, other), texts, strict=True):
            (logs / "imdb" / folder / name).write_text(text)
    with pytest.raises(ClaimError, match="the logs do not bear this claim"):
        write_report(logs, tmp_path / "out")


def test_the_notebooks_outputs_come_from_the_same_logs_and_hold_no_warning():
    path = ROOT / "main.ipynb"
    cells = json.loads(path.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    shown = "\n".join("".join(o.get("data", {}).get("text/markdown", "")) for o in outputs)
    table = (COMMITTED / "table.md").read_text().partition("\n\n")[0]
    assert table in shown
    facts = json.loads((COMMITTED / "facts.json").read_text())
    for comparison in facts["comparisons"].values():
        assert comparison["verdict"] in shown
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code"), "a cell that was not executed"
    assert path.stat().st_size < 3_000_000

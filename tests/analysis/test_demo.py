"""analysis/demo.py: what the page shows, which runs it finds, and the page itself in a headless Chromium."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from analysis import demo
from analysis.demo import ATTENTION, OCCLUSION, REVIEWS, Reader, find_runs
from analysis.robustness import load_models
from analysis.saliency import attention, occlusion
from config import InputError
from perturbations import WORD, perturb
from predict import TrainedModel, predict

ROOT = Path(demo.__file__).resolve().parents[1]
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def trained(trained_run) -> list[Path]:
    """Two small runs, one of them with attention."""
    return [trained_run(experiment) for experiment in ("1_lstm", "4_lstm_attention")]


@pytest.fixture(scope="module")
def reader(trained) -> Reader:
    return Reader(load_models(trained))


# ---------------------------------------------------------------- what the page shows


def test_probabilities_are_those_of_predict(reader, trained):
    table = reader.probabilities(REVIEWS[0], "qwerty", 0.5)
    assert table["model"].tolist() == ["1 BiLSTM", "4 LSTM encoder-decoder + attention"]
    texts = [REVIEWS[0], perturb(REVIEWS[0], "qwerty", 0.5, 0)]
    for row, folder in zip(table.itertuples(index=False), trained, strict=True):
        np.testing.assert_allclose(row[1:], predict(folder, texts), atol=1e-6)


def test_table_says_where_a_model_changed_its_mind(reader):
    values = reader.probabilities(REVIEWS[0], "qwerty", 0.5)
    values["as it is"], values["perturbed"] = [0.613, 0.2], [0.387, 0.1]
    cells = demo._cells(values)
    assert cells.to_numpy()[:, 1:].tolist() == [["61%", "39%, flips"], ["20%", "10%"]]
    points = demo._points(values)
    assert sorted(points["model"]) == ["1", "1", "4", "4"]
    assert sorted(points["probability of positive"]) == [0.1, 0.2, 0.387, 0.613]


@pytest.mark.parametrize(("kind", "function"), [(OCCLUSION, occlusion), (ATTENTION, attention)])
def test_words_have_the_values_of_the_function_as_shares_of_the_largest(reader, trained, kind, function):
    text, label = REVIEWS[2], "4 LSTM encoder-decoder + attention"
    pieces = reader.words(text, label, kind)
    assert "".join(piece for piece, _ in pieces) == text
    words, values = function(TrainedModel(trained[1]), text)
    coloured = [(piece, value) for piece, value in pieces if value is not None]
    assert [piece for piece, _ in coloured] == words == WORD.findall(text)
    np.testing.assert_allclose([value for _, value in coloured], values / np.abs(values).max(), atol=1e-5)


def test_long_review_is_coloured_at_its_beginning_and_noted(reader):
    text = "word " * 500
    coloured = [piece for piece, value in reader.words(text, "1 BiLSTM", OCCLUSION) if value is not None]
    assert len(coloured) == demo.MOST_WORDS
    assert reader.note(text) == "The models read the first 24 of the review's 502 tokens."
    assert reader.note("good") == ""


@pytest.mark.parametrize("text", ["", "  \n", None, "<br />"])
def test_empty_review_gets_a_sentence(reader, text):
    for show in (
        reader.note,
        lambda t: reader.perturbed(t, "qwerty", 0.5),
        lambda t: reader.words(t, "1 BiLSTM", OCCLUSION),
    ):
        with pytest.raises(InputError, match="There is no review yet: type one, or pick an example"):
            show(text)


def test_review_without_words_is_shown_as_it_is(reader):
    assert reader.words("?!", "1 BiLSTM", OCCLUSION) == [("?!", None)]


def test_attention_is_found_where_the_model_has_it(reader):
    assert [reader.has_attention(label) for label in reader.models] == [False, True]


# ---------------------------------------------------------------- which runs


def test_folder_with_most_runs_is_found_and_runs_without_a_model_are_not(trained, tmp_path):
    assert find_runs(tmp_path) == []
    for name in ("few/1", "most/1", "most/4", "logs_only/1", "logs_only/2", "logs_only/3"):
        shutil.copytree(trained[0], tmp_path / name)
    for folder in (tmp_path / "logs_only").iterdir():
        shutil.rmtree(folder / "best")
    assert find_runs(tmp_path) == [tmp_path / "most" / "1", tmp_path / "most" / "4"]


def test_without_runs_the_tiny_ones_are_trained(monkeypatch, capsys, tmp_path):
    trained = []
    monkeypatch.setattr("train.run", lambda config: trained.append(config))
    folders = demo.train_tiny_runs()
    assert [config.profile for config in trained] == ["tiny"] * 8
    assert folders == [Path(config.run_dir) for config in trained]
    assert "the eight are trained with profile=tiny" in capsys.readouterr().out


def test_missing_package_is_refused_with_what_to_install(trained, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert demo.main([str(trained[0])]) == 2
    assert "needs the package gradio: pip install gradio" in capsys.readouterr().err


# ---------------------------------------------------------------- the page in a browser


@pytest.fixture
def no_network(monkeypatch):
    """Only this computer's own addresses, through which the browser is driven."""

    def refuse(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test tried to connect to {address}")
        return connect(self, address)

    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def page(trained):
    """The address of the page, which the command opens."""
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    command = [sys.executable, "-m", "analysis.demo", *map(str, trained)]
    # A browser that is none.
    environment = {**os.environ, "BROWSER": "true", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = next((line for line in process.stdout if line.startswith("The page is at ")), None)
            assert line, "the command ended without a page"
            yield line.removeprefix("The page is at ").partition(";")[0]
        finally:
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(60) == 130
            finally:
                process.kill()


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that may reach this computer only."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (CHROMIUM and DRIVER):
        pytest.skip("there is no chromium with chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    rules = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", rules):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def wait_until(driver, condition) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 60).until(lambda _: condition())


def text_of(driver, element_id: str) -> str:
    return driver.execute_script("return document.getElementById(arguments[0])?.innerText ?? ''", element_id)


def set_size(driver, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def test_page_reads_perturbs_colours_and_refuses(page, browser, reader, trained):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    set_size(browser, 1280, 900)
    browser.get(page)
    wait_until(browser, lambda: "4 LSTM encoder-decoder" in text_of(browser, "table"))
    review = browser.find_element(By.CSS_SELECTOR, "#review textarea")
    review.send_keys(Keys.CONTROL, "a")
    typed = "bad bad bad, and nothing good"
    review.send_keys(typed)
    expected = [f"{predict(folder, [typed])[0]:.0%}" for folder in trained]
    wait_until(browser, lambda: all(value in text_of(browser, "table") for value in expected))
    wait_until(browser, lambda: "nothing" in text_of(browser, "words"))
    # 1 has no attention: the page says so, and colours the words all the same.
    browser.find_element(By.CSS_SELECTOR, "#kind label:nth-of-type(2) input").click()
    wait_until(browser, lambda: "1 BiLSTM has no attention to show" in text_of(browser, "message"))
    # All the places: the number beside the slider.
    number = browser.find_element(By.CSS_SELECTOR, "#amount input[type=number]")
    number.send_keys(Keys.CONTROL, "a")
    number.send_keys("1", Keys.ENTER)
    perturbed = perturb(typed, "qwerty", 1.0, 0)
    field = "return document.querySelector('#perturbed textarea').value"
    wait_until(browser, lambda: browser.execute_script(field) == perturbed)
    review.send_keys(Keys.CONTROL, "a")
    review.send_keys(Keys.DELETE)
    wait_until(browser, lambda: "There is no review yet" in text_of(browser, "message"))
    errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_page_fits_a_laptop_and_a_phone(page, browser, width, height):
    set_size(browser, width, height)
    browser.get(page)
    wait_until(browser, lambda: "4 LSTM encoder-decoder" in text_of(browser, "table"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # Nothing sticks out, and a control is not narrower than its words.
    for element_id in ("review", "perturbation", "amount", "perturbed", "table", "plot", "model", "kind", "words"):
        box = browser.execute_script(
            "const box = document.getElementById(arguments[0]).getBoundingClientRect(); return [box.left, box.right]",
            element_id,
        )
        assert 0 <= box[0] < box[1] <= width, element_id

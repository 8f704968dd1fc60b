"""TensorBoard and optuna-dashboard show a run: seen in a browser without a window."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from experiments import common, dashboards, evolution

pytestmark = pytest.mark.slow
webdriver = pytest.importorskip("selenium.webdriver")
BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--window-size=1500,1100")
SECONDS = 120.0  # a page has so long; a busy machine takes some of it


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("tensorboardX")
    path = tmp_path_factory.mktemp("runs") / "run"
    assert common.main(evolution.Config, evolution.PRESETS, evolution.SMOKE, evolution.run, [
        "--smoke", "--tensorboard", "--quiet", "--num-seeds", "2", "--output", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if BROWSER is None or DRIVER is None:
        pytest.skip("there is no chromium or chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    from selenium.webdriver.chrome.service import Service
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    browser.set_page_load_timeout(SECONDS)
    yield browser
    browser.quit()


@pytest.fixture
def serve():
    """Start a server, and return its address once it answers."""
    started = []

    def start(*command):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        started.append(subprocess.Popen(  # its output would fill a pipe that nobody reads
            [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(address, timeout=5).close()
                return address
            except OSError:
                assert started[-1].poll() is None and time.monotonic() < end, command
                time.sleep(0.2)

    yield start
    for process in started:
        process.terminate()
        process.wait()


def assert_shows(browser, address, *words):
    """Wait until the page shows all words."""
    browser.get(address)
    end, text = time.monotonic() + SECONDS, ""
    while not all(word in text for word in words):
        assert time.monotonic() < end, (address, words, text)
        time.sleep(0.5)
        text = browser.find_element("tag name", "body").text  # shadow trees included


def test_tensorboard(run, browser, serve):
    pytest.importorskip("tensorboard")
    address = serve(sys.executable, "-m", "tensorboard.main", "--logdir", str(run.parent))
    assert_shows(browser, f"{address}/#scalars", "run/tensorboard/evolution-seed0",
                 "run/tensorboard/random-seed0", "evaluation/fitness",
                 "evaluation/cifar10_test_accuracy_e200")
    assert_shows(browser, f"{address}/?again#images", "regret", "cell")
    assert_shows(browser, f"{address}/?text#text", "config/text_summary")


def test_optuna_dashboard(run, browser, serve, tmp_path):
    pytest.importorskip("optuna_dashboard")
    import optuna
    storage = f"sqlite:///{tmp_path}/optuna.sqlite3"
    assert dashboards.main(["optuna", str(run), "--storage", storage]) == 0
    name = "evolution/run evolution seed0"
    study = optuna.load_study(storage=storage, study_name=name)
    command = "from optuna_dashboard._cli import main; main()"  # its script may not be in the PATH
    address = serve(sys.executable, "-c", command, storage)
    page = f"{address}/dashboard/studies/{study._study_id}"
    assert_shows(browser, f"{address}/dashboard/", name, "evolution/run random seed0")
    assert_shows(browser, page, name, "History", "fitness", "Hyperparameter Importance")
    best = study.best_trial
    assert_shows(browser, f"{page}/trials?numbers={best.number}", "20 Trials", "Best Trial",
                 f"Trial {best.number} (trial_id={best._trial_id})", "edge_2_to_3",
                 best.params["edge_2_to_3"], "jaxnas.genotype")

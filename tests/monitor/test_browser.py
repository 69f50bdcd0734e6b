"""TensorBoard as a user sees it: started on a real run, opened in Chromium without a window.

MSDE_SCREENSHOTS names a folder that the screenshots are kept in.
"""

import io
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fixtures.jobs import finish
from fixtures.launching import BINARIES, ENVIRONMENT, free_port
from msde.data_tools.models.embedding import embed_file
from msde.monitor.tensorboard import LAYOUT

webdriver = pytest.importorskip("selenium.webdriver", reason="pip install 'msde[browser]'")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="apt-get install chromium chromium-driver"
    ),
]

PATIENCE = 90  # seconds
SMALL = [
    "model.hidden_dim=48", "model.schnet.num_filters=48", "model.conformer.hidden_dim=32",
    "model.topology.hidden_channels=4", "data.molecules_per_step=32", "optim.lr=1e-3",
    "data.validation_fraction=0.1", "run.validate_every=15", "run.log_every=3", "run.steps=60",
]  # fmt: skip
# Elements lie in shadow roots within shadow roots, and the projector in a frame.
FIND = """
const found = [];
const walk = root => {
  found.push(...root.querySelectorAll(arguments[0]));
  for (const element of root.querySelectorAll('*')) {
    if (element.shadowRoot) walk(element.shadowRoot);
    if (element.tagName === 'IFRAME' && element.contentDocument) walk(element.contentDocument);
  }
};
walk(document);
"""


class Page:
    """One dashboard of TensorBoard in the browser."""

    def __init__(self, driver, address, dashboard):
        self.driver = driver
        driver.get("about:blank")  # else only the part after # would change
        driver.get(f"{address}/#{dashboard}")

    def evaluate(self, selector, expression):
        """A JavaScript expression of `found`, the elements that fit a selector."""
        return self.driver.execute_script(f"{FIND} return {expression};", selector)

    def wait_for(self, selector, expression):
        """Wait until the expression is truthy and return it."""
        end = time.monotonic() + PATIENCE
        while not (value := self.evaluate(selector, expression)):
            assert time.monotonic() < end, f"{expression} of {selector} within {PATIENCE} s"
            time.sleep(0.2)
        return value

    def click(self, selector, number=0):
        self.wait_for(selector, f"found.length > {number}")
        self.evaluate(selector, f"found[{number}].click()")

    def keep(self, name, seconds=2):
        """Return a screenshot's pixels, once animations are over; keep it where that is asked."""
        time.sleep(seconds)
        image = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        if folder := os.environ.get("MSDE_SCREENSHOTS"):
            small = image.quantize(128, dither=Image.Dither.NONE)
            small.save(Path(folder) / f"{name}.png", optimize=True)
        return np.asarray(image)


@pytest.fixture(scope="module")
def run_folder(shard_dir, tmp_path_factory):
    """A short run, and a projector of what its best weights make of the molecules."""
    output = tmp_path_factory.mktemp("browser") / "run"
    finish(output.parent, "--data", shard_dir, "--output", output, *SMALL, ranks=1)
    embed_file(output, shard_dir, output / "h.npz", projector=output / "projector")
    return output


@pytest.fixture(scope="module")
def address(run_folder):
    port = free_port()
    command = [BINARIES / "tensorboard", "--logdir", ".", "--port", port]  # which the page shows
    options = {"env": ENVIRONMENT, "cwd": run_folder}
    with open(run_folder / "tensorboard.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, **options)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
    try:
        while True:
            try:
                runs = urllib.request.urlopen(f"{address}/data/runs", timeout=5).read().decode()
                if "tensorboard" in runs and "projector" in runs:
                    break
            except OSError:
                pass
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new", "--no-sandbox", "--window-size=1440,1000", "--hide-scrollbars",
        "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    ):  # fmt: skip
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def test_scalars_load(driver, address):
    page = Page(driver, address, "timeseries")
    assert page.wait_for("card-view scalar-card, scalar-card", "found.length") >= 3
    page.wait_for("scalar-card path, scalar-card canvas", "found.length")
    page.keep("timeseries")


def test_the_first_page_has_three_categories_of_charts(driver, address):
    page = Page(driver, address, "custom_scalars")
    number = sum(map(len, LAYOUT.values()))
    page.wait_for("tf-custom-scalar-multi-line-chart-card", f"found.length === {number}")
    titles = page.evaluate("tf-category-paginated-view", "found.map(e => e.category.name)")
    assert titles == list(LAYOUT)
    page.keep("learning", 5)
    page.evaluate("tf-category-paginated-view", "found[1].scrollIntoView()")
    page.keep("fast")
    page.evaluate("tf-category-paginated-view", "found[2].scrollIntoView()")
    page.keep("healthy")


def test_hyper_parameters_are_those_of_the_run_itself(driver, address):
    page = Page(driver, address, "hparams")
    rows = "found.map(e => e.textContent.trim()).filter(t => t === 'tensorboard').length"
    assert page.wait_for("vaadin-grid-cell-content", rows)
    page.keep("hparams", 5)


def test_texts_load(driver, address):
    page = Page(driver, address, "text")
    page.wait_for("tf-text-loader, tf-markdown-view", "found.length >= 4")
    page.keep("text")


def test_pictures_of_samples_load(driver, address):
    page = Page(driver, address, "images")
    page.wait_for("img", "found.some(e => e.naturalWidth > 100)")
    page.keep("images")


def test_meshes_load(driver, address):
    page = Page(driver, address, "mesh")
    page.wait_for("tf-mesh-loader", "found.length >= 3")
    page.wait_for("canvas", "found.length >= 3")
    pixels = page.keep("mesh", 5)
    carbon = np.abs(pixels[150:].astype(int) - [0x34, 0x38, 0x3E]).sum(-1) < 40
    assert carbon.sum() > 500  # shaded bodies in the colour of carbon


def test_the_projector_loads(driver, address, run_folder):
    page = Page(driver, address, "projector")
    points = len((run_folder / "projector/metadata.tsv").read_text().splitlines()) - 1
    page.wait_for("vz-projector", f"found.some(e => e.shadowRoot.textContent.includes({points}))")
    page.wait_for("canvas", "found.length")
    page.keep("projector", 10)

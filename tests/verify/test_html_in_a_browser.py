"""The HTML report in a real headless browser: it renders, asks nobody for anything, nothing is cut off."""

import json
import re
import shutil
import subprocess
import warnings

import pytest
import tiny

from gpt54_convert.core.report import Report
from gpt54_convert.pipeline import run
from gpt54_convert.recipe import Export, Quantize, Recipe
from gpt54_convert.verify import verify
from gpt54_convert.verify.options import VerifyOptions
from gpt54_convert.verify.reports import write

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Added to a copy of the page: what the browser made of it, as JSON in the document itself.
PROBE = """
<script>
const inside = (svg, e) => { const a = svg.getBoundingClientRect(), b = e.getBoundingClientRect();
  return b.left >= a.left - 1 && b.right <= a.right + 1 && b.top >= a.top - 1 && b.bottom <= a.bottom + 1; };
const plots = [...document.querySelectorAll('svg')].map(svg => ({
  title: svg.parentNode.querySelector('figcaption').textContent,
  width: svg.getBoundingClientRect().width, height: svg.getBoundingClientRect().height,
  lines: [...svg.querySelectorAll('polyline')].map(line => line.getTotalLength()),
  bars: [...svg.querySelectorAll('rect')].filter(bar => bar.getBBox().height > 11).length,
  dots: svg.querySelectorAll('circle').length,
  cut: [...svg.querySelectorAll('text')].filter(text => !inside(svg, text)).map(text => text.textContent),
}));
const found = { plots, verdict: document.querySelector('.verdict').textContent,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  asked: performance.getEntriesByType('resource').map(entry => entry.name) };
document.body.insertAdjacentHTML('beforeend', '<pre id=probe>' + JSON.stringify(found) + '</pre>');
</script>
"""


@pytest.fixture(scope="module")
def browser():
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        warnings.warn("NOT TESTED: no browser is installed (apt-get install chromium)", stacklevel=1)
        pytest.skip("no browser is installed")
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    export = Export(output=folder / "out", to=("safetensors",), verify=False)
    run(Recipe(tiny.make("llama")[1], Quantize(scheme="int4"), export), Report())
    options = VerifyOptions(tokens=640, context=64, threads=1, gate=("kl_mean<=1.1*rtn", "top1>=0.1"))
    write("html", verify(folder / "out" / "safetensors", None, options), folder / "page.html")
    return folder / "page.html"


def seen(browser, page, tmp_path, width=1100):
    probed = tmp_path / "probed.html"
    probed.write_text(
        page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8"
    )
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},1400",
            "--dump-dom",
            probed.as_uri(),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not said
    return json.loads(re.search(r"<pre id=\"probe\">(.*?)</pre>", done.stdout, re.DOTALL)[1])


def test_the_page_renders_with_all_plots(browser, page, tmp_path):
    found = seen(browser, page, tmp_path)
    assert found["verdict"] == "pass"
    assert found["asked"] == []
    titles = [plot["title"] for plot in found["plots"]]
    for wanted in ("Error behind each layer", "Relative error", "KL divergence", "Top-1", "Size against"):
        assert any(title.startswith(wanted) for title in titles), titles
    for plot in found["plots"]:
        assert plot["width"] > 300 and plot["height"] > 150, plot["title"]
        assert plot["cut"] == [], plot["title"]
        drawn = sum(plot["lines"]) > 50 or plot["bars"] >= 5
        assert drawn, plot["title"]
    scatter = next(plot for plot in found["plots"] if plot["title"].startswith("Size"))
    assert scatter["dots"] == 2  # this artifact and plain rounding


def test_it_fits_a_narrow_window(browser, page, tmp_path):
    found = seen(browser, page, tmp_path, width=520)
    assert found["overflow"] <= 0
    assert all(plot["width"] <= 520 for plot in found["plots"])


def test_nothing_is_loaded_from_elsewhere(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)\s*=|@import|url\(", text)
    assert "<script" not in text

"""Reports in a browser, as wide as a phone and a laptop: nothing sticks out or is fetched."""

import json
import re
import shutil
import subprocess
from html import unescape
from typing import Any

import pytest

from reports import HOSTILE, made_up
from topwork.report.page import render_page
from topwork.report.sections import sections

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SIZES = {"phone": (390, 844), "laptop": (1440, 900)}
KINDS: dict[str, dict[str, Any]] = {
    "classes": {"names": HOSTILE, "advised": True, "phases": "trained", "views": 4},
    "twenty": {"names": tuple(f"class {n} of twenty" for n in range(20)), "count": 160},
    "labels": {"kind": "labels", "names": HOSTILE, "phases": "gradual"},
    "numbers": {"kind": "numbers", "names": HOSTILE[:4]},
}
LOOK = """
<script>addEventListener("load", async () => {
  await Promise.allSettled([...document.images].map(image => image.decode()));
  const sees = element => {
    for (let above = element.parentElement; above; above = above.parentElement)
      if (getComputedStyle(above).overflowX !== "visible") return false;
    return element.getBoundingClientRect().right > innerWidth + 1;
  };
  parent.postMessage({
    name: "NAME", width: innerWidth, title: document.title,
    needed: document.documentElement.scrollWidth,
    images: document.images.length,
    broken: [...document.images].filter(image => !image.naturalWidth).length,
    fetched: performance.getEntriesByType("resource").map(entry => entry.name)
      .filter(name => !name.startsWith("data:")),
    wide: [...document.querySelectorAll("body *")].filter(sees).map(e => e.outerHTML.slice(0, 90)),
    value: parseFloat(getComputedStyle(document.querySelector(".value")).fontSize),
    flat: [...document.querySelectorAll("svg")].filter(e => e.closest("details") === null
      && !(e.getBoundingClientRect().width > 20)).length,
  }, "*");
})</script>
"""
COLLECT = """<!doctype html><body>{frames}<pre></pre><script>
const seen = [];
addEventListener("message", ({{data}}) => {{
  seen.push(data); document.querySelector("pre").textContent = JSON.stringify(seen);
}});
</script>"""


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Open all pages in all sizes in one browser; return what each looks like, by its name.

    The copies that are opened differ from the pages in two things: a script that looks around,
    and no policy, which would forbid it.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed ({', '.join(BROWSERS)})")
    folder = tmp_path_factory.mktemp("pages")
    frames = []
    for kind, options in KINDS.items():
        evidence = made_up(**options)
        page = render_page(sections(evidence, "runs/one"))
        page, policies = re.subn(r"<meta http-equiv=[^>]*>", "", page)
        assert policies == 1
        for size, (width, height) in SIZES.items():
            name = f"{kind} {size}"
            file = folder / f"{kind}-{size}.html"
            file.write_text(page + LOOK.replace("NAME", name), encoding="utf-8")
            frames.append(f'<iframe src="{file.name}" width="{width}" height="{height}"></iframe>')
    (folder / "all.html").write_text(COLLECT.format(frames="".join(frames)), encoding="utf-8")
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-sync", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", "--dump-dom",
    ]  # fmt: skip
    dumped = subprocess.run(
        [browser, *options, (folder / "all.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r"<pre>(.*?)</pre>", dumped.stdout, re.DOTALL)
    assert found, dumped.stderr[-2000:]
    return {look["name"]: look for look in json.loads(unescape(found.group(1)))}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_page_fits_and_is_whole(looks: dict, kind: str, size: str) -> None:
    look = looks[f"{kind} {size}"]
    assert look["width"] == SIZES[size][0]
    assert look["needed"] <= look["width"]
    assert look["wide"] == []
    assert look["images"] > 0
    assert look["broken"] == 0
    assert look["fetched"] == []
    assert look["flat"] == 0
    assert look["value"] >= 50  # pixels: styles are applied
    assert look["title"] == "<b>photos · topwork report"  # no name ran as a script

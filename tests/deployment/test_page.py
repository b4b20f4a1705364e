"""The page at /, in a browser: figures, a drawn picture and a typed sentence are answered."""

import contextlib
import os
import shutil

import numpy as np
import pytest

import llmasos_xla as lm

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")

FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]


@contextlib.contextmanager
def opened(server):
    """The server's page in a browser; what the page says is wrong is raised."""
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=BROWSER, args=[*FLAGS, "--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        wrong = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.goto(server.url)
        page.wait_for_selector("article")
        yield page
        browser.close()
        assert not [text for text in wrong if "favicon" not in text]


def test_a_digit_is_drawn_and_named(image_model, images, tmp_path):
    model = lm.Sequential(
        [lm.layers.Flatten(input_shape=(28, 28, 1)), lm.layers.Dense(3, activation="softmax")], seed=1
    )
    x = np.random.default_rng(0).integers(0, 256, (30, 28, 28, 1)).astype(np.uint8)
    model.compile()
    model.fit(x, np.array(["ant", "bee", "cat"] * 10), verbose=0)
    model.save(tmp_path / "insects.h5")
    with lm.Deployer(tmp_path / "insects.h5").deploy() as server, opened(server) as page:
        assert page.text_content("h2") == "insects"
        assert page.text_content("#state") == "ready"
        box = page.locator("canvas.draw").bounding_box()
        page.mouse.move(box["x"] + 40, box["y"] + 30)
        page.mouse.down()
        page.mouse.move(box["x"] + 200, box["y"] + 220, steps=8)
        page.mouse.up()
        page.wait_for_selector(".answer .label")
        assert page.text_content(".answer .label").removeprefix("label: ") in ("ant", "bee", "cat")
        shown = sum(float(text) for text in page.locator(".bars div span:last-child").all_text_contents())
        assert abs(shown - 1) < 0.01
        playwright.expect(page.locator("dl")).to_contain_text("requests1")
        if folder := os.environ.get("LLMASOS_SCREENSHOTS"):
            page.screenshot(path=os.path.join(folder, "page.png"))


def test_a_sentence_is_typed(text_model, tmp_path):
    text_model.save(tmp_path / "films.h5")
    with lm.Deployer(tmp_path / "films.h5").deploy() as server, opened(server) as page:
        page.fill("textarea", "so good")
        page.click("button.ask")
        page.wait_for_selector(".answer pre")
        wanted = text_model.predict(["so good"])[0, 0]
        found = float(page.text_content(".answer pre").splitlines()[1])
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_table_is_filled_in(table_model, tmp_path):
    table_model.save(tmp_path / "houses.h5")
    with lm.Deployer(tmp_path / "houses.h5").deploy() as server, opened(server) as page:
        for name, value in (("size", "2.5"), ("kind", "x"), ("year", "long ago")):
            page.get_by_label(name).fill(value)
        page.click("button.ask")
        playwright.expect(page.locator(".answer .error")).to_have_text("year is a number, long ago came")
        page.get_by_label("year").fill("2000")
        page.click("button.ask")
        page.wait_for_selector(".answer pre")


def test_a_key_is_asked_for(text_model, tmp_path):
    text_model.save(tmp_path / "films.h5")
    (tmp_path / "keys").write_text("s3cret\n")
    deployer = lm.Deployer(tmp_path / "films.h5")
    with deployer.deploy(keys=tmp_path / "keys") as server, playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=BROWSER, args=[*FLAGS, "--no-sandbox"])
        page = browser.new_page()
        page.goto(server.url)
        page.fill("#key input", "s3cret")
        page.keyboard.press("Enter")
        page.wait_for_selector("article")
        browser.close()

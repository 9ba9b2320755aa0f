"""The page in Debian's Chromium, on a real controller, SQLite and DBOS; hosts are stand-ins."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.page import standin
from tests.page.conftest import DOMAINS, PHONE, WIDE, Controller, Visitor
from tests.unit.eventually import wait_until

LOW_CONTRAST = """() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92
      : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const found = numbers(getComputedStyle(one).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return numbers(getComputedStyle(document.body).backgroundColor);
  };
  const found = [];
  for (const one of document.body.querySelectorAll("*")) {
    const own = [...one.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !one.getClientRects().length || one.closest(".only-read, .skip")) continue;
    const [a, b] = [light(numbers(getComputedStyle(one).color)), light(ground(one))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push([one.outerHTML.slice(0, 80), ratio]);
  }
  return found;
}"""


def badge(page: Page, text: str) -> None:
    """Wait for a campaign's state, without loading the page again."""
    expect(page.locator("#state .sums .badge")).to_have_text(text, timeout=20_000)


def begun(controller: Controller, browser: Browser, name: str, **more: Any) -> Visitor:
    """A visitor at a campaign that nobody runs yet."""
    controller.fresh(pace=1.0)
    controller.plan(name)
    visitor = Visitor(browser, controller, **more)
    visitor.page.goto(f"/campaigns/{name}")
    return visitor


def test_a_campaign_is_watched_paused_resumed_taken_back_and_tried_again(
    controller: Controller, browser: Browser
) -> None:
    """All of it in one page, which follows what happens; and is written down."""
    visitor = begun(controller, browser, "watched")
    page = visitor.page
    expect(page.get_by_text("Nobody runs it")).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("li.moves .copy")).to_contain_text("memory")
    expect(page.get_by_text("Nobody runs it")).to_have_count(0)
    page.get_by_role("button", name="Pause").click()
    badge(page, "paused")
    expect(page.locator("li.moves")).to_have_count(0)
    expect(page.locator("li.moved")).not_to_have_count(0)
    waits = page.locator("li.waits").count()
    assert 0 < waits < len(DOMAINS)
    controller.fresh_pace(8.0)
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("li.moves .copy")).to_contain_text("memory")
    page.get_by_text("Abort…").click()
    page.get_by_role("button", name="Take back what moves").click()
    badge(page, "aborted")
    expect(page.locator("li.waits")).to_have_count(waits)
    controller.fresh_pace(0.2)
    page.get_by_role("button", name="Retry what stayed").click()
    badge(page, "ended")
    expect(page.locator("li.moved")).to_have_count(len(DOMAINS))
    page.reload()
    expect(page.locator(".history li b")).to_have_text(["alice"] * 5)
    page.locator("#state").get_by_role("link", name="web1", exact=True).click()
    expect(page.locator(".timeline caption").first).to_contain_text("Blackout 27 ms")
    visitor.close()


PAGES = ("/", "/hosts", "/campaigns/looked-at", "/campaigns/looked-at/plan", "/domains/{}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_a_phone_and_can_be_read(
    controller: Controller, browser: Browser, scheme: str
) -> None:
    """Nothing is wider than the screen, all text has a contrast of 4.5 or more."""
    if "looked-at" not in {one.name for one in controller.store.summaries()}:
        controller.fresh(pace=0.1)
        controller.plan("looked-at")
    visitor = Visitor(browser, controller, color_scheme=scheme, viewport=PHONE)
    page = visitor.page
    for width in (PHONE["width"], 320, WIDE["width"]):
        page.set_viewport_size({"width": width, "height": 844})
        for address in PAGES:
            page.goto(address.format(standin.uuid("web1")))
            assert page.evaluate("document.documentElement.scrollWidth") == width, address
            assert page.evaluate(LOW_CONTRAST) == [], address
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(18, 22, 28)")
    visitor.close()


@pytest.mark.matrix
def test_the_keyboard_alone(controller: Controller, browser: Browser) -> None:
    """What has the focus is seen; and keeps it while the page changes."""
    visitor = begun(controller, browser, "typed")
    page = visitor.page
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    expect(page.locator(".skip")).to_be_in_viewport()
    page.keyboard.press("Enter")
    to = tab_to(page, "do-pause")
    assert to["outlineStyle"] == "solid"
    tab_to(page, "do-resume")
    page.keyboard.press("Enter")
    expect(page.locator("li.moves").first).to_be_visible()
    link = f"d-{standin.uuid('mail')}"
    tab_to(page, link)
    expect(page.locator("li.moved").first).to_be_visible()
    assert page.evaluate("document.activeElement.id") == link
    page.reload()
    tab_to(page, "do-end")
    page.keyboard.press("Enter")
    tab_to(page, "do-abort")
    page.keyboard.press("Enter")
    badge(page, "aborted")
    tab_to(page, "do-retry")
    visitor.close()


def tab_to(page: Page, wanted: str) -> dict[str, str]:
    """Press Tab until something has the focus; how that is outlined."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == wanted:
            return page.evaluate(
                "({outlineStyle: getComputedStyle(document.activeElement).outlineStyle})"
            )
    raise AssertionError(f"{wanted} cannot be reached")


@pytest.mark.matrix
def test_without_scripts(controller: Controller, browser: Browser) -> None:
    visitor = begun(controller, browser, "plain", java_script_enabled=False)
    page = visitor.page
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Pause").click()
    controller.wait_for("plain", "paused")
    page.reload()
    expect(page.locator("#state .sums .badge")).to_have_text("paused")
    page.get_by_text("Abort…").click()
    page.get_by_role("button", name="Finish what moves").click()
    controller.wait_for("plain", "aborted")
    visitor.close()


@pytest.mark.matrix
def test_who_may_only_look_has_no_buttons(controller: Controller, browser: Browser) -> None:
    visitor = begun(controller, browser, "looked", extra_http_headers={"X-Remote-User": "bob"})
    expect(visitor.page.get_by_text("bob", exact=True)).to_be_visible()
    expect(visitor.page.locator("button, form, summary")).to_have_count(0)
    visitor.close()


@pytest.mark.matrix
def test_a_campaign_of_a_terminal_is_watched_and_paused(
    controller: Controller, browser: Browser
) -> None:
    """Its plan too: what TEST refuses, and nothing of what a host says is run."""
    controller.fresh(pace=2.0)
    terminal = controller.run("evacuate", "a", "--name", "typed-in", "--at-once", "1")
    wait_until(lambda: "typed-in" in {one.name for one in controller.store.summaries()})
    visitor = Visitor(browser, controller)
    page = visitor.page
    page.goto("/")
    page.get_by_role("link", name="typed-in").click()
    expect(page.locator("li.moves .copy")).to_contain_text("memory")
    page.get_by_role("button", name="Pause").click()
    badge(page, "paused")
    expect(page.locator("li.moves")).to_have_count(0)
    terminal.send_signal(signal.SIGINT)
    said = terminal.communicate(timeout=30)
    assert "it is paused" in said[0], said
    page.get_by_role("link", name="Its plan").click()
    expect(page.locator(".matrix .refused")).to_have_count(3)
    expect(page.get_by_text("<script>alert(1)</script>").first).to_be_visible()
    page.goto("/hosts")
    # What hosts have said is shown for half a minute.
    expect(page.get_by_text("cordoned", exact=True)).to_be_visible(timeout=60_000)
    expect(page.get_by_role("link", name="<img src=x onerror=alert(1)>").first).to_be_visible()
    visitor.close()

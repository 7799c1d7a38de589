// The page while the study runs: asks for a version, and swaps the parts that have changed.
// Charts stay, with their filters and what was clicked; they get the new data.
"use strict";

{
  const PAUSE = 3000; // ms
  let version = document.documentElement.dataset.live;
  const asLoaded = new WeakMap(); // a part's HTML before any script touched it

  const parts = parent => [...parent.children].filter(child => child.tagName !== "SCRIPT");
  const remember = root => root.querySelectorAll("#head, #sections, #answer, main > section > *").forEach(each => asLoaded.set(each, each.outerHTML));

  function swap(old, fresh) {
    if (asLoaded.get(old) === fresh.outerHTML) return;
    const scrolls = [...old.querySelectorAll(".wide")].map(each => [each.scrollLeft, each.scrollTop]);
    const open = [...old.querySelectorAll("details")].map(each => each.open);
    if (old.open) fresh.open = true;
    const html = fresh.outerHTML;
    const adopted = document.adoptNode(fresh);
    asLoaded.set(adopted, html);
    old.replaceWith(adopted);
    adopted.querySelectorAll(".wide").forEach((each, i) => { if (scrolls[i]) [each.scrollLeft, each.scrollTop] = scrolls[i]; });
    adopted.querySelectorAll("details").forEach((each, i) => { if (open[i]) each.open = true; });
  }

  // Blocks of a section are matched in order; a chart stays where it is.
  function swapBlocks(old, fresh) {
    const key = block => block.dataset.chart ?? block.id ?? "";
    const mine = parts(old);
    const theirs = parts(fresh);
    if (mine.length === theirs.length && mine.every((block, i) => key(block) === key(theirs[i]) && block.tagName === theirs[i].tagName)) {
      mine.forEach((block, i) => { if (!block.dataset.chart) swap(block, theirs[i]); });
      return;
    }
    const charts = Object.fromEntries(mine.filter(block => block.dataset.chart).map(block => [block.dataset.chart, block]));
    const kept = theirs.map(block => {
      const html = block.outerHTML;
      const block_ = charts[block.dataset.chart] ?? document.adoptNode(block);
      if (!block.dataset.chart) asLoaded.set(block_, html);
      return block_;
    });
    old.replaceChildren(...kept);
  }

  function swapSections(fresh) {
    const main = document.getElementById("main");
    const theirs = parts(fresh.getElementById("main"));
    const wanted = new Set(theirs.map(section => section.id));
    parts(main).filter(section => !wanted.has(section.id)).forEach(section => section.remove());
    let before = null;
    theirs.forEach(section => {
      let mine = document.getElementById(section.id);
      if (mine && mine.id === "answer") {
        swap(mine, section);
        mine = document.getElementById(section.id);
      } else if (mine) swapBlocks(mine, section);
      else {
        parts(section).forEach(block => asLoaded.set(block, block.outerHTML));
        mine = document.adoptNode(section);
        before ? before.after(mine) : main.prepend(mine);
        page.watch(mine.querySelectorAll("[data-chart]"));
        page.here.observe(mine);
      }
      before = mine;
    });
  }

  function swapData(fresh) {
    fresh.querySelectorAll("#data > script").forEach(theirs => {
      const mine = document.getElementById(theirs.id);
      if (!mine) {
        document.getElementById("data").append(document.adoptNode(theirs));
        return;
      }
      if (mine.textContent === theirs.textContent) return;
      mine.textContent = theirs.textContent;
      const name = theirs.id.replace("data-", "");
      page.drawn.get(name)?.update(page.data(name));
    });
    const [mine, theirs] = [document, fresh].map(each => each.getElementById("thumbnails"));
    if (mine.textContent !== theirs.textContent) mine.textContent = theirs.textContent;
  }

  function swapLinks(fresh) {
    const [mine, theirs] = [document, fresh].map(each => each.querySelector("nav > div"));
    const links = [...mine.querySelectorAll("a")];
    const wanted = [...theirs.querySelectorAll("a")];
    if (links.map(a => a.hash).join() === wanted.map(a => a.hash).join()) return;
    links.forEach(link => link.remove());
    mine.prepend(...wanted.map(link => document.adoptNode(link)));
  }

  async function refresh() {
    const response = await fetch("/", { cache: "no-store" });
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    swap(document.getElementById("head"), fresh.getElementById("head"));
    swapData(fresh);
    swapSections(fresh);
    swapLinks(fresh);
    version = fresh.documentElement.dataset.live;
    document.documentElement.dataset.live = version;
  }

  const say = (element, state, text) => {
    element.dataset.state = state;
    if (element.textContent !== text) element.textContent = text;
  };

  async function poll(status) {
    try {
      const answer = await (await fetch("/version", { cache: "no-store" })).json();
      if (answer.version !== version) await refresh();
      say(status, answer.problem ? "gone" : "live", answer.problem ?? answer.state);
    } catch (error) {
      say(status, "gone", error instanceof TypeError ? "mariposa serve has ended" : String(error));
    }
    setTimeout(() => poll(status), PAUSE);
  }

  if (version) {
    remember(document);
    document.addEventListener("DOMContentLoaded", () => {
      const status = page.make("span", { id: "live", role: "status" }, "live");
      document.getElementById("theme").before(status);
      setTimeout(() => poll(status), PAUSE);
    });
  }
}

// What the page's charts share: elements, colours, controls, and when they are drawn.
"use strict";

document.documentElement.classList.add("js");

const page = {
  charts: {}, // name -> (element, data) => {draw(), update(data)}
  drawn: new Map(), // name -> what that gave

  data(name) {
    return JSON.parse(document.getElementById(`data-${name}`).textContent);
  },

  // An element. Text is set as text, so that no name from the data is ever read as HTML.
  make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value === true) element.setAttribute(name, "");
      else if (value !== false && value != null) element.setAttribute(name, value);
    }
    element.append(...children.filter(child => child != null));
    return element;
  },

  colour(name) {
    page.probe ??= document.body.appendChild(page.make("i", { class: "unseen" }));
    page.probe.style.color = `var(--${name})`;
    return getComputedStyle(page.probe).color;
  },

  mark(shape, colour, filled = true) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    svg.setAttribute("class", "mark");
    svg.setAttribute("viewBox", "-6 -6 12 12");
    svg.setAttribute("aria-hidden", "true");
    path.setAttribute("d", page.shapes[shape]);
    path.setAttribute("fill", filled ? colour : "none");
    path.setAttribute("stroke", colour);
    path.setAttribute("stroke-width", "1.6");
    svg.append(path);
    return svg;
  },

  shapes: {
    circle: "M-4.6 0a4.6 4.6 0 1 0 9.2 0a4.6 4.6 0 1 0 -9.2 0Z",
    triangle: "M0 -4.8L5 4H-5Z",
    rect: "M-4 -4H4V4H-4Z",
    diamond: "M0 -5.4L5.4 0L0 5.4L-5.4 0Z",
    down: "M0 4.8L5 -4H-5Z",
    left: "M-4.8 0L4 5V-5Z",
    right: "M4.8 0L-4 5V-5Z",
    cross: "M-1.6 -5H1.6V-1.6H5V1.6H1.6V5H-1.6V1.6H-5V-1.6H-1.6Z",
    diagonal: "M-4.6 -2.4L-2.4 -4.6L0 -2.2L2.4 -4.6L4.6 -2.4L2.2 0L4.6 2.4L2.4 4.6L0 2.2L-2.4 4.6L-4.6 2.4L-2.2 0Z",
    star: "M0 -5.4L1.3 -1.8L5.1 -1.7L2.1 0.7L3.2 4.4L0 2.2L-3.2 4.4L-2.1 0.7L-5.1 -1.7L-1.3 -1.8Z",
  },

  // The shape of one of Matplotlib's markers, so that charts and figures agree.
  markers: { s: "rect", "^": "triangle", D: "diamond", o: "circle", v: "down", P: "cross", X: "diagonal", "<": "left", ">": "right", "*": "star" },

  symbol(shape) {
    return `path://${page.shapes[shape]}`;
  },

  // Buttons of which one is pressed.
  segments(label, choices, chosen, choose) {
    const buttons = choices.map(([value, text]) =>
      page.make("button", { type: "button", "aria-pressed": String(value === chosen), "data-value": value, onclick: () => {
        buttons.forEach(each => each.setAttribute("aria-pressed", String(each.dataset.value === value)));
        choose(value);
      } }, text));
    return page.make("span", { class: "segments", role: "group", "aria-label": label }, ...buttons);
  },

  // Buttons that show and hide, with the mark that the chart gives them.
  chips(label, choices, hidden, changed) {
    return page.make("span", { class: "chips", role: "group", "aria-label": label }, ...choices.map(([value, text, mark]) => {
      const button = page.make("button", { type: "button", "aria-pressed": String(!hidden.has(value)), "data-value": value, onclick: () => {
        hidden.has(value) ? hidden.delete(value) : hidden.add(value);
        button.setAttribute("aria-pressed", String(!hidden.has(value)));
        changed();
      } }, mark, text);
      return button;
    }));
  },

  select(label, choices, changed) {
    const options = choices.map(([value, text]) => page.make("option", { value }, text));
    const select = page.make("select", { "aria-label": label, onchange: () => changed(select.value) }, ...options);
    return select;
  },

  axis(type, name, extra = {}) {
    const [ink, soft, line] = ["ink", "soft", "hair"].map(page.colour);
    return {
      type, name, nameLocation: "middle", nameGap: 30,
      nameTextStyle: { color: soft, fontSize: 12 },
      axisLabel: { color: soft, fontSize: 11.5, hideOverlap: true, ...extra.label },
      axisLine: { show: true, lineStyle: { color: ink, width: 0.8 } },
      axisTick: { show: true, lineStyle: { color: ink, width: 0.8 }, length: 4, ...extra.tick },
      splitLine: { show: Boolean(extra.grid), lineStyle: { color: line } },
      minorTick: { show: false }, scale: true, ...extra.more,
    };
  },

  tooltip(formatter, extra = {}) {
    return {
      formatter, confine: true, transitionDuration: 0, padding: [8, 10], borderWidth: 1, enterable: false,
      backgroundColor: page.colour("paper"), borderColor: page.colour("line"),
      textStyle: { color: page.colour("ink") }, extraCssText: "box-shadow:0 4px 18px rgba(0,0,0,.16);border-radius:6px;",
      ...extra,
    };
  },

  // A chart in an element; `animation` off: what moves is the reader.
  open(element, renderer = "canvas") {
    const font = getComputedStyle(document.body).fontFamily;
    const chart = echarts.init(element, { textStyle: { fontFamily: font } }, { renderer });
    new ResizeObserver(() => chart.resize()).observe(element);
    return chart;
  },

  number(value, digits) {
    return value == null ? "–" : value.toFixed(digits).replace("-", "−");
  },

  thumb(data, image, title) {
    const place = data.thumbs[image];
    if (place < 0) return null;
    const element = page.make("span", { class: "thumb", role: "img", "aria-label": title, title });
    element.style.setProperty("--x", `${-(place % data.columns) * data.size}px`);
    element.style.setProperty("--y", `${-Math.floor(place / data.columns) * data.size}px`);
    return element;
  },

  begin(element) {
    const name = element.dataset.chart;
    if (page.drawn.has(name) || !page.charts[name]) return;
    page.drawn.set(name, page.charts[name](element, page.data(name)));
    element.dataset.drawn = "";
  },

  // Charts begin when they come near the window: a page opens at once however many trials it has.
  watch(elements) {
    page.near ??= new IntersectionObserver(entries => entries.forEach(entry => {
      if (!entry.isIntersecting) return;
      page.near.unobserve(entry.target);
      page.begin(entry.target);
    }), { rootMargin: "500px" });
    elements.forEach(element => page.near.observe(element));
  },

  redraw() {
    page.drawn.forEach(chart => chart.draw());
  },
};

page.here = new IntersectionObserver(entries => entries.forEach(({ target, isIntersecting }) => {
  if (!isIntersecting) return;
  document.querySelectorAll("nav a").forEach(link => {
    const here = link.hash === `#${target.id}`;
    link.classList.toggle("here", here);
    here ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
  });
}), { rootMargin: "-20% 0px -75% 0px" });

document.addEventListener("DOMContentLoaded", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = document.documentElement.dataset;
  const isDark = () => (theme.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const button = page.make("button", { type: "button", id: "theme", onclick: () => {
    theme.theme = isDark() ? "light" : "dark";
    named();
  } });
  const named = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    page.redraw();
  };
  dark.addEventListener("change", named);
  document.querySelector("nav > div").append(button);
  named();
  page.watch(document.querySelectorAll("[data-chart]"));
  document.querySelectorAll("main > section[id]").forEach(section => page.here.observe(section));
});

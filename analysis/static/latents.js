// The latent map: where an encoder puts each image; hovering shows it, a click its cluster.
"use strict";

page.charts.latents = (element, data) => {
  const palette = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8a949e"];
  const shapes = ["circle", "triangle", "rect", "diamond", "down", "cross"];
  let [encoder, by, picked, pointed] = [data.maps[0].encoder, "species", null, -1];
  let groups = [];
  let view = null; // [x from, x to, y from, y to]

  const bar = page.make("div", { class: "bar" });
  const plot = page.make("div", { class: "plot", tabindex: 0, role: "application", "aria-label": "Latent map: arrow keys go from image to image, Enter shows its group, Escape all" });
  const legend = page.make("div", { class: "legend", role: "group", "aria-label": "Groups" });
  const gallery = page.make("div", { class: "picked", role: "status" });
  const spoken = page.make("span", { class: "unseen", "aria-live": "polite" });
  element.append(bar, page.make("div", { class: "map" }, plot, legend), gallery, spoken);
  const chart = page.open(plot);

  const map = () => data.maps.find(each => each.encoder === encoder) ?? data.maps[0];
  const splits = ["train", "valid", "test"];
  const colour = i => palette[i % palette.length];
  const shape = i => shapes[Math.floor(i / palette.length) % shapes.length];

  function group() {
    const of = { species: i => data.of[i], cluster: i => map().cluster[i], split: i => splits.indexOf(data.splits[i]) }[by];
    const found = new Map();
    data.files.forEach((_, i) => {
      if (!found.has(of(i))) found.set(of(i), []);
      found.get(of(i)).push(i);
    });
    groups = [...found.keys()].sort((a, b) => a - b).map(key => ({ key, members: found.get(key), name: named(key) }));
  }

  function named(key) {
    return by === "species" ? data.species[key] : by === "split" ? splits[key] : `cluster ${key + 1}`;
  }

  function most(members) {
    const counts = new Map();
    members.forEach(i => counts.set(data.of[i], (counts.get(data.of[i]) ?? 0) + 1));
    return [...counts].sort((a, b) => b[1] - a[1]);
  }

  function controls() {
    const encoders = page.select("Encoder", data.maps.map(each => [each.encoder, each.encoder]), value => { encoder = value; view = null; pick(null); });
    encoders.value = encoder;
    const ways = page.segments("Colour by", [["species", "Species"], ["cluster", "Cluster"], ["split", "Split"]], by, value => { by = value; pick(null); });
    const zoom = (text, label, factor) => page.make("button", { type: "button", "aria-label": label, title: label, onclick: () => zoomed(factor) }, text);
    const zooms = page.make("span", { class: "segments", role: "group", "aria-label": "Zoom" }, zoom("+", "Zoom in", 0.6), zoom("−", "Zoom out", 1 / 0.6), zoom("Whole map", "Whole map", 0));
    const images = data.files.length < data.total ? `${data.files.length.toLocaleString("en")} of ${data.total.toLocaleString("en")} images` : `${data.total.toLocaleString("en")} images`;
    bar.replaceChildren(page.make("label", {}, "Encoder", encoders), ways, zooms, page.make("output", {}, images));
  }

  function listed() {
    legend.replaceChildren(...groups.map(each => {
      const top = by === "cluster" ? `: ${data.species[most(each.members)[0][0]]}` : "";
      return page.make("button", {
        type: "button", "aria-pressed": String(picked === each.key), title: `${each.name}${top}`,
        onclick: () => pick(picked === each.key ? null : each.key),
      }, page.mark(shape(each.key), colour(each.key)), page.make("span", {}, `${each.name}${top}`), page.make("small", {}, String(each.members.length)));
    }));
  }

  // The whole map with the same scale on both axes.
  function whole() {
    const { x, y } = map();
    const [left, right] = [Math.min(...x), Math.max(...x)];
    const [low, high] = [Math.min(...y), Math.max(...y)];
    const ratio = plot.clientWidth / Math.max(plot.clientHeight, 1);
    const half = 0.53 * Math.max((right - left) / ratio, high - low, 1e-9);
    return [(left + right) / 2 - half * ratio, (left + right) / 2 + half * ratio, (low + high) / 2 - half, (low + high) / 2 + half];
  }

  function zoomed(factor) {
    if (!factor) view = null;
    else {
      const window = chart.getOption().xAxis.length ? shownNow() : whole();
      const [cx, cy] = [(window[0] + window[1]) / 2, (window[2] + window[3]) / 2];
      view = [0, 1, 2, 3].map(i => (i < 2 ? cx : cy) + (window[i] - (i < 2 ? cx : cy)) * factor);
    }
    draw();
  }

  function shownNow() {
    const model = chart.getModel();
    const [x, y] = ["xAxis", "yAxis"].map(name => model.getComponent(name).axis.scale.getExtent());
    return [...x, ...y];
  }

  function tip({ data: point }) {
    const i = point.value[2];
    return page.make("div", { class: "tip" }, page.thumb(data, i, data.files[i]),
      page.make("b", {}, data.species[data.of[i]]),
      page.make("div", { class: "soft" }, `${data.splits[i]}, cluster ${map().cluster[i] + 1}`),
      page.make("div", { class: "soft" }, data.files[i]));
  }

  function draw() {
    const { x, y } = map();
    const [x0, x1, y0, y1] = view ?? whole();
    const size = data.files.length > 1200 ? 6 : 8;
    const plain = { show: false, type: "value" };
    chart.setOption({
      animation: false, grid: { left: 0, right: 0, top: 0, bottom: 0 },
      aria: { enabled: true, label: { description: "t-SNE map of the images. The groups are listed beside it." } },
      xAxis: { ...plain, min: x0, max: x1 }, yAxis: { ...plain, min: y0, max: y1 },
      dataZoom: ["xAxisIndex", "yAxisIndex"].map(axis => ({ type: "inside", [axis]: 0, zoomOnMouseWheel: "ctrl", moveOnMouseMove: true, preventDefaultMouseMove: false })),
      tooltip: page.tooltip(tip, { trigger: "item" }),
      series: groups.map(each => ({
        type: "scatter", name: each.name, symbol: page.symbol(shape(each.key)), symbolSize: size, color: colour(each.key),
        z: picked === each.key ? 3 : 2, progressive: 0,
        itemStyle: { opacity: picked == null ? 0.8 : picked === each.key ? 0.95 : 0.1 },
        emphasis: { scale: 1.8, itemStyle: { borderColor: page.colour("ink"), borderWidth: 1 } },
        data: each.members.map(i => ({ value: [x[i], y[i], i] })),
      })),
    }, true);
  }

  function pick(key) {
    picked = key;
    group();
    listed();
    draw();
    const found = groups.find(each => each.key === key);
    gallery.replaceChildren(...(found ? show(found) : []));
  }

  function show(found) {
    const total = found.members.length;
    const parts = most(found.members).slice(0, 5).map(([species, count]) => `${data.species[species]} ${Math.round(100 * count / total)} %`);
    const kinds = new Map();
    found.members.forEach(i => kinds.set(map().cluster[i], (kinds.get(map().cluster[i]) ?? 0) + 1));
    const clusters = [...kinds].sort((a, b) => b[1] - a[1]).slice(0, 5).map(([cluster, count]) => `cluster ${cluster + 1} ${Math.round(100 * count / total)} %`);
    const text = `${total.toLocaleString("en")} images: ${(by === "species" ? clusters : parts).join(", ")}`;
    const head = page.make("p", {}, page.make("strong", {}, found.name), ` · ${text}`);
    const step = Math.max(1, total / 60);
    const sample = Array.from({ length: Math.min(60, total) }, (_, n) => found.members[Math.floor(n * step)]);
    const images = sample.map(i => page.thumb(data, i, `${data.species[data.of[i]]}, ${data.files[i]}`)).filter(Boolean);
    return [head, page.make("div", { class: "gallery" }, ...images)];
  }

  function point(step) {
    const order = groups.flatMap((each, series) => each.members.map((image, at) => ({ image, series, at })));
    pointed = (pointed + step + order.length) % order.length;
    const { image, series, at } = order[pointed];
    chart.dispatchAction({ type: "showTip", seriesIndex: series, dataIndex: at });
    spoken.textContent = `${data.species[data.of[image]]}, ${data.splits[image]}, cluster ${map().cluster[image] + 1}`;
    return groups[series].key;
  }

  plot.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step) point(step);
    else if (event.key === "Enter" && pointed >= 0) pick(point(0));
    else if (event.key === "Escape") { chart.dispatchAction({ type: "hideTip" }); pick(null); }
    else return;
    event.preventDefault();
  });
  chart.on("click", ({ seriesIndex }) => pick(groups[seriesIndex].key));
  chart.getZr().on("click", event => { if (!event.target && picked != null) pick(null); });

  const update = fresh => {
    data = fresh;
    if (!data.maps.some(each => each.encoder === encoder)) encoder = data.maps[0].encoder;
    controls();
    pick(picked);
  };
  update(data);
  return { draw, update, where: image => chart.convertToPixel({ gridIndex: 0 }, [map().x[image], map().y[image]]) };
};

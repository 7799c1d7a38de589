// Label efficiency: each test metric against labelled images, with the interval of each point.
"use strict";

page.charts.efficiency = (element, data) => {
  const names = { acc: "Accuracy", f1: "Macro F1", precision: "Precision", recall: "Recall", loss: "Loss" };
  const hidden = new Set();
  let metric = "acc";
  let scale = "log";
  const bar = page.make("div", { class: "bar" });
  const plot = page.make("div", { class: "plot" });
  element.append(bar, plot);
  const chart = page.open(plot, "svg");

  function controls() {
    const metrics = page.segments("Metric", Object.entries(names), metric, value => { metric = value; draw(); });
    const axes = page.segments("Axis of labels", [["log", "log"], ["value", "linear"]], scale, value => { scale = value; draw(); });
    const lines = data.lines.map(line => [line.variant, line.name, page.mark(page.markers[line.marker], line.colour)]);
    bar.replaceChildren(metrics, axes, page.chips("Variants", lines, hidden, draw));
  }

  // Side by side at each number of labels, or the intervals would hide each other.
  function beside(line, lines) {
    const place = lines.indexOf(line) - (lines.length - 1) / 2;
    const all = lines.flatMap(each => each.labels);
    const [low, high] = [Math.min(...all), Math.max(...all)];
    return labels => scale === "log" ? labels * (high / low) ** (0.009 * place) : labels + 0.006 * place * high;
  }

  function bars(line, at) {
    return {
      type: "custom", silent: true, z: 1, tooltip: { show: false }, clip: true,
      data: line.labels.map((labels, i) => [at(labels), ...line[metric][i].slice(1)]),
      renderItem: (_, api) => {
        const [x, low] = api.coord([api.value(0), api.value(1)]);
        const [, high] = api.coord([api.value(0), api.value(2)]);
        return { type: "line", shape: { x1: x, x2: x, y1: low, y2: high }, style: { stroke: line.colour, lineWidth: 1.6, opacity: 0.75 } };
      },
    };
  }

  function curve(line, at) {
    return {
      type: "line", name: line.variant, z: 3, symbol: page.symbol(page.markers[line.marker]), symbolSize: 9, showAllSymbol: true,
      data: line.labels.map((labels, i) => [at(labels), line[metric][i][0], labels]),
      color: line.colour, lineStyle: { width: 2 }, emphasis: { disabled: true },
    };
  }

  function tip(points) {
    const found = points.filter(point => point.seriesType === "line");
    if (!found.length) return "";
    const labels = found[0].value[2];
    const rows = data.lines.filter(line => !hidden.has(line.variant) && line.labels.includes(labels)).map(line => {
      const [value, low, high] = line[metric][line.labels.indexOf(labels)];
      const interval = low == null ? "" : `${page.number(low, 3)} to ${page.number(high, 3)}`;
      return page.make("tr", {},
        page.make("td", {}, page.mark(page.markers[line.marker], line.colour)), page.make("td", { class: "t" }, line.variant),
        page.make("td", {}, page.number(value, 3)), page.make("td", { class: "soft" }, interval));
    });
    const ratio = data.lines.map(line => line.ratio[line.labels.indexOf(labels)]).find(each => each != null);
    const head = page.make("b", {}, `${labels.toLocaleString("en")} labels (${ratio} %)`);
    return page.make("div", { class: "tip" }, head, page.make("table", {}, ...rows));
  }

  // The interval's ends count for the axis as well.
  function range(lines) {
    const ends = lines.flatMap(line => line[metric].flat()).filter(value => value != null);
    const [low, high] = [Math.min(...ends), Math.max(...ends)];
    const step = (high - low || 1) > 0.5 ? 0.1 : 0.05;
    return { min: Math.max(0, Math.floor(low / step) * step), max: Math.ceil(high / step) * step };
  }

  function draw() {
    const lines = data.lines.filter(line => !hidden.has(line.variant));
    const ticks = [...new Set(data.lines.flatMap(line => line.labels))].sort((a, b) => a - b);
    const label = { customValues: ticks, formatter: value => Math.round(value).toLocaleString("en") };
    const [low, high] = [ticks[0], ticks.at(-1)];
    const more = scale === "log" ? { min: low * 0.9, max: high * 1.1 } : { min: 0, max: high * 1.04 };
    const extra = { label, tick: { customValues: ticks }, more };
    chart.setOption({
      animation: false,
      aria: { enabled: true, label: { description: `${names[metric]} on the test set against labelled images. The numbers are in Table I.` } },
      grid: { left: 56, right: 20, top: 14, bottom: 48 },
      xAxis: page.axis(scale, "labelled training images", extra),
      yAxis: page.axis("value", `test ${names[metric].toLowerCase().replace("f1", "F1")}`, { grid: true, label: { formatter: value => value.toFixed(2) }, more: { nameGap: 42, ...range(lines) } }),
      tooltip: page.tooltip(tip, { trigger: "axis", axisPointer: { type: "line", snap: true, lineStyle: { color: page.colour("line"), type: "solid" }, label: { show: false } } }),
      series: lines.flatMap(line => [bars(line, beside(line, lines)), curve(line, beside(line, lines))]),
    }, true);
  }

  const update = fresh => { data = fresh; controls(); draw(); };
  update(data);
  return { draw, update };
};

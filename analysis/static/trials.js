// Every trial: a chart (learning rate against score, or parallel axes) over a table, one filter.
"use strict";

page.charts.trials = (element, data) => {
  const hidden = new Set();
  const shown = { cell: "", state: "", text: "" };
  let view = "lr";
  let metric = data.metric;
  let rows = [];
  let brushed = null; // ids within the parallel view's brushes
  const metrics = { val_f1: "Macro F1", val_acc: "Accuracy", val_loss: "Loss" };

  const bar = page.make("div", { class: "bar" });
  const choices = page.make("div", { class: "bar" });
  const count = page.make("output", { "aria-live": "polite" });
  const plot = page.make("div", { class: "plot", tabindex: 0, role: "group", "aria-label": "Chart of the trials below" });
  const board = page.make("div", { class: "board" });
  const note = page.make("p", { class: "note" });
  element.append(bar, choices, plot, note, board);
  const chart = page.open(plot);

  function read(fresh) {
    data = fresh;
    const of = Object.fromEntries(data.cells.map(each => [each.cell, each]));
    const columns = data.columns;
    rows = columns.trial_id.map((trial_id, i) => {
      const row = { id: trial_id, rank: i + 1, variant: of[columns.cell[i]]?.variant, ratio: of[columns.cell[i]]?.ratio };
      for (const name of Object.keys(columns)) row[name] = columns[name][i];
      row.state = row.state.toLowerCase();
      row.text = `${trial_id} ${row.cell} ${row.state} ${row.chosen ? "chosen" : ""} ${data.searched.map(each => row[each.name] ?? "").join(" ")} ${row.error}`.toLowerCase();
      return row;
    });
  }

  const capital = text => text[0].toUpperCase() + text.slice(1);
  const short = value => value == null ? "–" : Math.abs(value) < 0.01 && value !== 0 ? value.toExponential(1).replace("-", "−") : String(Number(value.toPrecision(3)));

  const passes = row =>
    !hidden.has(row.variant) && (!shown.cell || row.cell === shown.cell) &&
    (!shown.state || (shown.state === "chosen" ? row.chosen : row.state === shown.state)) &&
    shown.text.split(/\s+/).every(word => row.text.includes(word));

  function controls() {
    const variants = data.variants.map(v => [v.variant, v.variant, page.mark(page.markers[v.marker], v.colour)]);
    const scores = page.segments("Score", Object.entries(metrics), metric, value => { metric = value; draw(); });
    scores.hidden = view !== "lr";
    const views = page.segments("View", [["lr", "Learning rate"], ["parallel", "Parallel"]], view, value => { view = value; brushed = null; scores.hidden = view !== "lr"; filter(); });
    choices.replaceChildren(views, scores, page.chips("Variants", variants, hidden, filter));
    const cells = page.select("Cell", [["", "all cells"], ...data.cells.map(each => [each.cell, each.cell])], value => { shown.cell = value; filter(); });
    const states = page.select("State", [["", "all states"], ...["chosen", "complete", "pruned", "running", "fail"].map(s => [s, s])], value => { shown.state = value; filter(); });
    const search = page.make("input", { type: "search", "aria-label": "Search trials", placeholder: "Search trial, error …", oninput: () => { shown.text = search.value.trim().toLowerCase(); filter(); } });
    cells.value = shown.cell;
    states.value = shown.state;
    search.value = shown.text;
    bar.replaceChildren(cells, states, search, count);
  }

  // Enough decimals that no two labels of an axis of about five are the same.
  function decimals(values) {
    const span = Math.max(...values) - Math.min(...values);
    return span > 0 ? Math.max(2, -Math.floor(Math.log10(span / 3.5))) : 2;
  }

  const right = { hozAlign: "right", headerHozAlign: "right", sorter: "number", sorterParams: { alignEmptyValues: "bottom" } };
  const digits = n => cell => page.number(cell.getValue(), n);
  const column = (title, field, width, more) => ({
    title, field, minWidth: width, headerSortTristate: false, ...more,
    titleFormatter: () => page.make("button", { type: "button" }, title), // a button takes Tab and Enter
  });
  // Wide enough for every cell's name, whatever the font; a trial's is its cell's and a number.
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `14px ${getComputedStyle(board).fontFamily}`;
  const wide = (least, more) => Math.max(least, ...data.cells.map(each => 18 + Math.ceil(pen.measureText(each.cell + more).width)));
  const titled = each => Math.max(90, 46 + Math.ceil(pen.measureText(each.title).width));
  const table = new Tabulator(board, {
    data: [], index: "id", nestedFieldSeparator: false, height: "27rem", rowHeight: 31, layout: "fitColumns", placeholder: "No trial is like that.",
    selectableRows: 1, columnDefaults: { resizable: false }, initialSort: [{ column: "rank", dir: "asc" }],
    columns: [
      column("#", "rank", 62, right),
      column("Trial", "id", wide(108, "-000"), {}),
      column("Cell", "cell", wide(82, ""), {}),
      ...data.searched.filter(each => each.levels).map(each => column(capital(each.title), each.name, titled(each), {})),
      column("State", "state", 96, { formatter: cell => page.make("span", {}, cell.getData().chosen ? "★ chosen" : cell.getValue()) }),
      column("lr", "lr", 84, { ...right, formatter: cell => cell.getValue() == null ? "–" : cell.getValue().toExponential(1).replace("-", "−") }),
      ...data.searched.filter(each => !each.levels).map(each => column(capital(each.title), each.name, titled(each), { ...right, formatter: cell => short(cell.getValue()) })),
      column("F1", "val_f1", 80, { ...right, formatter: digits(4) }),
      column("Accuracy", "val_acc", 108, { ...right, formatter: digits(4) }),
      column("Loss", "val_loss", 82, { ...right, formatter: digits(4) }),
      column("Epochs", "epochs", 98, { ...right, formatter: cell => {
        const { epochs, best_epoch } = cell.getData();
        return epochs == null ? "–" : best_epoch == null ? String(epochs) : `${epochs} (${best_epoch})`;
      } }),
      column("s", "seconds", 76, { ...right, formatter: digits(1) }),
      column("Error", "error", 120, { widthGrow: 3, formatter: cell => page.make("span", { title: cell.getValue() }, cell.getValue()) }),
    ],
  });
  const ready = new Promise(resolve => table.on("tableBuilt", resolve));
  table.on("dataFiltered", (_, found) => {
    count.textContent = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} trials`;
  });

  const visible = () => rows.filter(passes);
  const symbols = () => Object.fromEntries(data.variants.map(each => [each.variant, page.symbol(page.markers[each.marker])]));
  const colours = () => Object.fromEntries(data.variants.map(each => [each.variant, each.colour]));

  const filterTable = () => ready.then(() => table.setFilter(row => passes(row) && (!brushed || brushed.has(row.id))));

  function filter() {
    filterTable();
    draw();
  }

  function tip({ data: point }) {
    const row = point?.row;
    if (!row) return "";
    const line = (name, value) => page.make("tr", {}, page.make("td", { class: "t soft" }, name), page.make("td", {}, value));
    return page.make("div", { class: "tip" }, page.make("b", {}, row.id), page.make("table", {},
      ...data.searched.filter(each => row[each.name] != null).map(each => line(each.title, each.levels ? row[each.name] : short(row[each.name]))), line("state", row.chosen ? "chosen" : row.state), line("lr", row.lr?.toExponential(2).replace("-", "−") ?? "–"),
      line("F1", page.number(row.val_f1, 4)), line("accuracy", page.number(row.val_acc, 4)), line("loss", page.number(row.val_loss, 4)),
      line("epochs", row.epochs == null ? "–" : `${row.epochs} (best ${row.best_epoch ?? "–"})`)));
  }

  function scatter() {
    const many = rows.length > 1500;
    const [colour, symbol] = [colours(), symbols()];
    const drawnAs = { complete: {}, pruned: { borderType: "solid" }, running: { borderType: "dotted" } };
    const found = visible().filter(row => row[metric] != null && row.lr != null);
    const series = Object.entries(drawnAs).map(([state, border]) => ({
      type: "scatter", name: state, symbolSize: many ? 5 : 8, progressive: 0,
      data: found.filter(row => row.state === state && !row.chosen).map(row => ({
        value: [row.lr, row[metric]], row, symbol: symbol[row.variant],
        itemStyle: state === "complete" ? { color: colour[row.variant], opacity: many ? 0.5 : 0.75 }
          : { color: "transparent", borderColor: colour[row.variant], borderWidth: 1.2, ...border, opacity: many ? 0.45 : 0.75 },
      })),
    }));
    series.push({
      type: "scatter", name: "chosen", symbolSize: 12, z: 5,
      data: found.filter(row => row.chosen).map(row => ({
        value: [row.lr, row[metric]], row, symbol: symbol[row.variant],
        itemStyle: { color: colour[row.variant], borderColor: page.colour("ink"), borderWidth: 1.8 },
      })),
    });
    const lrs = rows.map(row => row.lr).filter(lr => lr > 0);
    const range = lrs.length ? { min: Math.min(...lrs) / 1.2, max: Math.max(...lrs) * 1.2 } : {};
    const decades = [];
    for (let power = -9; power <= 2; power++) {
      for (const m of [1, 3]) if (m * 10 ** power >= range.min && m * 10 ** power <= range.max) decades.push(m * 10 ** power);
    }
    const ticks = decades.length ? { customValues: decades } : {};
    const powers = { ...ticks, formatter: value => value.toExponential(0).replace("e-", "e−").replace("e+", "e") };
    const digits = decimals(found.map(row => row[metric]));
    note.textContent = "Filled: complete. Hollow: stopped early, dotted while it runs. Ringed: its learning rate was chosen. Failed trials have no score. A click on a point finds its row.";
    return {
      grid: { left: 56, right: 16, top: 14, bottom: 46 },
      xAxis: page.axis("log", "learning rate", { label: powers, tick: ticks, more: range }),
      yAxis: page.axis("value", `validation ${metrics[metric].toLowerCase().replace("f1", "F1")}`, { grid: true, label: { formatter: value => value.toFixed(digits) }, more: { nameGap: 42 } }),
      tooltip: page.tooltip(tip, { trigger: "item" }),
      series,
    };
  }

  const searched = Object.fromEntries(data.searched.map(each => [each.name, each]));
  const parallelNames = ["cell", "lr", ...Object.keys(searched), "epochs", "seconds", "val_f1", "val_acc", "val_loss"];
  let inParallel = [];

  function parallel() {
    const colour = colours();
    const [ink, soft] = ["ink", "soft"].map(page.colour);
    inParallel = visible().filter(row => row.val_loss != null && row.lr != null && row.epochs != null);
    const style = {
      nameTextStyle: { color: ink, fontSize: 12 }, axisLabel: { color: soft, fontSize: 11 }, nameGap: 12,
      axisLine: { lineStyle: { color: soft } }, axisTick: { lineStyle: { color: soft } }, scale: true,
      areaSelectStyle: { width: 16, borderColor: ink, color: ink, opacity: 0.15 },
    };
    const titles = { cell: "cell", lr: "lr", epochs: "epochs", seconds: "seconds", val_f1: "F1", val_acc: "accuracy", val_loss: "loss" };
    for (const each of data.searched) titles[each.name] = each.title;
    const levels = name => name === "cell" ? data.cells.map(each => each.cell) : searched[name]?.levels;
    const byLog = name => name === "lr" || searched[name]?.log;
    note.textContent = "Drag along an axis to keep the trials within; a click on the axis lets them go. The table below follows.";
    return {
      parallel: { left: 74, right: 46, top: 34, bottom: 24 },
      parallelAxis: parallelNames.map((name, dim) => ({
        dim, name: titles[name], ...style,
        type: levels(name) ? "category" : byLog(name) ? "log" : "value",
        ...(levels(name) ? { data: levels(name), axisLabel: { ...style.axisLabel, inside: true }, axisTick: { inside: true } } : {}),
        ...(byLog(name) ? { axisLabel: { ...style.axisLabel, formatter: value => value.toExponential(0).replace("-", "−") } } : {}),
      })),
      tooltip: { show: false },
      series: [{
        type: "parallel", smooth: 0.12, progressive: 800, inactiveOpacity: 0.03, activeOpacity: 0.9,
        lineStyle: { width: rows.length > 1500 ? 0.6 : 1.1, opacity: rows.length > 1500 ? 0.2 : 0.5 },
        data: inParallel.map(row => ({ value: parallelNames.map(name => row[name]), lineStyle: { color: colour[row.variant] } })),
      }],
    };
  }

  function draw() {
    const option = view === "lr" ? scatter() : parallel();
    const description = "Every trial's learning rate and score. The same trials are in the table below.";
    chart.setOption({ animation: false, aria: { enabled: true, label: { description } }, ...option }, true);
  }

  chart.on("axisareaselected", () => {
    const series = chart.getModel().getSeriesByIndex(0);
    const active = series.getRawIndicesByActiveState("active");
    const all = !active.length && !series.getRawIndicesByActiveState("inactive").length;
    brushed = all ? null : new Set(active.map(i => inParallel[i].id));
    filterTable();
  });
  chart.on("click", ({ data: point }) => {
    if (!point?.row) return;
    table.deselectRow();
    table.selectRow(point.row.id);
    table.scrollToRow(point.row.id, "center", false);
  });

  function update(fresh) {
    read(fresh);
    controls();
    draw();
    ready.then(() => table.replaceData(rows)).then(filterTable);
  }
  update(data);
  return { draw, update };
};

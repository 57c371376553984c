// The page's behaviour: curves, images and tables from the JSON beside it. Names reach the page as text, never as HTML.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  root.classList.add("live");
  const $ = (id) => document.getElementById(id);
  const say = (text) => { $("said").textContent = text; };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 40rem)");
  const coarse = matchMedia("(pointer: coarse)");
  const SVG = "http://www.w3.org/2000/svg";

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "text") element.textContent = value;
      else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  }

  // Plotly reads a little HTML in its texts: nothing of ours may be read so.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/\$/g, "&#36;");
  const token = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const colour = (i) => data.curves[i].look[dark.matches ? "dark" : "light"];
  const faint = (hex, alpha) => {
    const n = parseInt(hex.slice(1), 16);
    return `rgba(${n >> 16}, ${(n >> 8) & 255}, ${n & 255}, ${alpha})`;
  };

  // --- which curves are shown -------------------------------------------------------------------------------------
  const SHAPES = {
    circle: "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z", square: "M-3.6-3.6h7.2v7.2h-7.2Z", diamond: "M0-5L5 0L0 5L-5 0Z",
    cross: "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3Z", "triangle-up": "M0-4.8L4.6 3.6H-4.6Z", "triangle-down": "M0 4.8L4.6-3.6H-4.6Z",
    x: "M-4.4-2.2L-2.2-4.4L0-2.2L2.2-4.4L4.4-2.2L2.2 0L4.4 2.2L2.2 4.4L0 2.2L-2.2 4.4L-4.4 2.2L-2.2 0Z",
    star: "M0-5.4L1.5-1.8L5.2-1.7L2.3.8L3.3 4.6L0 2.4L-3.3 4.6L-2.3.8L-5.2-1.7L-1.5-1.8Z",
  };
  const DASHES = { solid: "", dash: "6 4", dot: "2 3", dashdot: "7 3 2 3", longdash: "11 4", longdashdot: "11 3 2 3" };

  function swatch(i) {
    const { marker, dash } = data.curves[i].look;
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "-17 -7 34 14");
    svg.setAttribute("width", "34");
    svg.setAttribute("height", "14");
    svg.setAttribute("aria-hidden", "true");
    const line = document.createElementNS(SVG, "path");
    line.setAttribute("d", "M-16 0H16");
    line.setAttribute("fill", "none");
    line.setAttribute("stroke-width", "2");
    line.setAttribute("stroke-dasharray", DASHES[dash]);
    const mark = document.createElementNS(SVG, "path");
    mark.setAttribute("d", SHAPES[marker]);
    svg.append(line, mark);
    svg.paint = () => { line.setAttribute("stroke", colour(i)); mark.setAttribute("fill", colour(i)); };
    svg.paint();
    swatches.push(svg);
    return svg;
  }
  const swatches = [];

  // A list of curves to tick, with a filter: `chosen` is the set of their numbers, changed here.
  function picker(place, title, curves, chosen, changed) {
    const summary = make("summary");
    const list = make("ul");
    const rows = curves.map((i) => {
      const box = make("input", { type: "checkbox", onchange: () => { box.checked ? chosen.add(i) : chosen.delete(i); update(); } });
      const row = make("li", {}, make("label", {}, box, swatch(i), make("span", { text: data.curves[i].name })));
      list.append(row);
      return { i, box, row, name: data.curves[i].name.toLowerCase() };
    });
    const update = () => {
      summary.textContent = `${title}: ${chosen.size} of ${curves.length} shown`;
      rows.forEach(({ i, box }) => { box.checked = chosen.has(i); });
      changed();
    };
    const filter = make("input", { type: "search", placeholder: "filter", "aria-label": `filter ${title.toLowerCase()} by name`, oninput: () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows.forEach(({ row, name }) => { row.hidden = !words.every((w) => name.includes(w)); });
    } });
    const seen = () => rows.filter(({ row }) => !row.hidden);
    const all = make("button", { type: "button", text: "all", "aria-label": "show all that the filter leaves", onclick: () => { seen().forEach(({ i }) => chosen.add(i)); update(); } });
    const none = make("button", { type: "button", text: "none", "aria-label": "hide all that the filter leaves", onclick: () => { seen().forEach(({ i }) => chosen.delete(i)); update(); } });
    const tools = make("div", { class: "tools" }, ...(curves.length > 8 ? [filter] : []), all, none);
    const details = make("details", {}, summary, tools, list);
    details.open = !narrow.matches;
    place.append(details);
    update();
  }

  // --- the curves -------------------------------------------------------------------------------------------------
  const shown = new Set(data.shown);
  const finite = (values) => values.filter((v) => v !== null && Number.isFinite(v));
  const pointsOf = (curve, metric) => data.lines
    .filter((l) => l.curve === curve && l.measures[metric] && l.measures[metric][0] !== null)
    .sort((a, b) => a.made - b.made);

  function layout(title, logarithmic, calls) {
    const axis = { gridcolor: token("--grid"), linecolor: token("--line"), zeroline: false, ticks: "", tickformat: "~g", tickangle: 0, automargin: true, fixedrange: coarse.matches };
    const low = Math.min(...calls), high = Math.max(...calls);
    const lines = wrapped(title, narrow.matches ? 40 : 90);
    return {
      paper_bgcolor: token("--card"), plot_bgcolor: token("--card"),
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow.matches ? 11 : 13, color: token("--ink") },
      margin: { l: 12, r: 18, t: 26 + 18 * lines.length, b: 12 },
      xaxis: { ...axis, type: "log", range: [Math.log10(low / 1.18), Math.log10(high * 1.18)], title: { text: "network calls for each sample", standoff: 8, font: { size: narrow.matches ? 11.5 : 13 } }, ...ticks(low / 1.18, high * 1.18) },
      yaxis: { ...axis, type: logarithmic ? "log" : "linear" },
      showlegend: false, hovermode: "closest", dragmode: coarse.matches ? false : "zoom",
      hoverlabel: { bgcolor: token("--card"), bordercolor: token("--line"), font: { family: getComputedStyle(document.body).fontFamily, color: token("--ink") }, align: "left", namelength: -1 },
      shapes: [],
      annotations: [{ xref: "paper", yref: "paper", x: 0, y: 1, xanchor: "left", yanchor: "bottom", yshift: 8, showarrow: false, align: "left", text: lines.map(plain).join("<br>"), font: { size: narrow.matches ? 12 : 14 } }],
    };
  }

  function wrapped(text, width) {
    const lines = [""];
    for (const word of text.split(" ")) {
      const last = lines[lines.length - 1];
      if (last && last.length + word.length >= width) lines.push(word);
      else lines[lines.length - 1] = last ? `${last} ${word}` : word;
    }
    return lines.slice(0, 3).map((line) => (line.length > width ? `${line.slice(0, width - 1)}…` : line));
  }

  // 1, 2, 5, 10, ...: what a reader expects on an axis of calls. Finer ones where these are too few.
  function ticks(low, high) {
    const found = [];
    const mantissas = high / low < 4 ? [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9] : high / low < 400 ? [1, 2, 5] : [1];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
      for (const m of mantissas) { const v = m * 10 ** e; if (v >= low && v <= high) found.push(Number(v.toPrecision(12))); }
    }
    return found.length > 1 ? { tickvals: found, ticktext: found.map((v) => (v >= 1e5 || v < 1e-3 ? v.toExponential().replace("e+", "e") : String(v))) } : {};
  }

  // The line of a curve, and its band of 95 %; points alone have whiskers.
  function tracesOf(curve, metric, floor) {
    const points = pointsOf(curve, metric);
    if (!points.length) return [];
    const { name, look } = data.curves[curve];
    const x = points.map((p) => p.made);
    const y = points.map((p) => p.measures[metric][0]);
    const low = points.map((p, i) => Math.max(p.measures[metric][1] ?? y[i], floor));
    const high = points.map((p, i) => p.measures[metric][2] ?? y[i]);
    const line = {
      x, y, name: plain(name), type: "scatter", mode: "lines+markers", hoverinfo: "text", meta: { curve },
      hovertext: points.map((p) => [name, ...p.text, `${data.titles[metric]}: ${p.texts[metric]}`].map(plain).join("<br>")),
      line: { color: colour(curve), width: 2, dash: look.dash }, marker: { color: colour(curve), size: 8, symbol: look.marker },
    };
    if (points.length === 1) {
      line.error_y = { type: "data", symmetric: false, array: [high[0] - y[0]], arrayminus: [y[0] - low[0]], color: colour(curve), thickness: 1.5, width: 4 };
      return [line];
    }
    const band = {
      x: [...x, ...x.slice().reverse()], y: [...high, ...low.slice().reverse()], type: "scatter", mode: "lines", line: { width: 0 },
      fill: "toself", fillcolor: faint(colour(curve), 0.16), hoverinfo: "skip", meta: { band: curve },
    };
    return [band, line];
  }

  // A horizontal line with its name, and its interval as a band.
  function level(into, given, text, dash, above, logarithmic) {
    if (!given || given[0] === null || (logarithmic && given[0] <= 0)) return;
    const ink = token("--soft");
    const [value, low, high] = given;
    into.shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, line: { color: ink, width: 1.5, dash }, layer: "below" });
    if (low !== null && high !== null && !(logarithmic && low <= 0)) {
      into.shapes.push({ type: "rect", xref: "paper", x0: 0, x1: 1, y0: low, y1: high, line: { width: 0 }, fillcolor: faint(ink, 0.13), layer: "below" });
    }
    into.annotations.push({ xref: "paper", x: 0.01, xanchor: "left", y: logarithmic ? Math.log10(value) : value, yanchor: above ? "bottom" : "top", showarrow: false, text: plain(text), font: { color: ink, size: narrow.matches ? 10.5 : 12 }, bgcolor: faint(token("--card"), 0.7) });
  }

  const config = { displaylogo: false, responsive: true, scrollZoom: false, displayModeBar: coarse.matches ? false : undefined, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  const allCalls = finite(data.lines.map((l) => l.made));
  const canBeLog = (metric) => finite([...data.lines.map((l) => l.measures[metric]?.[0] ?? null)]).every((v) => v > 0);
  let metric = data.metric;
  let logarithmic = true;

  // How high the plot must reach, whatever else is there: the points and the two levels, a little air around them.
  function reach(into, values, isLog) {
    if (!values.length) return;
    const f = isLog ? Math.log10 : (v) => v;
    const low = f(Math.min(...values)), high = f(Math.max(...values));
    const air = Math.max((high - low) * 0.06, isLog ? 0.03 : Math.abs(high) * 0.02, 1e-12);
    into.yaxis.range = [low - air, high + air];
    if (isLog) Object.assign(into.yaxis, ticks(10 ** (low - air), 10 ** (high + air)));
  }

  function drawCurves() {
    const place = $("plot-curves");
    const m = data.metrics.find((one) => one.name === metric);
    const into = layout(`${m.title}, ${m.better === "high" ? "higher" : "lower"} is better`, logarithmic, allCalls);
    const curves = [...shown].sort((a, b) => a - b);
    const values = curves.flatMap((c) => pointsOf(c, metric).flatMap((p) => p.measures[metric]));
    const levels = finite([m.noise?.[0] ?? null, m.reference?.[0] ?? null]);
    const centres = curves.flatMap((c) => pointsOf(c, metric).map((p) => p.measures[metric][0]));
    const lowest = Math.min(...finite([...centres, ...levels]).filter((v) => v > 0)) / 2;
    const traces = curves.flatMap((c) => tracesOf(c, metric, logarithmic ? lowest : -Infinity));
    const flowIsHigher = !(m.noise?.[0] > m.reference?.[0]);  // the higher line has its name above it: they may lie close together
    level(into, m.noise, `noise floor ${m.noiseText ?? ""}`, "dot", !flowIsHigher || !m.reference, logarithmic);
    level(into, m.reference, `converged flow ${m.referenceText ?? ""}`, "dashdot", flowIsHigher, logarithmic);
    reach(into, finite([...values, ...levels]).map((v) => (logarithmic ? Math.max(v, lowest) : v)), logarithmic);
    Plotly.react(place, traces.length ? traces : [{ x: [], y: [], type: "scatter" }], into, config);
    place.setAttribute("aria-label", `${m.title} against network calls, ${curves.length} curves. All numbers are in the table of all cells.`);
  }

  function drawError() {
    if (!$("plot-error")) return;
    const curves = [...shown].filter((c) => !data.curves[c].stochastic).sort((a, b) => a - b);
    const positive = canBeLog("error");
    const into = layout(data.titles.error, positive, allCalls);
    const values = finite(curves.flatMap((c) => pointsOf(c, "error").flatMap((p) => p.measures.error))).filter((v) => !positive || v > 0);
    reach(into, values, positive);
    const least = Math.min(...curves.flatMap((c) => pointsOf(c, "error").map((p) => p.measures.error[0])).filter((v) => v > 0)) / 2;
    const traces = curves.flatMap((c) => tracesOf(c, "error", positive ? least : -Infinity));
    Plotly.react($("plot-error"), traces.length ? traces : [{ x: [], y: [], type: "scatter" }], into, config);
  }

  function drawFront() {
    if (!$("plot-front")) return;
    const m = data.metrics.find((one) => one.name === data.metric);
    const isLog = canBeLog(m.name) && m.better === "low";
    const into = layout(`${m.title}, ${m.better === "high" ? "higher" : "lower"} is better`, isLog, allCalls);
    const there = data.lines.filter((l) => shown.has(l.curve) && l.measures[m.name] && l.measures[m.name][0] !== null);
    const value = (l) => l.measures[m.name][0];
    const dots = {
      x: there.map((l) => l.made), y: there.map(value), type: "scatter", mode: "markers", hoverinfo: "text", meta: { dots: true },
      hovertext: there.map((l) => [data.curves[l.curve].name, ...l.text, `${m.title}: ${l.texts[m.name]}`].map(plain).join("<br>")),
      marker: { color: there.map((l) => colour(l.curve)), symbol: there.map((l) => data.curves[l.curve].look.marker), size: 9, opacity: 0.85 },
    };
    const front = data.front.map((i) => data.lines[i]);
    const stairs = { x: front.map((l) => l.made), y: front.map(value), type: "scatter", mode: "lines", line: { shape: "hv", color: token("--ink"), width: 1.6 }, hoverinfo: "skip" };
    const good = there.filter((l) => l.good);
    const rings = { x: good.map((l) => l.made), y: good.map(value), type: "scatter", mode: "markers", hoverinfo: "skip", marker: { symbol: "circle-open", size: 17, color: token("--good"), line: { width: 2 } } };
    reach(into, finite([...there, ...front].map(value)), isLog);
    Plotly.react($("plot-front"), [stairs, dots, rings], into, config);
  }

  function drawAll() {
    drawCurves();
    drawError();
    drawFront();
  }

  // A plot below the fold is drawn at once too: it is small, and nobody waits for it when scrolling.
  if ($("plot-curves") && allCalls.length) {
    const select = $("metric"), toggle = $("logarithmic");
    data.metrics.forEach((m) => select.append(make("option", { value: m.name, text: m.title, ...(m.name === metric ? { selected: "" } : {}) })));
    const measure = () => {
      metric = select.value;
      const able = canBeLog(metric);
      logarithmic = able && data.metrics.find((m) => m.name === metric).better === "low";
      toggle.disabled = !able;
      toggle.checked = logarithmic;
    };
    measure();
    let ready = false;
    picker($("legend"), "Curves", data.curves.map((_, i) => i), shown, () => { if (ready) drawAll(); });
    ready = true;
    drawAll();
    select.addEventListener("change", () => { measure(); drawCurves(); });
    toggle.addEventListener("change", () => { logarithmic = toggle.checked; drawCurves(); });
    dark.addEventListener("change", () => { swatches.forEach((s) => s.paint()); drawAll(); });
    narrow.addEventListener("change", drawAll);
  }

  // --- the images -------------------------------------------------------------------------------------------------
  const slider = $("steps");
  if (slider) {
    const strips = [...document.querySelectorAll(".strip[data-curve]")].map((element) => ({ element, curve: Number(element.dataset.curve), calls: Number(element.dataset.calls) }));
    const withImages = [...new Set(strips.map((s) => s.curve))];
    const chosen = new Set(data.pictured);
    const far = (a, b) => Math.abs(Math.log(a / b));
    const show = () => {
      const calls = data.stops[Number(slider.value)];
      $("calls").textContent = `${calls} calls`;
      slider.setAttribute("aria-valuetext", `${calls} calls`);
      for (const curve of withImages) {
        const own = strips.filter((s) => s.curve === curve);
        const nearest = own.reduce((a, b) => (far(b.calls, calls) < far(a.calls, calls) ? b : a));
        own.forEach((s) => { s.element.hidden = !(s === nearest && chosen.has(curve)); });
        nearest.element.querySelector(".other").textContent = nearest.calls === calls ? "" : ` (none at ${calls})`;
      }
    };
    slider.max = String(data.stops.length - 1);
    slider.value = String(Math.floor((data.stops.length - 1) / 2));
    const marks = data.stops.length <= (narrow.matches ? 9 : 16) ? data.stops : [data.stops[0], data.stops[data.stops.length - 1]];
    marks.forEach((calls) => $("stops").append(make("span", { text: calls })));
    picker($("image-curves"), "Solvers", withImages, chosen, show);
    slider.addEventListener("input", show);
  }

  // --- the tables -------------------------------------------------------------------------------------------------
  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const keyOf = (row, i) => row.cells[i].dataset.key;
    heads.forEach((head, i) => {
      const numeric = head.classList.contains("number");
      head.firstElementChild.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        const sign = down ? -1 : 1;
        const rows = [...body.rows].map((row) => ({ row, key: keyOf(row, i) }));
        rows.sort((a, b) => {
          if (a.key === undefined || b.key === undefined) return (a.key === undefined) - (b.key === undefined);
          return sign * (numeric ? Number(a.key) - Number(b.key) : a.key.localeCompare(b.key, "en", { numeric: true }));
        });
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        body.append(...rows.map(({ row }) => row));
        say(`sorted by ${head.textContent}, ${down ? "descending" : "ascending"}`);
      });
    });
  }
  document.querySelectorAll("table.sortable").forEach(sortable);

  const search = $("find");
  if (search) {
    const rows = [...document.querySelectorAll("#lines tbody tr")];
    const onlyGood = $("only-good");
    const narrowDown = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let left = 0;
      for (const row of rows) {
        const asked = row.cells[1].textContent.toLowerCase();
        const text = [...row.cells].filter((c) => !c.classList.contains("number")).map((c) => c.textContent).join(" ").toLowerCase();
        row.hidden = !words.every((w) => asked === w || text.includes(w)) || (onlyGood.checked && !row.querySelector(".mark[data-key]"));
        left += !row.hidden;
      }
      $("found").textContent = left === rows.length ? `${left} cells` : `${left} of ${rows.length} cells`;
    };
    search.addEventListener("input", narrowDown);
    onlyGood.addEventListener("change", narrowDown);
    narrowDown();
  }

  // --- copying ----------------------------------------------------------------------------------------------------
  document.querySelectorAll("button[data-copies]").forEach((button) => {
    const source = $(button.dataset.copies);
    button.addEventListener("click", async () => {
      let done = true;
      try {
        await navigator.clipboard.writeText(source.textContent);
      } catch {
        const range = document.createRange();
        range.selectNodeContents(source);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        done = document.execCommand("copy");
      }
      button.textContent = done ? "Copied" : "Selected: press Ctrl+C";
      say(button.textContent);
      setTimeout(() => { button.textContent = "Copy"; }, 2500);
    });
  });
})();

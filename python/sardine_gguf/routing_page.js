"use strict";
// Draws the report from the data element. Text of the model only ever becomes textContent.
const data = JSON.parse(document.getElementById("data").textContent);
const K = data.experts_per_token, L = data.layers.length;
const percent = (x) => (100 * x).toFixed(1) + " %";

function make(tag, parent, className, text) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  if (text !== undefined) e.textContent = text;
  if (parent) parent.appendChild(e);
  return e;
}

function swatch(parent, expert) {
  make("span", parent, "swatch").style.backgroundColor = data.colours[expert];
}

// A bar of parts: [[expert, share], ...], which sum to 1.
function bar(parent, parts) {
  const line = make("div", parent, "bar");
  for (const [expert, share] of parts) {
    if (share <= 0) continue;
    const part = make("i", line);
    part.style.width = 100 * share + "%";
    part.style.backgroundColor = data.colours[expert];
    part.title = data.experts[expert] + " " + percent(share);
  }
  return line;
}

function header(body) {
  make("h1", body, "", "Routing of " + data.model);
  const steered = Object.entries(data.settings).map(([name, v]) => name + "=" + v).join(" ");
  make("p", body, "", [
    "mode " + data.delta_mode,
    K + " of " + data.experts.length + " experts for a token",
    L + " layers with experts",
    data.prompts.length + (data.prompts.length === 1 ? " text, " : " texts, ")
      + data.all.tokens.toLocaleString("en") + " tokens",
  ].concat(steered ? ["steered: " + steered] : []).join(" · "));
  const legend = make("div", body, "legend");
  data.experts.forEach((name, e) => {
    const item = make("span", legend);
    swatch(item, e);
    item.append(name);
    make("span", item, "share", percent(data.all.shares[e]));
  });
}

function shareTable(body, title, note, rows, label) {
  const part = make("details", body);
  part.open = rows.length <= 16;
  make("summary", part, "", title);
  make("p", part, "", note);
  const table = make("table", make("div", part, "scroll"), "shares");
  const head = make("tr", table);
  make("th", head, "name", "");
  make("th", head, "", "tokens");
  data.experts.forEach((name) => make("th", head, "", name));
  make("th", head, "", "");
  for (const row of rows) {
    const line = make("tr", table);
    make("th", line, "name", label(row)).title = label(row);
    make("td", line, "", row.tokens.toLocaleString("en"));
    row.shares.forEach((s) => make("td", line, "", percent(s)));
    bar(make("td", line, "bars"), row.shares.map((s, e) => [e, s]));
  }
}

function heatMap(body) {
  make("h2", body, "", "Layers and experts");
  make("p", body, "", "Mean weight of each expert in each layer; a row sums to 100 %. The strongest cell is the "
    + "largest of the table.");
  const choices = [["all texts", data.all], ...data.groups.map((g) => [g.group, g])];
  const select = make("select", make("div", body, "choose"));
  select.setAttribute("aria-label", "texts of the heat map");
  choices.forEach(([name], i) => { make("option", select, "", name).value = i; });
  const table = make("table", make("div", body, "scroll"), "heat");
  const draw = () => {
    table.replaceChildren();
    const head = make("tr", table);
    make("th", head, "", "layer");
    data.experts.forEach((name, e) => { const th = make("th", head); swatch(th, e); th.append(name); });
    const shares = choices[select.value][1].by_layer, most = Math.max(1e-9, ...shares.flat());
    shares.forEach((row, i) => {
      const line = make("tr", table);
      make("th", line, "", data.layers[i]);
      row.forEach((share) => {
        const cell = make("td", line, "", percent(share));
        cell.style.backgroundColor = "rgba(var(--heat), " + (0.7 * share / most + 0.02).toFixed(3) + ")";
      });
    });
  };
  select.addEventListener("change", draw);
  draw();
}

// Routes of a token's layer: [[expert, weight], ...], the largest first.
function routesOf(prompt, token, layer) {
  const at = (token * L + layer) * K;
  return Array.from({ length: K }, (_, j) => [prompt.e[at + j], prompt.w[at + j] / data.steps]);
}

function leading(prompt, token) {
  const sums = new Array(data.experts.length).fill(0);
  for (let i = 0; i < L; i++) for (const [e, w] of routesOf(prompt, token, i)) sums[e] += w / L;
  let best = -1;
  sums.forEach((s, e) => { if (s > 0 && (best < 0 || s > sums[best])) best = e; });
  return [best, sums];
}

const visible = (piece) => piece.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥\t");

const detail = { panel: null, chosen: null, pinned: false };

function show(prompt, token, span) {
  if (detail.chosen) detail.chosen.classList.remove("on");
  detail.chosen = span;
  span.classList.add("on");
  const panel = detail.panel;
  panel.replaceChildren();
  make("h3", panel, "", "“" + prompt.pieces[token].replaceAll("\n", "⏎").replaceAll(" ", "␣") + "”");
  const [best, sums] = leading(prompt, token);
  make("p", panel, "", "token " + token + " of its text, id " + prompt.ids[token]);
  if (best < 0) { make("p", panel, "", "No expert acts."); return; }
  const line = make("p", panel);
  swatch(line, best);
  line.append(data.experts[best] + " leads with " + percent(sums[best]) + " over the layers");
  bar(panel, sums.map((s, e) => [e, s]));
  const table = make("table", panel, "detail");
  for (let i = 0; i < L; i++) {
    const row = make("tr", table), routes = routesOf(prompt, token, i);
    make("th", row, "", data.layers[i]);
    bar(make("td", row, "bars"), routes);
    make("td", row, "what", routes.map(([e, w]) => data.experts[e] + " " + (100 * w).toFixed(0)).join(", "));
  }
}

function offer(prompt, token, span, pin) {
  if (pin) detail.pinned = detail.chosen === span ? !detail.pinned : true;
  else if (detail.pinned) return;
  show(prompt, token, span);
}

// A column for a token, a row for a layer, each in the colour of its first expert, paler with less weight.
function strip(parent, prompt, spans) {
  const n = prompt.ids.length;
  const canvas = make("canvas", make("div", parent, "scroll"), "strip");
  canvas.width = n;
  canvas.height = L;
  const wide = Math.max(2, Math.min(12, Math.floor(900 / n))), high = Math.max(4, Math.min(12, Math.floor(120 / L)));
  canvas.style.width = n * wide + "px";
  canvas.style.height = L * high + "px";
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "first expert of each token (across) and layer (down)");
  const pen = canvas.getContext("2d");
  for (let t = 0; t < n && K > 0; t++)
    for (let i = 0; i < L; i++) {
      const [e, w] = routesOf(prompt, t, i)[0];
      pen.globalAlpha = 0.25 + 0.75 * w;
      pen.fillStyle = data.colours[e];
      pen.fillRect(t, i, 1, 1);
    }
  const token = (event) => Math.min(n - 1, Math.max(0, Math.floor(event.offsetX / wide)));
  canvas.addEventListener("mousemove", (event) => offer(prompt, token(event), spans[token(event)], false));
  canvas.addEventListener("click", (event) => offer(prompt, token(event), spans[token(event)], true));
}

function reading(body) {
  make("h2", body, "", "Tokens");
  make("p", body, "", "Each token in the colour of its leading expert, the one with the largest weight over all "
    + "layers. The strip above a text has a column for a token and a row for a layer. Point at either for the "
    + "choice of every layer; click to keep it.");
  const grid = make("div", body, "reading"), texts = make("div", grid);
  detail.panel = make("aside", grid);
  make("p", detail.panel, "", "Point at a token.");
  let group = null;
  for (const prompt of data.prompts) {
    if (prompt.group !== group && prompt.group !== prompt.title) make("h2", texts, "", prompt.group);
    group = prompt.group;
    const part = make("section", texts);
    make("h3", part, "", prompt.title);
    const spans = prompt.pieces.map((piece, t) => {
      const span = make("span", null, "", visible(piece));
      const [best] = leading(prompt, t);
      if (best >= 0) span.style.backgroundColor = "color-mix(in srgb, " + data.colours[best] + " var(--tint), transparent)";
      span.addEventListener("mouseenter", () => offer(prompt, t, span, false));
      span.addEventListener("click", () => offer(prompt, t, span, true));
      return span;
    });
    strip(part, prompt, spans);
    make("div", part, "tokens").append(...spans);
  }
}

header(document.body);
if (data.groups.length > 1) shareTable(document.body, "Shares by group",
  "Share of the routing weight, all tokens and layers.", data.groups, (row) => row.group);
heatMap(document.body);
if (data.prompts.length > data.groups.length || data.groups.length === 1) shareTable(document.body, "Shares by text",
  "Share of the routing weight in each text.", data.prompts, (row) => row.title);
reading(document.body);

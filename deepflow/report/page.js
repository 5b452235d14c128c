// The page: sections in the order of reading, the table of all points, the panel of one point.
// Texts of the content become text nodes, never markup.

const main = document.getElementById("main");
const panel = document.getElementById("panel");
const chosen = new Set(CONTENT.chosen);
const MOST_CHOSEN = 6;
const LINES = 50;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function say(text) {
  document.getElementById("live").textContent = text;
}

function count(number, what) {
  return `${number.toLocaleString("en-US")} ${what}${number === 1 ? "" : "s"}`;
}

function section(id, title, ...content) {
  const made = make("section", {id, "aria-labelledby": `${id}-title`},
    make("h2", {id: `${id}-title`}, title), ...content);
  main.append(made);
  document.querySelector("nav ul").append(make("li", {}, make("a", {href: `#${id}`}, title)));
  return made;
}

function scrolling(label, ...content) {
  return make("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": label}, ...content);
}

// Head ------------------------------------------------------------------------------------------

function addHead() {
  const head = document.getElementById("top");
  head.append(
    make("p", {class: "quiet small"}, `DeepFlow report of the ${CONTENT.kind}`),
    make("h1", {}, CONTENT.question || CONTENT.name),
    CONTENT.question ? make("p", {class: "quiet"}, CONTENT.name) : "",
  );
  const cards = make("ul", {class: "cards"},
    make("li", {}, make("strong", {}, CONTENT.points.toLocaleString("en-US")), "points"));
  for (const [status, number] of Object.entries(CONTENT.statuses)) {
    cards.append(make("li", {}, make("strong", {}, number.toLocaleString("en-US")), statusMark(status)));
  }
  if (CONTENT.best.length) {
    const {column} = CONTENT.goal;
    cards.append(make("li", {},
      make("strong", {title: raw(column, CONTENT.best[0])}, shown(column, CONTENT.best[0])),
      `best ${labelOf(column)}`));
  }
  head.append(cards);
  if (CONTENT.shown < CONTENT.points) {
    head.append(make("p", {class: "notice", id: "sampled"},
      `Showing ${CONTENT.shown.toLocaleString("en-US")} of ${CONTENT.points.toLocaleString("en-US")} points,`
      + " sampled. The best points, the Pareto fronts and the points that carry the figures were picked"
      + " from all points and are all here; the others are a random sample. Numbers of points by status"
      + " and by reason are of all points."));
  }
}

function statusMark(status) {
  return make("span", {class: `status ${["ok", "out_of_memory", "infeasible"].includes(status) ? status : ""}`},
    status.replaceAll("_", " "));
}

// Tables of points ------------------------------------------------------------------------------

function pointName(row, whole = false) {
  const id = valueOf("point", row);
  return make("button", {type: "button", class: "plain point", title: id, onclick: () => openPanel(row)},
    whole ? breakable(id) : id);
}

// An id that is broken, where it has to be, between its settings.
function breakable(id) {
  return id.split("+").flatMap((part, place) => (place ? ["+", make("wbr"), part] : [part]));
}

function chooser(row) {
  return make("input", {
    type: "checkbox", "data-choose": row, checked: chosen.has(row),
    "aria-label": `compare ${valueOf("point", row)}`, onchange: (event) => choose(row, event.target.checked),
  });
}

function cell(name, row) {
  const column = COLUMNS.get(name);
  const value = column.values[row];
  if (name === "status") return make("td", {}, statusMark(value));
  if (!column.numeric) {
    const short = (value ?? "").length <= 30;
    return make("td", {class: short ? "text short" : "text", title: value ?? ""}, value ?? "–");
  }
  const {factor} = columnScale(column);
  const text = !isNumber(value) || column.mixed ? written(value, column.unit) : digits(value / factor);
  return make("td", {class: "number", title: raw(name, row)}, text);
}

function headCell(name, sort) {
  const column = COLUMNS.get(name);
  return make("th", {scope: "col", class: column.numeric ? "number" : "", title: column.doc, "aria-sort": sort},
    heading(column));
}

function pointTable(label, rows, columns) {
  const names = [...new Set(columns)].filter((name) => COLUMNS.has(name) && name !== "point");
  return scrolling(label, make("table", {},
    make("thead", {}, make("tr", {}, make("th", {scope: "col"}, "compare"), make("th", {scope: "col"}, "point"),
      names.map((name) => headCell(name)))),
    make("tbody", {}, rows.map((row) => make("tr", {"data-row": row, class: chosen.has(row) ? "chosen" : ""},
      make("td", {}, chooser(row)), make("th", {scope: "row"}, pointName(row)),
      names.map((name) => cell(name, row)))))));
}

function axisNames() {
  return CONTENT.columns.filter((column) => column.axis).map((column) => column.name);
}

const RESULTS = [
  "time_s", "tokens_per_second", "tokens_per_second_per_sequence", "time_to_first_token_s",
  "model_flops_utilization", "flops_per_second_per_device", "bus_bandwidth", "peak_memory_bytes",
  "energy_j", "num_devices", "bound",
];

function goalWords(goal) {
  return `${goal.maximum ? "most" : "least"} ${labelOf(goal.column)}`;
}

function addBest() {
  if (!CONTENT.best.length) {
    section("best", "Best points", make("p", {class: "notice"},
      "No point can be run as it stands: see why below."));
    return;
  }
  const {goal} = CONTENT;
  const columns = [...axisNames(), goal.column, ...RESULTS];
  const useful = columns.filter((name) => COLUMNS.get(name)?.differs || name === goal.column);
  const first = CONTENT.best.slice(0, 10);
  const place = section("best", "Best points",
    make("p", {}, `By ${goalWords(goal)}: ${goal.source}. Of points that can be run and fit in memory.`),
    pointTable("Best points", first, useful));
  if (CONTENT.best.length > first.length) {
    place.append(make("details", {}, make("summary", {}, `The ${CONTENT.best.length} best`),
      pointTable("More of the best points", CONTENT.best, useful)));
  }
}

function addFronts() {
  const fronts = CONTENT.fronts.filter((front) => front.rows.length);
  if (!fronts.length) return;
  const place = make("div");
  const show = (front) => {
    const goals = [[front.x, front.maximum_x], [front.y, front.maximum_y]];
    const words = goals.map(([name, more]) => `${more ? "more" : "less"} ${labelOf(name)}`).join(" and ");
    place.replaceChildren(
      make("p", {}, `${count(front.rows.length, "point")} that no other point beats: ${words} are better.`),
      pointTable("Pareto front", front.rows, [front.x, front.y, ...axisNames(), ...RESULTS]
        .filter((name) => COLUMNS.get(name)?.differs || name === front.x || name === front.y)));
  };
  const name = (front) => [front.title || `${labelOf(front.y)} against ${labelOf(front.x)}`, front.group]
    .filter(Boolean).join(": ");
  const select = make("select", {onchange: (event) => show(fronts[event.target.value])},
    fronts.map((front, number) => make("option", {value: number}, name(front))));
  section("pareto", "Pareto front",
    fronts.length > 1 ? make("p", {}, make("label", {}, "Front", select)) : make("p", {class: "quiet"}, name(fronts[0])),
    place);
  show(fronts[0]);
}

// Figures ---------------------------------------------------------------------------------------

function addFigures() {
  if (!CONTENT.figures.length) return;
  const grid = make("div", {class: "figures"});
  section("figures", "Figures",
    make("p", {class: "quiet small"},
      "Drag to zoom, double-click to reset; the bar above a figure has pan and download. Hover for the"
      + " whole point, click to open it. Every point is in the table below, too."), grid);
  for (const figure of CONTENT.figures) {
    const drawing = make("div", {class: "drawing", role: "img", "aria-label": `${figure.kind}: ${figure.title}`});
    const sampled = figure.missing
      ? `; ${(figure.rows.length).toLocaleString("en-US")} of these are drawn, a sample` : "";
    grid.append(make("figure", {"data-figure": figure.name}, make("h3", {}, figure.title),
      figure.rows.length ? drawing : make("p", {class: "notice"}, "Nothing to draw."),
      make("figcaption", {}, figure.caption + sampled)));
    if (figure.rows.length) drawWhenSeen(drawing, () => DRAW[figure.kind](figure));
  }
}

// Positive numbers so far apart that people think of their ratios.
function wide(name) {
  const values = COLUMNS.get(name).values.filter(isNumber);
  const [least, most] = values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, 0]);
  return least > 0 && most >= 8 * least;
}

function addExplorer() {
  const choices = CONTENT.columns.filter((column) => COLUMNS.get(column.name).differs
    && !["point", "digest", "reason"].includes(column.name));
  const numbers = choices.filter((column) => column.type === "number").map((column) => column.name);
  if (ROWS < 2 || numbers.length < 2) return;
  const axes = axisNames().filter((name) => COLUMNS.get(name).differs);
  const goal = CONTENT.goal?.column ?? "time_s";
  const kinds = (name) => new Set(COLUMNS.get(name).values).size;
  const x = [...axes].filter((name) => COLUMNS.get(name).numeric).sort((a, b) => kinds(b) - kinds(a))[0] ?? numbers[0];
  const state = {
    x, y: numbers.includes(goal) ? goal : numbers.at(-1), hue: axes.find((name) => name !== x), log_x: false, log_y: false, style: undefined,
    failed: !CONTENT.best.length, filtered: false,
  };
  state.log_x = wide(state.x);
  const drawing = make("div", {class: "drawing", role: "img", "aria-label": "scatter of two chosen columns"});
  const caption = make("figcaption");
  const figure = () => {
    const rows = (state.filtered ? table.rows : [...Array(ROWS).keys()]).filter((row) =>
      (state.failed || valueOf("status", row) === "ok")
      && [state.x, state.y, ...(state.hue ? [state.hue] : [])].every((name) => ![null, ""].includes(valueOf(name, row)))
      && !(state.log_x && valueOf(state.x, row) <= 0) && !(state.log_y && valueOf(state.y, row) <= 0));
    caption.textContent = `${count(rows.length, "point")} drawn`;
    if (!rows.length) return {traces: [], layout: {}};
    return scatterFigure({...state, rows, label: [], fronts: []});
  };
  const redraw = drawWhenSeen(drawing, figure);
  drawing.redrawFigure = () => state.filtered && redraw();
  const pick = (key, label, names, none) => make("label", {}, label, make("select", {
    "data-explorer": key,
    onchange: (event) => { state[key] = event.target.value || undefined; redraw(); },
  }, none ? make("option", {value: ""}, "one colour") : "",
  names.map((name) => make("option", {value: name, selected: state[key] === name}, labelOf(name)))));
  const tick = (key, label) => make("label", {}, make("input", {
    type: "checkbox", "data-explorer": key, checked: state[key],
    onchange: (event) => { state[key] = event.target.checked; redraw(); },
  }), label);
  const names = choices.map((column) => column.name);
  section("explorer", "Explore",
    make("div", {class: "bar"}, pick("x", "x", names), pick("y", "y", names), pick("hue", "colour", names, true),
      tick("log_x", "logarithmic x"), tick("log_y", "logarithmic y"),
      tick("failed", "also points that do not fit in memory"), tick("filtered", "only what the table below shows")),
    make("figure", {class: "explorer"}, drawing, caption));
  table.changed.push(() => drawing.redrawFigure());
}

// All points ------------------------------------------------------------------------------------

const table = {
  rows: [...Array(ROWS).keys()], sort: null, down: false, filters: new Map(), page: 0, columns: [], changed: [],
};

function startingColumns() {
  const names = [...axisNames(), "status", CONTENT.goal?.column, ...RESULTS, "reason", "feasible", "fallback_reason"];
  return new Set(names.filter((name) => COLUMNS.get(name)?.differs || ["status", CONTENT.goal?.column].includes(name)
    && COLUMNS.has(name)));
}

function addTable() {
  table.columns = startingColumns();
  table.head = make("thead");
  table.body = make("tbody");
  table.said = make("span", {role: "status"});
  table.before = make("button", {type: "button", onclick: () => turn(-1)}, "‹ before");
  table.after = make("button", {type: "button", onclick: () => turn(1)}, "next ›");
  const pick = (column) => make("label", {title: column.doc}, make("input", {
    type: "checkbox", checked: table.columns.has(column.name), "data-column": column.name,
    onchange: (event) => {
      if (event.target.checked) table.columns.add(column.name);
      else {
        table.columns.delete(column.name);
        table.filters.delete(column.name);
      }
      showHead();
      showTable();
    },
  }), column.label);
  section("points", CONTENT.shown < CONTENT.points ? "Sampled points" : "All points",
    make("p", {class: "quiet small"},
      "Sort by a heading. Filter under it: text, !text or =text; numbers as < 10, >= 2, 2..8, in the unit of the"
      + " heading or with one (< 500 us). Hover for exact values."),
    make("details", {}, make("summary", {}, "Columns"), make("div", {class: "columns"},
      [...COLUMNS.values()].filter((column) => column.name !== "point").map(pick))),
    make("div", {class: "bar"}, table.before, table.after, table.said,
      make("button", {type: "button", onclick: clearFilters}, "Clear filters"),
      make("button", {type: "button", onclick: saveTable}, "Save these rows as CSV")),
    scrolling("All points", make("table", {class: "all"}, table.head, table.body)));
  showHead();
  showTable();
}

function tableColumns() {
  return ["point", ...CONTENT.columns.map((column) => column.name)
    .filter((name) => table.columns.has(name) && name !== "point")];
}

function showHead() {
  const sortButton = (name) => make("button", {
    type: "button", "data-sort": name, title: COLUMNS.get(name).doc, onclick: () => sortBy(name),
  }, heading(COLUMNS.get(name)), make("span", {"aria-hidden": "true"}, table.sort === name ? (table.down ? " ▼" : " ▲") : ""));
  const direction = (name) => (table.sort !== name ? "none" : table.down ? "descending" : "ascending");
  const filter = (name) => make("input", {
    type: "text", "data-filter": name, "aria-label": `filter ${labelOf(name)}`, value: table.filters.get(name) ?? "",
    placeholder: COLUMNS.get(name).numeric ? "< > .." : "text", spellcheck: "false", autocomplete: "off",
    oninput: (event) => filterBy(name, event.target),
  });
  const names = tableColumns();
  table.head.replaceChildren(
    make("tr", {}, make("td", {rowspan: "2"}, make("span", {class: "quiet"}, "compare")),
      names.map((name) => make("th", {
        scope: "col", "aria-sort": direction(name), class: COLUMNS.get(name).numeric ? "number" : "",
      }, sortButton(name)))),
    make("tr", {}, names.map((name) => make("td", {}, filter(name)))));
}

function sortBy(name) {
  table.down = table.sort === name ? !table.down : false;
  table.sort = name;
  showHead();
  table.head.querySelector(`[data-sort="${CSS.escape(name)}"]`).focus();
  showTable();
}

function filterBy(name, input) {
  const understood = filterOf(input.value, COLUMNS.get(name)) !== null;
  input.setAttribute("aria-invalid", String(!understood));
  input.title = understood ? "" : "not understood; try < 10, >= 2 or 2..8";
  if (!understood) return;
  if (input.value.trim()) table.filters.set(name, input.value);
  else table.filters.delete(name);
  table.page = 0;
  showTable();
}

function clearFilters() {
  table.filters.clear();
  table.page = 0;
  showHead();
  showTable();
}

function turn(pages) {
  table.page += pages;
  showTable();
}

function showTable() {
  const tests = [...table.filters].map(([name, text]) => [COLUMNS.get(name).values, filterOf(text, COLUMNS.get(name))]);
  const order = table.sort === null ? bestFirst() : byColumn(COLUMNS.get(table.sort).values, table.down);
  table.rows = [...Array(ROWS).keys()]
    .filter((row) => tests.every(([column, test]) => test(column[row])))
    .sort((a, b) => order(a, b) || a - b);
  const pages = Math.max(1, Math.ceil(table.rows.length / LINES));
  table.page = Math.min(Math.max(0, table.page), pages - 1);
  const first = table.page * LINES;
  const seen = table.rows.slice(first, first + LINES);
  const names = tableColumns().slice(1);
  table.body.replaceChildren(...seen.map((row) => make("tr", {"data-row": row, class: chosen.has(row) ? "chosen" : ""},
    make("td", {}, chooser(row)), make("th", {scope: "row"}, pointName(row)), names.map((name) => cell(name, row)))));
  table.before.disabled = table.page === 0;
  table.after.disabled = table.page === pages - 1;
  const range = seen.length ? `${first + 1} to ${first + seen.length} of ` : "";
  table.said.textContent = `${range}${count(table.rows.length, "point")}`
    + (table.rows.length < ROWS ? ` that pass the filters, of ${ROWS.toLocaleString("en-US")}` : "");
  for (const changed of table.changed) changed();
}

function byColumn(values, down) {
  const missing = (value) => value === null || Number.isNaN(value);
  return (a, b) => {
    // What has no value comes last, whichever way.
    if (missing(values[a]) || missing(values[b])) return missing(values[a]) - missing(values[b]);
    return (down ? -1 : 1) * ascending(values[a], values[b]);
  };
}

// How the table starts: points that can be run before all others, the best ones first.
function bestFirst() {
  const statuses = COLUMNS.get("status").values;
  const goal = CONTENT.goal ?? {column: "point", maximum: false};
  const then = byColumn(COLUMNS.get(goal.column).values, goal.maximum);
  return (a, b) => (statuses[b] === "ok") - (statuses[a] === "ok") || then(a, b);
}

function saveTable() {
  const names = tableColumns();
  const field = (value) => {
    const text = String(value ?? "");
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [names, ...table.rows.map((row) => names.map((name) => valueOf(name, row)))]
    .map((line) => line.map(field).join(","));
  const link = make("a", {
    href: URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], {type: "text/csv"})), download: `${CONTENT.name}.csv`,
  });
  link.click();
  URL.revokeObjectURL(link.href);
}

// One point -------------------------------------------------------------------------------------

let before = null;

function openPanel(row) {
  if (!panel.contains(document.activeElement)) before = document.activeElement;
  const id = valueOf("point", row);
  const command = CONTENT.commands.lines[row].map((word) => CONTENT.commands.words[word]).join(" ");
  panel.replaceChildren(
    make("div", {class: "head"}, make("h2", {}, breakable(id)),
      make("button", {type: "button", onclick: closePanel, "aria-label": "close"}, "✕")),
    make("p", {}, statusMark(valueOf("status", row)), valueOf("reason", row) ? `: ${valueOf("reason", row)}` : ""),
    valueOf("fallback_reason", row)
      ? make("p", {class: "notice"}, `Closed forms, not simulated: ${valueOf("fallback_reason", row)}`) : "",
    make("p", {}, make("label", {}, chooser(row), "compare this point")),
    make("h3", {}, "Time"), breakdown(row, CONTENT.time_parts, "time_s"),
    make("h3", {}, "Memory of the fullest device"), breakdown(row, CONTENT.memory_parts, "peak_memory_bytes", "memory_capacity_bytes"),
    make("h3", {}, "Predict it again"), copyable(command),
    CONTENT.targets ? make("p", {class: "small"}, "As a target of the workflow:") : "",
    CONTENT.targets ? copyable(CONTENT.targets[0] + id + CONTENT.targets[1]) : "",
    make("h3", {}, "Everything about it"), allValues(row),
  );
  panel.hidden = false;
  panel.scrollTop = 0;
  panel.focus();
  say(`Details of ${id}`);
}

function closePanel() {
  panel.hidden = true;
  if (before?.isConnected) before.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !panel.hidden) closePanel();
});

// Bars of the parts of `sum`, on a scale that ends at `whole`; a sum that is not divided has one bar.
function stack(row, parts, sum, whole) {
  const width = (value) => `width:${100 * value / whole}%`;
  const rest = valueOf(sum, row) - parts.reduce((total, name) => total + valueOf(name, row), 0);
  return make("div", {class: "stack", "aria-hidden": "true"},
    parts.map((name) => make("span", {
      style: `${width(valueOf(name, row))};background:${partColour(name)}`, title: `${partLabel(name)}: ${shown(name, row)}`,
    })),
    rest > 1e-3 * valueOf(sum, row) ? make("span", {style: `${width(rest)};background:var(--quiet)`, title: "not divided"}) : "");
}

// Bars of the parts of a sum, and the same as a table; `capacity` is marked by a line.
function breakdown(row, names, sum, capacity) {
  const total = valueOf(sum, row);
  const parts = names.filter((name) => valueOf(name, row) > 0);
  if (!isNumber(total)) return make("p", {class: "quiet"}, "Not known for this point.");
  const limit = capacity ? valueOf(capacity, row) : null;
  const whole = Math.max(total, limit ?? 0) || 1;
  const ruler = make("div", {class: limit ? "ruler" : ""}, stack(row, parts, sum, whole));
  if (limit) ruler.style.setProperty("--at", `calc(${100 * limit / whole}% - 2px)`);
  const line = (name) => make("tr", {},
    make("th", {scope: "row", title: COLUMNS.get(name).doc},
      make("span", {class: "swatch", style: `background:${partColour(name)}`}), partLabel(name)),
    make("td", {class: "number", title: raw(name, row)}, shown(name, row)),
    make("td", {class: "number"}, `${digits(Number((100 * valueOf(name, row) / total).toPrecision(3)))} %`));
  const ordered = [...parts].sort((a, b) => valueOf(b, row) - valueOf(a, row));
  const sumLine = make("tr", {}, make("th", {scope: "row"}, make("strong", {}, "sum")),
    make("td", {class: "number", title: raw(sum, row)}, make("strong", {}, shown(sum, row))),
    make("td", {class: "number"}, limit ? `of ${shown(capacity, row)}` : ""));
  return make("div", {}, ruler, make("table", {}, make("tbody", {}, ordered.map(line), sumLine)));
}

function copyable(text) {
  const button = make("button", {type: "button", "data-copy": true, onclick: async () => {
    await copy(text);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  }}, "copy");
  return make("div", {class: "command"}, make("pre", {}, make("code", {}, text)), button);
}

// Pages that are opened as files have no clipboard of the newer kind in all browsers.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", {class: "unseen", readonly: true}, text);
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

function allValues(row) {
  const columns = [...COLUMNS.values()].filter((column) => column.name !== "point"
    && ![null, ""].includes(column.values[row]));
  return make("table", {}, make("tbody", {}, columns.map((column) => make("tr", {},
    make("th", {scope: "row", title: column.doc}, column.label),
    make("td", {class: column.numeric ? "number" : "text", title: raw(column.name, row)}, shown(column.name, row))))));
}

// Comparison ------------------------------------------------------------------------------------

function choose(row, wanted) {
  if (wanted && chosen.size >= MOST_CHOSEN) {
    say(`at most ${MOST_CHOSEN} points are compared`);
    showChosen();
    return;
  }
  if (wanted) chosen.add(row);
  else chosen.delete(row);
  showChosen();
  say(`${count(chosen.size, "point")} to compare`);
}

function showChosen() {
  for (const box of document.querySelectorAll("[data-choose]")) box.checked = chosen.has(Number(box.dataset.choose));
  for (const line of document.querySelectorAll("tr[data-row]")) line.classList.toggle("chosen", chosen.has(Number(line.dataset.row)));
  comparison.replaceChildren(...compared([...chosen]));
}

const comparison = make("div");

function addComparison() {
  section("compare", "Compare points", comparison);
  showChosen();
}

function compared(rows) {
  if (rows.length < 2) {
    return [make("p", {class: "quiet"}, `Tick two to ${MOST_CHOSEN} points, in any table, to see them side by side.`)];
  }
  const group = (title) => make("tr", {}, make("th", {class: "group", colspan: rows.length + 1, scope: "colgroup"}, title));
  const lines = [];
  const add = (title, made) => { if (made.length) lines.push(group(title), ...made); };
  const differing = (names) => names.filter((name) => new Set(rows.map((row) => valueOf(name, row))).size > 1);
  const settings = axisNames();
  add("What is set differently", [
    ...differing(settings).map((name) => comparedLine(name, rows, false)), ...comparedFiles(rows)]);
  const present = (names) => names.filter((name) => rows.some((row) => valueOf(name, row) > 0));
  if (present(["time_s"]).length) {
    lines.push(group("Where the time goes"), bars(rows, CONTENT.time_parts, "time_s"));
    lines.push(...present(["time_s", ...CONTENT.time_parts]).map((name) => comparedLine(name, rows, true)));
  }
  if (present(["peak_memory_bytes"]).length) {
    lines.push(group("Memory of the fullest device"), bars(rows, CONTENT.memory_parts, "peak_memory_bytes"));
    lines.push(...present(["peak_memory_bytes", ...CONTENT.memory_parts]).map((name) => comparedLine(name, rows, true)));
  }
  const rest = CONTENT.columns.map((column) => column.name).filter((name) => !settings.includes(name)
    && !["point", "digest", "time_s", "peak_memory_bytes", ...CONTENT.time_parts, ...CONTENT.memory_parts].includes(name));
  add("Other results that differ", differing(rest).map((name) => comparedLine(name, rows, true)));
  return [
    make("div", {class: "bar"}, make("button", {type: "button", onclick: () => { chosen.clear(); showChosen(); }}, "Clear")),
    scrolling("Comparison", make("table", {class: "comparison", style: `--points:${rows.length}`},
      make("thead", {}, make("tr", {}, make("td", {}), rows.map((row) => make("th", {scope: "col"}, pointName(row, true))))),
      make("tbody", {}, lines)))];
}

function bars(rows, parts, sum) {
  const whole = Math.max(...rows.map((row) => valueOf(sum, row) ?? 0));
  return make("tr", {}, make("td", {class: "quiet"}, "one scale for all"), rows.map((row) =>
    make("td", {}, stack(row, parts.filter((name) => valueOf(name, row) > 0), sum, whole))));
}

// One line of a comparison; numbers with their ratio to those of the first point.
function comparedLine(name, rows, ratios) {
  const column = COLUMNS.get(name);
  const isPart = CONTENT.time_parts.includes(name) || CONTENT.memory_parts.includes(name);
  const reference = column.values[rows[0]];
  return make("tr", {},
    make("th", {scope: "row", title: column.doc},
      isPart ? make("span", {class: "swatch", style: `background:${partColour(name)}`}) : "",
      isPart ? partLabel(name) : column.label),
    rows.map((row, place) => {
      const value = column.values[row];
      const comparable = ratios && place && isNumber(value) && isNumber(reference) && reference !== 0;
      return make("td", {class: column.numeric ? "number" : "text", title: raw(name, row)}, written(value, column.unit),
        comparable ? make("span", {class: "quiet"}, `  × ${digits(Number((value / reference).toPrecision(3)))}`) : "");
    }));
}

// Keys in which the files of these points differ.
function comparedFiles(rows) {
  return CONTENT.configurations.flatMap(({side, names, rows: keys}) => {
    const files = rows.map((row) => names.indexOf(valueOf(side, row)));
    if (files.includes(-1) || new Set(files).size < 2) return [];
    return keys.filter((key) => new Set(files.map((file) => key.values[file])).size > 1).map((key) =>
      make("tr", {}, make("th", {scope: "row", title: key.doc}, `${side}.${key.key}`),
        files.map((file) => setting(key, file))));
  });
}

function setting(key, file) {
  const value = key.values[file];
  const number = typeof value === "number";
  return make("td", {class: number || value === null ? "number" : "text", title: value === null ? "" : `${value} ${key.unit}`.trim()},
    number ? written(value, key.unit) : value ?? "–");
}

// The rest --------------------------------------------------------------------------------------

function addReasons() {
  if (!CONTENT.reasons.length) return;
  section("reasons", "Points that cannot be run",
    scrolling("Reasons", make("table", {class: "narrow"},
      make("thead", {}, make("tr", {}, ["points", "status", "reason", "for example"].map((text) => make("th", {scope: "col"}, text)))),
      make("tbody", {}, CONTENT.reasons.map((item) => make("tr", {},
        make("td", {class: "number"}, item.count.toLocaleString("en-US")), make("td", {}, statusMark(item.status)),
        make("td", {class: "text"}, item.reason),
        make("td", {class: "text"}, item.point ? `${item.point}: ` : "", item.example)))))));
}

function addConfigurations() {
  const sides = CONTENT.configurations.filter((side) => side.rows.length);
  if (!sides.length) return;
  const place = section("configurations", "How the files differ");
  for (const {side, names, files, rows} of sides) {
    place.append(make("h3", {}, `${side}: ${count(rows.length, "key")}`), scrolling(`${side} files`, make("table", {},
      make("thead", {}, make("tr", {}, make("th", {scope: "col"}, "key"),
        names.map((name, number) => make("th", {scope: "col", title: files[number]}, name)))),
      make("tbody", {}, rows.map((key) => make("tr", {},
        make("th", {scope: "row", title: key.doc}, make("code", {}, key.key)),
        names.map((_, number) => setting(key, number))))))));
  }
}

function addProvenance() {
  const place = section("provenance", "Where this comes from");
  for (const [title, lines] of CONTENT.provenance) {
    place.append(make("h3", {}, title), scrolling(title, make("table", {class: "narrow"}, make("tbody", {},
      lines.map(([name, value]) => make("tr", {}, make("th", {scope: "row"}, name), make("td", {class: "text"}, value)))))));
  }
  place.append(make("details", {}, make("summary", {}, `The ${CONTENT.kind} file`), make("pre", {}, make("code", {}, CONTENT.yaml))),
    make("details", {}, make("summary", {}, "What the columns mean"), scrolling("Columns", make("table", {}, make("tbody", {},
      [...COLUMNS.values()].map((column) => make("tr", {}, make("th", {scope: "row"}, make("code", {}, column.name)),
        make("td", {}, column.unit), make("td", {class: "text"}, column.doc))))))));
  main.append(make("footer", {}, "Made by DeepFlow. This page holds all of its data and asks for nothing from a network."));
}

document.querySelector("nav").append(make("ul"));
addHead();
addBest();
addFronts();
addFigures();
addExplorer();
addTable();
addComparison();
addReasons();
addConfigurations();
addProvenance();

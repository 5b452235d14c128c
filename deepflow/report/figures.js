// Figures: those of the sweep and the explorer's, drawn with plotly.js.

// Okabe and Ito's colours, which differ for colour-blind eyes too, and more for many classes.
const COLOURS = [
  "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999933", "#882255",
  "#44AA99", "#AA4499", "#88CCEE", "#117733", "#DDCC77",
];
const MARKERS = ["circle", "square", "diamond", "triangle-up", "x", "star", "cross", "hexagon"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const VIRIDIS = [
  [0, "#440154"], [0.25, "#3b528b"], [0.5, "#21918c"], [0.75, "#5ec962"], [1, "#fde725"],
];
const FONT = "system-ui, sans-serif";
const FEW = 12;
const DARK = window.matchMedia("(prefers-color-scheme: dark)");

function colourOf(number) {
  const place = number % COLOURS.length;
  // The blue is too dark for a dark ground.
  return place === 0 && DARK.matches ? "#4ba3e3" : COLOURS[place];
}

// plotly.js comes compressed, which makes the page a third as long, and is unpacked for the first
// figure that comes into view.
let library = null;

async function unpackLibrary() {
  const packed = Uint8Array.from(
    atob(document.getElementById("library").textContent.trim()), (letter) => letter.charCodeAt(0),
  );
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);
}

// Draws once the place comes into view, and again when the colours of the system change.
function drawWhenSeen(place, draw) {
  const redraw = async () => {
    library ??= unpackLibrary();
    await library;
    const {traces, layout} = draw();
    const below = legendBelow(traces, place.clientWidth);
    // The drawing keeps its size, whatever has to be explained below it.
    place.style.height = "";
    const height = place.clientHeight + below;
    place.style.height = `${height}px`;
    await window.Plotly.react(place, traces, withStyle(layout, height, below), {
      responsive: true, displaylogo: false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "sendChartToCloud"],
      toImageButtonOptions: {format: "svg", filename: CONTENT.name},
    });
    place.removeAllListeners("plotly_click");
    place.on("plotly_click", ({points}) => {
      const row = points[0].customdata;
      if (Number.isInteger(row)) openPanel(row);
    });
    place.dataset.drawn = "yes";
  };
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    redraw();
    DARK.addEventListener("change", redraw);
  }, {rootMargin: "300px"}).observe(place);
  return () => place.dataset.drawn && redraw();
}

// Height of a legend below the drawing; 0 if it fits beside it, or there is none.
function legendBelow(traces, width) {
  const names = traces.filter((trace) => trace.showlegend !== false && trace.name).map((trace) => trace.name.length);
  const longest = Math.max(0, ...names);
  if (longest === 0 || (width > 560 && longest <= 22)) return 0;
  const columns = Math.max(1, Math.floor((width - 70) / (7 * longest + 50)));
  return 18 * Math.ceil(names.length / columns) + 10;
}

function withStyle(layout, height, below) {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim();
  const grid = style.getPropertyValue("--grid").trim();
  const line = style.getPropertyValue("--line").trim();
  const axis = {
    gridcolor: grid, zerolinecolor: line, linecolor: line, automargin: true, ticks: "outside",
    tickcolor: line,
  };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: {family: FONT, size: 12.5, color: ink},
    margin: {l: 55, r: 15, t: 28, b: 45},
    hoverlabel: {align: "left", bgcolor: style.getPropertyValue("--raised").trim(), font: {size: 12.5, color: ink, family: FONT}},
    modebar: {bgcolor: "rgba(0,0,0,0)", color: style.getPropertyValue("--quiet").trim(), activecolor: style.getPropertyValue("--accent").trim()},
    hovermode: "closest",
    dragmode: "zoom",
    height,
    legend: below
      ? {font: {size: 11}, traceorder: "normal", orientation: "h", yref: "container", y: 0, yanchor: "bottom", maxheight: 1}
      : {font: {size: 12}, traceorder: "normal"},
    ...layout,
    xaxis: {...axis, ...layout.xaxis},
    yaxis: {...axis, ...layout.yaxis},
  };
}

// plotly.js takes some markup in texts for itself.
function plainText(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

const HOVERED = [
  "status", "time_s", "tokens_per_second", "requests_per_second", "time_to_first_token_s",
  "time_per_output_token_s", "flops_per_second_per_device", "bus_bandwidth",
  "model_flops_utilization", "peak_memory_bytes", "energy_j", "num_devices", "bound",
];

// The whole point: its axes, and the results that people ask for first, with values in SI units.
function hoverText(row, extra = []) {
  const axes = CONTENT.columns.filter((column) => column.axis).map((column) => column.name);
  const lines = [...new Set([...axes, ...extra, ...HOVERED])]
    .filter((name) => ![null, undefined, ""].includes(valueOf(name, row)))
    .map((name) => {
      const value = COLUMNS.get(name).values[row];
      const text = shown(name, row);
      const exact = isNumber(value) && COLUMNS.get(name).unit ? ` (${Number(value.toPrecision(7))})` : "";
      return `${plainText(labelOf(name))}: <b>${plainText(text)}</b>${plainText(exact)}`;
    });
  if (valueOf("fallback_reason", row)) lines.push("closed forms, not simulated");
  return lines.join("<br>");
}

function onTwoLines(text, length = 30) {
  const space = text.length > length ? text.lastIndexOf(" ", Math.ceil(text.length / 2) + 4) : -1;
  return space < 0 ? plainText(text) : `${plainText(text.slice(0, space))}<br>${plainText(text.slice(space + 1))}`;
}

// How a column is drawn along an axis: values for the figure, and the axis itself.
function axisOf(name, rows, logarithmic) {
  const column = COLUMNS.get(name);
  const values = rows.map((row) => column.values[row]);
  if (!column.numeric) {
    const order = distinct(values).map(plainText);
    return {
      of: (row) => plainText(column.values[row]),
      axis: {
        title: {text: plainText(column.label)}, type: "category", categoryorder: "array",
        categoryarray: order,
      },
    };
  }
  const finite = values.filter((value) => Number.isFinite(value));
  const scale = scaleOf(finite.reduce((most, value) => Math.max(most, Math.abs(value)), 0), column.unit);
  const unit = column.unit ? scale.unit : "";
  const label = onTwoLines(unit ? `${column.label} (${unit})` : column.label);
  const axis = {title: {text: label}, type: logarithmic ? "log" : "linear"};
  const few = distinct(finite);
  // Counts have a tick each; bytes are whole numbers as well, but lie anywhere.
  const counts = !column.unit && finite.every(Number.isInteger);
  if (few.length <= FEW && (column.axis || counts)) {
    axis.tickvals = few.map((value) => value / scale.factor);
    const wide = logarithmic && unit && few.at(-1) >= 1e3 * few[0];
    axis.ticktext = few.map((value) => (wide ? written(value, column.unit) : digits(value / scale.factor)));
    if (wide) axis.title.text = plainText(column.label);
    axis.minor = {ticks: ""};
  } else if (logarithmic) {
    const decades = Math.log10(finite.reduce((a, b) => Math.max(a, b)) / finite.reduce((a, b) => Math.min(a, b)));
    axis.exponentformat = "none";
    if (decades > 0.6) axis.dtick = decades > 3 ? 1 : "D2";
    axis.minor = {ticks: "outside"};
  }
  return {of: (row) => column.values[row] / scale.factor, axis, scale: (value) => value / scale.factor};
}

// A colour for each class of a column: distinct ones for words, a scale for numbers.
function classColours(name, rows) {
  if (name === undefined) return {classes: [null], colour: () => colourOf(0)};
  const column = COLUMNS.get(name);
  const classes = distinct(rows.map((row) => column.values[row]));
  if (!column.numeric) {
    return {classes, colour: (value) => colourOf(classes.indexOf(value))};
  }
  // The ends of the scale would be lost on a dark or a white ground.
  const [low, high] = DARK.matches ? [0.25, 1] : [0, 0.85];
  const place = (value) => low + (high - low) * classes.indexOf(value) / Math.max(1, classes.length - 1);
  return {classes, colour: (value) => onViridis(place(value))};
}

function onViridis(place) {
  const next = Math.max(1, VIRIDIS.findIndex(([at]) => at >= place));
  const [[from, first], [to, second]] = [VIRIDIS[next - 1], VIRIDIS[next]];
  const share = (place - from) / (to - from);
  const part = (text, at) => parseInt(text.slice(at, at + 2), 16);
  return `rgb(${[1, 3, 5].map((at) => Math.round(part(first, at) * (1 - share) + part(second, at) * share))})`;
}

function nameOf(column, value) {
  const {numeric, label, unit} = COLUMNS.get(column);
  return numeric ? `${label} ${written(value, unit)}` : value;
}

// Points in groups of one colour and one marker each; many different numbers become a colour bar.
function groupsOf(rows, hue, style) {
  const colours = classColours(hue, rows);
  const styles = style === undefined ? [null] : distinct(rows.map((row) => valueOf(style, row)));
  const groups = [];
  for (const value of colours.classes) {
    for (const [number, kind] of styles.entries()) {
      const members = rows.filter((row) => (hue === undefined || valueOf(hue, row) === value)
        && (style === undefined || valueOf(style, row) === kind));
      if (!members.length) continue;
      const names = [];
      if (hue !== undefined) names.push(nameOf(hue, value));
      if (style !== undefined && style !== hue) names.push(nameOf(style, kind));
      groups.push({
        rows: members, name: plainText(names.join(", ")), colour: colours.colour(value),
        symbol: MARKERS[number % MARKERS.length], dash: DASHES[number % DASHES.length],
      });
    }
  }
  return groups;
}

function manyNumbers(name, rows) {
  return name !== undefined && COLUMNS.get(name).numeric
    && new Set(rows.map((row) => valueOf(name, row))).size > FEW;
}

function fallbackLines(rows) {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim();
  const ground = style.getPropertyValue("--ground").trim();
  return {
    color: rows.map((row) => (valueOf("fallback_reason", row) ? ink : ground)),
    width: rows.map((row) => (valueOf("fallback_reason", row) ? 2 : 0.5)),
  };
}

function pointTrace(rows, x, y, more) {
  return {
    type: "scatter", mode: "markers", x: rows.map(x.of), y: rows.map(y.of), customdata: rows,
    hovertext: rows.map((row) => hoverText(row, more.columns)), hoverinfo: "text",
    name: more.name, showlegend: Boolean(more.name), marker: more.marker,
  };
}

function scatterTraces(rows, x, y, {hue, style, columns}) {
  if (manyNumbers(hue, rows)) {
    const column = COLUMNS.get(hue);
    const scale = columnScale(column);
    const values = rows.map((row) => column.values[row] / scale.factor);
    return [pointTrace(rows, x, y, {
      columns, name: "",
      marker: {
        size: 8, color: values, colorscale: VIRIDIS, showscale: true, line: fallbackLines(rows),
        colorbar: {title: {text: plainText(heading(column)), side: "right"}, thickness: 14},
      },
    })];
  }
  return groupsOf(rows, hue, style).map((group) => pointTrace(group.rows, x, y, {
    columns, name: group.name,
    marker: {size: 8, opacity: 0.85, color: group.colour, symbol: group.symbol, line: fallbackLines(group.rows)},
  }));
}

function scatterFigure(figure) {
  const x = axisOf(figure.x, figure.rows, figure.log_x);
  const y = axisOf(figure.y, figure.rows, figure.log_y);
  const columns = [figure.x, figure.y, ...(figure.label ?? [])];
  const traces = scatterTraces(figure.rows, x, y, {...figure, columns});
  for (const front of figure.fronts ?? []) traces.push(frontTrace(front, x, y, figure));
  return {traces, layout: {xaxis: x.axis, yaxis: y.axis}};
}

function frontTrace(front, x, y, figure) {
  const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
  const colours = classColours(figure.hue, figure.rows);
  const value = colours.classes.find((item) => String(item) === front.group);
  const sameColumn = figure.fronts_of && figure.fronts_of === figure.hue;
  return {
    type: "scatter", mode: "lines", x: front.rows.map(x.of), y: front.rows.map(y.of),
    line: {shape: "hv", width: 1.6, color: sameColumn && value !== undefined ? colours.colour(value) : ink},
    hoverinfo: "skip", name: plainText(front.group ? `front of ${front.group}` : "Pareto front"),
    showlegend: !sameColumn,
  };
}

function lineFigure(figure) {
  const x = axisOf(figure.x, figure.rows, figure.log_x);
  const y = axisOf(figure.y, figure.rows, figure.log_y);
  const columns = [figure.x, figure.y];
  const traces = [];
  for (const group of groupsOf(figure.rows, figure.hue, figure.style)) {
    const places = new Map();
    for (const row of group.rows) {
      const at = valueOf(figure.x, row);
      if (!places.has(at)) places.set(at, []);
      places.get(at).push(row);
    }
    const order = [...places.keys()].sort(ascending);
    const lists = order.map((at) => places.get(at));
    const line = {color: group.colour, dash: group.dash, width: 2};
    const marker = {color: group.colour, symbol: group.symbol, size: 8};
    const common = {type: "scatter", mode: "lines+markers", name: group.name, showlegend: Boolean(group.name)};
    if (lists.every((list) => list.length === 1)) {
      const rows = lists.flat();
      traces.push({
        ...common, x: rows.map(x.of), y: rows.map(y.of), customdata: rows, line,
        marker: {...marker, line: fallbackLines(rows)}, hoverinfo: "text",
        hovertext: rows.map((row) => hoverText(row, columns)),
      });
      continue;
    }
    // Several points at one place: their mean, and the range as bars.
    const ys = lists.map((list) => list.map(y.of));
    const means = ys.map((list) => list.reduce((sum, value) => sum + value, 0) / list.length);
    traces.push({
      ...common, x: lists.map((list) => x.of(list[0])), y: means, line, marker, hoverinfo: "text",
      error_y: {
        type: "data", symmetric: false, color: group.colour, thickness: 1, width: 3,
        array: ys.map((list, at) => Math.max(...list) - means[at]),
        arrayminus: ys.map((list, at) => means[at] - Math.min(...list)),
      },
      hovertext: ys.map((list, at) => `${group.name}<br>mean of ${list.length} points: `
        + `${digits(means[at])}<br>from ${digits(Math.min(...list))} to ${digits(Math.max(...list))}`),
    });
  }
  const layout = {xaxis: x.axis, yaxis: y.axis};
  if (!figure.log_y && COLUMNS.get(figure.y).numeric) layout.yaxis.rangemode = "tozero";
  return {traces, layout};
}

function heatmapFigure(figure) {
  const column = COLUMNS.get(figure.value);
  const xs = distinct(figure.rows.map((row) => valueOf(figure.x, row)));
  const ys = distinct(figure.rows.map((row) => valueOf(figure.y, row)));
  const most = Math.max(...figure.rows.map((row) => Math.abs(column.values[row])));
  const scale = scaleOf(most, column.unit);
  const rows = ys.map(() => xs.map(() => null));
  for (const row of figure.rows) {
    rows[ys.indexOf(valueOf(figure.y, row))][xs.indexOf(valueOf(figure.x, row))] = row;
  }
  const values = rows.map((line) => line.map((row) => (row === null ? null : column.values[row] / scale.factor)));
  const flat = values.flat().filter((value) => value !== null);
  const decades = Math.min(...flat) > 0 && Math.max(...flat) > 30 * Math.min(...flat);
  const z = decades ? values.map((line) => line.map((value) => value && Math.log10(value))) : values;
  const names = (items, name) => items.map((item) => plainText(written(item, COLUMNS.get(name).unit)));
  const unit = column.unit ? ` (${scale.unit})` : "";
  const colorbar = {title: {text: plainText(column.label + unit), side: "right"}, thickness: 14};
  if (decades) {
    const [low, high] = [Math.log10(Math.min(...flat)), Math.log10(Math.max(...flat))];
    colorbar.tickvals = [0, 1, 2, 3, 4].map((part) => low + (high - low) * part / 4);
    colorbar.ticktext = colorbar.tickvals.map((value) => digits(Number((10 ** value).toPrecision(2))));
  }
  return {
    traces: [{
      type: "heatmap", x: names(xs, figure.x), y: names(ys, figure.y), z, customdata: rows,
      colorscale: VIRIDIS, colorbar, xgap: 1, ygap: 1, hoverongaps: false, hoverinfo: "text",
      text: values.map((line) => line.map((value) => (value === null ? "" : digits(Number(value.toPrecision(3)))))),
      texttemplate: xs.length <= 14 ? "%{text}" : "",
      hovertext: rows.map((line) => line.map((row) => (row === null ? "" : hoverText(row, [figure.value])))),
    }],
    layout: {
      xaxis: {title: {text: plainText(COLUMNS.get(figure.x).label)}, type: "category", showgrid: false},
      yaxis: {title: {text: plainText(COLUMNS.get(figure.y).label)}, type: "category", showgrid: false},
    },
  };
}

// Horizontal bars of the parts of the time, the first point on top.
function breakdownFigure(figure) {
  const parts = CONTENT.time_parts.filter((name) => figure.rows.some((row) => valueOf(name, row) > 0));
  const most = Math.max(...figure.rows.map((row) => valueOf("time_s", row)));
  const scale = scaleOf(most, "s");
  // Two points may share what names them; bars are told apart by their places.
  const naming = figure.x === undefined ? namingColumns(figure.rows) : [figure.x];
  const names = figure.rows.map((row) => cut(naming.map((name) => shown(name, row)).join(", ")));
  const places = figure.rows.map((_, place) => place);
  return {
    traces: parts.map((name) => ({
      type: "bar", orientation: "h", name: plainText(partLabel(name)), y: places, customdata: figure.rows,
      x: figure.rows.map((row) => (valueOf(name, row) ?? 0) / scale.factor),
      marker: {color: partColour(name)}, hoverinfo: "text",
      hovertext: figure.rows.map((row) => `<b>${plainText(partLabel(name))}: ${shown(name, row)}</b><br>${hoverText(row)}`),
    })),
    layout: {
      barmode: "stack",
      xaxis: {title: {text: `time (${scale.unit})`}},
      yaxis: {
        tickvals: places, ticktext: names.map(plainText), autorange: "reversed", showgrid: false,
        title: {text: plainText(cut(naming.map(labelOf).join(", "), 60))},
      },
    },
  };
}

// The axes in which some points differ; their ids if there are none.
function namingColumns(rows) {
  const axes = CONTENT.columns.filter((column) => column.axis).map((column) => column.name);
  const differing = axes.filter((name) => new Set(rows.map((row) => valueOf(name, row))).size > 1);
  return differing.length ? differing : ["point"];
}

function cut(text, length = 34) {
  return text.length > length ? `${text.slice(0, length - 1)}…` : text;
}

function partLabel(name) {
  return labelOf(name).replace(/^time /, "");
}

function partColour(name) {
  const parts = name.endsWith("_bytes") ? CONTENT.memory_parts : CONTENT.time_parts;
  return colourOf(parts.indexOf(name));
}

const DRAW = {
  line: lineFigure, scatter: scatterFigure, pareto: scatterFigure, heatmap: heatmapFigure,
  breakdown: breakdownFigure,
};

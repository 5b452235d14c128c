// The content of the page: columns with their values, and numbers as people read them.

const CONTENT = JSON.parse(document.getElementById("content").textContent);
const ROWS = CONTENT.shown;

// Short units. Those that take prefixes of 1000; bytes take prefixes of 1024, seconds become days.
const PREFIXED = {
  "bytes/s": "B/s", "FLOP": "FLOP", "FLOP/s": "FLOP/s", "1/s": "/s", "J": "J", "W": "W",
  "Hz": "Hz", "bit/s": "bit/s",
};
const PREFIXES = [
  ["E", 1e18], ["P", 1e15], ["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3], ["", 1],
  ["m", 1e-3], ["µ", 1e-6], ["n", 1e-9], ["p", 1e-12],
];
const BYTES = [
  ["PiB", 2 ** 50], ["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10],
  ["B", 1],
];
const SECONDS = [
  ["d", 86400, 2], ["h", 3600, 2], ["min", 60, 5], ["s", 1, 1], ["ms", 1e-3, 1], ["µs", 1e-6, 1],
  ["ns", 1e-9, 1],
];

const COLUMNS = new Map(CONTENT.columns.map((column) => [column.name, decoded(column)]));

function decoded(column) {
  const values = "constant" in column
    ? new Array(ROWS).fill(column.constant)
    : "codes" in column
      ? column.codes.map((code) => column.words[code])
      : column.values;
  const label = labelOf(column.name);
  const numeric = column.type === "number";
  // JSON has no NaN and no infinity; they come as texts.
  const numbers = numeric ? values.map((value) => (value === null ? null : Number(value))) : values;
  return {...column, label, numeric, values: numbers, differs: !("constant" in column)};
}

// "time gemm" for time_gemm_s.
function labelOf(name) {
  return name.replace(/^axis_/, "").replace(/_(s|bytes|j|w)$/, "").replaceAll("_", " ");
}

function valueOf(name, row) {
  const column = COLUMNS.get(name);
  return column === undefined ? null : column.values[row];
}

function isNumber(value) {
  return typeof value === "number" && !Number.isNaN(value);
}

// Units that a quantity may be written in: [name, size in SI units, least multiple to use it for].
function unitsOf(unit) {
  if (unit === "bytes") return BYTES;
  if (unit === "s") return SECONDS;
  if (unit in PREFIXED) {
    return PREFIXES.map(([prefix, size]) => [prefix + PREFIXED[unit], size, 1]);
  }
  return [[unit, 1, 0]];
}

// {factor, unit} that brings `value` to a handy size.
function scaleOf(value, unit) {
  const units = unitsOf(unit);
  const size = Math.abs(value);
  const plain = units.find(([, factor]) => factor === 1);
  if (!Number.isFinite(size) || size === 0) return {factor: 1, unit: plain[0]};
  const fitting = units.find(([, factor, least]) => size >= factor * (least ?? 1) * 0.9995);
  const [name, factor] = fitting ?? units[units.length - 1];
  return {factor, unit: name};
}

// One scale for all values of a column, so that they can be compared: that of the middle one.
// Where they are too far apart for one, each is written with a unit of its own.
function columnScale(column) {
  if (column.scale === undefined) {
    const sizes = column.values
      .filter((value) => isNumber(value) && value !== 0 && Number.isFinite(value)).map(Math.abs);
    sizes.sort((a, b) => a - b);
    column.mixed = unitsOf(column.unit).length > 1 && sizes.at(-1) >= 1e5 * sizes[0];
    column.scale = scaleOf(column.mixed ? 0 : sizes[Math.floor(sizes.length / 2)] ?? 0, column.unit);
  }
  return column.scale;
}

function digits(value) {
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e7) {
    return size < 1e4 ? String(value) : value.toLocaleString("en-US");
  }
  if (size >= 1e-3 && size < 1e7) return String(Number(value.toPrecision(4)));
  return value === 0 ? "0" : value.toExponential(3).replace(/\.?0*e\+?/, "e");
}

// A value alone: "4.83 ms".
function written(value, unit) {
  if (typeof value === "string") return value;
  if (value === null || Number.isNaN(value)) return "–";
  const scale = scaleOf(value, unit);
  return `${digits(value / scale.factor)} ${scale.unit}`.trim();
}

// A value of a row, alone.
function shown(name, row) {
  const column = COLUMNS.get(name);
  return column === undefined ? "–" : written(column.values[row], column.unit);
}

// What hovering shows: the number as it was computed, in the unit of the table.
function raw(name, row) {
  const column = COLUMNS.get(name);
  const value = column?.values[row];
  return value === null || value === undefined ? "" : `${value} ${column.unit}`.trim();
}

// "peak memory (GiB)" under the column's own scale.
function heading(column) {
  const unit = column.numeric && column.unit ? columnScale(column).unit : "";
  return unit && !column.mixed ? `${column.label} (${unit})` : column.label;
}

function ascending(a, b) {
  if (isNumber(a) && isNumber(b)) return a - b;
  return String(a).localeCompare(String(b), "en", {numeric: true});
}

function distinct(values) {
  return [...new Set(values)].sort(ascending);
}

// A filter: "text", "!text", "=text"; for numbers "< 10 ms", ">= 4", "2..8", several at once.
// Returns a function of a value, or null for a filter that cannot be understood.
function filterOf(text, column) {
  const wanted = text.trim();
  if (!wanted) return () => true;
  return column.numeric ? numericFilter(wanted, column) : textFilter(wanted.toLowerCase());
}

function textFilter(wanted) {
  if (wanted.startsWith("!")) return (value) => !lower(value).includes(wanted.slice(1).trim());
  if (wanted.startsWith("=")) return (value) => lower(value) === wanted.slice(1).trim();
  return (value) => lower(value).includes(wanted);
}

function lower(value) {
  return value === null ? "" : String(value).toLowerCase();
}

const COMPARISONS = {
  "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b,
  "=": (a, b) => Math.abs(a - b) <= 1e-6 * Math.abs(b),
  "!=": (a, b) => Math.abs(a - b) > 1e-6 * Math.abs(b),
};
const ONE_COMPARISON = /\s*(<=|>=|!=|<|>|=)?\s*([-+]?[\d.,]+(?:e[-+]?\d+)?)\s*([^\s<>=!.\d][^\s<>=!]*)?/iy;

function numericFilter(wanted, column) {
  const tests = [];
  const range = wanted.match(/^(.+?)\s*\.\.\s*(.+)$/);
  if (range) {
    const low = quantity(range[1], column);
    const high = quantity(range[2], column);
    if (low === null || high === null) return null;
    return (value) => isNumber(value) && value >= low && value <= high;
  }
  ONE_COMPARISON.lastIndex = 0;
  while (ONE_COMPARISON.lastIndex < wanted.length) {
    const found = ONE_COMPARISON.exec(wanted);
    if (found === null) return null;
    const limit = quantity(`${found[2]} ${found[3] ?? ""}`, column);
    if (limit === null) return null;
    const holds = COMPARISONS[found[1] ?? "="];
    tests.push((value) => holds(value, limit));
  }
  return (value) => isNumber(value) && tests.every((test) => test(value));
}

// "10 ms" in SI units; without a unit, the one in the heading, or the SI unit. null if it is none.
function quantity(text, column) {
  const found = text.trim().match(/^([-+]?[\d.,]+(?:e[-+]?\d+)?)\s*(.*)$/i);
  if (found === null) return null;
  const number = Number(found[1].replaceAll(",", ""));
  if (Number.isNaN(number)) return null;
  if (!found[2]) return number * columnScale(column).factor;
  const wanted = found[2].replace(/^u/, "µ").toLowerCase();
  const units = unitsOf(column.unit);
  const factor = (units.find(([name]) => name === found[2])
    ?? units.find(([name]) => name.toLowerCase() === wanted)
    ?? decimalBytes(found[2], column.unit))?.[1];
  return factor === undefined ? null : number * factor;
}

function decimalBytes(text, unit) {
  if (unit !== "bytes") return undefined;
  return PREFIXES.map(([prefix, size]) => [`${prefix}B`, size])
    .find(([name]) => name.toLowerCase() === text.toLowerCase());
}

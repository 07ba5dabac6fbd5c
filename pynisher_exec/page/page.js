"use strict";
// Whatever a task wrote comes to the screen by textContent or fillText, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tasks = data.tasks;
  const at = (id) => document.getElementById(id);
  const make = (name, text, kind) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const wide = (status) => status.replaceAll("_", " ");
  const state = { status: "", query: "", column: "id", down: false, page: 0, picked: null, failures: 30 };
  const PAGE = 100;

  // -- figures as words ---------------------------------------------------------------------------

  const seconds = (value) => {
    if (value === undefined || value === null) return "";
    if (value < 0.001) return value ? (value * 1e6).toFixed(0) + " µs" : "0 s";
    if (value < 1) return (value * 1000).toPrecision(3) + " ms";
    if (value < 100) return value.toPrecision(3) + " s";
    const minutes = Math.floor(value / 60);
    if (minutes < 60) return minutes + " min " + String(Math.floor(value % 60)).padStart(2, "0") + " s";
    return Math.floor(minutes / 60) + " h " + String(minutes % 60).padStart(2, "0") + " min";
  };
  const bytes = (value) => {
    if (value === undefined) return "";
    let unit = 0;
    while (value >= 1024 && unit < 4) { value /= 1024; unit += 1; }
    return (value >= 100 || unit === 0 ? value.toFixed(0) : value.toPrecision(3)) + " " + ["B", "KiB", "MiB", "GiB", "TiB"][unit];
  };
  const moment = (value) => new Date(value * 1000).toLocaleString();
  const said = (task) => task.message ?? task.result ?? "";
  const short = (text, length) => (text.length > length ? text.slice(0, length - 1) + "…" : text);

  const counts = new Map();
  for (const task of tasks) counts.set(task.status, (counts.get(task.status) ?? 0) + 1);
  const statuses = [...data.statuses.filter((each) => counts.has(each)), ...[...counts.keys()].filter((each) => !data.statuses.includes(each))];
  const known = new Set(data.statuses);
  const tone = (status) => (known.has(status) ? status : "refused");

  const begun = tasks.filter((task) => task.started !== undefined);
  let first = Infinity, last = -Infinity, lanes = 0;
  for (const task of begun) {
    first = Math.min(first, task.started);
    last = Math.max(last, task.started + task.wall);
    lanes = Math.max(lanes, task.lane + 1);
  }
  const sum = (name) => tasks.reduce((total, task) => total + (task[name] ?? 0), 0);
  const most = (name) => tasks.reduce((found, task) => Math.max(found, task[name] ?? 0), 0);

  // -- head and summary ---------------------------------------------------------------------------

  const functions = [...new Set(data.searches.map((search) => search.function))];
  at("title").textContent = functions.join(", ") || data.name;
  document.title = (functions.join(", ") || data.name) + " – search";
  const hosts = [...new Set(data.searches.map((search) => search.host))];
  at("about").textContent = [
    data.name,
    begun.length ? "from " + moment(first) + " to " + moment(last) : "",
    hosts.length ? "on " + hosts.join(", ") : "",
    data.searches.length > 1 ? data.searches.length + " runs" : "",
    data.going_on ? "still going on when this page was made" : "",
  ].filter(Boolean).join(" · ");

  const failed = tasks.filter((task) => task.status !== "ok");
  for (const [name, value] of [
    ["tasks", String(tasks.length)],
    ["ok", String(tasks.length - failed.length)],
    ["failed", String(failed.length)],
    ["took", begun.length ? seconds(last - first) : "–"],
    ["CPU time", seconds(sum("cpu"))],
    ["largest peak memory", bytes(most("memory"))],
    ["longest task", seconds(most("wall"))],
    ["slots used", String(lanes)],
  ]) {
    const tile = make("div");
    tile.append(make("dt", name), make("dd", value));
    at("summary").append(tile);
  }
  for (const status of statuses) {
    const share = make("span");
    share.style.flexGrow = counts.get(status);
    share.style.background = `var(--${tone(status)})`;
    at("shares").append(share);
    const button = make("button");
    button.type = "button";
    button.dataset.status = status;
    const dot = make("span", undefined, "dot");
    dot.style.background = `var(--${tone(status)})`;
    button.append(dot, `${wide(status)} ${counts.get(status)}`);
    button.addEventListener("click", () => filter(state.status === status ? "" : status));
    at("legend").append(button);
    const option = make("option", wide(status));
    option.value = status;
    at("status").append(option);
  }
  const filter = (status) => {
    Object.assign(state, { status, page: 0, failures: 30 });
    at("status").value = status;
    refresh();
  };
  const shown = (task) => !state.status || task.status === state.status;

  // -- drawing ------------------------------------------------------------------------------------

  const surface = (canvas, height) => {
    const width = canvas.clientWidth, scale = window.devicePixelRatio || 1;
    canvas.style.height = height + "px";
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.round(height * scale);
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.font = "12px system-ui, sans-serif";
    return { pen, width, height };
  };
  // Names stand above the one axis and below the end of the other.
  const name = (pen, up, along, right, height) => {
    pen.fillStyle = colour("quiet");
    pen.fillText("↑ " + up, 0, 12);
    pen.fillText(along + " →", right - pen.measureText(along + " →").width, height - 6);
  };
  const steps = (low, high, count, log) => {
    if (log) {
      const found = [];
      for (let power = Math.ceil(low - 1e-9); power <= high + 1e-9; power += Math.max(1, Math.ceil((high - low) / count))) found.push(power);
      return found.length > 1 ? found : [low, high];
    }
    const rough = (high - low) / count || 1, size = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((each) => each * size).find((each) => each >= rough);
    const found = [];
    for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) found.push(value);
    return found;
  };

  const timeline = at("timeline");
  let bars = [];
  const drawTimeline = () => {
    bars = [];
    timeline.setAttribute("aria-label", begun.length
      ? `Timeline of ${begun.length} tasks in ${lanes} slots over ${seconds(last - first)}; the table below has each of them.`
      : "Timeline: no task has begun.");
    const row = Math.max(3, Math.min(22, 420 / Math.max(lanes, 1)));
    const { pen, width } = surface(timeline, Math.max(1, lanes) * row + 26);
    const span = Math.max(last - first, 1e-6), bottom = Math.max(1, lanes) * row;
    if (!begun.length) return;
    pen.fillStyle = colour("quiet");
    pen.strokeStyle = colour("line");
    for (const value of steps(0, span, Math.max(2, Math.floor(width / 110)))) {
      const x = (value / span) * (width - 1);
      pen.beginPath(); pen.moveTo(x + 0.5, 0); pen.lineTo(x + 0.5, bottom + 4); pen.stroke();
      const text = seconds(value), measured = pen.measureText(text).width;
      pen.fillText(text, Math.min(Math.max(0, x - measured / 2), width - measured), bottom + 18);
    }
    const tones = new Map(statuses.map((status) => [status, colour(tone(status))]));
    for (const task of begun) {
      const x = ((task.started - first) / span) * (width - 1);
      const bar = { task, x, y: task.lane * row, w: Math.max(1, (task.wall / span) * (width - 1)), h: Math.max(2, row - 1) };
      pen.globalAlpha = shown(task) ? 1 : 0.15;
      pen.fillStyle = tones.get(task.status);
      pen.fillRect(bar.x, bar.y, bar.w > 3 ? bar.w - 0.6 : bar.w, bar.h);
      bars.push(bar);
    }
    pen.globalAlpha = 1;
    const picked = bars.find((bar) => bar.task === state.picked);
    if (picked) {
      pen.strokeStyle = colour("ink");
      pen.lineWidth = 2;
      pen.strokeRect(picked.x - 1, picked.y - 1, picked.w + 2, picked.h + 2);
    }
  };
  const nearest = (event) => {
    const box = timeline.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let found = null, least = 8;
    for (const bar of bars) {
      if (y < bar.y || y > bar.y + bar.h + 1) continue;
      const away = Math.max(bar.x - x, x - bar.x - bar.w, 0);
      if (away < least) { least = away; found = bar.task; }
    }
    return found;
  };
  const pick = (task, say) => {
    const before = state.picked;
    state.picked = task;
    const box = at("picked");
    box.hidden = !task || !say;
    if (task && say) box.textContent = `${task.id}: ${wide(task.status)}, ${seconds(task.wall)}, ${bytes(task.memory)}; ${short(task.key, 120)}${said(task) ? ": " + short(said(task), 160) : ""}`;
    if (before !== task) drawTimeline();
  };
  timeline.addEventListener("pointermove", (event) => pick(nearest(event), true));
  timeline.addEventListener("pointerleave", () => pick(null, false));
  timeline.addEventListener("click", (event) => { const task = nearest(event); if (task) reveal(task); });
  timeline.addEventListener("blur", () => pick(null, false));
  const inTime = [...begun].sort((one, other) => one.started - other.started || one.lane - other.lane);
  timeline.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const visible = inTime.filter(shown);
    if (!visible.length) return;
    let place = visible.indexOf(state.picked);
    if (event.key in moves) place = place < 0 ? 0 : Math.min(Math.max(place + moves[event.key], 0), visible.length - 1);
    else if (event.key === "Home") place = 0;
    else if (event.key === "End") place = visible.length - 1;
    else if (event.key === "Enter" && state.picked) { reveal(state.picked); return; }
    else return;
    event.preventDefault();
    pick(visible[place], true);
  });

  // The value of a limit that most tasks had, where they had one.
  const limit = (name) => {
    const found = new Map();
    for (const task of tasks) if (task.limits?.[name]) found.set(task.limits[name], (found.get(task.limits[name]) ?? 0) + 1);
    return [...found].sort((one, other) => other[1] - one[1])[0]?.[0];
  };
  const drawScatter = () => {
    const canvas = at("scatter"), { pen, width, height } = surface(canvas, 330);
    const left = 66, bottom = height - 44, top = 26, right = width - 12;
    const bounds = [limit("cpu_time"), limit("memory")];
    const values = ["cpu", "memory"].map((name, place) => {
      const floor = place ? 4096 : 0.001;
      const all = tasks.map((task) => Math.log10(Math.max(task[name] ?? 0, floor)));
      if (bounds[place]) all.push(Math.log10(bounds[place]));
      let low = Infinity, high = -Infinity;
      for (const each of all) { low = Math.min(low, each); high = Math.max(high, each); }
      if (!(low < high)) { low -= 0.5; high += 0.5; }
      const room = (high - low) * 0.05;
      return { low: low - room, high: high + room, floor };
    });
    const x = (value) => left + ((Math.log10(Math.max(value, values[0].floor)) - values[0].low) / (values[0].high - values[0].low)) * (right - left);
    const y = (value) => bottom - ((Math.log10(Math.max(value, values[1].floor)) - values[1].low) / (values[1].high - values[1].low)) * (bottom - top);
    name(pen, "peak memory", "CPU time", right, height);
    pen.strokeStyle = colour("line");
    for (const power of steps(values[0].low, values[0].high, Math.max(2, (right - left) / 80), true)) {
      const place = x(10 ** power), text = seconds(10 ** power);
      pen.beginPath(); pen.moveTo(place, top); pen.lineTo(place, bottom); pen.stroke();
      pen.fillText(text, Math.min(place - pen.measureText(text).width / 2, width - pen.measureText(text).width), bottom + 16);
    }
    for (let power = Math.ceil(values[1].low / Math.log10(2) / 2) * 2; power * Math.log10(2) <= values[1].high; power += Math.max(2, Math.ceil((values[1].high - values[1].low) / Math.log10(2) / 12) * 2)) {
      const place = y(2 ** power), text = bytes(2 ** power);
      pen.beginPath(); pen.moveTo(left, place); pen.lineTo(right, place); pen.stroke();
      pen.fillText(text, left - 6 - pen.measureText(text).width, place + 4);
    }
    const tones = new Map(statuses.map((status) => [status, colour(tone(status))]));
    for (const task of tasks) {
      if (task.started === undefined) continue;
      pen.globalAlpha = shown(task) ? 0.75 : 0.08;
      pen.fillStyle = tones.get(task.status);
      pen.fillRect(x(task.cpu ?? 0) - 2, y(task.memory ?? 0) - 2, 4, 4);
    }
    pen.globalAlpha = 1;
    pen.setLineDash([5, 4]);
    pen.strokeStyle = colour("ink");
    pen.beginPath();
    if (bounds[0]) { pen.moveTo(x(bounds[0]), top); pen.lineTo(x(bounds[0]), bottom); }
    if (bounds[1]) { pen.moveTo(left, y(bounds[1])); pen.lineTo(right, y(bounds[1])); }
    pen.stroke();
    pen.setLineDash([]);
    canvas.setAttribute("aria-label", `Peak memory over CPU time of ${tasks.length} tasks, both logarithmic; largest peak ${bytes(most("memory"))}${bounds[1] ? " under a limit of " + bytes(bounds[1]) : ""}, most CPU time ${seconds(most("cpu"))}${bounds[0] ? " under a limit of " + seconds(bounds[0]) : ""}.`);
  };

  const drawTimes = () => {
    const canvas = at("times"), { pen, width, height } = surface(canvas, 330);
    const left = 40, bottom = height - 44, top = 26, right = width - 12;
    const logs = begun.map((task) => Math.log10(Math.max(task.wall, 1e-4)));
    let low = Infinity, high = -Infinity;
    for (const each of logs) { low = Math.min(low, each); high = Math.max(high, each); }
    at("times-hint").textContent = begun.length ? "From the start of the function to its end." : "No task has begun.";
    if (!begun.length) return;
    if (!(low < high)) { low -= 0.5; high += 0.5; }
    const bins = Math.max(8, Math.min(36, Math.floor((right - left) / 14)));
    const heaps = Array.from({ length: bins }, () => new Map());
    begun.forEach((task, place) => {
      const bin = Math.min(bins - 1, Math.floor(((logs[place] - low) / (high - low)) * bins));
      heaps[bin].set(task.status, (heaps[bin].get(task.status) ?? 0) + 1);
    });
    const tallest = Math.max(...heaps.map((heap) => [...heap.values()].reduce((total, each) => total + each, 0)));
    name(pen, "tasks", "wall time, logarithmic", right, height);
    pen.strokeStyle = colour("line");
    for (const value of steps(0, tallest, 4)) {
      if (!Number.isInteger(value)) continue;
      const place = bottom - (value / tallest) * (bottom - top);
      pen.beginPath(); pen.moveTo(left, place); pen.lineTo(right, place); pen.stroke();
      pen.fillText(String(value), left - 6 - pen.measureText(String(value)).width, place + 4);
    }
    for (const power of steps(low, high, Math.max(2, (right - left) / 80), true)) {
      const place = left + ((power - low) / (high - low)) * (right - left), text = seconds(10 ** power);
      pen.fillText(text, Math.min(Math.max(0, place - pen.measureText(text).width / 2), width - pen.measureText(text).width), bottom + 16);
    }
    const step = (right - left) / bins;
    heaps.forEach((heap, place) => {
      let base = bottom;
      for (const status of statuses) {
        const tall = ((heap.get(status) ?? 0) / tallest) * (bottom - top);
        pen.globalAlpha = !state.status || state.status === status ? 1 : 0.15;
        pen.fillStyle = colour(tone(status));
        pen.fillRect(left + place * step + 0.5, base - tall, step - 1, tall);
        base -= tall;
      }
    });
    pen.globalAlpha = 1;
    canvas.setAttribute("aria-label", `Distribution of wall times of ${begun.length} tasks, from ${seconds(10 ** low)} to ${seconds(10 ** high)}, logarithmic.`);
  };

  // -- failures -----------------------------------------------------------------------------------

  const drawFailures = () => {
    const wanted = failed.filter(shown), box = at("failures");
    box.replaceChildren();
    if (!wanted.length) box.append(make("p", failed.length ? "None that ended so." : "None.", "hint"));
    for (const task of wanted.slice(0, state.failures)) {
      const entry = make("details"), head = make("summary");
      const dot = make("span", undefined, "dot");
      dot.style.background = `var(--${tone(task.status)})`;
      head.append(dot, make("strong", wide(task.status)), ` ${task.message ?? ""} `, make("code", short(task.key, 160)));
      entry.append(head);
      entry.append(make("p", [
        `task ${task.id}`, `wall ${seconds(task.wall)}`, `CPU ${seconds(task.cpu)}`, `peak ${bytes(task.memory)}`,
        task.exit_code === undefined ? "" : `exit code ${task.exit_code}`, task.signal ?? "", task.exception ?? "",
      ].filter(Boolean).join(" · ")));
      for (const [title, text] of [["Last lines of stderr", task.stderr], ["Traceback", task.traceback]]) {
        if (text) entry.append(make("p", title), make("pre", text));
      }
      box.append(entry);
    }
    const button = at("more-failures"), left = wanted.length - state.failures;
    button.hidden = left <= 0;
    button.textContent = left > 0 ? `Show more (${left} left)` : "";
  };
  at("more-failures").addEventListener("click", () => { state.failures += 200; drawFailures(); });

  // -- the table ----------------------------------------------------------------------------------

  const columns = [
    { name: "id", title: "Task", number: true, text: (task) => String(task.id) },
    { name: "status", title: "Status", text: (task) => wide(task.status) },
    { name: "started", title: "Started", number: true, text: (task) => (task.started === undefined ? "" : "+" + (seconds(task.started - first) || "0 s")) },
    { name: "wall", title: "Wall time", number: true, text: (task) => seconds(task.wall) },
    { name: "cpu", title: "CPU time", number: true, text: (task) => seconds(task.cpu) },
    { name: "memory", title: "Peak memory", number: true, text: (task) => bytes(task.memory) },
    { name: "processes", title: "Subprocesses", number: true, text: (task) => String(task.processes ?? "") },
    { name: "key", title: "Item", wide: true, text: (task) => task.key },
    { name: "result", title: "Result", wide: true, text: said },
  ];
  for (const column of columns) {
    const head = make("th", undefined, column.number ? "number" : "");
    head.scope = "col";
    head.setAttribute("role", "columnheader");
    const button = make("button", column.title);
    button.type = "button";
    button.addEventListener("click", () => {
      state.down = state.column === column.name ? !state.down : Boolean(column.number) && column.name !== "id";
      Object.assign(state, { column: column.name, page: 0 });
      drawTable();
    });
    head.append(button);
    at("columns").append(head);
    column.head = head;
    column.button = button;
  }
  for (const task of tasks) task.words = `${task.id} ${wide(task.status)} ${task.key} ${said(task)}`.toLowerCase();
  const value = (task) => {
    if (state.column !== "result") return task[state.column];
    const number = Number(task.result);
    return task.result === undefined || Number.isNaN(number) ? said(task) : number;
  };
  const order = (one, other) => {
    const a = value(one), b = value(other);
    if (a === b) return one.id - other.id;
    if (a === undefined) return 1;
    if (b === undefined) return -1;
    const less = typeof a === typeof b ? a < b : typeof a === "number";
    return (less ? -1 : 1) * (state.down ? -1 : 1);
  };
  let listed = [];
  const drawTable = () => {
    const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
    listed = tasks.filter((task) => shown(task) && words.every((word) => task.words.includes(word))).sort(order);
    const pages = Math.max(1, Math.ceil(listed.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    for (const column of columns) {
      const sorted = column.name === state.column;
      if (sorted) column.head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else column.head.removeAttribute("aria-sort");
      column.button.textContent = column.title + (sorted ? (state.down ? " ↓" : " ↑") : "");
    }
    const body = document.createDocumentFragment();
    for (const task of listed.slice(state.page * PAGE, (state.page + 1) * PAGE)) {
      const row = make("tr", undefined, task === state.revealed ? "picked" : "");
      row.setAttribute("role", "row");
      for (const column of columns) {
        const cell = make("td", short(column.text(task), 600), column.number ? "number" : column.wide ? "text" : "");
        cell.setAttribute("role", "cell");
        cell.dataset.label = column.title;
        if (column.name === "status") {
          const dot = make("span", undefined, "dot");
          dot.style.background = `var(--${tone(task.status)})`;
          cell.prepend(dot);
        }
        row.append(cell);
      }
      body.append(row);
    }
    at("rows").replaceChildren(body);
    at("found").textContent = listed.length === tasks.length ? `${tasks.length} tasks` : `${listed.length} of ${tasks.length} tasks`;
    at("page").textContent = `page ${state.page + 1} of ${pages}`;
    at("previous").disabled = state.page === 0;
    at("next").disabled = state.page >= pages - 1;
  };
  const reveal = (task) => {
    Object.assign(state, { query: "", status: shown(task) ? state.status : "", revealed: task });
    at("query").value = "";
    at("status").value = state.status;
    drawTable();
    state.page = Math.floor(listed.indexOf(task) / PAGE);
    refresh();
    at("rows").querySelector("tr.picked")?.scrollIntoView({ block: "center" });
  };
  at("previous").addEventListener("click", () => { state.page -= 1; drawTable(); });
  at("next").addEventListener("click", () => { state.page += 1; drawTable(); });
  at("query").addEventListener("input", (event) => { Object.assign(state, { query: event.target.value, page: 0 }); drawTable(); });
  at("status").addEventListener("change", (event) => filter(event.target.value));

  const draw = () => { drawTimeline(); drawScatter(); drawTimes(); };
  const refresh = () => {
    for (const button of at("legend").children) button.setAttribute("aria-pressed", String(button.dataset.status === state.status));
    draw();
    drawFailures();
    drawTable();
  };
  let asked = 0;
  window.addEventListener("resize", () => { cancelAnimationFrame(asked); asked = requestAnimationFrame(draw); });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  refresh();
})();

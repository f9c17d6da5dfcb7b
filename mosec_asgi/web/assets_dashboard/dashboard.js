// Asks the service each second how it does, keeps what it is told, and draws it. All that comes from the service is shown
// as text (`textContent`), never as HTML.
"use strict";

(() => {
  const POLL = 1000;
  const PATIENCE = 5000;
  const MOST_POINTS = 3600;
  const WINDOWS = [[60, "1 min"], [300, "5 min"], [900, "15 min"]];
  const HEIGHT = 170;
  // Workers of a stage from which on each is only a number.
  const MANY = 12;

  // -- words and numbers -----------------------------------------------------------------------------------------------

  const number = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (Number.isInteger(value) || size >= 100) return Math.round(value).toLocaleString("en");
    return size >= 10 ? value.toFixed(1) : value.toFixed(2);
  };
  const rate = (value) => {
    if (value === null || value === undefined) return "–";
    return value >= 9.95 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(2)));
  };
  const seconds = (value) => {
    if (value === null || value === undefined) return "–";
    const ms = value * 1000;
    if (ms >= 10000) return `${value.toFixed(1)} s`;
    if (ms >= 1000) return `${value.toFixed(2)} s`;
    return ms >= 100 ? `${ms.toFixed(0)} ms` : ms >= 10 ? `${ms.toFixed(1)} ms` : `${ms.toFixed(2)} ms`;
  };
  const span = (value) => {
    const whole = Math.max(0, Math.floor(value));
    const [days, hours, minutes] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
    if (days) return `${days} d ${hours} h`;
    if (hours) return `${hours} h ${minutes} min`;
    return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
  };
  const two = (value) => String(value).padStart(2, "0");
  const clock = (time, withSeconds = true) => {
    const date = new Date(time * 1000);
    return `${two(date.getHours())}:${two(date.getMinutes())}${withSeconds ? `:${two(date.getSeconds())}` : ""}`;
  };
  const sum = (counts) => Object.values(counts).reduce((total, count) => total + count, 0);

  // -- elements --------------------------------------------------------------------------------------------------------

  const byId = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const show = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };

  // -- what is kept ----------------------------------------------------------------------------------------------------

  // Columns of numbers of equal length: `times`, and those of the service and of each stage by their names.
  const kept = { run: "", next: 0, names: "", times: [], service: {}, stages: [] };

  function keep(told) {
    const names = JSON.stringify(told.report.stages.map((stage) => stage.name));
    const history = told.history;
    if (names !== kept.names) {
      Object.assign(kept, { names, times: [], service: {}, stages: told.report.stages.map(() => ({})) });
    } else if (told.run !== kept.run && kept.times.length && history.times.length) {
      // The service was started anew: no line leads from the one to the other.
      push([(kept.times[kept.times.length - 1] + history.times[0]) / 2], () => [null]);
    }
    kept.run = told.run;
    kept.next = history.next;
    const last = kept.times[kept.times.length - 1] ?? -Infinity;
    // A service whose clock was put back would have its lines lead backwards.
    const from = history.times.findIndex((time) => time > last);
    if (from >= 0) push(history.times.slice(from), (columns) => (columns || []).slice(from), history);
    return names;
  }

  function push(times, part, history) {
    const add = (columns, names, source) => {
      for (const name of names) (columns[name] ??= []).push(...part(source && source[name]));
    };
    kept.times.push(...times);
    add(kept.service, Object.keys(history ? history.service : kept.service), history && history.service);
    kept.stages.forEach((columns, place) => {
      const source = history && history.stages[place];
      add(columns, Object.keys(source || columns), source);
    });
    const over = kept.times.length - MOST_POINTS;
    if (over > 0) {
      for (const column of [kept.times, ...[kept.service, ...kept.stages].flatMap(Object.values)]) column.splice(0, over);
    }
  }

  // -- plots -----------------------------------------------------------------------------------------------------------

  let shown = WINDOWS[1][0];
  let end = Date.now() / 1000;
  const plots = new Set();
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const WHOLE = [0, 1, 2, 3, 4, 5, 6].flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power));
  const TIMES = [5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600];
  // A young service is not shown with an empty past.
  const beginning = () => Math.max(end - shown, Math.min(end - WINDOWS[0][0], kept.times[0] ?? end));

  // Of a logarithmic scale, so that the median is seen beside a 99th percentile that is a hundred times as large: whole
  // decades, and lines at 1, 10, 100; at 2 and 5 as well where there is room.
  const decades = (_, low, high) => {
    const [least, most] = [Math.max(low || 0.001, 1e-5), Math.max(high || 0.01, 1e-4)];
    return [10 ** Math.floor(Math.log10(least)), 10 ** Math.ceil(Math.log10(most * 1.05))];
  };

  const onlyRound = (plot, values) => {
    const { min, max } = plot.scales.y;
    const wanted = max / min < 20 ? [1, 2, 5] : [1];
    return values.map((value) => (wanted.includes(Number((value / 10 ** Math.floor(Math.log10(value) + 1e-9)).toFixed(6))) ? value : null));
  };

  class Plot {
    // `lines`: [label, colour, function that returns the column, quiet], where a quiet one is left out while it is zero.
    constructor(parent, { title, lines, format, axis = format, whole = false, logarithmic = false, least = 1, most }) {
      Object.assign(this, { lines, format, axis, whole, logarithmic, least, most, drawn: null, cursor: null });
      this.card = make("div", "card plot");
      const head = make("div", "head");
      this.title = make("h3", "", title);
      this.when = make("span", "when");
      head.append(this.title, this.when);
      const legend = make("div", "legend");
      this.values = lines.map(([label, tone]) => {
        const item = make("span", "series");
        const value = make("b");
        item.append(make("i", tone), make("span", "", label), value);
        legend.append(item);
        return { item, value };
      });
      this.space = make("div", "space");
      this.space.setAttribute("role", "img");
      this.card.append(head, legend, this.space);
      parent.append(this.card);
      plots.add(this);
      this.observer = new ResizeObserver(() => this.resize());
      this.observer.observe(this.space);
    }

    columns() {
      return this.lines.map(([, , column]) => column() || kept.times.map(() => null));
    }

    begin(width) {
      const text = colour("muted");
      const grid = { stroke: colour("grid"), width: 1 };
      const font = '12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
      const common = { stroke: text, font, grid, ticks: { show: false } };
      this.drawn = new uPlot({
        width,
        height: HEIGHT,
        legend: { show: false },
        cursor: { sync: { key: "dashboard" }, drag: { x: false, y: false }, y: false, points: { size: 7 } },
        scales: {
          x: { range: () => [beginning(), end] },
          y: this.logarithmic
            ? { distr: 3, range: decades }
            : { range: (_, __, top) => [0, this.most ? this.most() * 1.08 : Math.max((top || 0) * 1.12, this.least)] },
        },
        axes: [
          {
            ...common,
            space: 68,
            size: 28,
            incrs: TIMES,
            values: (_, times, __, ___, step) => times.map((time) => clock(time, step < 60)),
          },
          {
            ...common,
            size: 58,
            space: 30,
            ...(this.whole ? { incrs: WHOLE } : {}),
            ...(this.logarithmic ? { filter: onlyRound, grid: { ...grid, filter: onlyRound } } : {}),
            values: (_, values) => values.map((value) => (value === null ? "" : this.axis(value))),
          },
        ],
        series: [
          {},
          ...this.lines.map(([label, tone], place) => ({
            label,
            stroke: colour(tone),
            width: 1.75,
            fill: place === 0 && !this.logarithmic ? `${colour(tone)}1f` : undefined,
            points: { show: (_, __, from, to) => to - from < 4, size: 5 },
          })),
        ],
        hooks: { setCursor: [(plot) => this.pointed(plot.cursor.idx)] },
      }, [kept.times, ...this.columns()], this.space);
    }

    resize() {
      const width = Math.floor(this.space.clientWidth);
      if (!width) return;
      if (this.drawn) this.drawn.setSize({ width, height: HEIGHT });
      else this.begin(width);
      this.update();
    }

    // Draw with other colours.
    again() {
      if (this.drawn) this.drawn.destroy();
      this.drawn = null;
      this.resize();
    }

    pointed(place) {
      // Left of the first point, or right of the last one, there is nothing to say.
      this.cursor = place === null || place === undefined ? null : place;
      this.tell();
    }

    tell() {
      const columns = this.columns();
      const place = this.cursor ?? kept.times.length - 1;
      const told = columns.map((column) => (place < 0 ? null : column[place]));
      told.forEach((value, line) => show(this.values[line].value, this.format(value)));
      show(this.when, this.cursor === null ? "" : clock(kept.times[this.cursor]));
      const text = this.lines.map(([label], line) => `${label} ${this.format(told[line])}`).join(", ");
      this.space.setAttribute("aria-label", `${this.title.textContent}: ${text}`);
    }

    update() {
      if (!this.drawn) return;
      const columns = this.columns();
      this.lines.forEach(([, , , quiet], line) => {
        const seen = !quiet || columns[line].some((value) => value);
        this.values[line].item.hidden = !seen;
        if (this.drawn.series[line + 1].show !== seen) this.drawn.setSeries(line + 1, { show: seen });
      });
      this.drawn.setData([kept.times, ...columns]);
      this.tell();
    }

    remove() {
      this.observer.disconnect();
      if (this.drawn) this.drawn.destroy();
      plots.delete(this);
    }
  }

  const perSecond = (value) => rate(value);
  const counted = (value) => number(value);
  const axisSeconds = (value) => (value === 0 ? "0" : value >= 1 ? `${Number(value.toPrecision(3))} s` : `${Number((value * 1000).toPrecision(3))} ms`);
  const axisNumber = (value) => (value >= 10000 ? `${Number((value / 1000).toPrecision(3))}k` : String(Number(value.toPrecision(6))));

  // -- the service -----------------------------------------------------------------------------------------------------

  function servicePlots() {
    const parent = byId("service-plots");
    const of = (name) => () => kept.service[name];
    new Plot(parent, {
      title: "Answers per second",
      format: perSecond,
      axis: axisNumber,
      lines: [
        ["answered", "blue", of("ok")],
        ["refused (429, 503)", "amber", of("refused"), true],
        ["too late (408)", "purple", of("late"), true],
        ["client's fault (4xx)", "teal", of("client_error"), true],
        ["server's fault (5xx)", "red", of("server_error"), true],
      ],
    });
    new Plot(parent, {
      title: "Latency of answered requests",
      format: seconds,
      axis: axisSeconds,
      logarithmic: true,
      lines: [["median", "blue", of("p50")], ["90 %", "purple", of("p90")], ["99 %", "amber", of("p99")]],
    });
    new Plot(parent, {
      title: "Requests in the service",
      format: counted,
      axis: axisNumber,
      whole: true,
      least: 4,
      lines: [["not yet answered", "blue", of("admitted")], ["open streams", "teal", of("streams"), true]],
    });
  }

  const tiles = {};
  function tile(name, label, value, unit = "", more = "", tone = "") {
    if (!tiles[name]) {
      const element = make("div", "tile");
      const [text, figure, rest] = [make("div", "label"), make("div", "value"), make("div", "more")];
      const [shownValue, shownUnit] = [make("span"), make("small")];
      figure.append(shownValue, shownUnit);
      element.append(text, figure, rest);
      byId("tiles").append(element);
      tiles[name] = { element, text, shownValue, shownUnit, rest };
    }
    const made = tiles[name];
    made.element.className = `tile ${tone}`;
    show(made.text, label);
    show(made.shownValue, value);
    show(made.shownUnit, unit ? ` ${unit}` : "");
    show(made.rest, more);
  }

  function showTiles(report) {
    const last = (name) => (kept.service[name] || []).at(-1);
    const all = ["ok", "refused", "late", "client_error", "server_error"].reduce((total, name) => total + (last(name) || 0), 0);
    const total = Object.values(report.answered).reduce((count, codes) => count + sum(codes), 0);
    tile("answers", "Answers", rate(kept.times.length ? all : null), "/s", `${number(total)} in all`);
    const [p50, p99] = [seconds(last("p50")).split(" "), seconds(last("p99")).split(" ")];
    tile("p50", "Median latency", p50[0], p50[1]);
    tile("p99", "99 % are below", p99[0], p99[1]);
    const full = report.admitted >= 0.9 * report.capacity;
    tile("admitted", "In the service", number(report.admitted), "", `of at most ${number(report.capacity)}`, full ? "warn" : "");
    const ready = report.stages.reduce((count, stage) => count + stage.ready, 0);
    const wanted = report.stages.reduce((count, stage) => count + stage.wanted, 0);
    const restarts = report.stages.reduce((count, stage) => count + stage.restarts, 0);
    const missing = report.stages.some((stage) => !stage.ready) ? "bad" : ready < wanted ? "warn" : "";
    tile("workers", "Workers ready", `${ready}`, `of ${wanted}`, restarts ? `${number(restarts)} restarted so far` : "none restarted", missing);
    const refused = sum(report.refused);
    const now = (last("refused") || 0) + (last("late") || 0);
    tile("refused", "Refused or too late", rate(kept.times.length ? now : null), "/s", refused ? `${number(refused)} refused in all` : "none refused", now ? "warn" : "");
    if (report.streams_open || report.stages.some((stage) => stage.first_event.count)) {
      tile("streams", "Open streams", number(report.streams_open));
    }
  }

  // -- stages ----------------------------------------------------------------------------------------------------------

  let stages = [];
  class Stage {
    constructor(parent, place) {
      this.place = place;
      this.report = null;
      const card = make("div", "card stage");
      const top = make("div", "top");
      this.name = make("h3");
      this.badge = make("span", "state");
      this.routes = make("span", "routes muted");
      top.append(this.name, this.badge, this.routes);
      this.fault = make("p", "fault");
      this.fault.hidden = true;
      this.workers = make("ul", "workers");
      this.workers.setAttribute("aria-label", "Workers");
      this.numbers = make("dl", "numbers");
      this.space = make("div", "plots");
      card.append(top, this.fault, this.workers, this.numbers, this.space);
      parent.append(card);
      this.plots = [];
    }

    draw(stage) {
      const of = (name) => () => kept.stages[this.place] && kept.stages[this.place][name];
      this.plots = [
        new Plot(this.space, {
          title: "Tasks at this stage",
          format: counted,
          axis: axisNumber,
          whole: true,
          least: 4,
          lines: [["with workers", "blue", of("in_flight")], ["in the queue", "amber", of("queued")]],
        }),
        stage.max_batch_size > 1
          ? new Plot(this.space, {
            title: "Batch size",
            format: counted,
            axis: axisNumber,
            whole: true,
            most: () => Math.max(2, this.report.max_batch_size),
            lines: [["mean", "purple", of("batch_size")]],
          })
          : new Plot(this.space, {
            title: "Tasks that run at a time",
            format: counted,
            axis: axisNumber,
            whole: true,
            most: () => Math.max(2, this.report.slots),
            lines: [["running", "purple", of("slots_in_use")]],
          }),
        new Plot(this.space, {
          title: "Mean time of a task",
          format: seconds,
          axis: axisSeconds,
          least: 0.001,
          lines: [[stage.max_batch_size > 1 ? "its batch in a worker" : "in a worker", "green", of("process")], ["in the queue", "amber", of("queue_wait")]],
        }),
      ];
    }

    update(stage) {
      this.report = stage;
      if (!this.plots.length) this.draw(stage);
      show(this.name, stage.name);
      const { wanted } = stage;
      const loads = stage.workers.some((worker) => worker.state === "starting");
      const tone = stage.ready === wanted ? "good" : stage.ready ? "warn" : stage.down || !loads ? "bad" : "warn";
      this.badge.className = `state ${tone}`;
      show(this.badge, stage.down ? "no worker starts" : !stage.ready && loads ? "loading" : `${stage.ready} of ${wanted} ready`);
      show(this.routes, stage.routes.join("  "));
      const faults = stage.workers.filter((worker) => worker.error).map((worker) => `worker ${worker.worker_id}: ${worker.error}`);
      this.fault.hidden = !faults.length;
      show(this.fault, faults.length > 3 ? `${faults.slice(0, 3).join("; ")}; and ${faults.length - 3} more` : faults.join("; "));
      this.showWorkers(stage.workers);
      this.showNumbers(stage);
    }

    showWorkers(workers) {
      while (this.workers.children.length > workers.length) this.workers.lastChild.remove();
      workers.forEach((worker, place) => {
        const item = this.workers.children[place] || this.workers.appendChild(make("li"));
        item.className = worker.state;
        const since = worker.state === "starting" ? `starting for ${span(worker.seconds)}` : worker.state === "ready" ? `ready for ${span(worker.seconds)}` : worker.state;
        const has = worker.in_flight ? `, ${number(worker.in_flight)} ${worker.in_flight === 1 ? "task" : "tasks"}` : "";
        const title = `worker ${worker.worker_id}, ${worker.name ? `${worker.name}, ` : ""}${since}${has}`;
        if (item.title !== title) item.title = title;
        show(item, workers.length > MANY ? String(worker.worker_id) : `worker ${worker.worker_id}, ${since}${has}`);
      });
    }

    showNumbers(stage) {
      const last = (name) => ((kept.stages[this.place] || {})[name] || []).at(-1);
      const reasons = Object.entries(stage.refused).map(([reason, count]) => `${number(count)} ${reason.replaceAll("_", " ")}`);
      const rows = [
        ["tasks per second", rate(last("tasks"))],
        ["busy", `${number(stage.slots_in_use)} of ${number(stage.slots)}`],
        stage.max_batch_size > 1 && ["largest batch", number(stage.max_batch_size)],
        stage.streams_open > 0 && ["open streams", number(stage.streams_open)],
        stage.events > 0 && ["events per second", rate(last("events"))],
        stage.draining > 0 && ["draining", number(stage.draining)],
        ["restarts", number(stage.restarts), stage.restarts ? "warn" : ""],
        reasons.length > 0 && ["refused", reasons.join(", "), "warn"],
        stage.timed_out > 0 && ["too late", number(stage.timed_out), "warn"],
        stage.cancelled > 0 && ["clients left", number(stage.cancelled)],
        stage.in_vain > 0 && ["done in vain", number(stage.in_vain)],
      ].filter(Boolean);
      while (this.numbers.children.length > rows.length) this.numbers.lastChild.remove();
      rows.forEach(([label, value, tone = ""], place) => {
        let row = this.numbers.children[place];
        if (!row) {
          row = this.numbers.appendChild(make("div"));
          row.append(make("dt"), make("dd"));
        }
        row.className = tone;
        show(row.firstChild, label);
        show(row.lastChild, value);
      });
    }

    remove() {
      for (const plot of this.plots) plot.remove();
    }
  }

  let shownNames = "";
  function showStages(report, names) {
    if (names !== shownNames) {
      shownNames = names;
      for (const stage of stages) stage.remove();
      byId("stages").replaceChildren();
      stages = report.stages.map((_, place) => new Stage(byId("stages"), place));
    }
    report.stages.forEach((stage, place) => stages[place].update(stage));
  }

  // -- routes ----------------------------------------------------------------------------------------------------------

  const GROUPS = [
    ["answered", (code) => code < 400, ""],
    ["refused", (code) => code === 429 || code === 503, "warn"],
    ["too late", (code) => code === 408, "warn"],
    ["client's fault", (code) => code >= 400 && code < 500 && code !== 408 && code !== 429, ""],
    ["server's fault", (code) => code >= 500 && code !== 503, "bad"],
  ];

  function showRoutes(told) {
    const paths = [...new Set([...told.report.stages.flatMap((stage) => stage.routes), ...Object.keys(told.report.answered)])].sort();
    const head = make("tr");
    head.append(make("th", "", "route"), make("th", "", "per second"), ...GROUPS.map(([label]) => make("th", "", label)));
    const rows = paths.map((path) => {
      const row = make("tr");
      const codes = Object.entries(told.report.answered[path] || {});
      row.append(make("td", "", path), make("td", "", rate(told.routes[path] ?? 0)));
      for (const [, belongs, tone] of GROUPS) {
        const count = codes.reduce((total, [code, times]) => (belongs(Number(code)) ? total + times : total), 0);
        row.append(make("td", count ? tone : "none", number(count)));
      }
      return row;
    });
    const [top, body] = [make("thead"), make("tbody")];
    top.append(head);
    body.append(...rows);
    byId("routes").replaceChildren(top, body);
  }

  // -- once a second ---------------------------------------------------------------------------------------------------

  let lastTold = null;
  let lostAt = null;
  let offset = 0;

  function showState(text, tone) {
    byId("state").className = `state ${tone}`;
    show(byId("state"), text);
  }

  function notice(text, tone = "") {
    byId("notice").hidden = !text;
    byId("notice").className = `notice ${tone}`;
    show(byId("notice"), text);
  }

  function showTold(told) {
    const { report } = told;
    const names = keep(told);
    offset = told.time - Date.now() / 1000;
    document.body.classList.remove("stale");
    document.title = `${told.title}: dashboard`;
    show(byId("title"), told.title);
    show(byId("version"), `mosec-asgi ${told.version}`);
    const down = report.stages.filter((stage) => stage.down).map((stage) => stage.name);
    const empty = report.stages.filter((stage) => !stage.ready).map((stage) => stage.name);
    const loading = report.stages.flatMap((stage) => stage.workers.filter((worker) => worker.state === "starting").map((worker) => `${stage.name} ${worker.worker_id} for ${span(worker.seconds)}`));
    if (report.state === "serving" && !empty.length) {
      showState("serving", "good");
      notice("");
    } else if (report.state === "serving") {
      showState("not ready", "bad");
      notice(down.length ? `No worker of ${down.join(", ")} starts: its requests are answered 503.` : `No worker of ${empty.join(", ")} is ready.`, "bad");
    } else {
      showState(report.state, "warn");
      notice(report.state === "loading" ? `Loading: ${loading.join(", ") || "workers"}` : "The service is shutting down: new requests are answered 503.");
    }
    show(byId("uptime"), report.state === "loading" ? `started ${span(report.uptime)} ago` : `up ${span(report.uptime)}`);
    showTiles(report);
    showStages(report, names);
    showRoutes(told);
  }

  function showLost(why) {
    lostAt ??= Date.now();
    document.body.classList.add("stale");
    showState(byId("key").hidden ? "no connection" : "locked", "bad");
    if (!byId("key").hidden) return notice("");
    notice(`No connection to the service since ${clock(lostAt / 1000)}${why ? ` (${why})` : ""}. It is tried again each second.`, "bad");
  }

  // The API key, where the service wants one: for this tab alone, and never in an address.
  const STORED = "mosec-asgi-api-key";
  let key = sessionStorage.getItem(STORED) || "";
  byId("key").addEventListener("submit", (event) => {
    event.preventDefault();
    key = byId("key-text").value.trim();
    sessionStorage.setItem(STORED, key);
    byId("key").hidden = true;
    turn();
  });

  async function ask() {
    const query = kept.run ? `?run=${encodeURIComponent(kept.run)}&after=${kept.next}` : "";
    const headers = key ? { "x-api-key": key } : {};
    const response = await fetch(`data${query}`, { cache: "no-store", headers, signal: AbortSignal.timeout(PATIENCE) });
    const wantsKey = response.status === 401 || response.status === 403;
    byId("key").hidden = !wantsKey;
    if (wantsKey) throw new Error(key ? "this API key may not see it" : "an API key is wanted");
    if (!response.ok) throw new Error(`it answers ${response.status}`);
    return response.json();
  }

  async function turn() {
    const began = Date.now();
    try {
      lastTold = await ask();
      showTold(lastTold);
      lostAt = null;
    } catch (error) {
      showLost(error instanceof TypeError || error.name === "TimeoutError" ? "" : error.message);
    }
    end = Date.now() / 1000 + offset;
    for (const plot of plots) plot.update();
    // Not each second while somebody types: a service logs who comes without a key.
    if (!byId("key").hidden) waiting = null;
    else if (!document.hidden) waiting = setTimeout(turn, Math.max(50, POLL - (Date.now() - began)));
    else waiting = null;
  }

  let waiting = null;
  document.addEventListener("visibilitychange", () => {
    // Nobody looks at a hidden page; what it misses, the service has kept.
    if (!document.hidden && waiting === null && byId("key").hidden) turn();
  });

  for (const [length, label] of WINDOWS) {
    const button = make("button", "", label);
    button.type = "button";
    button.setAttribute("aria-pressed", String(length === shown));
    button.addEventListener("click", () => {
      shown = length;
      for (const each of byId("windows").children) each.setAttribute("aria-pressed", String(each === button));
      for (const plot of plots) plot.update();
    });
    byId("windows").append(button);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach((plot) => plot.again()));
  servicePlots();
  turn();
})();

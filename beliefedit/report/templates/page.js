"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 560px)");
  const PRINT_WIDTH = 680;  /* pixels between the margins of A4 and of Letter */
  let printing = false;
  const small = () => narrow.matches && !printing;

  /* Figures take the page's colours and width, whatever their template. */
  const figures = all("figure.plot").map((box) => ({
    box, drawing: box.querySelector(".drawing"), source: box.querySelector("script").textContent,
    titled: box.querySelector("figcaption") !== null,
  }));

  const LIGHT = { ink: "#1e2329", soft: "#5c6570", grid: "#e6e9ed", paper: "#ffffff" };

  function colours() {
    if (printing) return LIGHT;
    const style = getComputedStyle(document.documentElement);
    const value = (name) => style.getPropertyValue(name).trim();
    return { ink: value("--ink"), soft: value("--soft"), grid: value("--grid"), paper: value("--paper") };
  }

  /* A colour of text, or ink where it is too close to the paper (WCAG 2: a ratio below 4.5). */
  function readable(colour, paint) {
    if (!/^#[0-9a-f]{6}$/i.test(colour)) return colour ?? paint.ink;
    const channel = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const light = (hex) => [1, 3, 5].reduce((sum, start, index) =>
      sum + [0.2126, 0.7152, 0.0722][index] * channel(parseInt(hex.slice(start, start + 2), 16) / 255), 0.05);
    const [high, low] = [light(colour), light(paint.paper)].sort((a, b) => b - a);
    return high / low < 4.5 ? paint.ink : colour;
  }

  function dress(data, layout, paint) {
    for (const note of layout.annotations ?? [])
      if (!note.bgcolor) note.font = { ...note.font, color: readable(note.font?.color, paint) };
    for (const trace of data)
      for (const bars of [trace.error_x, trace.error_y]) if (bars) bars.color = paint.ink;
    const clear = "rgba(0,0,0,0)";
    const axis = { gridcolor: paint.grid, linecolor: paint.soft, zerolinecolor: paint.grid, tickcolor: paint.soft };
    const outer = layout.template?.layout ?? {};
    for (const level of [layout, outer]) {
      for (const key of Object.keys(level).filter((name) => /^[xy]axis\d*$/.test(name))) Object.assign(level[key], axis);
      Object.assign(level, { paper_bgcolor: clear, plot_bgcolor: clear });
      if (level.legend) Object.assign(level.legend, { bgcolor: clear, font: { ...level.legend.font, color: paint.ink } });
    }
    layout.font = {
      size: 13, ...outer.font, ...layout.font, color: paint.ink, family: getComputedStyle(document.body).fontFamily,
    };
    for (const note of layout.annotations ?? []) if (note.yref === "paper") note.font = { ...note.font, size: 13 };
    for (const key of Object.keys(layout).filter((name) => /^[xy]axis\d*$/.test(name))) {
      const title = layout[key].title;
      if (title?.text) title.font = { size: 13, ...title.font };
    }
    layout.hoverlabel = {
      align: "left", ...layout.hoverlabel, bgcolor: paint.paper, bordercolor: paint.soft,
      font: { ...layout.font, size: 12.5, ...layout.hoverlabel?.font, color: paint.ink },
    };
  }

  /* Use the page's width; leave no room for the title, which is text above the figure. */
  function fit(layout, data, titled) {
    delete layout.width;
    layout.autosize = true;
    const title = titled ? 50 : 0;
    layout.height = Math.max((layout.height ?? 450) - title, 200);
    const legend = { orientation: "v", y: 1, ...layout.template?.layout?.legend, ...layout.legend };
    const margin = { l: 60, r: 16, t: 100, b: 50, ...layout.template?.layout?.margin, ...layout.margin };
    const names = (layout.annotations ?? []).filter((note) => note.yref === "paper" && note.y >= 0.99);
    const lettered = names.length > 0;
    const above_plot = Math.max(...names.map((note) => 10 + (note.yshift ?? 0) + 16 * note.text.split(/<br/).length));
    const named = data.filter((trace) => trace.name && trace.showlegend !== false).length;
    const shown = layout.showlegend ?? named > 1;
    const above = shown && legend.orientation === "h" && legend.y >= 1;
    if (lettered && !above) layout.height += Math.max(above_plot - Math.max(margin.t - title, 16), 0);
    margin.t = lettered && !above ? above_plot : Math.min(Math.max(margin.t - title, 16), above ? Infinity : 16);
    if (small()) {
      Object.assign(margin, { l: Math.min(margin.l, 44), r: Math.min(margin.r, 8) });
      if (columns(layout) < 2)  /* a long name of a panel has room on its left */
        for (const note of layout.annotations ?? [])
          if (note.yref === "paper" && note.text.length > 30)
            Object.assign(note, { x: 1, xanchor: "right", font: { ...note.font, size: 11.5 } });
      layout.font.size = 11.5;
      if (shown) layout.height += 18 * Math.ceil(named / 2);
      if (shown && !above) {
        const y = 1 + (lettered ? 26 : 6) / (layout.height - margin.t - margin.b);
        layout.legend = { ...layout.legend, orientation: "h", x: 0, xanchor: "left", y, yanchor: "bottom" };
      }
    }
    layout.margin = margin;
  }

  function columns(layout) {
    const axes = Object.keys(layout).filter((name) => /^xaxis\d*$/.test(name));
    return new Set(axes.map((name) => (layout[name].domain?.[0] ?? 0).toFixed(2))).size;
  }

  function draw({ box, drawing, source, titled }) {
    if (box.closest("[hidden]")) return;  /* a hidden figure has no width */
    const { data, layout, frames } = JSON.parse(source);
    dress(data, layout, colours());
    fit(layout, data, titled);
    drawing.style.minWidth = columns(layout) > 1 && !printing ? `${columns(layout) * 220}px` : "";
    if (printing) Object.assign(layout, { width: Math.min(PRINT_WIDTH, drawing.clientWidth), autosize: false });
    const config = { displaylogo: false, responsive: true, modeBarButtons: [["toImage"]] };
    config.toImageButtonOptions = { format: "svg", filename: box.dataset.file };
    Plotly.react(drawing, { data, layout, config, frames }).then(() => {
      for (const one of all(".modebar-btn", drawing)) one.tabIndex = -1;  /* links below the figure save it */
    });
    drawing.style.minHeight = "";
  }

  /* A figure as a file: dark on white, with its title. */
  function save({ box, source }, format) {
    const { data, layout } = JSON.parse(source);
    const caption = box.querySelector("figcaption");
    dress(data, layout, LIGHT);
    layout.paper_bgcolor = layout.plot_bgcolor = "#ffffff";
    if (caption) layout.title = { text: caption.firstChild.textContent.trim().replace(/&/g, "&amp;").replace(/</g, "&lt;") };
    Plotly.downloadImage({ data, layout }, { format, filename: box.dataset.file, width: 900, height: layout.height ?? 450 });
  }

  function button(text, label, action) {
    const made = Object.assign(document.createElement("button"), { type: "button", textContent: text, onclick: action });
    made.setAttribute("aria-label", label);
    return made;
  }

  function links(...nodes) {
    const made = Object.assign(document.createElement("span"), { className: "downloads" });
    nodes.forEach((node, index) => made.append(...(index ? [" · "] : []), node));
    return made;
  }

  figures.forEach((figure) => figure.box.append(links(...["SVG", "PNG"].map((format) =>
    button(`save as ${format}`, `Save ${figure.box.dataset.file} as ${format}`, () => save(figure, format.toLowerCase()))))));
  /* A file with several pages shows one at a time; all are printed. */
  const pages = all("article.page");

  function turn() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1))) ?? pages[0];
    const page = target?.closest("article.page");
    if (!page) return;  /* part of every page */
    for (const one of pages) one.hidden = one !== page;
    figures.filter((one) => page.contains(one.box)).forEach(draw);
    if (location.hash) target.scrollIntoView({ behavior: "instant" });
  }

  if (pages.length) {
    turn();
    addEventListener("hashchange", turn);
  }

  figures.forEach(draw);
  for (const change of [dark, narrow]) change.addEventListener("change", () => figures.forEach(draw));
  for (const fold of all("details"))  /* a folded figure has no width */
    fold.addEventListener("toggle", () => figures.filter((one) => fold.contains(one.drawing)).forEach(draw));

  /* Print: figures and tables get the width of the paper. */
  addEventListener("beforeprint", () => {
    printing = true;
    document.documentElement.classList.add("printing");
    for (const page of pages) page.hidden = false;
    figures.forEach(draw);
    for (const table of all("main table")) {
      const width = table.scrollWidth;
      if (width > PRINT_WIDTH) table.style.zoom = PRINT_WIDTH / width;
    }
  });
  addEventListener("afterprint", () => {
    printing = false;
    document.documentElement.classList.remove("printing");
    for (const table of all("main table")) table.style.zoom = "";
    turn();
    figures.forEach(draw);
  });

  /* Tables: numbers align right, long text wraps, a click on a column's head sorts by it. */
  const NUMBER = /^[+−-]?(\d[\d,]*\.?\d*|\.\d+)(e[+−-]?\d+)?\s*(%|s|ms|\[.*\]|\(.*\)|±.*)?$/i;
  const EMPTY = new Set(["", "–", "—", "null", "nan", "NaN", "None"]);

  function amount(text) {
    return EMPTY.has(text) ? null : parseFloat(text.replace(/−/g, "-").replace(/,/g, ""));
  }

  function heads(table) {
    const rows = table.tHead ? [...table.tHead.rows] : [];
    const taken = rows.map(() => []);
    const found = [];
    rows.forEach((row, r) => {
      let column = 0;
      for (const cell of row.cells) {
        while (taken[r][column]) column += 1;
        for (let y = r; y < Math.min(r + cell.rowSpan, rows.length); y += 1)
          for (let x = column; x < column + cell.colSpan; x += 1) taken[y][x] = true;
        if (cell.colSpan === 1 && cell.tagName === "TH" && cell.textContent.trim()) found.push([cell, column]);
        column += cell.colSpan;
      }
    });
    return found;
  }

  function sort(body, column, numeric, direction) {
    const key = (row) => row.cells[column].textContent.trim();
    const rows = [...body.rows].sort((left, right) => {
      const [a, b] = [key(left), key(right)];
      if (EMPTY.has(a) || EMPTY.has(b)) return EMPTY.has(a) - EMPTY.has(b);
      return direction * (numeric ? amount(a) - amount(b) : a.localeCompare(b, undefined, { numeric: true }));
    });
    body.append(...rows);
  }

  /* "0.52 [0.48, 0.57]": the interval is in a softer colour than the value. */
  function soften(cell) {
    const parts = cell.children.length === 0 && cell.textContent.match(/^(\s*\S+\s*)(\[.*\]\s*)$/);
    if (!parts) return;
    const interval = Object.assign(document.createElement("span"), { className: "interval", textContent: parts[2] });
    cell.replaceChildren(parts[1], interval);
  }

  function prepare(table) {
    const bodies = [...table.tBodies];
    const rows = bodies.flatMap((body) => [...body.rows]);
    const width = rows[0]?.cells.length ?? 0;
    const regular = rows.every((row) => row.cells.length === width && [...row.cells].every((c) => c.rowSpan === 1));
    if (!regular) return;
    for (const cell of rows.flatMap((row) => [...row.cells])) {
      if (cell.textContent.length > 48) cell.classList.add("prose-cell");
      soften(cell);
    }
    for (const [head, column] of heads(table)) {
      const texts = rows.map((row) => row.cells[column]?.textContent.trim() ?? "");
      const numeric = texts.some((text) => !EMPTY.has(text)) && texts.every((text) => EMPTY.has(text) || NUMBER.test(text));
      if (numeric) for (const cell of [head, ...rows.map((row) => row.cells[column])]) cell.classList.add("number");
      if (rows.length < 3) continue;
      Object.assign(head, { tabIndex: 0, title: "Sort by this column" });
      head.classList.add("sortable");
      const click = () => {
        const before = head.getAttribute("aria-sort");
        const direction = before ? (before === "ascending" ? -1 : 1) : numeric ? -1 : 1;
        for (const [other] of heads(table)) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
        bodies.forEach((body) => sort(body, column, numeric, direction));
      };
      head.addEventListener("click", click);
      head.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); click(); }
      });
    }
  }
  all("main table").forEach(prepare);

  /* Files: a table without a link to save it gets one, and what is saved can also be copied. */
  const slug = (text) => text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60).replace(/^-+|-+$/g, "");
  const text_of = (cell) => cell.textContent.replace(/\s+/g, " ").trim();

  function csv(table) {
    /* a spreadsheet reads text that begins like this as a formula */
    const harmless = (text) => (/^[=+\-@]/.test(text) && !NUMBER.test(text) ? `'${text}` : text);
    const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
    const cells = (row) => [...row.cells].flatMap((cell) => Array(cell.colSpan).fill(quoted(harmless(text_of(cell)))));
    return [...table.rows].map((row) => cells(row).join(",")).join("\n") + "\n";
  }

  for (const box of all("main .table-box, main .prose table")) {
    const tables = box.tagName === "TABLE" ? [box] : all("table", box);
    if (box.querySelector("a[download]")) continue;
    for (const table of tables) {
      const name = slug(table.caption?.textContent ?? "") || slug(headingBefore(table)) || "table";
      const file = `${table.closest("[data-file]").dataset.file}${name}.csv`;
      const link = Object.assign(document.createElement("a"), {
        textContent: "save as CSV", download: file, title: file,
        href: `data:text/csv;charset=utf-8,${encodeURIComponent(csv(table))}`,
      });
      (table.closest(".belief-table") ?? table).after(links(link));
    }
  }

  function headingBefore(node) {
    const before = all("main :is(h1, h2, h3, h4)").filter((one) => one.compareDocumentPosition(node) & Node.DOCUMENT_POSITION_FOLLOWING);
    return before.at(-1)?.firstChild.textContent ?? "";
  }

  async function content(link) {
    const [head, data] = link.href.split(/,(.*)/s);
    if (!head.endsWith("base64")) return decodeURIComponent(data);
    return new TextDecoder().decode(Uint8Array.from(atob(data), (character) => character.charCodeAt(0)));
  }

  for (const link of all("main a[download]")) {
    const copy = button("copy", `Copy ${link.download}`, async () => {
      await navigator.clipboard.writeText(await content(link));
      copy.textContent = "copied";
      setTimeout(() => { copy.textContent = "copy"; }, 2000);
    });
    if (!link.download.endsWith(".svg")) link.after(" ", copy);
  }

  /* Code: open all cells, or close all. */
  for (const toggle of all(".all-code"))
    toggle.addEventListener("click", () => {
      const open = toggle.getAttribute("aria-pressed") !== "true";
      toggle.setAttribute("aria-pressed", open);
      toggle.textContent = open ? "Hide all code" : "Show all code";
      for (const code of all("details.code", toggle.closest("article, main"))) code.open = open;
    });

  /* Contents: mark the section in view. */
  if (narrow.matches) for (const contents of all(".contents details")) contents.open = false;
  const entries_of = new Map(all(".contents a").map((link) => [decodeURIComponent(link.hash.slice(1)), link]));
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((item) => item.isIntersecting))
      for (const [anchor, link] of entries_of) link.classList.toggle("here", anchor === entry.target.id);
  }, { rootMargin: "0px 0px -70% 0px" });
  for (const anchor of entries_of.keys()) observer.observe(document.getElementById(anchor));
})();

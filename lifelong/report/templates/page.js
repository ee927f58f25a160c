"use strict";
// Sorts tables, shows the values under the pointer, and saves what is on the page. Everything else works without it.
(() => {
const make = (name, text) => { const e = document.createElement(name); e.textContent = text; return e; };
const save = (name, type, text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
const button = (text, label, act) => {
  const b = make("button", text);
  b.type = "button";
  b.setAttribute("aria-label", label);
  b.addEventListener("click", act);
  return b;
};
const tools = (box, ...buttons) => {
  const bar = document.createElement("div");
  bar.className = "tools";
  bar.append(...buttons);
  box.after(bar);
};
// of a cell its figure, without what stands below it in small
const shown = cell => [...cell.childNodes].filter(n => n.nodeName !== "SMALL").map(n => n.textContent.trim()).join("");
const plain = text => text.replace(/−/g, "-").replace(/^-?\d{1,3}(,\d{3})+(\.\d+)?$/, t => t.replaceAll(",", ""));
const latex = text => text.replace(/\\/g, "\\textbackslash ").replace(/[&%$#_{}]/g, "\\$&").replace(/±/g, "$\\pm$")
  .replace(/−/g, "$-$").replace(/→/g, "$\\to$").replace(/↓/g, "$\\downarrow$").replace(/↑/g, "$\\uparrow$");

// tables: a click on a heading sorts; figures by their value, which data-v holds where the text is rounded
const value = cell => {
  const raw = cell.dataset.v ?? cell.firstChild?.textContent ?? "";
  const number = Number(raw.replace(/[,\s]/g, "").replace("−", "-").replace(/[%×s]$/, ""));
  return raw.trim() !== "" && Number.isFinite(number) ? number : raw.trim() === "–" ? -Infinity : raw;
};
for (const table of document.querySelectorAll("table[data-name]")) {
  const body = table.tBodies[0], heads = [...table.tHead?.rows[0]?.cells ?? []];
  heads.forEach((head, column) => {
    if (!head.textContent.trim() || body.rows.length < 2) return;
    const b = make("button", "");
    b.type = "button";
    b.append(...head.childNodes);
    head.append(b);
    b.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(h => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map(row => [value(row.cells[column]), row]);
      rows.sort(([a], [b]) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1) * (down ? -1 : 1));
      body.append(...rows.map(([, row]) => row));
    });
  });
  const cells = () => [...table.rows].map(row => [...row.cells].map(shown));
  tools(table.closest(".scroll"),
    button("CSV", `save ${table.dataset.name} as CSV`, () => save(`${table.dataset.name}.csv`, "text/csv",
      cells().map(row => row.map(plain).map(t => /[",\n]/.test(t) ? `"${t.replace(/"/g, '""')}"` : t).join(",")).join("\n") + "\n")),
    button("LaTeX", `save ${table.dataset.name} as LaTeX`, () => save(`${table.dataset.name}.tex`, "text/plain", [
      `\\begin{tabular}{${[...table.rows[0].cells].map((c, i) => !i || c.classList.contains("left") ? "l" : "r").join("")}}`, "\\toprule",
      ...cells().flatMap((row, i) => [row.map(latex).join(" & ") + " \\\\", ...(i === 0 && table.tHead ? ["\\midrule"] : [])]),
      "\\bottomrule", "\\end{tabular}", ""].join("\n"))));
}

// charts: the values of all lines where the pointer is
const tip = document.getElementById("tip");
const compact = new Intl.NumberFormat("en", {notation: "compact", maximumSignificantDigits: 3});
const place = (x, y) => {
  tip.hidden = false;
  const w = tip.offsetWidth, h = tip.offsetHeight;
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - w - 4))}px`;
  tip.style.top = `${y + 18 + h > innerHeight ? Math.max(4, y - h - 12) : y + 18}px`;
};
const hide = () => { tip.hidden = true; for (const c of document.querySelectorAll(".cursor")) c.remove(); };
for (const svg of document.querySelectorAll("svg[data-x]")) {
  const [x0, x1, v0, v1] = svg.dataset.x.split(" ").map(Number), [y0, y1, w0, w1] = svg.dataset.y.split(" ").map(Number);
  const lines = [...svg.querySelectorAll("polyline[data-name]")].map(line => ({
    name: line.dataset.name, colour: line.style.stroke,
    points: line.getAttribute("points").split(" ").map(p => p.split(",").map(Number))}));
  svg.addEventListener("pointermove", event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    hide();
    if (at.x < x0 - 4 || at.x > x1 + 4) return;
    let best = null;
    for (const {points} of lines) for (const p of points) if (best === null || Math.abs(p[0] - at.x) < Math.abs(best - at.x)) best = p[0];
    if (best === null) return;
    const found = [];
    for (const {name, colour, points} of lines) {
      const near = points.reduce((a, b) => Math.abs(b[0] - best) < Math.abs(a[0] - best) ? b : a);
      if (Math.abs(near[0] - best) > (x1 - x0) / 60) continue;
      found.push([near[1], name, colour, w0 + (near[1] - y0) / (y1 - y0) * (w1 - w0)]);
    }
    found.sort((a, b) => a[0] - b[0]);
    const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
    cursor.setAttribute("class", "cursor");
    for (const [k, v] of Object.entries({x1: best, x2: best, y1: y0, y2: y1})) cursor.setAttribute(k, v);
    svg.append(cursor);
    const head = svg.dataset.head ? svg.dataset.head.replace("{}", compact.format(v0 + (best - x0) / (x1 - x0) * (v1 - v0))) : "";
    tip.replaceChildren(make("b", head), ...found.slice(0, 12).map(([, name, colour, y]) => {
      const row = document.createElement("div"), swatch = document.createElement("i"), figure = Number(y.toPrecision(4));
      swatch.style.background = colour;
      row.append(swatch, `${name} `, make("b", String(figure)), svg.dataset.exp ? ` · ppl ${compact.format(Math.exp(y))}` : "");
      return row;
    }), ...(found.length > 12 ? [make("div", `and ${found.length - 12} more`)] : []));
    place(event.clientX, event.clientY);
  });
  svg.addEventListener("pointerleave", hide);
}
for (const svg of document.querySelectorAll("svg[data-name]")) {
  tools(svg.closest(".scroll"), button("SVG", `save ${svg.dataset.name} as SVG`, () => {
    const copy = svg.cloneNode(true), from = [svg, ...svg.querySelectorAll("*")], to = [copy, ...copy.querySelectorAll("*")];
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    from.forEach((e, i) => { const s = getComputedStyle(e);
      for (const k of ["fill", "stroke", "stroke-width", "stroke-dasharray", "font-size", "font-family", "font-weight", "text-anchor"])
        to[i].style.setProperty(k, s.getPropertyValue(k)); });
    save(`${svg.dataset.name}.svg`, "image/svg+xml", new XMLSerializer().serializeToString(copy));
  }));
}

// cells say more under the pointer or the finger than has room in them
document.addEventListener("pointerover", event => {
  const cell = event.target.closest?.("[data-tip]");
  if (!cell) { if (!event.target.closest?.("svg[data-x]")) tip.hidden = true; return; }
  tip.replaceChildren(make("span", cell.dataset.tip));
  place(event.clientX, event.clientY);
});
for (const link of document.querySelectorAll("button[data-save]")) {
  const source = document.getElementById(link.dataset.from);
  link.addEventListener("click", () => save(link.dataset.save, "text/plain", source.textContent));
}
for (const b of document.querySelectorAll("button[data-copy]")) {
  b.addEventListener("click", () => navigator.clipboard?.writeText(document.getElementById(b.dataset.copy).textContent)
    .then(() => { b.textContent = "copied"; }));
}
// what scrolls sideways says so
for (const box of document.querySelectorAll(".scroll")) {
  const cue = () => box.classList.toggle("more", box.scrollWidth - box.clientWidth - box.scrollLeft > 8);
  box.addEventListener("scroll", cue, {passive: true});
  new ResizeObserver(cue).observe(box);
  cue();
}
})();

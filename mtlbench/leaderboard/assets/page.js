"use strict";
// The page is complete without this script; it adds sorting, filtering, unfolding and copying.
const LIMIT = 200; // rows that are laid out at once: a browser sorts thousands in no time, but lays them out slowly
const state = new URLSearchParams(location.hash.startsWith("#!") ? location.hash.slice(2) : "");

function remember(key, value) {
  if (value) state.set(key, value); else state.delete(key);
  const text = state.toString();
  history.replaceState(null, "", text ? "#!" + text : location.pathname + location.search);
}

function quoted(text) { return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text; }

function equip(section) {
  const name = section.id, table = section.querySelector("table"), body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells], tools = section.querySelector(".tools");
  const input = tools.querySelector("input"), counter = tools.querySelector("[aria-live]");
  const more = tools.querySelector(".more");
  const names = [];
  let limit = LIMIT;
  const rows = [...body.rows].map((tr, place) => ({
    tr, place, text: tr.dataset.find, values: [...tr.cells].map((td) => td.dataset.v),
  }));
  let shown = rows, visible = rows;
  tools.hidden = false;

  function draw() {
    const open = rows.filter(isOpen);
    open.forEach(fold);
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    visible = shown.filter((row) => words.every((word) => row.text.includes(word)));
    body.replaceChildren(...visible.slice(0, limit).map((row) => row.tr));
    const first = visible.length > limit ? "the first " + limit + " of " : "";
    counter.textContent = first + visible.length + " of " + rows.length + " rows";
    more.hidden = visible.length <= limit;
    for (const row of open) if (row.tr.isConnected) unfold(row);
  }

  function sort(column, direction) {
    const kind = heads[column].dataset.kind, sign = direction === "descending" ? -1 : 1;
    const keyed = rows.map((row) => {
      const text = row.values[column];
      return { row, key: kind === "text" ? text : text === "" ? NaN : Number(text) };
    });
    keyed.sort((a, b) => {
      if (kind === "text") return sign * (a.key < b.key ? -1 : a.key > b.key ? 1 : 0) || a.row.place - b.row.place;
      const gap = Number.isNaN(a.key) - Number.isNaN(b.key); // what has no value stands last, either way
      return gap || sign * (a.key - b.key) || a.row.place - b.row.place;
    });
    shown = keyed.map((item) => item.row);
    heads.forEach((head, i) => i === column ? head.setAttribute("aria-sort", direction) : head.removeAttribute("aria-sort"));
    draw();
  }

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    const scale = head.querySelector("svg");
    button.append(...[...head.childNodes].filter((node) => node !== scale));
    names[column] = button.textContent.trim().replace(/\s+/g, " ");
    head.prepend(button);
    button.addEventListener("click", () => {
      const first = head.dataset.first, other = first === "descending" ? "ascending" : "descending";
      const direction = head.getAttribute("aria-sort") === first ? other : first;
      sort(column, direction);
      remember(name + ".sort", column + direction[0]);
    });
  });

  input.addEventListener("input", () => { draw(); remember(name + ".find", input.value); });
  more.addEventListener("click", () => { limit = Infinity; draw(); });
  tools.querySelector(".csv").addEventListener("click", () => {
    const lines = [names];
    for (const row of visible) lines.push(row.values);
    const text = lines.map((line) => line.map(quoted).join(",")).join("\r\n") + "\r\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = name + ".csv";
    link.click();
    URL.revokeObjectURL(link.href);
  });

  const link = (row) => row.tr.querySelector("th a");

  function fold(row) {
    const open = row.tr.nextElementSibling, details = open.querySelector("details");
    details.open = false;
    document.getElementById(details.id + "-home").after(details);
    open.remove();
    link(row).setAttribute("aria-expanded", "false");
  }

  function unfold(row) {
    const details = document.getElementById(link(row).hash.slice(1)), open = document.createElement("tr");
    const cell = open.insertCell();
    open.className = "open";
    cell.colSpan = heads.length;
    cell.append(details);
    details.open = true;
    row.tr.after(open);
    link(row).setAttribute("aria-expanded", "true");
  }

  function isOpen(row) { return Boolean(row.tr.nextElementSibling?.classList.contains("open")); }

  function listOpen() { remember(name + ".open", rows.filter(isOpen).map((row) => row.place).join(".")); }

  // What is asked for from outside the table is shown, whatever the filter hides.
  function reveal(row) {
    if (!row.tr.isConnected) { input.value = ""; limit = Infinity; draw(); remember(name + ".find", ""); }
    if (!isOpen(row)) unfold(row);
    listOpen();
    row.tr.scrollIntoView({ block: "center" });
    link(row).focus({ preventScroll: true });
  }

  section.addEventListener("click", (event) => {
    const anchor = event.target.closest("a[href^='#run-']");
    const row = anchor && rows.find((row) => link(row).hash === anchor.getAttribute("href"));
    if (!row) return;
    event.preventDefault();
    if (anchor !== link(row)) return reveal(row);
    if (isOpen(row)) fold(row); else unfold(row);
    listOpen();
  });
  for (const row of rows) link(row).setAttribute("aria-expanded", "false");
  section.querySelector(".runs").hidden = true; // its parts unfold inside the table

  input.value = state.get(name + ".find") || "";
  const sorted = /^(\d+)([ad])$/.exec(state.get(name + ".sort") || "");
  if (sorted && heads[sorted[1]]) sort(Number(sorted[1]), sorted[2] === "d" ? "descending" : "ascending");
  else draw();
  for (const place of (state.get(name + ".open") || "").split(".")) {
    if (place && rows[place] && rows[place].tr.isConnected) unfold(rows[place]);
  }
  const target = location.hash.startsWith("#run-") && rows.find((row) => link(row).hash === location.hash);
  if (target) reveal(target);
}

for (const section of document.querySelectorAll("section.board")) equip(section);

for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const text = button.parentElement.querySelector("code").textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = document.createElement("textarea"); // pages that are files may not use the clipboard
      area.value = text;
      button.after(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

const theme = document.querySelector("button.theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

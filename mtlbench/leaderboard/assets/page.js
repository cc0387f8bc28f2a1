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
  let limit = LIMIT;
  const rows = [...body.rows].map((tr, place) => ({
    tr, place, text: tr.dataset.find, values: [...tr.cells].map((td) => td.dataset.v),
  }));
  let shown = rows;
  tools.hidden = false;

  function draw() {
    for (const open of body.querySelectorAll("tr.open")) fold(open);
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const visible = shown.filter((row) => words.every((word) => row.text.includes(word)));
    body.replaceChildren(...visible.slice(0, limit).map((row) => row.tr));
    const part = visible.length > limit ? "first " + limit + " of " : "";
    counter.textContent = part + visible.length + " of " + rows.length + " rows";
    if (part === "" ) counter.textContent = visible.length + " of " + rows.length + " rows";
    more.hidden = visible.length <= limit;
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
    button.append(...head.childNodes);
    head.append(button);
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
    const lines = [heads.map((head) => head.textContent.trim().replace(/\s+/g, " "))];
    for (const row of shown) lines.push(row.values);
    const text = lines.map((line) => line.map(quoted).join(",")).join("\r\n") + "\r\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = name + ".csv";
    link.click();
    URL.revokeObjectURL(link.href);
  });

  function fold(open) {
    const details = open.querySelector("details");
    details.open = false;
    document.getElementById(details.id + "-home").after(details);
    open.remove();
  }

  body.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#run-']");
    if (!link) return;
    event.preventDefault();
    const tr = link.closest("tr"), next = tr.nextElementSibling;
    if (next && next.classList.contains("open")) {
      fold(next);
      link.setAttribute("aria-expanded", "false");
      return;
    }
    const details = document.getElementById(link.hash.slice(1)), open = document.createElement("tr");
    const cell = open.insertCell();
    open.className = "open";
    cell.colSpan = heads.length;
    cell.append(details);
    details.open = true;
    tr.after(open);
    link.setAttribute("aria-expanded", "true");
  });

  input.value = state.get(name + ".find") || "";
  const sorted = /^(\d+)([ad])$/.exec(state.get(name + ".sort") || "");
  if (sorted && heads[sorted[1]]) sort(Number(sorted[1]), sorted[2] === "d" ? "descending" : "ascending");
  else draw();
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

const target = location.hash.startsWith("#run-") && document.getElementById(location.hash.slice(1));
if (target) target.open = true;

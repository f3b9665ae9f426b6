// The log of a run: shows any part of a log of any length, and follows one that grows.
//
// Only the rows that are visible are in the document. A row is a line, so its place follows from the line's number. Lines
// that are folded, or that are not stored, take no row: `hidden` has their ranges. Pages of lines are fetched by number.

import { announce, fetched, replace } from "./page.js";

const PAGE = 500, KEPT_PAGES = 60, APPENDED = 2 ** 40, FINAL = ["succeeded", "failed", "canceled"];
const MOST_HEIGHT = 8_000_000; // pixels: a browser cuts higher elements. Beyond that a pixel stands for several.

const log = document.getElementById("log"), view = document.getElementById("view");
const space = view.querySelector(".space"), list = document.getElementById("lines");
const base = log.dataset.base;
let status = log.dataset.status, printed = Number(log.dataset.printed), lastAppended = 0;
let started = false, following = false, target = null, top_ = 0, expected = 0;
const pages = new Map(), wanted = new Set(), underway = new Set(), appended = [], elements = new Map();
let hidden = [], groups = [], folded = new Set(), gaps = [], words = [], foundSeqs = [];
const rowHeight = () => parseFloat(getComputedStyle(list).lineHeight) || 20;
let height = rowHeight();

// --- lines and rows ---------------------------------------------------------------------------------------------------

/** Ranges that take no row, in order, with the number of such lines before each. */
function hide() {
  const ranges = [...gaps.map(([first, last]) => [first + 1, last])];
  for (const group of groups) if (folded.has(group.first)) ranges.push([group.first + 1, group.last ?? printed]);
  ranges.sort((a, b) => a[0] - b[0]);
  hidden = [];
  let before = 0;
  for (let [from, to] of ranges) {
    const last = hidden.at(-1);
    if (last && from <= last.to) from = last.to + 1;
    if (from > to) continue;
    hidden.push({ from, to, before });
    before += to - from + 1;
  }
}
const hiddenLines = () => (hidden.length ? hidden.at(-1).before + hidden.at(-1).to - hidden.at(-1).from + 1 : 0);
const rows = () => Math.max(printed - hiddenLines(), 0) + appended.length;

/** The number of the line in a row; of a line that a client appended its place behind APPENDED. */
function seqOf(row) {
  const lines = printed - hiddenLines();
  if (row >= lines) return APPENDED + row - lines;
  let seq = row + 1;
  for (const range of hidden) {
    if (seq + range.before < range.from) return seq + range.before;
  }
  return seq + hiddenLines();
}
function rowOf(seq) {
  if (seq >= APPENDED) {
    const place = appended.findIndex((line) => line.n >= seq);
    return printed - hiddenLines() + (place < 0 ? appended.length - 1 : place);
  }
  let row = seq - 1;
  for (const range of hidden) {
    if (seq < range.from) break;
    row -= Math.min(seq, range.to) - range.from + 1;
  }
  return row;
}
function lineOf(seq) {
  if (seq >= APPENDED) return appended[seq - APPENDED];
  return pages.get(Math.floor((seq - 1) / PAGE))?.lines.get(seq);
}

// --- scrolling --------------------------------------------------------------------------------------------------------

const whole = () => rows() * height;
const shownHeight = () => Math.min(whole(), MOST_HEIGHT);
const room = () => view.clientHeight;
const mostTop = () => Math.max(whole() - room(), 0);
/** Pixels of the log for one of the scroll bar. */
const factor = () => (whole() > MOST_HEIGHT ? mostTop() / (MOST_HEIGHT - room()) : 1);

function scrollTo(pixels) {
  space.style.height = `${shownHeight()}px`; // first: the view grows with it, and the browser cuts what is beyond it
  top_ = Math.min(Math.max(pixels, 0), mostTop());
  view.scrollTop = top_ / factor();
  expected = view.scrollTop;
  render();
}
const toRow = (row) => scrollTo(row * height - room() / 3);
const toEnd = () => scrollTo(mostTop());

view.addEventListener("scroll", () => {
  if (Math.abs(view.scrollTop - expected) > 1.5) {
    top_ = view.scrollTop * factor();
    expected = view.scrollTop;
  }
  if (!FINAL.includes(status)) follow(top_ >= mostTop() - height);
  render();
});
view.addEventListener("wheel", (event) => {
  if (factor() === 1 || event.ctrlKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) return;
  event.preventDefault();
  scrollTo(top_ + event.deltaY * (event.deltaMode === 1 ? height : 1));
}, { passive: false });
view.addEventListener("keydown", (event) => {
  if (event.target !== view || event.altKey || event.ctrlKey || event.metaKey) return;
  const steps = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, PageDown: room() / height - 2, PageUp: 2 - room() / height };
  if (event.key in steps) scrollTo(top_ + steps[event.key] * height);
  else if (event.key === "Home") scrollTo(0);
  else if (event.key === "End") toEnd();
  else if (event.key === "/") document.querySelector("#find input").focus();
  else if (event.key === "n" || event.key === "N") step(event.key === "n" ? 1 : -1);
  else return;
  event.preventDefault();
});
new ResizeObserver(() => {
  height = rowHeight();
  if (started) following ? toEnd() : scrollTo(top_);
}).observe(view);

// --- drawing ----------------------------------------------------------------------------------------------------------

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function drawn(line, seq, row) {
  const item = element("li", `l ${line?.level ?? "wait"} ${line?.kind ?? ""}`);
  const gap = gaps.find(([first]) => first === seq);
  const name = line?.appended ? `A${seq - APPENDED + 1}` : `L${seq}`;
  item.id = name;
  const number = element("a", "n", line?.appended ? "+" : String(seq));
  number.href = `#${name}`;
  number.setAttribute("aria-label", line?.appended ? `Added line ${seq - APPENDED + 1}` : `Line ${seq}`);
  item.append(number, element("span", "t", line ? line.t.slice(11, 19) : ""));
  if (line?.kind === "group" && groups.some((it) => it.first === seq)) {
    const open = !folded.has(seq), toggle = element("button", "toggle", open ? "▾" : "▸");
    toggle.type = "button";
    toggle.setAttribute("aria-expanded", String(open));
    toggle.setAttribute("aria-label", "Lines of this group");
    toggle.addEventListener("click", () => fold(seq, open));
    item.append(toggle);
  }
  const message = element("span", "m");
  if (line) {
    item.title = line.t;
    for (const [style, text] of line.parts) message.append(style ? element("span", style, text) : text);
    if (line.cut) {
      const rest = element("a", "", ` … ${line.cut.toLocaleString("en")} more characters`);
      rest.href = `${base}/log.txt?from=${line.n}&to=${line.n}`;
      message.append(rest);
    }
  } else if (gap) {
    item.classList.add("gap");
    message.textContent = `… ${(gap[1] - gap[0] + 1).toLocaleString("en")} lines are not stored`;
  }
  item.append(message);
  item.setAttribute("aria-posinset", String(row + 1));
  if (target === name) item.classList.add("target");
  return item;
}

function render() {
  if (!started) return;
  const total = rows();
  const first = Math.max(Math.floor(top_ / height) - 8, 0);
  const last = Math.min(Math.ceil((top_ + room()) / height) + 8, total);
  space.style.height = `${shownHeight()}px`;
  list.style.transform = `translateY(${view.scrollTop + first * height - top_}px)`;
  const shown = [];
  wanted.clear();
  for (let row = first; row < last; row++) {
    const seq = seqOf(row), line = lineOf(seq), key = `${seq} ${line ? 1 : 0}`;
    if (!line && seq < APPENDED && !gaps.some(([from]) => from === seq)) wanted.add(Math.floor((seq - 1) / PAGE));
    let made = elements.get(key);
    if (!made) elements.set(key, (made = drawn(line, seq, row)));
    made.setAttribute("aria-setsize", String(total));
    shown.push(made);
  }
  if (elements.size > 2000) elements.clear();
  const focused = document.activeElement?.closest?.("#lines li")?.id;
  if (shown.length !== list.childElementCount || shown.some((made, n) => list.children[n] !== made)) list.replaceChildren(...shown);
  if (focused && document.activeElement === document.body) (document.getElementById(focused)?.querySelector("a") ?? view).focus({ preventScroll: true });
  highlight();
  if (wanted.size) later();
}
function redraw() {
  elements.clear();
  render();
}

function highlight() {
  if (!CSS.highlights) return;
  const ranges = [];
  if (words.length) {
    for (const message of list.querySelectorAll(".m")) {
      const walker = document.createTreeWalker(message, NodeFilter.SHOW_TEXT);
      for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const text = node.data.toLowerCase();
        for (const word of words) {
          for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + word.length)) {
            const range = new Range();
            range.setStart(node, at);
            range.setEnd(node, at + word.length);
            ranges.push(range);
          }
        }
      }
    }
  }
  CSS.highlights.set("found", new Highlight(...ranges));
}

// --- fetching ---------------------------------------------------------------------------------------------------------

let timer = 0;
/** Fetches what is visible once the scrolling rests: a flight through a million lines asks for nothing on its way. */
function later() {
  clearTimeout(timer);
  timer = setTimeout(() => wanted.forEach(fetchPage), 40);
}

async function json(path) {
  const answer = await fetch(base + path, { headers: { Accept: "application/json" } });
  if (answer.status === 401) location.reload();
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? `error ${answer.status}`);
  return answer.json();
}

async function fetchPage(number) {
  const known = pages.get(number) ?? { lines: new Map(), upto: number * PAGE };
  const to = Math.min((number + 1) * PAGE, printed);
  if (underway.has(number) || known.upto >= to) return;
  underway.add(number);
  try {
    const { lines, gap } = await json(`/log?from=${known.upto + 1}&to=${to}`);
    for (const line of lines) known.lines.set(line.n, line);
    known.upto = to;
    pages.delete(number); // and then the last one of the map
    pages.set(number, known);
    if (pages.size > KEPT_PAGES) pages.delete(pages.keys().next().value);
    if (gap && gap[1] > gap[0] && !gaps.some(([first]) => first === gap[0])) {
      gaps.push(gap);
      const at = seqOf(Math.floor(top_ / height));
      hide();
      following ? toEnd() : scrollTo(rowOf(at) * height);
    }
    elements.forEach((_, key) => key.endsWith(" 0") && elements.delete(key));
    render();
  } catch (error) {
    announce(`Lines of the log could not be loaded: ${error.message}`);
    setTimeout(render, 3000);
  } finally {
    underway.delete(number);
  }
}

async function fetchAppended() {
  const before = lastAppended;
  const { lines } = await json(`/log?after=${before}`);
  if (before !== lastAppended || !lines.length) return;
  appended.push(...lines);
  lastAppended = lines.at(-1).n;
  following ? toEnd() : render();
  counted();
  if (lines.length === 1000) await fetchAppended();
}

// --- following --------------------------------------------------------------------------------------------------------

const box = document.getElementById("follow");
function follow(yes) {
  following = yes;
  box.checked = yes;
}
box.addEventListener("change", () => {
  follow(box.checked);
  if (box.checked) toEnd();
});
function counted() {
  document.getElementById("count").textContent = plural(printed + appended.length, "line");
  if (printed + appended.length) document.getElementById("no-lines")?.remove();
}

/** What the server says of the run: how far its log is, and its state. */
async function news(now) {
  if (now.printed > printed) {
    printed = now.printed;
    if (groups.length && groups.at(-1).last === null) hide();
    counted();
    following ? toEnd() : render();
  }
  if (now.appended > lastAppended) fetchAppended().catch(() => {});
  if (now.status !== status) {
    status = now.status;
    announce(`The run is ${status}.`);
    await parts();
    if (FINAL.includes(status)) {
      box.parentElement.hidden = true;
      fetchGroups().catch(() => {});
    }
  }
}

/** The rest of the page, as it is now. */
async function parts() {
  const page = await fetched();
  if (!page) return;
  document.title = page.title;
  for (const part of document.querySelectorAll("[data-part]")) replace(part, page.querySelector(`[data-part="${part.dataset.part}"]`));
  const filters = log.querySelector(".bar .filters");
  filters.replaceChildren(...page.querySelector("#log .bar .filters").childNodes);
}

function listen() {
  const source = new EventSource(`${base}/live`);
  source.addEventListener("state", (event) => news(JSON.parse(event.data)));
  source.addEventListener("end", (event) => {
    source.close();
    news(JSON.parse(event.data));
  });
  source.addEventListener("signed-out", () => {
    source.close();
    location.reload();
  });
  addEventListener("pagehide", () => source.close());
  const often = setInterval(async () => {
    if (FINAL.includes(status)) clearInterval(often);
    else if (!document.hidden) await parts();
  }, 5000);
}

// --- searching --------------------------------------------------------------------------------------------------------

const found = document.getElementById("found"), foundList = found.querySelector("ol");
let asked = 0;
async function show(path, title) {
  const mine = ++asked;
  try {
    const { lines, more } = await json(path);
    if (mine !== asked) return; // a later search has been asked for
    foundSeqs = lines.map((line) => line.n);
    document.getElementById("found-title").textContent =
      `${more ? "The first " : ""}${lines.length} ${lines.length === 1 ? "line" : "lines"} ${title}`;
    foundList.replaceChildren(...lines.map((line) => {
      const item = drawn(line, line.n, 0);
      item.removeAttribute("id");
      item.removeAttribute("aria-posinset");
      item.querySelector(".toggle")?.remove();
      if (line.appended) item.querySelector(".n").removeAttribute("href");
      return item;
    }));
    announce(document.getElementById("found-title").textContent);
  } catch (error) {
    document.getElementById("found-title").textContent = error.message;
    foundList.replaceChildren();
    foundSeqs = [];
  }
  found.hidden = false;
  render();
}
document.getElementById("find").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = new FormData(event.target).get("q").trim();
  if (!text) return close();
  words = text.toLowerCase().split(/[^\p{L}\p{N}_]+/u).filter((word) => word.length > 1 && word !== "or");
  show(`/found?q=${encodeURIComponent(text)}`, `with ${text}`);
});
log.addEventListener("click", (event) => {
  const level = event.target.closest("[data-level]")?.dataset.level;
  if (!level) return;
  words = [];
  show(`/found?level=${level}`, level === "error" ? "of level error" : "of level warn and above");
});
function close() {
  words = [];
  foundSeqs = [];
  found.hidden = true;
  render();
  document.querySelector("#find input").focus();
}
document.getElementById("found-close").addEventListener("click", close);

/** To the next line that was found, or the one before. */
function step(direction) {
  const at = target?.startsWith("L") ? Number(target.slice(1)) : seqOf(Math.floor(top_ / height));
  const next = direction > 0 ? foundSeqs.find((seq) => seq > at) : foundSeqs.findLast((seq) => seq < at);
  if (!next || next >= APPENDED) return;
  history.pushState(null, "", `#L${next}`); // a new hash would take the focus away for a moment, and a key with it
  toHash();
}

// --- groups -----------------------------------------------------------------------------------------------------------

function plural(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}
const chooser = document.getElementById("groups"), foldAll = document.getElementById("fold");
async function fetchGroups() {
  groups = (await json("/groups")).groups;
  chooser.hidden = foldAll.hidden = !groups.length;
  const options = groups.map((group) => {
    const option = element("option", "", group.title || "group");
    option.value = String(group.first);
    return option;
  });
  chooser.replaceChildren(element("option", "", plural(groups.length, "group")), ...options);
  chooser.firstChild.value = "";
  redraw();
}
chooser.addEventListener("change", () => {
  if (chooser.value) location.hash = `L${chooser.value}`;
  chooser.value = "";
});
function refold(change) {
  const at = seqOf(Math.floor(top_ / height));
  change();
  hide();
  foldAll.textContent = folded.size ? "Unfold groups" : "Fold groups";
  elements.clear();
  scrollTo(rowOf(at) * height);
}
function fold(first, yes) {
  refold(() => (yes ? folded.add(first) : folded.delete(first)));
  document.querySelector(`#L${first} .toggle`)?.focus({ preventScroll: true });
}
foldAll.addEventListener("click", () =>
  refold(() => (folded = folded.size ? new Set() : new Set(groups.map((group) => group.first)))));

// --- permanent links --------------------------------------------------------------------------------------------------

function toHash() {
  const name = location.hash.slice(1), match = /^([LA])([0-9]{1,12})$/.exec(name);
  if (!match) return false;
  target = name;
  follow(false);
  let seq = match[1] === "L" ? Math.min(Math.max(Number(match[2]), 1), printed) : Number(match[2]) - 1;
  if (match[1] === "L") {
    const group = groups.find((it) => folded.has(it.first) && seq > it.first && seq <= (it.last ?? printed));
    if (group) folded.delete(group.first);
    hide();
    elements.clear();
    toRow(rowOf(seq));
  } else {
    elements.clear();
    toRow(printed - hiddenLines() + seq);
  }
  view.focus({ preventScroll: true });
  return true;
}
addEventListener("hashchange", toHash);
list.addEventListener("click", (event) => {
  if (event.target.closest("a.n")?.getAttribute("href") === location.hash) event.preventDefault();
});

// --- begin ------------------------------------------------------------------------------------------------------------

async function begin() {
  const ended = FINAL.includes(status), atTop = ended && status === "succeeded";
  const named = /^#L([0-9]{1,12})$/.exec(location.hash);
  const seq = named ? Math.min(Math.max(Number(named[1]), 1), printed) : atTop ? 1 : printed;
  if (printed) await fetchPage(Math.floor((seq - 1) / PAGE)); // until then the page has the lines of the server
  view.classList.add("virtual");
  box.parentElement.hidden = ended;
  counted();
  started = true;
  if (!toHash()) {
    follow(!ended);
    atTop ? scrollTo(0) : toEnd();
  }
  if (Number(log.dataset.appended)) fetchAppended().catch(() => {});
  if (printed) fetchGroups().catch(() => {});
  if (!ended) listen();
}
begin();

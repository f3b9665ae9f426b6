// Pages that change: this module fetches the page again and replaces the parts that differ.

const policy = self.trustedTypes?.createPolicy("ops-page", { createHTML: (text) => text });

/** The page at this address, as the server renders it now; null if it cannot be had. */
export async function fetched() {
  try {
    const answer = await fetch(location.pathname + location.search, { headers: { Accept: "text/html" }, redirect: "error" });
    if (!answer.ok) return null;
    const text = await answer.text();
    // A document that is parsed runs no script; the server escaped every value in it.
    return new DOMParser().parseFromString(policy ? policy.createHTML(text) : text, "text/html");
  } catch {
    return null;
  }
}

/** Replaces a part by its newer form, unless a person is about to use it. Keeps the focus and how far lists are scrolled. */
export function replace(part, newer) {
  if (!newer || part.innerHTML === newer.innerHTML) return;
  if (part.querySelector("details[open] input:focus, details.ask[open]")) return;
  const focused = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  const scrolled = [...part.querySelectorAll(".tiles, .wide, .summary")].map((it) => [it.scrollLeft, it.scrollTop]);
  part.replaceChildren(...newer.childNodes);
  [...part.querySelectorAll(".tiles, .wide, .summary")].forEach((it, n) => {
    if (scrolled[n]) [it.scrollLeft, it.scrollTop] = scrolled[n];
  });
  if (focused) [...part.querySelectorAll("a")].find((it) => it.getAttribute("href") === focused)?.focus();
}

export function announce(text) {
  document.getElementById("announce").textContent = text;
}

const parts = [...document.querySelectorAll("[data-refresh]")];
if (parts.length) {
  const seconds = Math.min(...parts.map((part) => Number(part.dataset.refresh)));
  const again = async () => {
    if (!document.hidden) {
      const page = await fetched();
      const newer = page ? [...page.querySelectorAll("[data-refresh]")] : [];
      parts.forEach((part, n) => replace(part, newer[n]));
    }
    setTimeout(again, seconds * 1000);
  };
  setTimeout(again, seconds * 1000);
}

// A menu closes with Escape, and with a click elsewhere.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const menu of document.querySelectorAll("details.ask[open]")) {
    menu.open = false;
    menu.querySelector("summary").focus();
  }
});
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll("details.ask[open]")) if (!menu.contains(event.target)) menu.open = false;
});

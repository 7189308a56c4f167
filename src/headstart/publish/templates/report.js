"use strict";
(() => {
  const $ = (id) => document.getElementById(id);

  // The theme: as the system has it until it is switched.
  const button = $("theme"), root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  button.hidden = false;
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); });
  system.addEventListener("change", label);
  label();

  // The images behind a cell of the matrix. All text is set as text.
  const add = (parent, tag, text, kind) => {
    const element = document.createElement(tag);
    if (text) element.textContent = text;
    if (kind) element.className = kind;
    return parent.appendChild(element);
  };
  const block = $("cells"), data = block && JSON.parse(block.textContent);
  const dialog = $("cell"), pictures = $("cell-pictures");
  const open = (cell) => {
    const [i, j] = cell.split("-").map(Number), rows = data.cells[cell] || [];
    const count = data.counts[cell];
    const [is, said] = [data.names[i], data.names[j]];
    $("cell-title").textContent = i === j ? `${is}, rightly predicted` : data.several ? `${is} missed, ${said} given` : `${is}, taken for ${said}`;
    $("cell-words").textContent = count === rows.length ? `${count} image${count > 1 ? "s" : ""}` : `${rows.length} of ${count} images, the surest first`;
    pictures.replaceChildren();
    for (const row of rows) {
      const image = data.images[row], figure = add(pictures, "figure", "", i === j ? "shot" : "shot wrong");
      const twin = document.querySelector(`img[data-row="${row}"]`);
      const source = image.picture || (twin && twin.src);
      if (source) Object.assign(add(figure, "img"), { src: source, alt: image.name });
      else add(figure, "div", "no picture", "empty");
      const caption = add(figure, "figcaption");
      add(caption, "b", image.given || said);
      caption.append(` ${image.probability}`);
      add(caption, "span", image.name, "line file").title = image.name;
    }
    dialog.showModal();
  };
  document.addEventListener("click", (event) => {
    const cell = event.target.closest("[data-cell]");
    if (cell) open(cell.dataset.cell);
    if (dialog && (event.target === dialog || event.target === $("close"))) dialog.close();
  });

  // The matrix is one stop of the tab key; arrows move in it.
  const cells = [...document.querySelectorAll("#confusion button")];
  const place = (b) => [b.closest("tr").rowIndex, b.closest("td").cellIndex];
  cells.forEach((b, k) => { b.tabIndex = k ? -1 : 0; });
  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  if (block) $("confusion").addEventListener("keydown", (event) => {
    const step = steps[event.key], from = event.target.closest("button");
    if (!step || !from) return;
    event.preventDefault();
    const [row, column] = place(from), ahead = (b) => {
      const [r, c] = place(b), along = (r - row) * step[0] + (c - column) * step[1];
      return along > 0 ? along + 3 * Math.abs((r - row) * step[1] + (c - column) * step[0]) : Infinity;
    };
    const next = cells.reduce((best, b) => (ahead(b) < ahead(best) ? b : best), from);
    if (ahead(next) === Infinity) return;
    from.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });

  // Filters.
  for (const input of document.querySelectorAll("[data-filter]")) {
    const items = [...document.querySelectorAll(input.dataset.filter)];
    const words = items.map((item) => item.textContent.toLowerCase());
    input.closest(".filter").hidden = items.length < 2;
    input.addEventListener("input", () => {
      const sought = input.value.trim().toLowerCase();
      let shown = 0;
      items.forEach((item, k) => { item.hidden = !words[k].includes(sought); shown += !item.hidden; });
      input.parentElement.querySelector("output").textContent = sought ? `${shown} of ${items.length}` : "";
    });
  }

  // Tables by a column: once upwards, once downwards; what is no number comes last.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.querySelectorAll("thead th")], body = table.tBodies[0], rows = [...body.rows];
    if (rows.length < 3) continue;
    heads.forEach((head, column) => {
      const sort = document.createElement("button");
      sort.type = "button";
      sort.className = "sort";
      sort.append(...head.childNodes);
      head.append(sort);
      const numeric = head.classList.contains("n");
      const value = (row) => {
        const text = row.cells[column].textContent.trim();
        return numeric ? parseFloat(text.replaceAll(",", "")) : text.toLowerCase();
      };
      sort.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending", sign = up ? 1 : -1;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const order = (a, b) => {
          const x = value(a), y = value(b);
          if (!numeric) return sign * x.localeCompare(y);
          return Number.isNaN(x) || Number.isNaN(y) ? Number.isNaN(x) - Number.isNaN(y) : sign * (x - y);
        };
        body.append(...[...rows].sort(order));
      });
    });
  }
})();

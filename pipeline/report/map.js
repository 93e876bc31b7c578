"use strict";
(() => {
  const data = JSON.parse(document.getElementById("map-data").textContent);
  const at = (id) => document.getElementById(id);
  const svg = at("plane"), points = [...svg.querySelectorAll(".point")];
  const marks = [...svg.querySelectorAll(".mark")];
  const buttons = [...document.querySelectorAll(".marks button")];
  const letter = (mark) => String.fromCharCode(65 + mark);

  // Cuts picture `number` out of an atlas, into a square of a canvas.
  const draw = (canvas, atlas, shape, number, place = 0) => {
    const context = canvas.getContext("2d"), side = shape.side;
    context.imageSmoothingEnabled = false;
    context.drawImage(
      atlas, (number % shape.columns) * side, Math.floor(number / shape.columns) * side,
      side, side, place * side, 0, side, side);
  };
  const sized = (canvas, side, count = 1) => { canvas.width = side * count; canvas.height = side; };
  const name = (n) => data.labels ? `${data.keys[n]}, ${data.labels[n]}` : data.keys[n];

  const images = at("images"), ways = at("ways");
  const move = (node, n) => {
    for (const axis of ["cx", "cy"]) node.setAttribute(axis, points[n].getAttribute(axis));
  };

  const look = (n) => {
    draw(at("seen"), images, data.images, n);
    at("seen").setAttribute("aria-label", `Image ${name(n)}`);
    at("seen-name").textContent = name(n);
    at("walk").value = n;
    at("walk").setAttribute("aria-valuetext", name(n));
    move(svg.querySelector(".looked"), n);
    svg.querySelector(".looked").removeAttribute("visibility");
  };

  const nearest = (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * 1000;
    const y = (event.clientY - box.top) / box.height * 1000;
    let best = 0, least = Infinity;
    points.forEach((point, n) => {
      const far = (point.cx.baseVal.value - x) ** 2 + (point.cy.baseVal.value - y) ** 2;
      if (far < least) { least = far; best = n; }
    });
    return best;
  };

  let chosen = [];
  const pair = () => {
    const [a, b] = [...chosen].sort((one, other) => one - other), n = data.marked.length;
    return a * (2 * n - a - 1) / 2 + (b - a - 1);
  };
  const picture = (step) => {
    const turned = chosen[0] > chosen[1] ? data.steps - 1 - step : step;
    return pair() * data.steps + turned;
  };
  const show = (step) => {
    const [from, to] = chosen, share = Math.round(100 * step / (data.steps - 1));
    draw(at("between"), ways, data.ways, picture(step));
    const said = `${100 - share} % ${letter(from)}, ${share} % ${letter(to)}`;
    at("between").setAttribute("aria-label", `Decoded image: ${said}`);
    at("share").setAttribute("aria-valuetext", said);
    at("share-said").textContent = said;
    const [start, end] = chosen.map((mark) => points[data.marked[mark]]);
    for (const axis of ["cx", "cy"]) {
      const [p, q] = [start, end].map((point) => point[axis].baseVal.value);
      svg.querySelector(".at").setAttribute(axis, p + (q - p) * step / (data.steps - 1));
    }
  };
  const redraw = () => {
    buttons.forEach((button, mark) => button.setAttribute("aria-pressed", chosen.includes(mark)));
    marks.forEach((mark, number) => mark.classList.toggle("on", chosen.includes(number)));
    const both = chosen.length === 2, way = svg.querySelector(".way");
    at("found").hidden = !both;
    for (const node of [way, svg.querySelector(".at")]) node.setAttribute("visibility", both ? "visible" : "hidden");
    if (!both) {
      at("chosen").textContent = chosen.length
        ? `From ${letter(chosen[0])}: choose another one.` : "Choose two of the marked images.";
      return;
    }
    const [from, to] = chosen.map((mark) => name(data.marked[mark]));
    at("chosen").textContent = `From ${letter(chosen[0])} (${from}) to ${letter(chosen[1])} (${to}).`;
    [["1", 0], ["2", 1]].forEach(([end, place]) => {
      const point = points[data.marked[chosen[place]]];
      way.setAttribute(`x${end}`, point.getAttribute("cx"));
      way.setAttribute(`y${end}`, point.getAttribute("cy"));
    });
    for (let step = 0; step < data.steps; step++) draw(at("strip"), ways, data.ways, picture(step), step);
    at("share").value = Math.floor(data.steps / 2);
    show(Math.floor(data.steps / 2));
  };
  const choose = (mark) => {
    if (chosen.includes(mark)) chosen = chosen.filter((other) => other !== mark);
    else chosen = chosen.length === 2 ? [mark] : [...chosen, mark];
    redraw();
  };

  Promise.all([images.decode(), ways ? ways.decode() : null]).then(() => {
    sized(at("seen"), data.images.side);
    svg.addEventListener("pointermove", (event) => look(nearest(event)));
    svg.addEventListener("pointerdown", (event) => look(nearest(event)));
    at("walk").addEventListener("input", () => look(Number(at("walk").value)));
    look(data.marked[0]);
    if (ways) {
      sized(at("between"), data.ways.side);
      sized(at("strip"), data.ways.side, data.steps);
      buttons.forEach((button, mark) => {
        const canvas = button.querySelector("canvas");
        sized(canvas, data.images.side);
        draw(canvas, images, data.images, data.marked[mark]);
        button.addEventListener("click", () => choose(mark));
        button.addEventListener("focus", () => look(data.marked[mark]));
      });
      marks.forEach((mark, number) => mark.addEventListener("click", () => choose(number)));
      at("share").addEventListener("input", () => show(Number(at("share").value)));
      redraw();
    }
    at("latent-map").dataset.ready = "yes";
  });
})();

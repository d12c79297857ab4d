// Draws charts and renews what changes. All that they show is also in the page's tables and links.

const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 700px)");
const CONFIG = {
  displayModeBar: true, // keys reach it, too
  displaylogo: false,
  responsive: true,
  toImageButtonOptions: { format: "svg" },
  modeBarButtons: [["toImage", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
};

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** Give a figure the page's colours and a size that fits. */
function styled({ data, layout }, height) {
  const ink = colour("ink");
  const axis = { gridcolor: colour("grid"), linecolor: ink, zerolinecolor: colour("grid"), automargin: true };
  for (const trace of data) {
    const hue = colour(`series-${trace.meta % 8}`);
    trace.line = { ...trace.line, color: hue, width: 1.8 };
    trace.marker = { color: hue, size: trace.mode === "markers" ? 8 : 5, opacity: trace.mode === "markers" ? 0.65 : 1 };
  }
  const legend = data.length > 1 && layout.hovermode === "x";
  return [data, {
    ...layout,
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
    height: height + (legend && narrow.matches ? 22 * data.length : 0),
    showlegend: legend,
    legend: narrow.matches ? { orientation: "h", y: -0.25, yanchor: "top" } : {},
    margin: { l: 56, r: 12, t: 30, b: 44 },
    font: { color: ink, family: "system-ui, sans-serif", size: 13 },
    hoverlabel: { bgcolor: colour("page"), font: { color: ink } },
    modebar: { bgcolor: "transparent", color: ink, activecolor: ink },
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    uirevision: "the user's zoom stays",
  }];
}

async function draw(place) {
  const reply = await fetch(place.dataset.figures);
  if (!reply.ok) return;
  for (const [number, figure] of (await reply.json()).entries()) {
    const title = figure.layout.yaxis.title.text;
    const chart = place.children[number] ?? place.appendChild(document.createElement("figure"));
    chart.setAttribute("aria-label", `Chart of ${title}; the table below has its figures`);
    const isNew = !chart.data;
    await Plotly.react(chart, ...styled(figure, place.classList.contains("one") ? 440 : 250), CONFIG);
    if (isNew && place.dataset.point) {
      chart.on("plotly_click", ({ points: [point] }) => show(`${place.dataset.point}&id=${encodeURIComponent(point.customdata)}`));
    }
  }
}

const drawAll = () => Promise.all([...document.querySelectorAll("[data-figures]")].map(draw));

const load = async (address) => new DOMParser().parseFromString(await (await fetch(address)).text(), "text/html");

/** Show a query's page below the chart. */
async function show(address) {
  const place = document.getElementById("point");
  place.replaceChildren((await load(address)).querySelector("article, main"));
  place.focus();
}

/** Change what differs and nothing else: focus, scrolled and opened parts stay. */
function renew(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeName !== fresh.nodeName || old.nodeType !== Node.ELEMENT_NODE) return old.replaceWith(fresh);
  for (const { name, value } of fresh.attributes) if (name !== "open") old.setAttribute(name, value);
  for (const { name } of [...old.attributes]) if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
  if ("keep" in old.dataset || old.id === "point") return;
  const left = [...old.childNodes];
  for (const child of [...fresh.childNodes]) {
    const twin = left.shift();
    if (twin) renew(twin, child);
    else old.append(child);
  }
  for (const extra of left) extra.remove();
}

let timer;

async function refresh() {
  clearTimeout(timer);
  const main = document.getElementById("main");
  const connection = document.getElementById("connection");
  if (!document.hidden) {
    try {
      const page = await load(location.href);
      renew(main, page.getElementById("main"));
      document.title = page.title;
      connection.textContent = "";
      await drawAll();
    } catch {
      connection.textContent = "xsweep serve does not answer; this page tries again.";
    }
  }
  wait();
}

function wait() {
  const seconds = document.getElementById("main").dataset.refreshS;
  if (seconds) timer = setTimeout(refresh, 1000 * seconds);
}

document.addEventListener("submit", (event) => {
  event.preventDefault();
  document.getElementById("point")?.replaceChildren();
  history.replaceState(null, "", `?${new URLSearchParams(new FormData(event.target))}`);
  refresh();
});
document.addEventListener("change", (event) => event.target.form?.requestSubmit());
document.addEventListener("visibilitychange", () => document.hidden || !document.getElementById("main").dataset.refreshS || refresh());
for (const media of [dark, narrow]) media.addEventListener("change", drawAll);
drawAll();
wait();

// Figures and controls of the page. `content` is what gat/report/page.py wrote.

const content = JSON.parse(document.getElementById("content").textContent);
const { scaling, showcases, live } = content;
const byId = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const still = matchMedia("(prefers-reduced-motion: reduce)");

// Embedded files, decoded on demand

const assetTag = (name) => document.querySelector(`script[data-asset="${CSS.escape(name)}"]`);

function dataUrl(name) {
  const tag = assetTag(name);
  return `data:${tag.dataset.type};base64,${tag.textContent.trim()}`;
}

async function bytes(name) {
  const tag = assetTag(name);
  const packed = Uint8Array.from(atob(tag.textContent.trim()), (c) => c.charCodeAt(0));
  if (!name.endsWith(".gz") && tag.dataset.type !== "application/gzip") return packed;
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const pictures = new Map();
function picture(name) {
  if (!pictures.has(name)) {
    const image = new Image();
    image.src = dataUrl(name);
    pictures.set(name, image.decode().then(() => image));
    if (pictures.size > 64) pictures.delete(pictures.keys().next().value);
  }
  return pictures.get(name);
}

// Runs `work` once, when the element is about to become visible.
function whenSeen(element, work) {
  if (!element) return;
  const observer = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) {
      observer.disconnect();
      work();
    }
  }, { rootMargin: "300px" });
  observer.observe(element);
}

const chosen = (group) => document.querySelector(`input[name="${group}"]:checked`)?.value;
const onChange = (id, work) => byId(id)?.addEventListener("input", work);

// Figures

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const number = (value) => Number(value.toPrecision(4)).toString();

// On a dark background, sizes go from dark to light, so that the largest stands out.
function color(run) {
  const rank = scaling.sizes.indexOf(run);
  if (!dark.matches || rank < 0) return scaling.colors[run] ?? "#888888";
  const lightness = 48 + (42 * rank) / Math.max(1, scaling.sizes.length - 1);
  return `hsl(222,65%,${Math.round(lightness)}%)`;
}

function translucent(shade, alpha) {
  if (shade.startsWith("hsl(")) return shade.replace("hsl(", "hsla(").replace(")", `,${alpha})`);
  return shade + Math.round(alpha * 255).toString(16).padStart(2, "0");
}

function axis(title, extra = {}) {
  return {
    title: { text: title, standoff: 8 }, gridcolor: style("--grid"), linecolor: style("--line"), zeroline: false,
    automargin: true, fixedrange: true, ...extra,
  };
}

const ticks = { exponentformat: "none", dtick: "D2", tickformat: "~g" };

function layout(x, y, extra = {}) {
  const narrow = innerWidth < 600;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, hovermode: "closest",
    font: { family: getComputedStyle(document.body).fontFamily, size: narrow ? 12 : 14, color: style("--ink") },
    hoverlabel: { bgcolor: style("--surface"), bordercolor: style("--line"), font: { color: style("--ink") }, align: "left" },
    margin: { l: 10, r: 10, t: 10, b: 10 }, xaxis: x, yaxis: y,
    legend: { orientation: "h", y: -0.2, yanchor: "top", font: { size: narrow ? 11 : 13 } }, ...extra,
  };
}

const plots = []; // to be drawn again when the color scheme changes
function draw(element, make) {
  const render = () => Plotly.react(element, ...make(), { responsive: true, displayModeBar: false, showTips: false });
  whenSeen(element, () => {
    plots.push(render);
    render();
  });
  return () => plots.includes(render) && render();
}
dark.addEventListener("change", () => plots.forEach((render) => render()));

const costOf = (row, cost) => (row[cost.column] === null ? null : row[cost.column] * cost.factor);

function scalingFigure() {
  const cost = scaling.costs[Number(chosen("cost"))];
  const grey = style("--soft");
  const traces = [];
  if (cost.law) {
    traces.push(
      { x: cost.law.costs, y: cost.law.band[0], mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false },
      { x: cost.law.costs, y: cost.law.band[1], mode: "lines", line: { width: 0 }, fill: "tonexty", fillcolor: translucent("#888888", 0.18), hoverinfo: "skip", showlegend: false },
      { x: cost.law.costs, y: cost.law.fids, mode: "lines", line: { color: grey, dash: "dash", width: 1.5 }, hoverinfo: "skip", name: "power law" },
    );
  }
  for (const run of scaling.runs) {
    const rows = scaling.rows.filter((row) => row.run === run && costOf(row, cost) !== null);
    if (!rows.length) continue;
    const mean = cost.means.find((entry) => entry.run === run);
    traces.push({
      x: rows.map((row) => costOf(row, cost)), y: rows.map((row) => row.fid), mode: "markers", showlegend: !mean,
      name: run, legendgroup: run, marker: mean ? { color: color(run), size: 7, opacity: 0.6 } : { color: color(run), size: 15, symbol: "star" },
      text: rows.map((row) => `<b>${run}</b>, ${row.seed === null ? "given samples" : `seed ${row.seed}`}<br>FID ${number(row.fid)}<br>${number(costOf(row, cost))} ${cost.name}`
        + (row.warnings ? "<br>with a warning" : "")),
      hovertemplate: "%{text}<extra></extra>",
    });
    if (mean) {
      traces.push({
        x: [mean.cost], y: [mean.fid], mode: "markers+text", name: run, legendgroup: run, text: [run],
        textposition: "top right", marker: { color: color(run), size: 14, line: { color: style("--ground"), width: 1.5 } },
        error_y: { type: "data", array: [mean.deviation ?? 0], arrayminus: [Math.min(mean.deviation ?? 0, 0.9 * mean.fid)], color: color(run), thickness: 1.5, width: 5 },
        hovertemplate: `<b>${run}</b>, mean of ${mean.seeds} ${mean.seeds === 1 ? "seed" : "seeds"}<br>FID ${number(mean.fid)}`
          + (mean.deviation === null ? "" : ` ± ${number(mean.deviation)}`) + `<br>${number(mean.cost)} ${cost.name}<extra></extra>`,
      });
    }
  }
  if (cost.forecast) {
    const { run, predicted, low, high } = cost.forecast;
    const place = cost.means.find((entry) => entry.run === run).cost * 1.12;
    traces.push({
      x: [place], y: [predicted], mode: "markers", name: `${run}, predicted from the other runs`,
      marker: { symbol: "diamond-open", color: grey, size: 10, line: { width: 2 } },
      error_y: { type: "data", symmetric: false, array: [high - predicted], arrayminus: [predicted - low], color: grey, thickness: 1.2, width: 5 },
      hovertemplate: `<b>${run}</b>, predicted from the other runs<br>FID ${number(predicted)} [${number(low)}, ${number(high)}]<extra></extra>`,
    });
  }
  const shapes = Object.values(scaling.floors).map((fid) => ({
    type: "line", xref: "paper", x0: 0, x1: 1, y0: fid, y1: fid, line: { color: grey, width: 1, dash: "dot" },
  }));
  const annotations = Object.entries(scaling.floors).map(([name, fid]) => ({
    xref: "paper", x: 0, xanchor: "left", y: Math.log10(fid), yanchor: "bottom", text: `${name}: ${Number(fid.toPrecision(3))}`,
    showarrow: false, font: { size: 11, color: grey },
  }));
  for (const row of scaling.rows.filter((entry) => entry.seed === null && costOf(entry, cost) === null)) {
    annotations.push({
      xref: "paper", x: 1, xanchor: "right", y: Math.log10(row.fid), text: `${row.run}, cost unknown: ${Number(row.fid.toPrecision(3))} ◂`,
      showarrow: false, font: { size: 11, color: grey },
    });
  }
  const fids = [...scaling.rows.map((row) => row.fid), ...Object.values(scaling.floors)];
  const range = [Math.log10(Math.min(...fids) / 1.6), Math.log10(Math.max(...fids) * 2)];
  byId("law").textContent = cost.text;
  return [traces, layout(axis(cost.label, { type: "log", ...ticks }), axis("FID", { type: "log", range, ...ticks }), { shapes, annotations })];
}

function trainingFigure() {
  const { key: metric, heading: name, logarithmic, explanation } = content.curve_columns[Number(byId("metric").value)];
  byId("metric-explanation").textContent = `${name}: ${explanation}.`;
  const [traces, compute] = [[], chosen("progress") === "1"];
  for (const run of scaling.runs) {
    const { training_gmacs: gmacs, steps: all } = scaling.rows.find((row) => row.run === run);
    if (compute && gmacs === null) continue;
    const places = (steps) => (compute ? steps.map((step) => (step * gmacs) / all) : steps);
    const place = compute ? "%{x:.3~g} GMACs" : "step %{x}";
    const curves = scaling.curves.filter((curve) => curve.run === run && curve[metric]);
    if (!curves.length) continue;
    for (const curve of curves) {
      traces.push({
        x: places(curve[metric][0]), y: curve[metric][1], mode: "lines", legendgroup: run, showlegend: false,
        line: { color: translucent(color(run), curves.length > 1 ? 0.4 : 1), width: 1 },
        hovertemplate: `<b>${run}</b>, seed ${curve.seed}<br>${place}<br>${name} %{y:.4~g}<extra></extra>`,
      });
    }
    const steps = curves[0][metric][0];
    const same = curves.filter((curve) => curve[metric][0].length === steps.length);
    const mean = steps.map((_, i) => same.reduce((sum, curve) => sum + curve[metric][1][i], 0) / same.length);
    traces.push({
      x: places(steps), y: mean, mode: "lines", name: run, legendgroup: run, line: { color: color(run), width: 2.5 },
      hovertemplate: `<b>${run}</b>, mean<br>${place}<br>${name} %{y:.4~g}<extra></extra>`,
    });
  }
  const x = compute ? axis("training compute so far (GMACs)", { type: "log", ...ticks }) : axis("training step");
  return [traces, layout(x, axis(name, logarithmic ? { type: "log", ...ticks } : {}))];
}

const redrawScaling = draw(byId("scaling-plot"), scalingFigure);
onChange("cost", redrawScaling);
if (byId("training-plot")) {
  const redraw = draw(byId("training-plot"), trainingFigure);
  onChange("metric", redraw);
  onChange("progress", redraw);
}

const shownClaims = content.claims.filter((claim) => claim.logarithmic && claim.interval[0] !== null);
function claimsFigure() {
  const shades = { shows: "#2a7f62", contradicted: "#b23a48", undecided: style("--soft") };
  const traces = Object.keys(shades).map((verdict) => {
    const own = shownClaims.filter((claim) => claim.verdict === verdict);
    const ends = (end) => own.map((claim) => (claim.interval[end] === null ? 0 : Math.abs(claim.interval[end] - claim.interval[0])));
    return {
      x: own.map((claim) => claim.interval[0]), y: own.map((claim) => claim.name), mode: "markers", name: verdict,
      error_x: { type: "data", symmetric: false, array: ends(2), arrayminus: ends(1), thickness: 1.6, width: 0 },
      marker: { color: shades[verdict], size: 11, symbol: own.map((claim) => (claim.expected === "higher" ? "triangle-right" : "triangle-left")) },
      text: own.map((claim) => `${claim.arm} / ${claim.baseline}: ${claim.ratio}`),
      hovertemplate: "<b>%{y}</b><br>%{text}<extra></extra>",
    };
  });
  const names = shownClaims.map((claim) => claim.name);
  const line = { type: "line", x0: 1, x1: 1, yref: "paper", y0: 0, y1: 1, line: { width: 1, color: style("--soft") } };
  const rows = axis("", { autorange: "reversed", categoryorder: "array", categoryarray: names, type: "category" });
  return [traces, layout(axis("ratio of arm and baseline", { type: "log", ...ticks }), rows, { shapes: [line] })];
}
if (byId("claims-plot")) draw(byId("claims-plot"), claimsFigure);

for (const element of document.querySelectorAll("[data-plot]")) {
  const { plot } = content.analyses[Number(element.dataset.plot)];
  draw(element, () => {
    const bar = plot.kind === "bar";
    const traces = plot.series.map((series) => ({
      ...series, type: bar ? "bar" : "scatter", mode: "lines+markers",
      line: { dash: series.dash ?? "solid" }, error_y: { type: "data", symmetric: false, array: series.above, arrayminus: series.below, thickness: 1.2, width: 4 },
      hovertemplate: `<b>${series.name}</b><br>${plot.x} %{x}<br>${plot.y} %{y:.3~g}<extra></extra>`,
    }));
    const scale = (name) => ((plot.logarithmic ?? "").includes(name) ? { type: "log", ...ticks } : {});
    return [traces, layout(axis(plot.x, bar ? { type: "category" } : scale("x")), axis(plot.y, scale("y")), { barmode: "group" })];
  });
}

// The explorer

function settingOf(sweep) {
  const values = Object.values(showcases)[0][sweep];
  return values[Math.min(Number(byId("explorer-value").value), values.length - 1)];
}

let asked = 0; // number of the latest drawing; an earlier one may finish loading its pictures later
async function drawExplorer() {
  asked += 1;
  const own = asked;
  const label = Number(chosen("explorer-class"));
  const sweep = chosen("explorer-sweep");
  const slider = byId("explorer-value");
  const values = Object.values(showcases)[0][sweep];
  slider.max = values.length - 1;
  const value = settingOf(sweep);
  const setting = `${sweep === "truncation_psi" ? "ψ" : "guidance"} = ${value}`;
  byId("explorer-shown").textContent = setting;
  slider.setAttribute("aria-valuetext", setting);
  const option = `${sweep}=${value}`;
  const index = Object.values(showcases)[0].labels[label];
  byId("explorer-code").textContent = `pipeline(${index}, ${option}, generator=torch.Generator().manual_seed(0)).images[0]`;
  await Promise.all(Object.entries(showcases).map(async ([run, shown]) => {
    const image = await picture(`${run}/${sweep}-${label}.webp`);
    const canvas = byId(`explorer-${run}`);
    if (own !== asked) return;
    const { side, seeds } = shown;
    const row = shown[sweep].indexOf(value);
    canvas.getContext("2d").drawImage(image, 0, row * side, seeds.length * side, side, 0, 0, seeds.length * side, side);
    canvas.setAttribute("aria-label", `${seeds.length} samples of ${run}, class ${shown.names[label]}, ${setting}`);
    canvas.dataset.shown = `${label} ${option}`;
  }));
}

if (showcases) {
  for (const [run, shown] of Object.entries(showcases)) {
    const row = document.createElement("div");
    row.className = "row";
    const name = document.createElement("div");
    const fids = scaling.rows.filter((entry) => entry.run === run && entry.seed === shown.seed);
    name.innerHTML = "<strong></strong><small></small>";
    name.firstChild.textContent = run;
    name.lastChild.textContent = fids.length ? `FID ${fids[0].fid.toPrecision(3)}` : "";
    const canvas = document.createElement("canvas");
    canvas.id = `explorer-${run}`;
    canvas.width = shown.seeds.length * shown.side;
    canvas.height = shown.side;
    canvas.className = shown.side < 128 ? "pixelated" : "";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", run);
    row.append(name, canvas);
    byId("explorer-rows").append(row);
  }
  whenSeen(byId("explorer-rows"), drawExplorer);
  for (const id of ["explorer-class", "explorer-sweep", "explorer-value"]) onChange(id, drawExplorer);

  const showInside = () => {
    const run = chosen("inside-run");
    const shown = showcases[run];
    byId("levels").src = dataUrl(`${run}/levels.webp`);
    byId("levels").alt = `Level images of ${run}: ${shown.labels.length} samples, ${shown.levels} levels each`;
    const video = byId("walk");
    video.src = dataUrl(`${run}/walk.mp4`);
    video.setAttribute("aria-label", `Interpolation between samples of ${run}`);
    if (!still.matches) video.play().catch(() => {}); // some browsers block autoplay
    const neighbours = byId("neighbours");
    neighbours.closest("figure").hidden = !shown.neighbours.samples;
    if (shown.neighbours.samples) {
      neighbours.src = dataUrl(`${run}/neighbours.webp`);
      neighbours.alt = `Samples of ${run} and real images, each with its nearest training images`;
      const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
      byId("distances").textContent = `Median distance to the nearest training image: samples ${median(shown.neighbours.samples).toFixed(2)}, `
        + `real images (to other ones) ${median(shown.neighbours.reals).toFixed(2)}.`;
    }
    for (const id of ["levels", "neighbours"]) byId(id).classList.toggle("pixels", shown.side < 128);
  };
  whenSeen(byId("inside"), showInside);
  onChange("inside-run", showInside);
}

// The live generator

if (live) {
  const status = byId("live-status");
  const fresh = { a: null, b: null }; // random noise, where it is not that of a seed
  let session = null;
  let ort = null;
  let busy = false;
  let again = false;

  const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

  async function load() {
    status.textContent = "loading …";
    const script = new Blob([await bytes("ort.wasm.bundle.min.mjs")], { type: "text/javascript" });
    const url = URL.createObjectURL(script);
    ort = await import(url);
    URL.revokeObjectURL(url);
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmBinary = (await bytes("ort-wasm-simd-threaded.wasm.gz")).buffer;
    session = await ort.InferenceSession.create(await bytes("generator.onnx"), { executionProviders: ["wasm"] });
    status.textContent = "running in this browser";
    await generate();
  }

  // One image at a time; of the requests meanwhile, only the last one is served.
  async function generate() {
    if (!session) return;
    again = busy;
    if (busy) return;
    busy = true;
    try {
      await makeImage();
    } catch (error) {
      status.textContent = `The generator failed: ${error.message}`;
    } finally {
      busy = false;
    }
    if (again) await generate();
  }

  async function makeImage() {
    const begin = performance.now();
    const z = new Float32Array(live.noise[0].length * 2);
    const labels = new BigInt64Array(2);
    ["a", "b"].forEach((sample, i) => {
      const index = Number(byId(`live-seed-${sample}`).value);
      z.set(fresh[sample] ?? live.noise[index], i * live.noise[0].length);
      labels[i] = BigInt(byId(`live-class-${sample}`).value);
    });
    const one = (id) => new ort.Tensor("float32", Float32Array.of(Number(byId(id).value)), [1]);
    const { pixels } = await session.run({
      z: new ort.Tensor("float32", z, [2, z.length / 2]), labels: new ort.Tensor("int64", labels, [2]),
      truncation_psi: one("live-psi"), mix: one("live-mix"),
    });
    const [height, width] = pixels.dims;
    const image = new ImageData(width, height);
    for (let i = 0; i < width * height; i += 1) {
      image.data.set(pixels.data.subarray(3 * i, 3 * i + 3), 4 * i);
      image.data[4 * i + 3] = 255;
    }
    const canvas = byId("live-canvas");
    if (canvas.width !== width) [canvas.width, canvas.height] = [width, height];
    canvas.getContext("2d").putImageData(image, 0, 0);
    byId("live-time").textContent = `· ${(performance.now() - begin).toFixed(1)} ms per image`;
    canvas.dataset.count = Number(canvas.dataset.count ?? 0) + 1;
  }

  byId("live-canvas").classList.toggle("pixelated", live.side < 128);
  for (const id of ["live-class-a", "live-class-b", "live-mix", "live-psi"]) onChange(id, generate);
  for (const sample of ["a", "b"]) {
    const seed = byId(`live-seed-${sample}`);
    seed.addEventListener("input", () => {
      if (seed.value === "") return;
      seed.value = Math.min(Math.max(Math.round(Number(seed.value)) || 0, 0), live.noise.length - 1);
      fresh[sample] = null;
      generate();
    });
    byId(`live-new-${sample}`).addEventListener("click", () => {
      fresh[sample] = Float32Array.from(live.noise[0], normal);
      seed.value = ""; // not that of a seed
      generate();
    });
  }
  let walk = null; // the running animation, if any
  byId("live-play").addEventListener("click", () => {
    const own = walk ? null : {};
    walk = own;
    byId("live-play").setAttribute("aria-pressed", own !== null);
    const step = async (time) => {
      if (own === null || walk !== own) return;
      byId("live-mix").value = (1 - Math.cos(time / 1500)) / 2;
      await generate();
      requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  });
  whenSeen(byId("live-canvas"), () => load().catch((error) => {
    status.textContent = `The generator cannot run here: the browser, or the policy of the site that shows this page, does not allow it (${error.message}).`;
  }));
}

// Tables and settings

for (const heading of document.querySelectorAll("#trainings th")) {
  heading.querySelector("button").addEventListener("click", () => {
    const descending = heading.getAttribute("aria-sort") === "ascending";
    document.querySelectorAll("#trainings th").forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const column = [...heading.parentNode.children].indexOf(heading);
    const body = document.querySelector("#trainings tbody");
    const value = (row) => row.children[column].dataset.value;
    const compare = (a, b) => {
      const [left, right] = [value(a), value(b)];
      if (left === "" || right === "") return (left === "") - (right === "");
      const order = isNaN(left) || isNaN(right) ? left.localeCompare(right) : left - right;
      return descending ? -order : order;
    };
    body.append(...[...body.children].sort(compare));
  });
}

function showSettings() {
  byId("made-settings").textContent = content.trainings[Number(byId("made-training").value)].text;
}
onChange("made-training", showSettings);
showSettings();

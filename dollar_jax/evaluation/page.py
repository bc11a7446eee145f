"""The frame of a report: its HTML skeleton, style sheet and script.

Nothing is fetched: fonts are the reader's own, pictures and videos lie in data
URLs. Colours follow the reader's setting; wide things scroll sideways.
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1><p>{summary}</p></header>
<main>{body}</main>
<footer>{footer}</footer>
<script>{script}</script>
</body>
</html>
"""

STYLE = """
:root {
  --paper: #ffffff; --ink: #1d1f23; --soft: #656a73; --line: #e2e4e8;
  --tint: #f5f6f8; --accent: #2563c9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #131518; --ink: #e7e9ec; --soft: #9aa1ab; --line: #2c3037;
    --tint: #1c1f24; --accent: #7fb0ff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 64rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  -webkit-text-size-adjust: 100%; overflow-wrap: break-word;
}
h1 { font-size: clamp(1.7rem, 5vw, 2.4rem); line-height: 1.15; margin: 0; }
header p { color: var(--soft); font-size: 1.1rem; margin: .6rem 0 0; }
h2 {
  font-size: 1.3rem; margin: 3rem 0 .75rem; padding-top: 1.5rem;
  border-top: 1px solid var(--line);
}
p { max-width: 44rem; margin: .75rem 0; }
footer { color: var(--soft); font-size: .875rem; margin-top: 3rem; }
pre {
  background: var(--tint); border-radius: .5rem; padding: .8rem 1rem;
  overflow-x: auto; font-size: .875rem;
}
details { margin: .75rem 0; }
summary { color: var(--accent); cursor: pointer; }
figure { margin: 1.5rem 0; }
figcaption { color: var(--soft); font-size: .875rem; margin-top: .6rem; }
.wide { overflow-x: auto; }
.wide:focus-visible { outline: 2px solid var(--accent); }
.highlights {
  display: grid; gap: .75rem; margin: 1.5rem 0;
  grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
}
.highlights div {
  display: flex; flex-direction: column-reverse; justify-content: flex-end;
  background: var(--tint); border-radius: .75rem; padding: .9rem 1.1rem;
}
.highlights dt { color: var(--soft); font-size: .875rem; line-height: 1.35; }
.highlights dd {
  margin: 0; font-size: 1.75rem; font-weight: 650; line-height: 1.3;
}
table {
  border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; line-height: 1.35;
}
th, td {
  padding: .55rem .7rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line);
}
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
tbody th { font-weight: 600; min-width: 7.5rem; }
th:first-child { position: sticky; left: 0; background: var(--paper); }
thead th:not(:first-child), .number { text-align: right; }
td small { display: block; color: var(--soft); white-space: nowrap; }
.wide svg { display: block; max-width: 100%; height: auto; }
.wide svg text { fill: currentColor; font-family: inherit !important; }
.clips {
  display: grid; align-items: center; gap: 0 .6rem;
  min-width: calc(6rem + var(--columns) * 4.75rem);
  max-width: calc(8rem + var(--columns) * 9rem);
  grid-template-columns: minmax(5rem, 8rem) repeat(var(--columns), 1fr);
  grid-template-rows: auto repeat(var(--rows), 1fr);
  column-gap: 0;
}
.clips.large {
  min-width: calc(6rem + var(--columns) * 8rem);
  max-width: calc(8rem + var(--columns) * 14rem);
}
.clips.large video, .clips.large img { image-rendering: auto; }
.clips i, .clips b {
  grid-column: 1; position: sticky; left: 0; z-index: 1; align-self: stretch;
  display: flex; align-items: center; padding-right: .6rem;
  background: var(--paper); font-size: .875rem; line-height: 1.3;
}
.clips i { grid-row: 1; }
.clips span {
  padding: 0 .3rem .4rem; align-self: end; text-align: center;
  color: var(--soft); font-size: .8rem; line-height: 1.25;
}
.clips video, .clips img {
  grid-area: 2 / 2 / span var(--rows) / span var(--columns);
  display: block; width: 100%; height: auto; border-radius: .4rem;
  image-rendering: pixelated;
}
button {
  font: inherit; color: var(--accent); background: none; cursor: pointer;
  border: 1px solid var(--line); border-radius: .4rem; min-width: 4.75rem;
  padding: .15rem .7rem; margin-right: .8rem;
}
@media print { button { display: none; } }
"""

# All grids stop and go together, so that what is compared stays in step.
SCRIPT = """
const videos = [...document.querySelectorAll("video")];
const buttons = [...document.querySelectorAll("figcaption button")];
function run(on) {
  for (const video of videos) {
    video.currentTime = 0;
    on ? video.play().catch(() => {}) : video.pause();
  }
  for (const button of buttons) button.textContent = on ? "Pause" : "Play";
}
for (const button of buttons) {
  button.hidden = false;
  button.onclick = () => run(button.textContent == "Play");
}
for (const video of videos) {
  // Some browsers refuse a video in a data URL, but take it as a blob.
  video.addEventListener("error", async () => {
    const blob = await (await fetch(video.src)).blob();
    video.src = URL.createObjectURL(blob);
  }, {once: true});
}
if (matchMedia("(prefers-reduced-motion: reduce)").matches) run(false);
"""

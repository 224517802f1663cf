"""The look of report.html, inline so that the page opens offline: one light and one dark theme, no scripts, no fonts
to fetch. The colours of the curves are Okabe and Ito's, which colour-blind readers can tell apart.
"""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfb; --card: #ffffff; --ink: #1c1f24; --soft: #5f6670; --faint: #9aa1ab; --rule: #e4e5e1;
  --accent: #0072b2; --c0: #8a929c; --c1: #0072b2; --c2: #d55e00; --c3: #009e73; --c4: #cc79a7; --c5: #b8860b;
  --right: 0, 114, 178; --wrong: 213, 94, 0; --deep: #ffffff; --alarm: #b3261e; --alarm-paper: #fdf1ef;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --card: #1b1e23; --ink: #e8e9ea; --soft: #a3a9b2; --faint: #70777f; --rule: #2c3037;
    --accent: #56b4e9; --c0: #8d949d; --c1: #56b4e9; --c2: #f28c4b; --c3: #2dc198; --c4: #dd9dc0; --c5: #e6b93c;
    --right: 86, 180, 233; --wrong: 242, 140, 75; --deep: #0d0f12; --alarm: #ff8a80; --alarm-paper: #2a1b1b;
  }
}
* { box-sizing: border-box; }
html { font-size: 16px; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font-family: "Inter", "Helvetica Neue", "Segoe UI", "Liberation Sans", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1080px; margin: 0 auto; padding: 56px 28px 72px; }
header .over { color: var(--accent); font-weight: 600; font-size: .82rem; letter-spacing: .06em; }
h1 { font-size: clamp(1.9rem, 4.5vw, 2.7rem); line-height: 1.12; letter-spacing: -.022em; margin: .15em 0 .25em;
  overflow-wrap: anywhere; }
header p { color: var(--soft); margin: 0; }
h2 { font-size: 1.22rem; letter-spacing: -.01em; margin: 3.2rem 0 .9rem; }
h2 + p.lead { margin: -.55rem 0 1.1rem; color: var(--soft); font-size: .93rem; max-width: 60em; }
h3 { font-size: .93rem; font-weight: 600; margin: 0 0 .4rem; }
code, pre, .mono { font-family: "JetBrains Mono", "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
  font-size: .84rem; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px; margin: 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(var(--all), minmax(0, 1fr)); gap: 14px; margin-top: 2.1rem; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 15px 14px 14px 16px; }
.tile.wide { grid-column: span 2; }
.few .tile { padding: 15px 14px; display: flex; flex-direction: column; justify-content: center; }
.few .tile.main { padding-left: 20px; } .few .tile:not(.main) .value { font-size: 1.32rem; }
.tile .name { color: var(--soft); font-size: .82rem; }
.tile .value { font-size: 1.4rem; font-weight: 600; letter-spacing: -.02em; line-height: 1.3; white-space: nowrap; }
.tile .more { color: var(--soft); font-size: .78rem; }
.tile.main { grid-column: span 2; grid-row: span var(--rows); display: flex; flex-direction: column;
  justify-content: center; border-color: var(--accent); }
.tile.main .value { font-size: clamp(2.5rem, 6vw, 3.5rem); letter-spacing: -.035em; color: var(--accent); }
.tile.main .name { font-size: .95rem; }
.alarms { margin-top: 1.8rem; padding: 15px 20px 17px; border: 1px solid var(--alarm); border-left-width: 6px;
  border-radius: 12px; background: var(--alarm-paper); }
.alarms h2 { margin: 0 0 .5rem; color: var(--alarm); font-size: 1.05rem; }
.alarms ul { list-style: none; margin: 0; padding: 0; font-size: .93rem; }
.alarms li { display: grid; grid-template-columns: 7.5em 1fr; gap: 0 14px; padding: 3px 0; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 18px; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 16px 18px 12px;
  min-width: 0; }
.card svg { display: block; width: 100%; height: auto; overflow: visible; }
.head { display: flex; justify-content: space-between; flex-wrap: wrap; gap: 2px 16px; }
.legend { color: var(--soft); font-size: .8rem; display: flex; flex-wrap: wrap; gap: 2px 14px; }
.legend i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; }
.legend i.flat { height: 0; border-top: 2px dashed var(--c0); border-radius: 0; background: none; }
.legend i.flat.key-3 { border-color: var(--c3); } .legend i.flat.key-4 { border-color: var(--c4); }
.legend i.flat.key-5 { border-color: var(--c5); }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.curve.raw { opacity: .28; stroke-width: 1.2; }
.curve.flat { stroke-dasharray: 7 6; stroke-linecap: butt; stroke-width: 1.8; }
.best { fill: none; stroke-width: 1.6; }
.point { opacity: .55; }
.diagonal { stroke: var(--faint); stroke-dasharray: 5 5; fill: none; }
.grid { stroke: var(--rule); fill: none; }
.axis { stroke: var(--faint); fill: none; }
.tick { fill: var(--soft); font-size: 14.5px; }
.value-alone { fill: var(--ink); font-size: 17px; font-weight: 600; }
.line-0 { stroke: var(--c0); } .line-1 { stroke: var(--c1); } .line-2 { stroke: var(--c2); }
.line-3 { stroke: var(--c3); } .line-4 { stroke: var(--c4); } .line-5 { stroke: var(--c5); }
.fill-0 { fill: var(--c0); } .fill-1 { fill: var(--c1); } .fill-2 { fill: var(--c2); }
.fill-3 { fill: var(--c3); } .fill-4 { fill: var(--c4); } .fill-5 { fill: var(--c5); }
.key-0 { background: var(--c0); } .key-1 { background: var(--c1); } .key-2 { background: var(--c2); }
.key-3 { background: var(--c3); } .key-4 { background: var(--c4); } .key-5 { background: var(--c5); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th { text-align: left; font-weight: 500; color: var(--soft); font-size: .8rem; padding: 5px 14px 5px 0; }
td { padding: 5px 14px 5px 0; border-top: 1px solid var(--rule); vertical-align: top; overflow-wrap: anywhere; }
td.key { white-space: nowrap; color: var(--soft); }
td.number, th.number { text-align: right; white-space: nowrap; }
tbody tr:first-child td { border-top: 0; } thead + tbody tr:first-child td { border-top: 1px solid var(--rule); }
tr.average td { color: var(--soft); } tr.average.first td { border-top: 2px solid var(--rule); }
.bar { display: inline-block; width: 64px; height: 6px; border-radius: 3px; background: var(--rule);
  margin-right: 12px; vertical-align: middle; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--accent); }
.account { display: flex; height: 16px; border-radius: 5px; overflow: hidden; margin: 4px 0 12px; gap: 1px; }
.account i { display: block; height: 100%; }
i.dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 8px; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 18px;
  align-items: start; }
table.confusion { width: auto; border-collapse: separate; border-spacing: 2px; font-size: .82rem; margin: 0 auto; }
table.confusion td { border: 0; padding: 0; min-width: var(--cell); height: calc(.55 * var(--cell) + 14px);
  text-align: center; vertical-align: middle; border-radius: 4px; white-space: nowrap;
  background: rgba(var(--right), var(--v)); }
table.confusion td.wrong { background: rgba(var(--wrong), var(--v)); }
table.confusion td.none { color: var(--faint); background: rgba(128, 128, 128, .06); }
table.confusion td.deep { color: var(--deep); font-weight: 600; }
table.confusion th { padding: 2px 8px; text-align: right; max-width: 11em; color: var(--ink); font-weight: 400; }
table.confusion thead th { text-align: center; vertical-align: bottom; padding: 2px; }
table.confusion thead th span { display: inline-block; max-width: var(--cell); overflow: hidden;
  text-overflow: ellipsis; }
table.confusion.long thead th span { writing-mode: vertical-rl; transform: rotate(180deg); max-width: none;
  max-height: 9em; }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 16px 14px; }
figure { margin: 0; }
figure img { width: 100%; display: block; border-radius: 8px; border: 1px solid var(--rule);
  image-rendering: pixelated; background: #fff; }
figcaption { font-size: .8rem; line-height: 1.35; margin-top: 6px; overflow-wrap: anywhere; }
figcaption small { color: var(--soft); font-size: .76rem; }
.said { color: var(--c2); font-weight: 600; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 150px), 1fr)); gap: 16px;
  align-items: start; }
.samples img, img.smooth { image-rendering: auto; }
.stage, .kinds { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 18px;
  align-items: start; }
.stage pre { overflow-y: auto; max-height: 34em; }
.kinds.three { grid-template-columns: repeat(auto-fit, minmax(min(100%, 290px), 1fr)); }
.stage + .kinds { margin-top: 18px; }
h3.earlier { margin: 1.6rem 0 .6rem; }
details { margin-top: .8rem; } summary { cursor: pointer; color: var(--soft); font-size: .9rem; }
tr.changed td:first-child, tr.changed td.value { font-weight: 600; }
footer { margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--rule); color: var(--faint);
  font-size: .82rem; }
@media (max-width: 940px) {
  .tiles { grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); }
  .tile.main { grid-column: 1 / -1; grid-row: auto; }
}
@media (max-width: 700px) {
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .tile.wide { grid-column: auto; } .tile.odd { grid-column: span 2; }
}
@media (max-width: 560px) { main { padding: 32px 16px 48px; } }
@media print { body { background: #fff; } .card, .tile { break-inside: avoid; } }
"""

"""The report's looks: light or dark by the reader's setting, light on paper, narrow on a phone."""

CSS = """
:root { --paper: #fff; --ink: #1c1f23; --soft: #5a636e; --line: #d5dae0; --shade: #f4f6f8;
  --think: #0072b2; --no-think: #c04f00; --right: #1a7f37; --wrong: #b3261e;
  --supervised: #cfeed6; }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #15181c; --ink: #e4e7eb; --soft: #a0a9b4; --line: #363d46; --shade: #1e2329;
    --think: #56a9e0; --no-think: #f08a4b; --right: #5fc47a; --wrong: #f28b82;
    --supervised: #1d4a2b; }
  figure svg { filter: brightness(1.18); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 70rem; background: var(--paper);
  color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-bottom: .25rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
h4 { font-size: .9rem; margin: 0 0 .4rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr));
  gap: .6rem 1.5rem; margin: 0; }
dt { font-size: .8rem; color: var(--soft); }
dd { margin: 0; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin-top: 1rem; font-size: .9rem; }
a { color: var(--think); }
li { margin: .35rem 0; }
.quiet { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; margin: .75rem 0 1rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
.caption { font-weight: 600; font-size: .9rem; margin: 1rem 0 -.4rem; break-after: avoid; }
th, td { padding: .3rem .6rem; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th.group { text-align: center; color: var(--ink); border-left: 1px solid var(--line); }
th.word, td.word { text-align: left; white-space: normal; min-width: 5.5rem; max-width: 26rem;
  overflow-wrap: break-word; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr));
  gap: 1rem;
  margin: 1rem 0; align-items: start; }
figure { margin: 0; }
figure svg { width: 100%; height: auto; max-width: 26rem; display: block; }
pre { margin: 0; white-space: pre-wrap; font: .82rem/1.45 ui-monospace, "DejaVu Sans Mono", Menlo,
  Consolas, monospace; }
details { margin: .4rem 0; border: 1px solid var(--line); border-radius: 6px;
  padding: .5rem .75rem; }
summary { cursor: pointer; }
details pre { margin-top: .5rem; }
article { break-inside: avoid; }
.problem, .answer { background: var(--shade); border-radius: 6px; padding: .6rem .8rem; }
.problem p { margin: .4rem 0 0; font-size: .85rem; }
.modes { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; margin-top: .6rem;
  align-items: start; }
.answer.think { border-left: 4px solid var(--think); }
.answer.no_think { border-left: 4px solid var(--no-think); }
.answer p { margin: .4rem 0 0; }
.thinking { color: var(--soft); border-left: 2px solid var(--line); padding-left: .6rem;
  margin-bottom: .5rem; }
.tokens { background: var(--shade); border-radius: 6px; padding: .6rem .8rem; }
.given { color: var(--soft); }
.supervised { color: var(--ink); background: var(--supervised); }
.special { border: 1px solid currentColor; border-radius: 3px; padding: 0 .15em; font-size: .92em; }
.right { color: var(--right); }
.wrong { color: var(--wrong); }
.not { color: var(--soft); }
@media screen and (max-width: 40rem) {
  body { padding-top: 1rem; }
  .modes { grid-template-columns: 1fr; }
  ul { padding-left: 1.2rem; }
  table { font-size: .78rem; }
  th, td { padding: .3rem .35rem; }
  th.word, td.word { min-width: 3.6rem; }
  .note { min-width: 11rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  nav { display: none; }
  .wide { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: .2rem .35rem; }
  th.word, td.word { min-width: 0; }
  figure, tr { break-inside: avoid; }
  h2, h3, .quiet { break-after: avoid; }
  .gallery { grid-template-columns: 1fr 1fr; }
}
"""

"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("chart-data").textContent);
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const DASHES = { dashed: [8, 5], dotted: [2, 4] };
  const HEIGHT = 240;

  const short = (value) => {
    if (value == null) return "";
    const size = Math.abs(value);
    if (size >= 1e6) return +(value / 1e6).toPrecision(4) + "M";
    if (size >= 1e4) return +(value / 1e3).toPrecision(4) + "k";
    if (size && size < 1e-4) return value.toExponential(2).replace(/\.?0+e/, "e");
    return String(+value.toPrecision(4));
  };

  const line = (series) => {
    const stroke = () => color(`--${series.color}`);
    const points = series.kind === "points";
    return {
      label: series.name,
      stroke: series.kind === "pale" ? () => stroke() + "66" : stroke,
      width: series.kind === "pale" ? 1 : 2,
      dash: DASHES[series.kind],
      points: points ? { show: true, size: 6 } : { show: false },
      spanGaps: true,
      value: (_, value) => short(value),
    };
  };

  const axis = (more) => ({
    stroke: () => color("--faint"),
    grid: { stroke: () => color("--line"), width: 1 },
    ticks: { show: false },
    ...more,
  });

  const draw = (place, chart) => {
    const options = {
      width: place.clientWidth,
      height: HEIGHT,
      cursor: { sync: { key: "steps" }, drag: { x: true, y: false } },
      scales: {
        x: { time: false },
        y: chart.log ? { distr: 3 } : chart.zero ? { range: (_, low, high) => [Math.min(0, low), high * 1.05 || 1] } : {},
      },
      axes: [
        axis({ size: 30, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? short(tick) : "")) }),
        axis({ size: 58, values: (_, ticks) => ticks.map(short) }),
      ],
      series: [{ label: "step", value: (_, value) => (value == null ? "" : String(value)) }, ...chart.series.map(line)],
    };
    const data = uPlot.join(chart.series.map((series) => [series.x, series.y]));
    return new uPlot(options, data, place);
  };

  const drawn = [];
  for (const place of document.querySelectorAll(".chart")) {
    const plot = draw(place, charts[Number(place.dataset.chart)]);
    drawn.push(plot);
    new ResizeObserver(() => {
      if (place.clientWidth && place.clientWidth !== plot.width) plot.setSize({ width: place.clientWidth, height: HEIGHT });
    }).observe(place);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((plot) => plot.redraw(false)));
})();

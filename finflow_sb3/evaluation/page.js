"use strict";
(() => {
  const payload = JSON.parse(document.getElementById("charts").textContent);
  const narrow = matchMedia("(max-width: 600px)");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const css = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Colours that are names of the style sheet follow the reader's light or dark scheme.
  const painted = (value, key) => {
    if (typeof value === "string")
      return /color$/.test(key) && value.startsWith("--") ? css(value) : value;
    if (Array.isArray(value)) return value.map((item) => painted(item, key));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, painted(v, k)]));
  };

  const trace = (source) => {
    const out = painted(source, "");
    if (out.dates) out.x = payload.dates[out.dates];
    delete out.dates;
    // A telephone has no room for the names of lines that are not drawn.
    if (narrow.matches && out.visible === "legendonly") out.showlegend = false;
    return out;
  };

  const axis = (given) => ({
    gridcolor: css("--line"),
    linecolor: css("--line"),
    zerolinecolor: css("--muted"),
    automargin: true,
    ...given,
    ...(narrow.matches ? { fixedrange: true, nticks: 5 } : {}),
  });

  const layout = (chart) => {
    const given = painted(chart.layout, "");
    return {
      ...given,
      autosize: true,
      margin: { l: 8, r: 8, t: 10, b: 30 },
      font: { color: css("--ink"), size: narrow.matches ? 11 : 12.5, family: "inherit" },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      hoverlabel: { bgcolor: css("--paper"), font: { color: css("--ink") }, namelength: 24 },
      legend: { orientation: "h", y: -0.12, yanchor: "top", x: 0, bgcolor: "rgba(0,0,0,0)" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--muted"), activecolor: css("--accent") },
      dragmode: narrow.matches ? false : "zoom",
      uirevision: 1,
      xaxis: axis(given.xaxis || {}),
      yaxis: axis(given.yaxis || {}),
    };
  };

  const draw = (chart) =>
    Plotly.react(chart.id, chart.data.map(trace), layout(chart), {
      responsive: true,
      typesetMath: false,
      displaylogo: false,
      displayModeBar: narrow.matches ? false : "hover",
      // Named one by one: some of plotly's own buttons would send data to its server.
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    });
  // One at a time, so that the page can be read and scrolled while charts are drawn.
  const drawAll = async () => {
    for (const chart of payload.charts) {
      await draw(chart);
      await new Promise((resolve) => setTimeout(resolve, 0));
    }
    document.documentElement.dataset.charts = "drawn";
  };
  const drawNow = () => payload.charts.forEach(draw);

  drawAll();
  narrow.addEventListener("change", drawAll);
  dark.addEventListener("change", drawAll);
  addEventListener("beforeprint", drawNow);
})();

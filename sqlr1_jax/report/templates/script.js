// Moving over a chart shows the values of the step under the pointer; leaving it, the last ones again.
for (const figure of document.querySelectorAll("figure.chart")) {
  const { steps, x, values } = JSON.parse(figure.dataset.hover);
  const plot = figure.querySelector(".plot");
  const cursor = plot.querySelector(".cursor");
  const step = figure.querySelector(".step");
  const outputs = [...figure.querySelectorAll("output")];
  const last = outputs.map((output) => output.textContent);

  const leave = () => {
    cursor.hidden = true;
    step.textContent = "";
    outputs.forEach((output, i) => (output.textContent = last[i]));
  };
  const move = (event) => {
    const box = plot.getBoundingClientRect();
    const at = (100 * (event.clientX - box.left)) / box.width;
    let near = 0;
    x.forEach((place, i) => {
      if (Math.abs(place - at) < Math.abs(x[near] - at)) near = i;
    });
    cursor.hidden = false;
    cursor.style.left = `${x[near]}%`;
    step.textContent = `step ${steps[near].toLocaleString("en")}`;
    for (const output of outputs) output.textContent = values[output.dataset.series][near];
  };
  plot.addEventListener("pointermove", move);
  plot.addEventListener("pointerdown", move);
  plot.addEventListener("pointerleave", leave);
}
